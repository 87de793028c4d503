"""Image pipelines over the frames of clips (`over: frames`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from show1_ray.clip import Clip
from show1_ray.errors import ConfigError
from show1_ray.pipeline.pipeline import Pipeline
from show1_ray.stage import NonFiniteError, StageError
from show1_ray.stages.diffusers.frames import OverFrames
from tests import tiny_diffusers as tiny
from tests import tiny_images

CLIPS = [Clip("a", "a red ball", "blurred", 3), Clip("b", "a cat on a mat", None, 7)]
CALLS: dict[str, dict[str, Any]] = {
    "sdxl": {"strength": 0.5, "num_inference_steps": 4},
    "upscaler": {"num_inference_steps": 2, "noise_level": 20},
}
SCALES = {"sdxl": 1, "upscaler": 4}
SOURCE = """
import numpy as np
from show1_ray import Stage, StageSettings

class Source(Stage):
    "Frames of noise."
    class Settings(StageSettings):
        height: int = 16
        width: int = 24
    gives = {"frames": "f h w c"}

    @classmethod
    def shapes(cls, settings, context, given):
        from show1_ray.stage import Shape
        return {"frames": Shape("f h w c", (3, settings.height, settings.width, 3), "uint8")}

    def run(self, clips, values):
        size = (3, self.settings.height, self.settings.width, 3)
        return [{"frames": np.random.default_rng(clip.seed).integers(0, 256, size, np.uint8)} for clip in clips]
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("images")


def pipeline(place: Path, name: str, *changes: str, **more: Any) -> Pipeline:
    """Frames of noise, upscaled."""
    code = place / "source.py"
    code.write_text(SOURCE)
    stage = {"uses": "diffusers", "checkpoint": {"repo": str(tiny_images.folder(name, place))}, "call": CALLS[name]}
    stage |= {"over": "frames", "takes": {"image": "source"}, **more}
    said = {"fps": 8, "dtype": "float32", "stages": {"source": {"uses": "source:Source"}, "video": stage}}
    file = place / f"{name}.yaml"
    file.write_text(yaml.safe_dump(said))
    return Pipeline.load(file, list(changes), code)


def frames_of(clip: Clip, height: int = 16, width: int = 24) -> np.ndarray:
    return np.random.default_rng(clip.seed).integers(0, 256, (3, height, width, 3), np.uint8)


def direct(place: Path, name: str, clip: Clip, seeds: list[int], size: tuple[int, int] | None = None) -> np.ndarray:
    """What the pipeline's own call gives for each frame."""
    pipe = diffusers.DiffusionPipeline.from_pretrained(place / name, dtype=torch.float32)
    texts = {"prompt": clip.prompt} | ({"negative_prompt": clip.negative_prompt} if clip.negative_prompt else {})
    found = []
    for frame, seed in zip(frames_of(clip), seeds, strict=True):
        image = Image.fromarray(frame)
        image = image if size is None else image.resize(size, Image.Resampling.LANCZOS)
        generator = torch.Generator("cpu").manual_seed(seed)
        found.append(np.asarray(pipe(**texts, image=image, **CALLS[name], generator=generator).images[0]))
    return np.stack(found)


@pytest.mark.parametrize("name", CALLS)
def test_each_frame_is_that_of_the_direct_call(place: Path, name: str) -> None:
    rendered = pipeline(place, name)
    for clip, frames in zip(CLIPS, tiny.rendered(rendered, CLIPS), strict=True):
        assert frames.shape == (3, 16 * SCALES[name], 24 * SCALES[name], 3) == rendered.video_shape.sizes
        assert np.array_equal(frames, direct(place, name, clip, [clip.seed] * 3))


def test_each_frame_has_its_own_noise_where_that_is_asked_for(place: Path) -> None:
    [same] = tiny.rendered(pipeline(place, "sdxl"), CLIPS[:1])
    [each] = tiny.rendered(pipeline(place, "sdxl", noise="each"), CLIPS[:1])
    assert np.array_equal(each[0], same[0])
    assert not np.array_equal(each[1], same[1])
    # The first 32 bits of SHA-256 of "3/1", and of "3/2".
    assert np.array_equal(each, direct(place, "sdxl", CLIPS[0], [3, 43145981, 1831324184]))


def test_frames_are_resized_before(place: Path) -> None:
    rendered = pipeline(place, "sdxl", resize={"height": 32, "width": 48})
    [frames] = tiny.rendered(rendered, CLIPS[1:])
    assert frames.shape == (3, 32, 48, 3) == rendered.video_shape.sizes
    assert np.array_equal(frames, direct(place, "sdxl", CLIPS[1], [7] * 3, (48, 32)))


def over_frames(rendered: Pipeline) -> OverFrames:
    """The stage as a station loads it."""
    stage = next(one for one in rendered.wired() if one.name == "video")
    return OverFrames(stage.settings, stage.context, "cpu")


@pytest.mark.parametrize("name", CALLS)
def test_a_batch_goes_over_frames_of_several_clips(place: Path, name: str) -> None:
    """As on a GPU, where a batch is computed as one; here on a CPU, to see that it is the same but for rounding."""
    work = over_frames(pipeline(place, name, noise="each"))
    values = [{"image": frames_of(clip)} for clip in CLIPS]
    clips = [CLIPS[0], Clip("c", "a cat", "dark", 8)]
    alone = work(clips, values)
    sizes = []
    call = work.pipe.prepare_latents

    def counting(*given: Any, **named: Any) -> Any:
        found = call(*given, **named)
        sizes.append(len(found))
        return found

    work.pipe.prepare_latents = counting
    work.device = "as on a GPU"
    together = work(clips, values)
    assert sizes == [6]
    for one, other in zip(alone, together, strict=True):
        assert np.abs(one.astype(int) - other).max() <= 1


@pytest.mark.parametrize(
    ("name", "change", "expected"),
    [
        ("sdxl", "video.call.strength=0.2", "call.strength: 0.2 of 4 steps is not one step"),
        ("sdxl", "video.call={num_inference_steps: 3}", "call.num_inference_steps: 0.3 of 3 steps is not one step"),
        ("sdxl", "source.width=26", "takes.image: StableDiffusionXLImg2ImgPipeline would cut frames of 26x16"),
        ("sdxl", "source.width=26", "give resize: {height: 16, width: 24}"),
        ("sdxl", "video.resize={height: 30, width: 24}", "resize: StableDiffusionXLImg2ImgPipeline would cut"),
        ("upscaler", "video.call.noise_level=351", "call.noise_level: 351: the checkpoint takes 0 to 350"),
        ("upscaler", "video.call.noise_level=-1", "call.noise_level: -1: the checkpoint takes 0 to 350"),
        ("sdxl", "video.takes={}", "over: there are no frames to go over: give takes: {image: STAGE}"),
        ("sdxl", "video.takes={image: 'source[0]'}", "over: there are no frames to go over"),
        ("sdxl", "video.split=true", "over: frames does not go with split"),
        ("sdxl", "video.pipeline=SanaPipeline", "SanaPipeline takes no image: there is nothing to go over"),
        ("sdxl", "video.pipeline=AnimateDiffSDXLPipeline", "gives video; only pipelines that give images"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_loaded(
    place: Path, name: str, change: str, expected: str
) -> None:
    pipeline(place, name)
    with pytest.raises(ConfigError) as error:
        Pipeline.load(place / f"{name}.yaml", [change], place / "source.py")
    assert expected in str(error.value)


def test_noise_and_resize_without_frames_to_go_over_are_refused(place: Path) -> None:
    with pytest.raises(ConfigError, match="noise: goes with over: frames only"):
        pipeline(place, "sdxl", over=None, noise="each")


def test_a_prompt_that_would_be_cut_fails_its_clip_each_time(place: Path) -> None:
    work = over_frames(pipeline(place, "sdxl"))
    long = Clip("long", "x" * 100, None, 1)
    for _ in range(2):
        with pytest.raises(StageError, match=r"clip long: stage video: its prompt has 101 tokens, but .* encodes 77"):
            work([long], [{"image": frames_of(long)}])


def test_frames_whose_size_is_not_known_before_are_not_cut_in_silence(place: Path) -> None:
    work = over_frames(pipeline(place, "sdxl"))
    with pytest.raises(StageError, match=r"would cut its frames of 26x16: give resize: \{height: 16, width: 24\}"):
        work(CLIPS[:1], [{"image": frames_of(CLIPS[0], 16, 26)}])


def test_a_frame_that_is_not_finite_fails_its_own_clip(place: Path) -> None:
    work = over_frames(pipeline(place, "sdxl"))
    work.device = "as on a GPU"
    encode = work.pipe.encode_prompt

    def broken(prompt: Any, *more: Any, **named: Any) -> Any:
        found = encode(prompt, *more, **named)
        for place, text in enumerate([prompt] if isinstance(prompt, str) else prompt):
            if text == CLIPS[1].prompt:
                found[0][place] = float("nan")
        return found

    work.pipe.encode_prompt = broken
    clips = [CLIPS[0], Clip("b", CLIPS[1].prompt, "dark", 7)]
    with pytest.raises(NonFiniteError, match="clip b: stage video: frame 0 has NaN"):
        work(clips, [{"image": frames_of(clip)} for clip in clips])
