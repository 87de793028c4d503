"""The guided denoising loop that all stages share."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler
from einops import rearrange
from torch import Tensor, nn

from show1_ray.errors import ConfigError
from show1_ray.stages.deep_features import DeepFeatures
from show1_ray.stages.noise import Noise, draw_ahead
from show1_ray.stages.settings import Denoising
from show1_ray.stages.steps import Step, plan_steps

Scheduler: TypeAlias = DPMSolverMultistepScheduler | DDPMScheduler | DDIMScheduler
Predict: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""(sample B C …, timestep) → prediction, whose first C channels are the noise (or v); the rest is its variance."""

SCHEDULERS: dict[str, type[Scheduler]] = {
    scheduler.__name__: scheduler for scheduler in (DPMSolverMultistepScheduler, DDPMScheduler, DDIMScheduler)
}


def make_scheduler(config: Any, **overrides: Any) -> Scheduler:
    """The scheduler of a published `scheduler_config.json` (or of another scheduler's `config`), as published.

    DPM-Solver of diffusers ≥ 0.26 steps to sigma 0 at the end; that of the published code to t = 0.
    `final_sigmas_type="sigma_min"` is the published one, and set unless overridden.

    Raises:
        ConfigError: a class that is not in `SCHEDULERS`.
    """
    config = {**config, **overrides}
    name = config.get("_class_name")
    if name not in SCHEDULERS:
        raise ConfigError(f"scheduler {name!r} is not supported; known are {', '.join(SCHEDULERS)}")
    if SCHEDULERS[name] is DPMSolverMultistepScheduler:
        config["final_sigmas_type"] = overrides.get("final_sigmas_type", "sigma_min")
    known = SCHEDULERS[name]._get_init_keys(SCHEDULERS[name])
    return SCHEDULERS[name].from_config({key: value for key, value in config.items() if key in known})


@dataclass
class NoiseSchedule:
    """A scheduler at the beginning of a denoising loop, and the timesteps (int64) that the loop walks."""

    scheduler: Scheduler
    timesteps: Tensor

    @classmethod
    def of(cls, scheduler: Scheduler, steps: int, strength: float = 1.0) -> NoiseSchedule:
        """A schedule of its own, so that no state is shared between batches.

        Args:
            scheduler: what to copy; it is left as it is.
            steps: length of the whole schedule.
            strength: the part of it that is walked: the last `int(steps * strength)` steps, as in image-to-image
                (Meng et al., SDEdit, arXiv 2108.01073).
        """
        copy = type(scheduler).from_config(scheduler.config)
        copy.set_timesteps(steps)
        skipped = steps - min(int(steps * strength), steps)
        if isinstance(copy, DPMSolverMultistepScheduler):
            copy.set_begin_index(skipped)
        return cls(copy, copy.timesteps[skipped:])

    def add_noise(self, x: Tensor, noise: Tensor) -> Tensor:
        """`x` noised to the first timestep that is walked. B … in and out."""
        return self.scheduler.add_noise(x, noise, self.timesteps[:1].expand(x.shape[0]))


def guided(
    model: nn.Module,
    text: Tensor,
    negative_text: Tensor,
    scale: float,
    *,
    plan: Iterable[Step] | None = None,
    levels: int = 0,
    condition: Tensor | None = None,
    class_labels: Tensor | None = None,
) -> Predict:
    """Classifier-free guidance (Ho and Salimans, arXiv 2207.12598), both halves as one batch: negative, then prompt.

    A learned variance is taken from the prompt's half, unguided, as in the published code.

    Args:
        model: a UNet of ours or of diffusers.
        text, negative_text: B L D.
        scale: 1 or less switches guidance off: the prompt's half alone.
        plan: the steps of one loop, if not all are alike (see `plan_steps`): what is returned is then used up by it.
        levels: of the network that are computed at every step; 0 for all (see `DeepFeatures`).
        condition: B C' …, joined to the sample's channels.
        class_labels: B, see `VideoUNet.forward`.
    """
    walk = iter(plan) if plan is not None else itertools.repeat(Step(scale > 1))
    deep = DeepFeatures(model, levels) if levels else None
    texts = {False: text, True: torch.cat([negative_text, text])}
    extra: dict[bool, dict[str, Tensor]] = {False: {}, True: {}}
    if class_labels is not None:
        extra = {False: {"class_labels": class_labels}, True: {"class_labels": torch.cat([class_labels, class_labels])}}

    def predict(x: Tensor, timestep: Tensor) -> Tensor:
        step = next(walk)
        network = model if deep is None else deep.whole if step.whole else deep.shallow
        inputs = x if condition is None else torch.cat([x, condition], dim=1)
        if step.guided:
            inputs = torch.cat([inputs, inputs])
        output = network(inputs, timestep, texts[step.guided], **extra[step.guided])
        output = output if isinstance(output, Tensor) else output.sample
        if not step.guided:
            return output
        negative, positive = output.chunk(2)
        channels = x.shape[1]
        noise = negative[:, :channels] + scale * (positive[:, :channels] - negative[:, :channels])
        return torch.cat([noise, positive[:, channels:]], dim=1)

    return predict


def guided_as_set(
    model: nn.Module,
    text: Tensor,
    negative_text: Tensor,
    settings: Denoising,
    schedule: NoiseSchedule,
    **inputs: Tensor,
) -> Predict:
    """`guided` for one loop over `schedule`, with the guidance and the shortcuts of its settings.

    Args:
        model, text, negative_text: see `guided`.
        settings: of the loop.
        schedule: what it walks.
        inputs: `condition` and `class_labels`, see `guided`.
    """
    plan = plan_steps(settings, len(schedule.timesteps))
    levels = settings.reuse.levels if settings.reuse else 0
    return guided(model, text, negative_text, settings.guidance, plan=plan, levels=levels, **inputs)


def denoise(predict: Predict, x: Tensor, schedule: NoiseSchedule, noises: Sequence[Noise] = ()) -> Tensor:
    """Walks `schedule` from `x` on.

    Frames are steps of their own for the scheduler (dynamic thresholding is per frame, as in the published code), so
    videos are folded to (B F) C H W before each step and unfolded after it.

    Args:
        predict: the model; see `guided`.
        x: B C H W or B C F H W: the noise, or the noised sample, to start from.
        schedule: a new one; it is used up.
        noises: one for each of B; needed by DDPM, which adds noise after each step but the last.

    Returns:
        The sample: like `x`.
    """
    frames = x.shape[2] if x.dim() == 5 else 0
    channels = x.shape[1]
    shape = (max(frames, 1), channels, *x.shape[-2:])
    is_ddpm = isinstance(schedule.scheduler, DDPMScheduler)
    # Timesteps are asked for on the CPU, where schedulers look up their tables: the device is never waited for.
    draws = draw_ahead(noises, shape, x, int((schedule.timesteps > 0).sum()) if is_ddpm else 0)
    for timestep, on_device in zip(schedule.timesteps, schedule.timesteps.to(x.device), strict=True):
        prediction = predict(x, on_device)
        rows, row_predictions = (rearrange(t, "b c f h w -> (b f) c h w") if frames else t for t in (x, prediction))
        if isinstance(schedule.scheduler, DDPMScheduler):
            noise = next(draws).flatten(0, 1) if timestep > 0 else torch.zeros_like(rows)
            rows = ddpm_step(schedule.scheduler, row_predictions, timestep, rows, noise)
        else:
            rows = schedule.scheduler.step(row_predictions[:, :channels], timestep, rows).prev_sample
        x = rearrange(rows, "(b f) c h w -> b c f h w", f=frames) if frames else rows
    return x


def ddpm_step(scheduler: DDPMScheduler, prediction: Tensor, timestep: Tensor, x: Tensor, noise: Tensor) -> Tensor:
    """One ancestral step (Ho et al., arXiv 2006.11239, equation 7), with its noise as an argument.

    diffusers' own `step` draws the noise itself, from one generator for all rows; here each clip has its own.

    Args:
        scheduler: its tables, thresholding and variance are used.
        prediction: B C H W, or B 2C H W with a learned variance (Nichol and Dhariwal, arXiv 2102.09672).
        timestep: a number, on the CPU.
        x: B C H W.
        noise: B C H W, standard normal; not used at timestep 0.
    """
    channels = x.shape[1]
    learned = scheduler.variance_type in ("learned", "learned_range")
    noise_prediction, predicted_variance = prediction[:, :channels], prediction[:, channels:]
    previous = scheduler.previous_timestep(timestep)
    alpha = scheduler.alphas_cumprod[timestep]
    alpha_previous = scheduler.alphas_cumprod[previous] if previous >= 0 else scheduler.one
    step_alpha = alpha / alpha_previous

    if scheduler.config.prediction_type == "v_prediction":
        x0 = alpha**0.5 * x - (1 - alpha) ** 0.5 * noise_prediction
    else:
        x0 = (x - (1 - alpha) ** 0.5 * noise_prediction) / alpha**0.5
    if scheduler.config.thresholding:
        x0 = scheduler._threshold_sample(x0)
    elif scheduler.config.clip_sample:
        x0 = x0.clamp(-scheduler.config.clip_sample_range, scheduler.config.clip_sample_range)

    mean = (alpha_previous**0.5 * (1 - step_alpha) * x0 + step_alpha**0.5 * (1 - alpha_previous) * x) / (1 - alpha)
    if timestep == 0:
        return mean
    variance = scheduler._get_variance(timestep, predicted_variance=predicted_variance if learned else None)
    if scheduler.variance_type == "fixed_small_log":  # a standard deviation already
        return mean + variance * noise
    return mean + (torch.exp(0.5 * variance) if scheduler.variance_type == "learned_range" else variance**0.5) * noise
