"""Trains nano from nothing: `python -m training.train --out FOLDER`.

Interrupted, the same command goes on where it was. See README.md in this folder.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from training import export, phases, sheets, text
from training.loop import Phase, Trainer

ORDER: dict[str, tuple[str, ...]] = {
    "t5": (),
    "clip": (),
    "keyframe_images": ("t5", "clip"),
    "keyframes": ("t5", "clip", "keyframe_images"),
    "interpolation": ("t5", "clip", "keyframes"),
    "super_resolution": ("t5", "clip"),
    "first_frame": ("t5", "clip"),
    "vae": (),
    "latent_super_resolution": ("t5", "clip", "vae"),
}
"""The phases in their order, each with those whose networks it needs."""


class Training:
    """All phases that have their state in one folder.

    Args:
        folder: of the state.
        device: where to train.
        seed: of data and noise.
        batch_factor: by what the phases' batches, made for a CPU, are multiplied.
    """

    def __init__(self, folder: Path, device: torch.device, seed: int = 0, batch_factor: int = 1) -> None:
        self.folder, self.device, self.seed, self.batch_factor = folder, device, seed, batch_factor
        self.networks: dict[str, Any] = {}
        folder.mkdir(parents=True, exist_ok=True)

    def trainer(self, name: str) -> Trainer:
        """A phase as far as it is trained; needs the phases that it depends on."""
        return Trainer(self._phase(name), self.folder, self.device, self.seed, self.batch_factor)

    def network(self, name: str) -> Any:
        """A phase's network with averaged weights, as far as it is trained."""
        if name not in self.networks:
            network = self.trainer(name).averaged()
            if name == "vae":
                network.register_to_config(scaling_factor=phases.scaling_factor(network, self.device))
            self.networks[name] = network
        return self.networks[name]

    @property
    def texts(self) -> phases.Texts:
        """The text encoders, trained before."""
        t5, clip = self.network("t5"), self.network("clip")
        return phases.Texts(
            t5,
            text.load_tokenizer(self.folder / "t5_tokenizer"),
            clip,
            text.load_tokenizer(self.folder / "clip_tokenizer"),
        )

    def _phase(self, name: str) -> Phase:
        match name:
            case "t5" | "clip":
                return phases.text_phase(name, self.folder)
            case "keyframe_images":
                return phases.keyframe_images(self.texts)
            case "keyframes":
                return phases.keyframes(self.texts, self.network("keyframe_images"))
            case "interpolation":
                return phases.interpolation(self.texts, self.network("keyframes"))
            case "super_resolution":
                return phases.super_resolution(self.texts)
            case "first_frame":
                return phases.first_frame(self.texts)
            case "vae":
                return phases.vae()
            case _:
                return phases.latent_super_resolution(self.texts, self.network("vae"))


def train(training: Training, names: Iterable[str], minutes: float = float("inf")) -> None:
    """Trains phases one after the other, at most for so many minutes together, with sheets of samples as it goes."""
    end = time.monotonic() + 60 * minutes
    for name in names:
        trainer = training.trainer(name)
        trainer.train(end - time.monotonic(), partial(sheets.write, training))
        training.networks.pop(name, None)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m training.train", description="Trains nano from nothing, or goes on."
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of the state, the curves and the sample sheets")
    parser.add_argument("--stages", default=",".join(ORDER), help="phases to train, with commas; all by default")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="stop after so long")
    parser.add_argument("--seed", type=int, default=0, help="of data and noise")
    parser.add_argument("--threads", type=int, default=1, help="of torch, on a CPU")
    parser.add_argument("--batch-factor", type=int, help="multiplies the batches; 8 on a GPU, 1 on a CPU by default")
    parser.add_argument("--export", type=Path, help="write the checkpoints here at the end, such as pipelines/nano")
    arguments = parser.parse_args()
    names = [name for name in arguments.stages.split(",") if name]
    for name in names:
        if name not in ORDER:
            parser.error(f"--stages: {name!r} is not a phase; there are {', '.join(ORDER)}")
    torch.set_num_threads(arguments.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    factor = arguments.batch_factor or (8 if device.type == "cuda" else 1)
    training = Training(arguments.out, device, arguments.seed, factor)
    train(training, [name for name in ORDER if name in names], arguments.minutes)
    if arguments.export:
        export.write(training, arguments.export)


if __name__ == "__main__":
    main()
