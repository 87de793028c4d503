from pathlib import Path
from typing import Any

import pytest
import torch

from show1_ray.pipeline import Pipeline
from show1_ray.show1.cascade import load_stages
from show1_ray.show1.random import published_config
from show1_ray.stages.sampling import NoiseSchedule, denoise, make_scheduler
from training import export, networks, phases
from training.diffusion import LEAST_WEIGHT, MOST_WEIGHT, Diffusion, variance_loss
from training.loop import Draw, Phase, Trainer
from training.train import ORDER, Training

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def training(tmp_path_factory: pytest.TempPathFactory) -> Training:
    """Nothing trained yet."""
    return Training(tmp_path_factory.mktemp("training"), CPU)


def phase(training: Training, steps: int = 12, rate: float = 1e-3) -> Phase:
    whole = phases.keyframe_images(training.texts)
    return Phase("images", steps, 4, rate, whole.network, whole.loss, whole.frozen)


def test_a_few_steps_lower_the_loss(training: Training, tmp_path: Path):
    trainer = Trainer(phase(training, steps=30), tmp_path, CPU)

    def loss() -> float:
        with torch.no_grad():
            return float(trainer.phase.loss(trainer.network, Draw.of("test", 0, 0, CPU), 16))

    before = loss()
    trainer.train()
    assert loss() < 0.7 * before


def test_a_training_that_was_interrupted_ends_bit_for_bit_as_one_that_was_not(training: Training, tmp_path: Path):
    whole = Trainer(phase(training, 4), tmp_path / "whole", CPU)
    for _ in range(4):
        whole.make_step()
    first = Trainer(phase(training, 4), tmp_path / "parts", CPU)
    for _ in range(2):
        first.make_step()
    first.save()
    second = Trainer(phase(training, 4), tmp_path / "parts", CPU)
    assert second.step == 2
    while not second.done:
        second.make_step()
    assert all(torch.equal(value, second.average[name]) for name, value in whole.average.items())


def test_single_frames_train_no_temporal_layer(training: Training, tmp_path: Path):
    trainer = Trainer(phase(training), tmp_path, CPU)
    before = {name: value.clone() for name, value in trainer.network.state_dict().items()}
    trainer.make_step()
    changed = {name for name, value in trainer.network.state_dict().items() if not torch.equal(value, before[name])}
    assert changed
    assert not any("temp_" in name for name in changed)


@pytest.mark.parametrize(("stage", "first", "sign"), [("keyframes", 0, 1.0), ("super_resolution", 3, -1.0)])
def test_a_network_begins_as_the_identity(stage: str, first: int, sign: float):
    torch.manual_seed(0)
    unet = networks.make(stage)
    networks.start_as_identity(unet, first, sign)
    x = torch.randn(2, unet.config.in_channels, 3, 8, 12)
    inputs: dict[str, Any] = {} if stage == "keyframes" else {"class_labels": torch.tensor([10, 20])}
    with torch.no_grad():
        output = unet(x, torch.tensor([100, 900]), torch.randn(2, 5, phases.text.WIDTH), **inputs)[:, :3]
    assert (output - sign * x[:, first : first + 3]).square().mean() < 0.02


def test_the_loss_is_zero_for_a_perfect_prediction_and_weighs_errors_in_x0():
    torch.manual_seed(0)
    x0, noise, error = torch.rand(3, 8, 3, 4, 4).unbind()
    for repo in ("show-1-base", "show-1-sr1"):
        diffusion = Diffusion.of(repo, lambda_min=-3.0)
        steps = torch.linspace(20, diffusion.last, 8).long()
        alpha, sigma = (t.view(-1, 1, 1, 1) for t in diffusion._alpha_sigma(steps, steps))
        noisy = diffusion.noised(x0, noise, steps)
        epsilon = diffusion.prediction == "epsilon"
        perfect = (noisy - alpha * x0) / sigma if epsilon else (alpha * noisy - x0) / sigma
        assert diffusion.loss(perfect, x0, noisy, steps).max() < 1e-9
        # The same error in x0, made by either prediction, costs the same.
        wrong = perfect - error * (alpha / sigma if epsilon else 1 / sigma)
        weight = (alpha**2 / sigma**2).clamp(LEAST_WEIGHT, MOST_WEIGHT).flatten()
        expected = weight * error.square().flatten(1).mean(1)
        assert torch.allclose(diffusion.loss(wrong, x0, noisy, steps), expected, rtol=1e-3)


@pytest.mark.parametrize("repo", ["show-1-base", "show-1-sr1"])
def test_what_is_learned_is_what_sampling_from_noise_alone_meets(repo: str):
    diffusion = Diffusion.of(repo, lambda_min=-1.0)
    scheduler = make_scheduler(published_config(repo, "scheduler"), lambda_min_clipped=-1.0, thresholding=False)
    schedule = NoiseSchedule.of(scheduler, 6)
    torch.manual_seed(0)
    x0, noise = torch.rand(2, 1, 3, 4, 4)[:, :, None].expand(2, 1, 2, 3, 4, 4).transpose(2, 3).contiguous()
    met = dict[int, torch.Tensor]()

    def perfect(x: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        met[int(timestep)] = x
        alpha, sigma = diffusion._alpha_sigma(timestep[None], x)
        return (x - alpha * x0) / sigma if diffusion.prediction == "epsilon" else (alpha * x - x0) / sigma

    denoise(perfect, noise, schedule)
    assert max(met) == diffusion.last
    for timestep, x in met.items():
        assert torch.allclose(diffusion.noised(x0, noise, torch.tensor([timestep])), x, atol=1e-4)


def test_the_learned_variance_is_best_where_it_is_the_posterior_s_with_a_perfect_mean():
    diffusion = Diffusion.of("IF-II-L-v1.0")
    scheduler = make_scheduler(published_config("IF-II-L-v1.0", "scheduler"))
    torch.manual_seed(0)
    x0, noise = torch.rand(2, 4, 3, 4, 4).unbind()
    steps = torch.tensor([1, 300, 600, 900])
    noisy = diffusion.noised(x0, noise, steps)
    losses = [
        variance_loss(torch.cat([noise, torch.full_like(noise, place)], 1), x0, noisy, steps, scheduler).mean()
        for place in (-1.0, 0.0, 1.0)
    ]
    assert losses[0] < 1e-6 < losses[1] < losses[2]


def test_what_is_exported_loads_as_the_shipped_pipeline_does(training: Training, tmp_path: Path):
    export.write(training, tmp_path / "nano")
    size = sum(path.stat().st_size for path in (tmp_path / "nano").rglob("*") if path.is_file())
    assert size <= 25e6
    (tmp_path / "nano.yaml").write_text(Pipeline_text())
    stages = load_stages(Pipeline.load(tmp_path / "nano.yaml"))
    unet = stages[1].networks["unet"]
    trained = training.network("keyframes").state_dict()
    for name, value in unet.state_dict().items():
        assert torch.equal(value, trained[name].half().float())


def Pipeline_text() -> str:
    return (Path(__file__).parents[2] / "pipelines" / "nano.yaml").read_text()


def test_phases_come_after_those_that_they_need():
    names = list(ORDER)
    assert all(names.index(needed) < names.index(name) for name in names for needed in ORDER[name])
