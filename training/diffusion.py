"""What the networks learn: to tell noise (or v) from a noised sample, weighted for few sampling steps."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from show1_ray.models.random import published_config
from show1_ray.stages.sampling import DDPMScheduler, Scheduler, make_scheduler

LEAST_WEIGHT, MOST_WEIGHT = 0.05, 5.0
"""Between these an error in x0 weighs as its signal-to-noise ratio (Hang et al., Min-SNR, arXiv 2303.09556). The lower
bound is for the first steps, which decide what is in the clip, and whose weight would vanish (Salimans and Ho,
arXiv 2202.00512, bound it by 1)."""


@dataclass(frozen=True)
class Diffusion:
    """A noise schedule, with the timesteps that sampling uses.

    Attributes:
        alphas: products ᾱ of the published scheduler, by timestep: T.
        first, last: timesteps that training draws.
        prediction: "epsilon" or "v_prediction".
    """

    alphas: Tensor
    first: int
    last: int
    prediction: str

    @classmethod
    def of(cls, repo: str, *, lambda_min: float = -float("inf"), last: int | None = None) -> Diffusion:
        """The schedule of a published checkpoint.

        Args:
            repo: its name.
            lambda_min: log(α / σ) where sampling begins (the scheduler's `lambda_min_clipped`).
            last: the timestep where sampling begins, if it begins from a noised sample.
        """
        scheduler: Scheduler = make_scheduler(published_config(repo, "scheduler"))
        alphas = scheduler.alphas_cumprod
        log_ratio = 0.5 * (torch.log(alphas) - torch.log(1 - alphas))
        reached = int((log_ratio >= lambda_min - 0.1).sum()) - 1
        return cls(alphas, 0, min(reached, last or reached), scheduler.config.prediction_type)

    def sample_timesteps(self, count: int, generator: torch.Generator) -> Tensor:
        """Uniform and stratified: each draw of `count` covers the whole range."""
        strata = (torch.arange(count) + torch.rand(count, generator=generator)) / count
        shuffled = strata[torch.randperm(count, generator=generator)]
        return (self.first + shuffled * (self.last + 1 - self.first)).long()

    def noised(self, x0: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """`x0` with noise: B …; `timesteps`: B."""
        alpha, sigma = self._alpha_sigma(timesteps, x0)
        return alpha * x0 + sigma * noise

    def noise_between(self, noisy: Tensor, x0: Tensor, timesteps: Tensor) -> Tensor:
        """The noise that makes `x0` into `noisy`: B …"""
        alpha, sigma = self._alpha_sigma(timesteps, x0)
        return (noisy - alpha * x0) / sigma

    def loss(self, prediction: Tensor, x0: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """The weighted squared error in x0, which the errors in noise and in v are multiples of: B."""
        alpha, sigma = self._alpha_sigma(timesteps, x0)
        if self.prediction == "v_prediction":
            error, factor = prediction.float() - (alpha * noise - sigma * x0), sigma
        else:
            error, factor = prediction.float() - noise, sigma / alpha
        weight = (alpha**2 / sigma**2).clamp(LEAST_WEIGHT, MOST_WEIGHT)
        return (weight * factor**2 * error**2).flatten(1).mean(1)

    def _alpha_sigma(self, timesteps: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        alphas = self.alphas.to(like.device)[timesteps.to(like.device)]
        alphas = alphas.view(-1, *[1] * (like.dim() - 1)).float()
        return alphas**0.5, (1 - alphas) ** 0.5


def variance_loss(output: Tensor, x0: Tensor, noisy: Tensor, timesteps: Tensor, scheduler: DDPMScheduler) -> Tensor:
    """What teaches a learned variance: the bound's term at each timestep, with the mean held fixed.

    Nichol and Dhariwal, arXiv 2102.09672, section 3.1: KL of the true posterior from the predicted one, in nats a
    dimension.

    Args:
        output: B 2C H W: predicted noise, then the place of the log variance between its bounds, −1 to 1.
        x0, noisy: B C H W.
        timesteps: B, at least 1.
        scheduler: DDPM, whose betas are meant.

    Returns:
        B.
    """

    def at(table: Tensor, steps: Tensor) -> Tensor:
        return table.to(x0.device)[steps.to(x0.device)].view(-1, 1, 1, 1)

    noise, place = output.float().chunk(2, dim=1)
    alpha, beta = at(scheduler.alphas_cumprod, timesteps), at(scheduler.betas, timesteps)
    previous = at(scheduler.alphas_cumprod, timesteps - 1)
    least = torch.log((1 - previous) / (1 - alpha) * beta)
    log_variance = least + (place + 1) / 2 * (torch.log(beta) - least)
    predicted = ((noisy - (1 - alpha) ** 0.5 * noise.detach()) / alpha**0.5).clamp(-1, 1)
    difference = previous**0.5 * beta / (1 - alpha) * (x0 - predicted)
    kl = 0.5 * (log_variance - least - 1 + torch.exp(least - log_variance) + difference**2 * torch.exp(-log_variance))
    return kl.flatten(1).mean(1)
