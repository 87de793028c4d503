"""What a job is predicted to take."""

from __future__ import annotations

import json
import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from show1_ray.cli import app
from show1_ray.errors import UserError
from show1_ray.line.load import StageLoad
from show1_ray.line.simulate import simulate
from show1_ray.pipeline import Pipeline
from show1_ray.planning.costs import EFFICIENCY, LAND_SECONDS, count_stages
from show1_ray.planning.estimate import (
    NEAR_LEAST,
    RAY_SECONDS,
    SIMULATED,
    estimate,
    find_basis,
    line_seconds,
    line_specs,
)
from show1_ray.planning.profile import BatchCost, Profile, StageProfile, profile_path, save_profile
from show1_ray.show1.stages import STAGES

PETA = 1e15


@pytest.fixture(scope="module")
def pipeline(tiny, tmp_path_factory):
    """The tiny cascade in a folder of its own, where profiles may be kept."""
    folder = tmp_path_factory.mktemp("planned") / "tiny"
    shutil.copytree(tiny.parent, folder)
    return Pipeline.load(folder / tiny.name)


def profile_of(pipeline, seconds=1.0, load_seconds=0.0, size=10, **changes) -> Profile:
    """A profile in which every stage costs the same."""
    stage = StageProfile(
        load_seconds=load_seconds,
        leave_seconds=0.0,
        swap_seconds=0.0,
        weights=size,
        batches=(BatchCost(size=1, seconds=seconds, memory=size),),
    )
    facts = {
        "pipeline": pipeline.name,
        "recipe_hash": pipeline.resolved().recipe_hash(),
        "dtype": "float32",
        "kind": "cpu",
        "device": "CPU",
        "device_memory": 0,
        "memory": "weights",
        "threads": 1,
        "import_seconds": 5.0,
        "versions": {},
        "stages": dict.fromkeys(STAGES, stage),
    }
    return Profile.model_validate(facts | changes)


@pytest.fixture(scope="module")
def demo():
    """The published demo on 8 A100, from operation counts."""
    return estimate(Pipeline.load("show1-demo"), 1000, 8, "a100-80g", price=2.5)


START = 2 * 5.0 + RAY_SECONDS


def test_one_station_takes_the_sum_of_all_work_and_of_the_start(pipeline):
    plan = estimate(pipeline, 10, 1, "cpu", profile=profile_of(pipeline, load_seconds=3.0), price=0.5)
    seconds = START + 5 * 3.0 + 10 * 5 * 1.0 + LAND_SECONDS
    assert plan.asked.hours == pytest.approx(seconds / 3600)
    assert plan.asked.gpu_hours == pytest.approx(seconds / 3600)
    assert plan.asked.cost == pytest.approx(0.5 * seconds / 3600)
    assert plan.asked.clips_an_hour == pytest.approx(10 / seconds * 3600)
    assert plan.asked.busy_share == pytest.approx(50 / seconds)


def test_two_stations_take_half_of_the_work_each(pipeline):
    plan = estimate(pipeline, 10, 2, "cpu", profile=profile_of(pipeline))
    assert plan.asked.hours * 3600 == pytest.approx(START + 25, abs=1.1)


def test_more_gpus_never_take_more_hours_and_are_never_busier_than_all_the_time(pipeline, demo):
    small = estimate(pipeline, 37, 3, "cpu", profile=profile_of(pipeline, load_seconds=2.0))
    for plan in (small, demo):
        hours = [choice.hours for choice in plan.choices]
        assert hours == sorted(hours, reverse=True)
        assert all(0 < choice.busy_share <= 1 for choice in plan.choices)


def test_the_best_number_is_the_largest_that_costs_hardly_more(demo):
    least = min(choice.gpu_hours for choice in demo.choices)
    near = [choice.gpus for choice in demo.choices if choice.gpu_hours <= NEAR_LEAST * least]
    assert demo.best == max(near)
    assert demo.best < max(choice.gpus for choice in demo.choices)


def test_with_room_for_everything_every_station_holds_every_stage(pipeline):
    assert estimate(pipeline, 4, 3, "cpu", profile=profile_of(pipeline)).pins == ((3, tuple(STAGES)),)


def test_on_cards_with_room_for_one_stage_each_has_one(pipeline):
    gpu = {"kind": "cuda", "device": "NVIDIA L4", "memory": "peak", "device_memory": 10000}
    profile = profile_of(pipeline, size=6000, **gpu)
    plan = estimate(pipeline, 4, 5, "L4", profile=profile)
    assert sorted(pins for _, pins in plan.pins) == sorted((stage,) for stage in STAGES)
    assert "measured on NVIDIA L4" in plan.source


def test_a_stage_that_does_not_fit_is_refused_with_the_card():
    with pytest.raises(UserError, match=r"T4: 13\.4 GiB .* too little for super_resolution, which takes 20\.0 GiB"):
        estimate(Pipeline.load("show1-demo", ["super_resolution.memory=20"]), 10, 8, "T4")


def test_a_gpu_that_is_not_known_is_refused(pipeline):
    with pytest.raises(UserError, match=r"^GPU V100: not known; there are T4, "):
        estimate(pipeline, 10, 1, "V100")


def test_a_cpu_needs_a_profile(pipeline):
    with pytest.raises(UserError, match=r"^no profile of tiny on a CPU: .*`show1-ray profile \S*tiny"):
        estimate(pipeline, 10, 1, "cpu")


def test_a_profile_of_another_recipe_is_ignored_and_that_is_said(pipeline):
    gpu = {"kind": "cuda", "device": "NVIDIA H200", "recipe_hash": "0123456789abcdef"}
    path = profile_path(pipeline, "NVIDIA H200")
    save_profile(profile_of(pipeline, **gpu), path)
    plan = estimate(pipeline, 10, 1, "H200")
    assert plan.source.startswith("operation counts")
    assert any(str(path) in sentence and "0123456789abcdef" in sentence for sentence in plan.assumptions)
    path.unlink()


def test_a_profile_that_was_asked_for_must_fit(pipeline):
    with pytest.raises(UserError, match="measured with recipe 0123456789abcdef"):
        estimate(pipeline, 10, 1, "cpu", profile=profile_of(pipeline, recipe_hash="0123456789abcdef"))
    with pytest.raises(UserError, match="measured on CPU, not on H200"):
        estimate(pipeline, 10, 1, "H200", profile=profile_of(pipeline))


def test_operations_of_the_demo_are_those_of_the_design():
    counts = count_stages(Pipeline.load("show1-demo"))
    peta = {name: count.operations / PETA for name, count in counts.items()}
    assert peta["keyframes"] == pytest.approx(0.79, abs=0.006)
    assert peta["interpolation"] == pytest.approx(2.29, abs=0.006)
    assert peta["super_resolution"] == pytest.approx(0.19 + 5.23, abs=0.012)
    assert peta["latent_super_resolution"] == pytest.approx(2.07, rel=0.05)  # and the VAE, which that table leaves out
    assert sum(peta.values()) == pytest.approx(10.57, rel=0.01)
    assert counts["keyframes"].weights == pytest.approx(2 * 1.727e9, rel=0.001)


def test_without_a_profile_operations_and_the_datasheet_count(demo):
    assert "operation counts" in demo.source
    assert "312 TFLOP/s" in demo.source
    assert any("35%" in sentence for sentence in demo.assumptions)
    assert any("1 GB/s from each node's disk, where the weights" in sentence for sentence in demo.assumptions)
    assert sum(stage.seconds for stage in demo.stages) == pytest.approx(10.57 * PETA / (312e12 * EFFICIENCY), rel=0.01)
    assert demo.asked.cost == pytest.approx(2.5 * demo.asked.gpu_hours)


def test_a_large_job_goes_on_as_it_began(pipeline):
    basis = find_basis(pipeline, "cpu", profile_of(pipeline))
    specs = line_specs(pipeline, basis.costs)
    assert line_seconds(specs, 10**6, 4, basis.room) == pytest.approx(10**6 * 5 / 4, rel=0.01)
    clips = 2 * SIMULATED
    loads = [StageLoad(spec.name, spec.batch_size, spec.seconds, on_station=spec.on == "station") for spec in specs]
    whole = simulate(loads, 4, clips, memory=basis.room).seconds
    assert line_seconds(specs, clips, 4, basis.room) == pytest.approx(whole, rel=0.01)


def test_the_command_counts_the_manifests_clips_and_answers_in_words_and_json(pipeline, tmp_path, capsys):
    profile = tmp_path / "profile.json"
    save_profile(profile_of(pipeline), profile)
    pq.write_table(pa.table({"prompt": ["a red circle", "a blue square"]}), tmp_path / "prompts.parquet")
    command = ["plan", str(tmp_path / "prompts.parquet"), "--pipeline", str(pipeline.file), "--profile", str(profile)]
    command += ["--gpus", "2", "--samples", "5", "--limit", "9", "--price", "1"]
    app(command, standalone_mode=False)
    words = capsys.readouterr().out
    assert "tiny, 9 clips on 2 x CPU" in words
    assert "every stage" in words
    assert "best: " in words
    app([*command, "--json"], standalone_mode=False)
    plan = json.loads(capsys.readouterr().out)
    assert plan["clips"] == 9
    assert plan["asked"]["gpus"] == 2
    assert plan["best"] in [choice["gpus"] for choice in plan["choices"]]
