"""A model on CPU cores: says what a clip shows, and rejects it where the model is not sure enough.

    python examples/judge.py        # writes a classifier with random weights to examples/judge_model
    show1-ray render examples/pictures.jsonl --out judged --pipeline examples/judge.yaml --code examples

The model is of transformers, and is loaded once by each station of the stage.
"""

from pathlib import Path

from pydantic import Field

from show1_ray import Needs, Reject, Stage, StageSettings
from show1_ray.pipeline.checkpoints import Checkpoint, folder_of

COMPONENTS = ("model",)


class Judge(Stage):
    """Names what the middle frame shows."""

    class Settings(StageSettings):
        checkpoint: Checkpoint = Field(description="an image classifier of transformers, in the folder `model`")
        least: float = Field(0.0, ge=0, le=1, description="clips that score less are rejected")

    takes = {"video": "f h w c"}
    gives = {"label": "value", "score": "value"}  # become the columns judge_label and judge_score

    @classmethod
    def checkpoints(cls, settings):
        return [Needs(settings.checkpoint, COMPONENTS)]

    def load(self, device):
        from transformers import AutoModelForImageClassification  # here: the driver does without it

        self.device = device
        folder = folder_of(self.settings.checkpoint, COMPONENTS) / "model"
        self.model = AutoModelForImageClassification.from_pretrained(folder).eval().to(device)

    def run(self, clips, values):
        return [self.verdict(v["video"]) for v in values]

    def verdict(self, video):
        import torch

        frame = torch.from_numpy(video[len(video) // 2].copy()).permute(2, 0, 1)[None].float() / 127.5 - 1
        size = self.model.config.image_size
        pixels = torch.nn.functional.interpolate(frame, (size, size), mode="bilinear", antialias=True)
        with torch.no_grad():
            scores = self.model(pixels.to(self.device)).logits.softmax(1)[0]
        found = {"label": self.model.config.id2label[int(scores.argmax())], "score": float(scores.max())}
        if found["score"] < self.settings.least:
            return Reject(f"{found['label']} scores {found['score']:.2f}, less than {self.settings.least:g}", found)
        return found


def write_model(folder):
    """A classifier with random weights, of a few kB, in place of one that was trained."""
    import torch
    from transformers import ViTConfig, ViTForImageClassification

    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = ViTConfig(image_size=32, patch_size=8, **sizes, id2label=dict(enumerate(["calm", "busy"])))
    ViTForImageClassification(config).save_pretrained(Path(folder) / "model")


if __name__ == "__main__":
    write_model(Path(__file__).parent / "judge_model")
