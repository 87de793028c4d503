"""Pipeline files: what is in them, and what is refused."""

from __future__ import annotations

import shutil
import subprocess
import sys

import pytest
import yaml

from show1_ray.errors import ConfigError
from show1_ray.pipeline import Pipeline, names
from show1_ray.pipeline.checkpoints import Checkpoint, CheckpointError


def test_show1_has_the_published_script_s_parameters():
    stages = Pipeline.load("show1").stages
    sr, latent = stages.super_resolution, stages.latent_super_resolution
    assert (stages.text.max_tokens, stages.text.clean_caption, stages.text.negative_prompt) == (77, False, "")
    assert (stages.keyframes.frames, stages.keyframes.width, stages.keyframes.height) == (8, 64, 40)
    assert (stages.keyframes.steps, stages.keyframes.guidance) == (75, 9.0)
    assert (stages.interpolation.window, stages.interpolation.steps, stages.interpolation.guidance) == (
        5,
        75,
        4.0,
    )
    assert (sr.first_frame.steps, sr.first_frame.guidance, sr.first_frame.noise_level) == (70, 4.0, 150)
    assert (sr.window, sr.stride, sr.steps, sr.guidance, sr.noise_level) == (8, 7, 125, 7.0, 250)
    assert (latent.width, latent.height, latent.steps, latent.strength, latent.guidance) == (
        576,
        320,
        50,
        0.8,
        15.0,
    )
    assert latent.negative_prompt == "low resolution, blur"
    assert Pipeline.load("show1").total_frames == 29


def test_show1_demo_differs_from_show1_in_its_steps_alone():
    show1, demo = Pipeline.load("show1").recipe(), Pipeline.load("show1-demo").recipe()
    show1["stages"]["interpolation"]["steps"] = 50
    show1["stages"]["super_resolution"]["steps"] = 50
    show1["stages"]["super_resolution"]["first_frame"]["steps"] = 50
    assert demo == show1


@pytest.mark.parametrize("name", names())
def test_every_pipeline_of_the_package_loads(name):
    assert Pipeline.load(name).name == name


@pytest.fixture
def write(tmp_path):
    def write(text: str, name: str = "mine.yaml"):
        (tmp_path / name).write_text(text)
        return tmp_path / name

    return write


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("stages: {keyframes: {stepz: 5}}", "mine.yaml: stages.keyframes.stepz: unknown key"),
        ("colour: red", "mine.yaml: colour: unknown key"),
        ("stages: {keyframes: {steps: many}}", "stages.keyframes.steps: .*integer.*'many'"),
        ("stages: {keyframes: {steps: '5'}}", "stages.keyframes.steps: .*integer.*'5'"),
        ("stages: {keyframes: {steps: true}}", "stages.keyframes.steps: .*integer.*True"),
        ("stages: {keyframes: {guidance: .inf}}", "stages.keyframes.guidance: .*finite.*inf"),
        ("stages: {keyframes: 5}", r"stages.keyframes: must be a mapping of keys to values \(it is 5"),
        ("stages: {keyframes: }", "stages.interpolation: it takes 'keyframes', which no .* 'keyframes' is dropped"),
        ("stages: {text: {checkpoint: a/b}}", r"stages.text.checkpoint: must be a mapping .* \(it is 'a/b'"),
        (
            "stages: {text: {checkpoint: {repo: a b}}}",
            r"mine.yaml: stages.text.checkpoint: 'repo' is neither .* folder$",
        ),
        ("stages: {text: {checkpoint: {revision: null}}}", "stages.text.checkpoint: 'revision' is missing: give"),
        ("stages: &all {text: *all}", "mine.yaml: an anchor is a part of itself"),
        ("stages: {keyframes: {steps: 0}}", "stages.keyframes.steps: .*greater than or equal to 1.*0"),
        ("stages: {keyframes: {steps: 1001}}", "stages.keyframes.steps: .*less than or equal to 1000.*1001"),
        ("stages: {keyframes: {scheduler: {colour: 1}}}", "stages.keyframes.scheduler.colour: unknown key"),
        ("stages: {keyframes: {scheduler: {solver_order: 4}}}", "stages.keyframes.scheduler.solver_order: .*4"),
        ("dtype: float8", "dtype: .*'float16', 'bfloat16' or 'float32'.*'float8'"),
        ("stages: {super_resolution: {window: 30}}", "super_resolution.window: 30 frames, but a clip has 29"),
        (
            "stages: {super_resolution: {stride: 8}}",
            "super_resolution.stride: 8 must be less than the window, 8",
        ),
        ("stages: {keyframes: {height: 36}}", "stages.keyframes: 64x36 .* unet needs .* divisible by 8"),
        ("stages: {latent_super_resolution: {width: 570}}", "570x320 .* vae needs .* divisible by 8"),
        ("stages: {latent_super_resolution: {width: 575}}", "575x320 frames, but H.264 needs an even width"),
        ("stages: {latent_super_resolution: {steps: 1}}", "strength: 0.8 of 1 steps is not one step"),
        ("stages: {keyframes: {guidance_interval: [0.5, 0.5]}}", "stages.keyframes: .*must end after it begins"),
        ("stages: {keyframes: {guidance_interval: [0.5, 1.5]}}", "stages.keyframes.guidance_interval.1: .*less than"),
        ("stages: {keyframes: {reuse: {every: 1}}}", "stages.keyframes.reuse.every: .*greater than or equal to 2"),
        (
            "stages: {super_resolution: {first_frame: {reuse: {every: 2, levels: 5}}}}",
            "super_resolution.first_frame.reuse.levels: 5 of the unet's 5 levels leave none to reuse",
        ),
        ("execution: {text: {batch_size: -1}}", "execution.text.batch_size"),
        ("- a list", "mine.yaml: a pipeline file is a mapping"),
        ("stages: [", "mine.yaml: not YAML"),
    ],
)
def test_a_fault_is_refused_with_file_key_and_reason(write, text, message):
    text = text if text.startswith(("-", "stages: [")) else f"extends: show1\n{text}\n"
    with pytest.raises(ConfigError, match=message):
        Pipeline.load(write(text))


def doubled(one: str, more: str, levels: int = 30) -> str:
    """YAML in which each anchor stands for nine of the one before: `more` is how nine of one are written."""
    lines = [f"a0: &a0 {one}"]
    for level in range(1, levels):
        lines.append(f"a{level}: &a{level} {more.format(' '.join(f'*a{level - 1},' for _ in range(9)))}")
    return "\n".join(lines)


MAPPINGS = "{{{}}}".format(", ".join(f"k{number}: *a0" for number in range(9)))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (doubled("[x]", "[{}]"), "more than 20000 values"),
        (doubled("{x: 1}", "{{<<: [{}]}}"), "more than 20000 values"),
        (
            "\n".join(
                ["a0: &a0 {x: 1}"] + [f"a{n}: &a{n} {MAPPINGS.replace('a0', f'a{n - 1}')}" for n in range(1, 30)]
            ),
            "more than 20000 values",
        ),
        ("stages: " + "[" * 100_000, "nested too deeply"),
        ("fps: " + "9" * 5000, "not YAML: a value is not what its tag or form says"),
        ("fps: 0x" + "f" * 5000, r"a number beyond 2\*\*63"),
        ("fps: 2024-13-45", "not YAML: a value is not what its tag or form says"),
        ("fps: !!bool maybe", "not YAML: a value is not what its tag or form says"),
        ("fps: !!python/name:os.system", "not YAML: could not determine a constructor"),
        ("on: 8", "the key True is not text"),
        ("description: " + "x" * 300_000, "bytes, but 262144 are the most"),
        ("stages: {keyframes: {frames: 100000}}", "stages.keyframes.frames: .*less than or equal to 10000"),
        ("stages: {latent_super_resolution: {width: 1000000}}", "width: .*less than or equal to 8192"),
        (
            "stages: {keyframes: {frames: 5000}, interpolation: {window: 900}}",
            r"stages.latent_super_resolution: a clip of 4494102 frames of 576x320 is \d+ GiB; 16 are the most",
        ),
        ("execution: {text: {batch_size: 1000000000000}}", "batch_size: .*less than or equal to"),
        ("stages: {text: {checkpoint: {repo: '~nosuchuser/weights'}}}", "repo: '~nosuchuser/weights' is no folder"),
        ('stages: {text: {checkpoint: {repo: "./a\\0b"}}}', r"repo: './a\\x00b' is no folder"),
        ('fps: "\\e[31m"', r"fps: .*\(it is '\\x1b\[31m'\)"),
    ],
)
def test_what_would_hang_or_fill_memory_is_refused_with_one_line(write, text, message):
    with pytest.raises(ConfigError, match=message) as caught:
        Pipeline.load(write(f"extends: show1\n{text}\n"))
    assert all(len(line) < 500 for line in str(caught.value).splitlines())


@pytest.mark.parametrize("repo", ["~nosuchuser", '"/a\\0b"', "/", "/proc/self"])
def test_a_folder_that_can_be_no_checkpoint_is_refused(tiny, repo):
    with pytest.raises(CheckpointError):
        Pipeline.load(tiny, [f"text.checkpoint.repo={repo}"]).resolved()


@pytest.mark.parametrize("config", ["[]", "{", "{}", '{"block_out_channels": 7}', "[" * 100_000])
def test_a_checkpoint_whose_configuration_is_none_is_refused(tiny, tmp_path, config):
    copy = shutil.copytree(tiny.parent, tmp_path / "elsewhere")
    next(copy.rglob("unet/config.json")).write_text(config)
    with pytest.raises(CheckpointError, match=r"config\.json"):
        Pipeline.load(copy / "pipeline.yaml")


@pytest.mark.parametrize("name", ["a\0b.yaml", "x" * 5000 + ".yaml", "", ".", "/", "~nosuchuser/a.yaml"])
def test_a_name_that_no_file_can_have_is_no_pipeline(name):
    with pytest.raises(ConfigError, match="no pipeline"):
        Pipeline.load(name)


def test_every_fault_has_its_line(write):
    path = write("extends: show1\nspeed: 1\nstages: {text: {max_tokens: x}, keyframes: {stepz: 5}}\n")
    with pytest.raises(ConfigError) as caught:
        Pipeline.load(path)
    assert len(str(caught.value).splitlines()) == 3


def test_a_missing_key_is_named(write):
    with pytest.raises(ConfigError, match=r"mine\.yaml: stages\.text\.checkpoint: is missing"):
        Pipeline.load(write("stages: {text: {}}"))
    with pytest.raises(ConfigError, match=r"mine\.yaml: stages: is missing"):
        Pipeline.load(write("fps: 8"))
    with pytest.raises(ConfigError, match=r"mine\.yaml: stages: is empty"):
        Pipeline.load(write("stages: {}"))


def test_extends_changes_a_few_keys_of_another_file(write):
    write("extends: show1\nstages: {keyframes: {steps: 9}}", "parent.yaml")
    child = Pipeline.load(write("extends: ./parent.yaml\nfps: 7.5\nstages: {keyframes: {guidance: 2}}"))
    assert (child.stages.keyframes.steps, child.stages.keyframes.guidance, child.fps) == (9, 2, 7.5)
    assert child.stages.interpolation == Pipeline.load("show1").stages.interpolation


def test_extends_that_leads_nowhere_or_round_is_refused(write):
    with pytest.raises(ConfigError, match=r"mine\.yaml: extends: no pipeline 'show2'"):
        Pipeline.load(write("extends: show2"))
    with pytest.raises(ConfigError, match="leads back to itself"):
        Pipeline.load(write("extends: ./mine.yaml"))
    with pytest.raises(ConfigError, match=r"mine\.yaml: extends: give the name .* \(it is \['show1'\]\)"):
        Pipeline.load(write("extends: [show1]"))


def test_a_fault_is_named_with_what_says_it_a_file_its_parent_or_an_override(write):
    parent = write("extends: show1\nstages: {keyframes: {steps: 0, width: 63}}", "parent.yaml")
    mine = write("extends: ./parent.yaml\nstages: {keyframes: {width: x}}")
    with pytest.raises(ConfigError) as caught:
        Pipeline.load(mine, ["keyframes.guidance=0", "text.checkpoint.repo=a b"])
    said = dict(reversed(line.split(": ", 2)[:2]) for line in str(caught.value).splitlines())
    assert said == {
        "stages.text.checkpoint": "--set text.checkpoint.repo=a b",
        "stages.keyframes.guidance": "--set keyframes.guidance=0",
        "stages.keyframes.steps": str(parent),
        "stages.keyframes.width": str(mine),
    }


def test_an_unknown_pipeline_lists_those_there_are():
    with pytest.raises(ConfigError, match=r"no pipeline 'shw1'.*show1, show1-demo"):
        Pipeline.load("shw1")


def test_overrides_find_the_recipe_and_the_execution_settings():
    pipeline = Pipeline.load("show1", ["keyframes.steps=9", "keyframes.batch_size=3", "dtype=bfloat16"])
    assert (pipeline.stages.keyframes.steps, pipeline.execution.keyframes.batch_size) == (9, 3)
    assert pipeline.dtype == "bfloat16"


def test_an_override_changes_its_stage_alone_where_yaml_shares_a_value():
    pipeline = Pipeline.load("show1", ["text.checkpoint.revision=other"])
    assert pipeline.stages.text.checkpoint.revision == "other"
    assert pipeline.stages.keyframes.checkpoint.revision == "main"


@pytest.mark.parametrize(
    "override", ["keyframes.steps", "=3", "key frames=3", "name.x=3", "keyframes.steps=[", "a.b=1"]
)
def test_a_bad_override_is_refused(override):
    with pytest.raises(ConfigError):
        Pipeline.load("show1", [override])


def test_the_recipe_hash_is_of_the_recipe_and_not_of_its_execution():
    pinned = [f"{stage}.checkpoint.revision={'0' * 40}" for stage in ("text", "keyframes")]
    base = Pipeline.load("show1", pinned)
    assert Pipeline.load("show1", [*pinned, "keyframes.batch_size=2"]).recipe_hash() == base.recipe_hash()
    assert Pipeline.load("show1", [*pinned, "keyframes.steps=2"]).recipe_hash() != base.recipe_hash()
    assert Pipeline.load("show1").recipe_hash() != base.recipe_hash()


def test_the_recipe_of_local_checkpoints_is_their_content_not_their_place(tiny, tmp_path):
    copy = shutil.copytree(tiny.parent, tmp_path / "elsewhere")
    first, second = Pipeline.load(tiny).resolved(), Pipeline.load(copy / "pipeline.yaml").resolved()
    assert first.recipe_hash() == second.recipe_hash()
    assert str(tiny.parent) not in yaml.safe_dump(first.recipe())
    assert first.stages.text.checkpoint.revision.startswith("sha256:")


def test_a_local_checkpoint_that_is_not_there_is_refused(tiny):
    pipeline = Pipeline.load(tiny, ["keyframes.checkpoint.repo=/nowhere/at/all"])
    with pytest.raises(CheckpointError, match="/nowhere/at/all: no such folder"):
        pipeline.resolved()


def test_a_checkpoint_is_on_the_hub_at_a_revision_or_a_folder():
    assert Checkpoint(repo="a/b", revision="main").is_local is False
    assert Checkpoint(repo="./a").is_local
    with pytest.raises(ValueError, match="'revision' is missing"):
        Checkpoint(repo="a/b")
    with pytest.raises(ValueError, match="neither owner/name"):
        Checkpoint(repo="a b c", revision="main")


def test_checking_a_pipeline_does_not_wait_for_torch():
    code = "import sys; from show1_ray.pipeline import Pipeline; Pipeline.load('show1'); print('torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"
