"""What stages cost, measured and kept; with the tiny cascade."""

from __future__ import annotations

import io
import shutil
from contextlib import redirect_stdout

import pytest
import torch
from typer.testing import CliRunner

from show1_ray.cli import app
from show1_ray.errors import UserError
from show1_ray.pipeline import Pipeline
from show1_ray.pipeline.lineup import stage_specs
from show1_ray.planning.costs import at_batch_size, costs_of_job
from show1_ray.planning.gpus import GPUS, find_gpu, same_device
from show1_ray.planning.profile import (
    CPU,
    BatchCost,
    StageProfile,
    check_place,
    cpu_name,
    find_profile,
    measure,
    profile_path,
    read_profile,
    save_profile,
)
from show1_ray.show1.stages import STAGES


@pytest.fixture(scope="module")
def pipeline(tiny, tmp_path_factory):
    """The tiny cascade in a folder of its own, where profiles may be kept."""
    folder = tmp_path_factory.mktemp("profiled") / "tiny"
    shutil.copytree(tiny.parent, folder)
    return Pipeline.load(folder / tiny.name)


@pytest.fixture(scope="module")
def profiled(pipeline, tmp_path_factory):
    """What the command wrote and printed; and that it left torch's threads as they were."""
    out = tmp_path_factory.mktemp("out") / "profile.json"
    command = ["profile", str(pipeline.file), "--device", "cpu", "--batch-sizes", "1,2", "--repeats", "1"]
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    with redirect_stdout(io.StringIO()) as printed:
        app([*command, "--out", str(out)], standalone_mode=False)
    assert torch.get_num_threads() == 2
    torch.set_num_threads(before)
    return out, printed.getvalue()


@pytest.fixture(scope="module")
def profile(profiled):
    return read_profile(profiled[0])


@pytest.fixture
def kept(pipeline, profile):
    """The profile, kept with the pipeline."""
    path = profile_path(pipeline, profile.device)
    save_profile(profile, path)
    yield path
    shutil.rmtree(path.parent)


def on_gpu(profile, device="NVIDIA A100-SXM4-80GB"):
    return profile.model_copy(update={"kind": "cuda", "device": device, "device_memory": 80 * 2**30, "memory": "peak"})


def test_every_stage_is_measured_at_every_batch_size(profile, pipeline):
    assert tuple(profile.stages) == tuple(STAGES)
    for stage in profile.stages.values():
        assert [batch.size for batch in stage.batches] == [1, 2]
        assert all(batch.seconds > 0 for batch in stage.batches)
    assert profile.device == cpu_name()
    assert profile.recipe_hash == pipeline.resolved().recipe_hash()


def test_weights_are_what_the_meta_device_counts(profile, pipeline):
    assert {name: stage.weights for name, stage in profile.stages.items()} == pipeline.weights()


def test_a_profile_is_kept_beside_the_pipeline_file_and_read_again(kept, pipeline, profile):
    assert kept.parent == pipeline.file.parent / "profiles"
    assert read_profile(kept) == profile
    assert find_profile(pipeline, CPU) == (profile, [])


def test_a_profile_of_a_cpu_is_none_of_a_gpu(kept, pipeline):
    assert find_profile(pipeline, "H100") == (None, [])


def test_a_profile_of_a_gpu_is_found_by_any_of_its_names(kept, pipeline, profile):
    save_profile(on_gpu(profile), profile_path(pipeline, "NVIDIA A100-SXM4-80GB"))
    for name in ("A100-80G", "a100-80gb", "NVIDIA A100 80GB PCIe", None):
        found, _ = find_profile(pipeline, name)
        assert found == on_gpu(profile)
    assert find_profile(pipeline, "A100-40G") == (None, [])


def test_this_cpu_goes_before_another(kept, pipeline, profile):
    save_profile(profile.model_copy(update={"device": "CPU Another"}), profile_path(pipeline, "another"))
    assert find_profile(pipeline, CPU)[0] == profile
    kept.unlink()
    assert find_profile(pipeline, CPU)[0].device == "CPU Another"


def test_a_profile_of_another_recipe_is_ignored_and_that_is_said(kept, pipeline, profile):
    changed = Pipeline.load(pipeline.file, ["keyframes.steps=3"])
    found, ignored = find_profile(changed, CPU)
    assert found is None
    assert len(ignored) == 1
    assert str(kept) in ignored[0]
    assert profile.recipe_hash in ignored[0]
    assert changed.resolved().recipe_hash() in ignored[0]


def test_execution_settings_do_not_make_it_another_recipe(kept, pipeline, profile):
    assert find_profile(Pipeline.load(pipeline.file, ["keyframes.batch_size=2"]), CPU)[0] == profile


@pytest.mark.parametrize("content", ["{", "{}", '{"pipeline": 1}'])
def test_a_file_that_is_no_profile_is_refused_by_name(tmp_path, content):
    path = tmp_path / "broken.json"
    path.write_text(content)
    with pytest.raises(UserError, match=r"profile .*broken\.json: .*measure it again") as refusal:
        read_profile(path)
    assert "\n" not in str(refusal.value)


def test_a_profile_takes_no_other_files_place(tmp_path):
    manifest = tmp_path / "m.jsonl"
    manifest.write_text('{"prompt": "a red circle"}')
    with pytest.raises(UserError, match=r"m\.jsonl: a file that is no profile"):
        check_place(manifest)
    with pytest.raises(UserError, match="a folder"):
        check_place(tmp_path)
    result = CliRunner().invoke(app, ["profile", "nano", "--out", str(manifest)])
    assert isinstance(result.exception, UserError)
    assert manifest.read_text() == '{"prompt": "a red circle"}'


@pytest.mark.parametrize("device", ["", "cpu:0:1", "tpu", "cuda:x"])
def test_a_device_that_torch_does_not_know_is_refused(pipeline, device):
    with pytest.raises(UserError, match=r"--device .*give cpu or cuda:0"):
        measure(pipeline, device)


def test_a_folder_that_cannot_be_written_is_refused_with_the_way_out(tmp_path, profile):
    (tmp_path / "profiles").write_text("in the way")
    with pytest.raises(UserError, match=r"cannot be written .*--out FILE"):
        save_profile(profile, tmp_path / "profiles" / "tiny.cpu.json")


@pytest.mark.parametrize(
    "device", ["tpu:0", pytest.param("cuda:0", marks=pytest.mark.skipif("torch.cuda.is_available()"))]
)
def test_a_device_that_is_not_there_is_refused(pipeline, device):
    with pytest.raises(UserError, match=f"--device {device}: torch finds no such device"):
        measure(pipeline, device)


def test_between_measured_batch_sizes_costs_are_linear_and_memory_grows_beyond():
    batches = (BatchCost(size=2, seconds=3.0, memory=100), BatchCost(size=4, seconds=2.0, memory=140))
    stage = StageProfile(load_seconds=1, leave_seconds=0, swap_seconds=0, weights=60, batches=batches)
    assert [at_batch_size(stage, size) for size in (1, 2, 3, 4, 6)] == [
        (3.0, 100),
        (3.0, 100),
        (2.5, 120),
        (2.0, 140),
        (2.0, 180),
    ]


def test_a_job_begins_with_what_was_measured(kept, pipeline, profile):
    specs = stage_specs(pipeline, costs_of_job(pipeline, CPU))
    for spec in specs:
        stage = profile.stages[spec.name]
        assert (spec.seconds, spec.load_seconds) == (stage.batches[0].seconds, stage.load_seconds)


def test_memory_of_the_pipeline_file_goes_before_that_of_a_profile(kept, pipeline, profile):
    save_profile(on_gpu(profile), profile_path(pipeline, "A100"))
    given = Pipeline.load(pipeline.file, ["keyframes.memory=2"])
    costs = costs_of_job(given, "A100-80G")
    assert costs["keyframes"].memory == 2 * 2**30
    assert costs["interpolation"].memory == int(1.1 * profile.stages["interpolation"].batches[0].memory)


def test_without_memory_and_profile_a_gpu_counts_on_a_multiple_of_the_weights(pipeline):
    weights = pipeline.weights()
    costs = costs_of_job(pipeline, "A100-80G")
    assert all(cost.memory > weights[name] for name, cost in costs.items())
    assert all(cost.memory == 0 for cost in costs_of_job(pipeline, CPU).values())


def test_the_command_shows_what_it_measured_and_where_it_is_kept(profiled):
    out, printed = profiled
    assert all(name in printed for name in STAGES)
    assert f"saved to {out}" in printed


def test_batch_sizes_that_are_no_numbers_are_refused(pipeline):
    with pytest.raises(UserError, match="--batch-sizes '1,x'"):
        app(["profile", str(pipeline.file), "--batch-sizes", "1,x"], standalone_mode=False)


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("Tesla T4", "T4"),
        ("NVIDIA GeForce RTX 4090", "RTX4090"),
        ("NVIDIA A100-PCIE-40GB", "A100-40G"),
        ("nvidia l40s", "L40S"),
    ],
)
def test_names_that_torch_gives_are_known(theirs, ours):
    assert find_gpu(theirs).name == ours
    assert same_device(theirs, ours)


def test_a_gpu_that_is_not_known_is_refused_with_those_that_are():
    with pytest.raises(UserError, match=r"^GPU V100: not known") as refusal:
        find_gpu("V100")
    assert all(gpu.name in str(refusal.value) for gpu in GPUS)
