"""The denoising loop and its schedulers against the published code."""

from __future__ import annotations

import pytest
import torch

from show1_ray.errors import ConfigError
from show1_ray.stages.noise import draw_ahead, draw_batch, seeded_noise
from show1_ray.stages.sampling import NoiseSchedule, denoise, make_scheduler
from tests.goldens import stored_noise

CASES = [
    "base_75",
    "base_14_lower_order",
    "sr1_125",
    "sr2_50_strength08",
    "sr1_image_70",
    "if_ddpm_50",
    "ddim_50_strength08",
]


@pytest.mark.parametrize("case", CASES)
def test_a_scheduler_walks_as_the_published_one(golden, case):
    meta, tensors = golden.meta(f"E_sampler/{case}"), golden.tensors(f"E_sampler/{case}/tensors")
    learned = meta["scheduler"]["init"].get("variance_type") == "learned_range"

    def fake_model(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:  # the formula in the case's meta.json
        noise = 0.9 * torch.tanh(1.2 * x) + 0.05 * torch.sin(t / 40)
        return torch.cat([noise, 0.5 * torch.sin(3 * x)], dim=1) if learned else noise

    schedule = NoiseSchedule.of(golden.scheduler(meta["scheduler"]), meta["steps"], meta["strength"] or 1.0)
    assert schedule.timesteps.tolist() == meta["timesteps"]
    x = schedule.add_noise(tensors["x0"], tensors["noise"]) if "x0" in tensors else tensors["x_start"]
    noises = []
    if meta["variance_draws"]:
        draws = golden.tensors(f"E_sampler/{case}/draws")["variance_noise"]
        noises = [stored_noise(draws[:, i : i + 1]) for i in range(draws.shape[1])]
    assert (denoise(fake_model, x, schedule, noises) - tensors["x_end"]).abs().max() <= 1e-5


def test_ddpm_draws_for_each_clip_of_a_batch_of_videos():
    scheduler = make_scheduler({"_class_name": "DDPMScheduler", "variance_type": "fixed_small"})
    x = torch.randn(2, 3, 4, 5, 6, generator=torch.Generator().manual_seed(0))

    def walk(rows: list[int]) -> torch.Tensor:
        noises = [seeded_noise(seed, torch.float32) for seed in rows]
        return denoise(lambda x, t: x * 0.1, x[rows], NoiseSchedule.of(scheduler, 5), noises)

    assert torch.equal(walk([0, 1])[1], walk([1])[0])
    assert not torch.equal(
        walk([0])[0],
        denoise(lambda x, t: x * 0.1, x[[0]], NoiseSchedule.of(scheduler, 5), [seeded_noise(9, torch.float32)])[0],
    )


def test_noise_that_is_drawn_ahead_is_the_same_noise():
    like = torch.empty(2, 3, dtype=torch.float16)

    def noises():
        return [seeded_noise(seed, torch.float16) for seed in (1, 2)]

    one_by_one, ahead = noises(), noises()
    expected = [draw_batch(one_by_one, (3, 4), like) for _ in range(7)]
    assert all(torch.equal(a, b) for a, b in zip(draw_ahead(ahead, (3, 4), like, 7), expected, strict=True))
    # No draw more than was asked for: what is drawn next is what would have been.
    assert torch.equal(draw_batch(ahead, (5,), like), draw_batch(one_by_one, (5,), like))


@pytest.mark.parametrize("case", CASES)
def test_the_loop_asks_the_device_for_nothing(golden, case):
    # A tensor on the meta device has no values: whatever waited for one would raise.
    meta = golden.meta(f"E_sampler/{case}")
    learned = meta["scheduler"]["init"].get("variance_type") == "learned_range"
    schedule = NoiseSchedule.of(golden.scheduler(meta["scheduler"]), meta["steps"], meta["strength"] or 1.0)
    x = torch.empty(2, 3, 4, 8, 8, device="meta")

    def predict(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return torch.cat([x, x], dim=1) * t if learned else x * t

    noises = [seeded_noise(seed, torch.float32) for seed in (1, 2)]
    assert denoise(predict, x, schedule, noises).shape == x.shape


def test_the_global_generator_is_left_alone():
    state = torch.get_rng_state()
    scheduler = make_scheduler({"_class_name": "DDPMScheduler"})
    denoise(lambda x, t: x, torch.ones(1, 3, 4, 4), NoiseSchedule.of(scheduler, 3), [seeded_noise(1, torch.float32)])
    assert torch.equal(torch.get_rng_state(), state)


def test_half_precision_noise_is_drawn_in_half_precision():
    noise = seeded_noise(7, torch.float16)((3, 4))
    assert torch.equal(noise, torch.randn(3, 4, generator=torch.Generator().manual_seed(7), dtype=torch.float16))


def test_stored_noise_of_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"wanted \(2, 2\)"):
        stored_noise([torch.zeros(3, 2)])((2, 2))
    with pytest.raises(ValueError, match="no stored noise left"):
        stored_noise([])((2, 2))


def test_an_unknown_scheduler_is_refused():
    with pytest.raises(ConfigError, match="EulerDiscreteScheduler"):
        make_scheduler({"_class_name": "EulerDiscreteScheduler"})
