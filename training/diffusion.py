"""What the networks learn: to tell noise (or v) from a noised sample, weighted for few sampling steps."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from show1_ray.show1.random import published_config
from show1_ray.stages.sampling import DDPMScheduler, Scheduler, make_scheduler

LEAST_WEIGHT, MOST_WEIGHT = 0.3, 5.0
"""Between these an error in x0 weighs as its signal-to-noise ratio (Hang et al., Min-SNR, arXiv 2303.09556). The lower
bound is for the first steps, which decide what is in the clip, and whose weight would vanish (Salimans and Ho,
arXiv 2202.00512, bound it by 1)."""


@dataclass(frozen=True)
class Diffusion:
    """A noise schedule as sampling walks it, which is what is trained.

    Sampling begins with noise alone, at a timestep where the schedule still has a part α₀ of signal. Trained on the
    schedule's own samples, a network reads there from the signal what it should take from the text, and finds none when
    it samples (Lin et al., arXiv 2305.08891): shapes moved, but which way was a coin's toss. DPM-Solver++ (Lu et al.,
    arXiv 2211.01095) that begins with noise alone is exact for samples in which the signal's part is
    α − σ α₀ / σ₀ and the noise's σ / σ₀. So those are learned, and sampling may begin at as little noise as is best for
    a small network: an error in predicted noise is one σ / α times as large in x0.

    Attributes:
        alphas: products ᾱ of the published scheduler, by timestep: T.
        last: timestep where sampling begins.
        prediction: "epsilon" or "v_prediction".
        from_noise: whether sampling begins with noise alone; else with a noised sample.
    """

    alphas: Tensor
    last: int
    prediction: str
    from_noise: bool = False

    @classmethod
    def of(cls, repo: str, *, lambda_min: float | None = None, last: int | None = None) -> Diffusion:
        """The schedule of a published checkpoint.

        Args:
            repo: its name.
            lambda_min: log(α / σ) where sampling begins with noise alone (the scheduler's `lambda_min_clipped`).
            last: the timestep where sampling begins with a noised sample; without either, the published last.
        """
        begin = {} if lambda_min is None else {"lambda_min_clipped": lambda_min}
        scheduler: Scheduler = make_scheduler(published_config(repo, "scheduler"), **begin)
        if begin:
            scheduler.set_timesteps(10)
            last = int(scheduler.timesteps[0])
        alphas = scheduler.alphas_cumprod
        last = len(alphas) - 1 if last is None else last
        return cls(alphas, last, scheduler.config.prediction_type, lambda_min is not None)

    def sample_timesteps(self, count: int, generator: torch.Generator) -> Tensor:
        """Uniform and stratified: each draw of `count` covers the whole range."""
        strata = (torch.arange(count) + torch.rand(count, generator=generator)) / count
        shuffled = strata[torch.randperm(count, generator=generator)]
        return (shuffled * (self.last + 1)).long()

    def noised(self, x0: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """`x0` with noise, as sampling meets it at these timesteps: B …; `timesteps`: B."""
        alpha, sigma = self._alpha_sigma(timesteps, x0)
        if not self.from_noise:
            return alpha * x0 + sigma * noise
        alpha_0, sigma_0 = self._alpha_sigma(torch.full_like(timesteps, self.last), x0)
        return (alpha - sigma * alpha_0 / sigma_0) * x0 + sigma / sigma_0 * noise

    def x0(self, prediction: Tensor, noisy: Tensor, timesteps: Tensor) -> Tensor:
        """What a prediction of noise (or v) says that the clip is: B …"""
        alpha, sigma = self._alpha_sigma(timesteps, noisy)
        if self.prediction == "v_prediction":
            return alpha * noisy - sigma * prediction.float()
        return (noisy - sigma * prediction.float()) / alpha

    def loss(self, prediction: Tensor, x0: Tensor, noisy: Tensor, timesteps: Tensor) -> Tensor:
        """The squared error in x0, weighted by the signal-to-noise ratio between bounds: B."""
        alpha, sigma = self._alpha_sigma(timesteps, x0)
        weight = (alpha**2 / sigma**2).clamp(LEAST_WEIGHT, MOST_WEIGHT)
        return (weight * (self.x0(prediction, noisy, timesteps) - x0) ** 2).flatten(1).mean(1)

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
