"""The training loop: resumable, bit for bit on a CPU with one thread, as each step's data follow from its number."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

SAVE_SECONDS = 120.0
SAVES_PER_SHEET = 6
NEW_RATE = 3.0
AVERAGE = 0.996
LOG_STEPS = 25


@dataclass
class Draw:
    """Where a step's randomness comes from: NumPy for scenes, torch for noise; from phase, step and seed."""

    rng: np.random.Generator
    generator: torch.Generator
    device: torch.device

    @classmethod
    def of(cls, phase: str, step: int, seed: int, device: torch.device) -> Draw:
        """Of one step."""
        rng = np.random.default_rng([seed, step, *phase.encode()])
        return cls(rng, torch.Generator().manual_seed(int(rng.integers(2**62))), device)

    def noise(self, like: Tensor) -> Tensor:
        """Standard normal, of the shape of `like`."""
        return torch.randn(like.shape, generator=self.generator).to(self.device)


@dataclass
class Phase:
    """One part of the training.

    Attributes:
        name: names its state.
        steps: how many.
        batch: clips (or frames, or captions) a step, on a CPU.
        rate: learning rate.
        network: what learns; its averaged weights are what counts.
        loss: (network, draw, batch size) → the step's loss.
        frozen: says which parameters rest.
        new: says which parameters begin untrained among trained ones: they learn at `NEW_RATE` times the rate.
        after: called with the network after each step, to set weights that are not to be learned.
    """

    name: str
    steps: int
    batch: int
    rate: float
    network: Any
    loss: Callable[[Any, Draw, int], Tensor]
    frozen: Callable[[str], bool] = field(default=lambda name: False)
    new: Callable[[str], bool] = field(default=lambda name: False)
    after: Callable[[Any], None] = field(default=lambda network: None)


class Trainer:
    """A phase's state: network, averaged weights, optimizer, step, curve.

    Args:
        phase: what to train.
        folder: where `<name>.pt` (the state) and `<name>.jsonl` (the curve) lie.
        device: "cuda" or "cpu".
        seed: of data and noise.
        batch_factor: by what the phase's batch is multiplied.
    """

    def __init__(self, phase: Phase, folder: Path, device: torch.device, seed: int = 0, batch_factor: int = 1) -> None:
        self.phase, self.folder, self.device, self.seed = phase, folder, device, seed
        self.batch = phase.batch * batch_factor
        self.network = phase.network.to(device).train()
        for name, parameter in self.network.named_parameters():
            parameter.requires_grad_(not phase.frozen(name))
        learning = {name: p for name, p in self.network.named_parameters() if p.requires_grad}
        known = [p for name, p in learning.items() if not phase.new(name)]
        new = [p for name, p in learning.items() if phase.new(name)]
        groups = [(known, 1.0), (new, NEW_RATE)] if new else [(known, 1.0)]
        self.factors = [factor for _, factor in groups]
        self.optimizer = torch.optim.AdamW(
            [{"params": parameters} for parameters, _ in groups], lr=phase.rate, betas=(0.9, 0.98), weight_decay=0.0
        )
        self.average = {name: value.clone() for name, value in self.network.state_dict().items()}
        self.step, self.seconds = 0, 0.0
        if self.path.is_file():
            self._load()

    @property
    def path(self) -> Path:
        """The state's file."""
        return self.folder / f"{self.phase.name}.pt"

    @property
    def done(self) -> bool:
        """Whether all steps are made."""
        return self.step >= self.phase.steps

    def train(self, seconds: float = float("inf"), sheet: Callable[[Trainer], None] | None = None) -> None:
        """Trains until the steps are made or `seconds` are over, and saves.

        Args:
            seconds: of wall time.
            sheet: called after every sixth save, to make a sheet of samples.
        """
        start = saved = time.monotonic()
        losses: list[float] = []
        saves = 0
        while not self.done and time.monotonic() - start < seconds:
            losses.append(self.make_step())
            if self.step % LOG_STEPS == 0 or self.done:
                line = {
                    "step": self.step,
                    "loss": round(float(np.mean(losses)), 6),
                    "minutes": round((self.seconds + time.monotonic() - start) / 60, 2),
                }
                with (self.folder / f"{self.phase.name}.jsonl").open("a") as file:
                    file.write(json.dumps(line) + "\n")
                print(self.phase.name, json.dumps(line), flush=True)
                losses = []
            if time.monotonic() - saved > SAVE_SECONDS:
                self.seconds += time.monotonic() - start
                start, seconds, saved = time.monotonic(), seconds - (time.monotonic() - start), time.monotonic()
                self.save()
                saves += 1
                if sheet and saves % SAVES_PER_SHEET == 0:
                    sheet(self)
        self.seconds += time.monotonic() - start
        self.save()

    def make_step(self) -> float:
        """One step of AdamW with warm-up and, in the last third, decay; then the averages. Returns the loss."""
        phase = self.phase
        left = (phase.steps - self.step) / phase.steps
        for group, factor in zip(self.optimizer.param_groups, self.factors, strict=True):
            group["lr"] = factor * phase.rate * min(1.0, (self.step + 1) / 100, 3 * left + 0.02)
        draw = Draw.of(phase.name, self.step, self.seed, self.device)
        with self._precision_and_kernels():
            loss = phase.loss(self.network, draw, self.batch)
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
        nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        self.optimizer.step()
        phase.after(self.network)
        self.step += 1
        decay = min(AVERAGE, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            for name, value in self.network.state_dict().items():
                average = self.average[name]
                average.lerp_(value, 1 - decay) if value.is_floating_point() else average.copy_(value)
        return loss.item()

    @contextmanager
    def _precision_and_kernels(self) -> Iterator[None]:
        with ExitStack() as stack:
            on_cpu = self.device.type == "cpu"
            if on_cpu and not torch.cpu.get_capabilities().get("avx512_bf16"):
                yield  # what computes bfloat16 by other instructions takes 2.7 times as long as single precision
                return
            stack.enter_context(torch.autocast(self.device.type, torch.bfloat16))
            if on_cpu:  # torch's fused attention is slow backwards over eight frames in bfloat16
                stack.enter_context(sdpa_kernel(SDPBackend.MATH))
            yield

    def averaged(self) -> Any:
        """The phase's network with its averaged weights: the same module, so training must not go on."""
        self.network.load_state_dict(self.average)
        return self.network.eval().requires_grad_(False)

    def save(self) -> None:
        """Writes the state, whole or not at all."""
        self.folder.mkdir(parents=True, exist_ok=True)
        state: dict[str, Any] = {
            "network": self.network.state_dict(),
            "average": self.average,
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "seconds": self.seconds,
        }
        temporary = self.path.with_suffix(".tmp")
        torch.save(state, temporary)
        temporary.rename(self.path)

    def _load(self) -> None:
        state = torch.load(self.path, map_location=self.device, weights_only=True)
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.average = state["average"]
        self.step, self.seconds = state["step"], state["seconds"]
