"""Tensors that the published code produced, for tests and for benchmarks/numerics.py; see golden/README.md."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel, UNet3DConditionModel
from safetensors.torch import load_file
from torch import Tensor

from show1_ray.clip import Clip
from show1_ray.pipeline.checkpoints import Checkpoint
from show1_ray.show1 import VideoUNet
from show1_ray.stages.noise import Noise, seeded_noise
from show1_ray.stages.sampling import Scheduler, make_scheduler

ANY = Checkpoint(repo="/")
TEXT = ("prompt_embeds", "negative_prompt_embeds")


def stored_noise(draws: Iterable[Tensor]) -> Noise:
    """Hands out `draws` one after the other, to repeat what was drawn elsewhere.

    The function that it returns raises ValueError when a draw has another shape than the one asked for (axes of length
    1 in front do not count), or when there is none left.
    """
    remaining = iter(draws)

    def noise(shape: Sequence[int]) -> Tensor:
        draw = next(remaining, None)
        if draw is None:
            raise ValueError(f"no stored noise left for shape {tuple(shape)}")
        if draw.shape[-len(shape) :] != tuple(shape) or draw.numel() != torch.Size(shape).numel():
            raise ValueError(f"stored noise has shape {tuple(draw.shape)}; wanted {tuple(shape)}")
        return draw.reshape(tuple(shape))

    return noise


@dataclass(frozen=True)
class Golden:
    """Tensors that the published code produced; see golden/README.md."""

    folder: Path

    @classmethod
    def unpacked(cls, folder: Path) -> Golden:
        """Unpacks them to a folder."""
        with tarfile.open(Path(__file__).parent / "golden" / "golden.tar.xz") as archive:
            archive.extractall(folder, filter="data")
        return cls(folder)

    def tensors(self, path: str) -> dict[str, Tensor]:
        return load_file(self.folder / f"{path}.safetensors")

    def meta(self, path: str, name: str = "meta") -> dict[str, Any]:
        return json.loads((self.folder / path / f"{name}.json").read_text())

    def network(self, path: str) -> Any:
        """The network of a case, loaded as the project loads published ones."""
        config = self.meta(path, "config")
        kind, init = self.kind(config), dict(config["init"])
        if kind is UNet3DConditionModel and config["class"].startswith("show1"):
            init["attention_head_dim"] = 64  # show-1-sr2's configuration gives numbers of heads there
        known = kind._get_init_keys(kind) if kind is not VideoUNet else init
        network = kind.from_config({key: value for key, value in init.items() if key in known})
        weights = self.tensors(f"{path}/weights")
        network.load_state_dict({name: weight.float() for name, weight in weights.items()})
        return network.eval()

    @staticmethod
    def kind(config: Mapping[str, Any]) -> Any:
        library, _, name = config["class"].rpartition(".")
        if library == "show1" and not config["init"]["transfromer_in_opt"]:
            return VideoUNet
        return {
            "UNet2DConditionModel": UNet2DConditionModel,
            "UNet3DConditionModel": UNet3DConditionModel,
            "AutoencoderKL": AutoencoderKL,
        }[name]

    @staticmethod
    def scheduler(meta: Mapping[str, Any]) -> Scheduler:
        init = {key: float(value) if value == "-inf" else value for key, value in meta["init"].items()}
        return make_scheduler({"_class_name": meta["class"], **init})


class Case:
    """A golden call of a published pipeline."""

    def __init__(self, golden: Golden, name: str) -> None:
        self.name, path = name, f"B_stage/{name}"
        self.meta, self.inputs = golden.meta(path), golden.tensors(f"{path}/inputs")
        self.expected = golden.tensors(f"{path}/output")["output"]
        self.call = self.meta["call"]
        self.unet = golden.network(f"A_unet/{self.meta['unet']}")
        self.scheduler = golden.scheduler(self.meta["scheduler"])
        self.noising = self.meta["image_noising_scheduler"] and golden.scheduler(self.meta["image_noising_scheduler"])
        self.count = self.call["b"]
        listed = self.call.get("gen") == "list"
        self.clips = [Clip(str(i), "", seed=self.meta["seed"] + i * listed) for i in range(self.count)]
        self.stored = golden.tensors(f"{path}/draws") if self.count > 1 and not listed else None

    @property
    def text(self) -> tuple[Tensor, Tensor]:
        return self.inputs["prompt_embeds"], self.inputs["negative_prompt_embeds"]

    @property
    def noise(self) -> list[Noise]:
        """From the seeds; where one generator drew for a batch, the stored draws."""
        if self.stored is None:
            return [seeded_noise(clip.seed, torch.float32) for clip in self.clips]
        draws = [self.stored[draw["tensor"]].chunk(self.count) for draw in self.meta["draws"]]
        return [stored_noise([draw[i] for draw in draws]) for i in range(self.count)]

    def settings(self, kind: Any, **more: Any) -> Any:
        return kind(checkpoint=ANY, steps=self.call["steps"], guidance=self.call["g"], **more)

    def tensors(self, **more: Tensor) -> list[dict[str, Tensor]]:
        given = {**{name: self.inputs[name] for name in TEXT}, **more}
        return [{name: tensor[i] for name, tensor in given.items()} for i in range(self.count)]
