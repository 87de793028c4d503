"""Pipeline files with any stages: which there are, who gives what to whom, and every fault on one line."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from show1_ray.errors import ConfigError
from show1_ray.pipeline import Pipeline
from show1_ray.pipeline.parts import ordered
from show1_ray.stage import Shape

BRIGHTEN = '''
from show1_ray import Stage, StageSettings

class Brighten(Stage):
    """Adds `by` to every pixel."""

    class Settings(StageSettings):
        by: int = 10

    takes = {"video": "f h w c"}
    gives = {"video": "f h w c"}

    def run(self, clips, values):
        return [{"video": (v["video"].astype("int16") + self.settings.by).clip(0, 255).astype("uint8")} for v in values]
'''

TOYS = '''
from show1_ray import Stage, StageSettings
from show1_ray.stage import FLOAT_FRAMES, FRAMES, PLAIN, Shape

class Toy(Stage):
    def run(self, clips, values):
        return [{} for _ in clips]

class Draw(Toy):
    """Frames from nothing."""
    class Settings(StageSettings):
        frames: int = 4
        width: int = 16
        call: dict = {}
    gives = {"video": FRAMES, "score": PLAIN}
    row_settings = frozenset({"frames", "call"})
    @classmethod
    def shapes(cls, settings, context, given):
        return {"video": Shape(FRAMES, (settings.frames, 8, settings.width, 3), "uint8")}
    @classmethod
    def faults(cls, settings, context, given):
        if settings.frames > 100:
            yield "frames", f"{settings.frames} are too many"

class Upscale(Toy):
    """Floats, twice as large."""
    version = 3
    takes = {"video": FLOAT_FRAMES}
    gives = {"video": FLOAT_FRAMES}
    @classmethod
    def shapes(cls, settings, context, given):
        c, f, h, w = given["video"].sizes
        return {"video": Shape(FLOAT_FRAMES, (c, f, 2 * h, 2 * w), "float32")}

class Judge(Toy):
    """Looks at one frame and a score."""
    takes = {"image": "h w c", "score": PLAIN}
    gives = {"verdict": PLAIN}

class Size(Toy):
    """A clip, and what is known of it."""
    gives = {"video": FRAMES, "width": PLAIN, "bytes": PLAIN}

class Latents(Toy):
    gives = {"latents": "l d"}

class Decode(Toy):
    takes = {"latents": "c h w"}
    gives = {"video": FRAMES}

class Left(Toy):
    takes = {"right": FRAMES}
    gives = {"left": FRAMES}

class Right(Toy):
    takes = {"left": FRAMES}
    gives = {"right": FRAMES}

class Broken(Toy):
    gives = {"video": FRAMES}
    @classmethod
    def shapes(cls, settings, context, given):
        return {"video": given["nothing"]}

class Wrong(Toy):
    class Settings(StageSettings):
        takes: int = 1

class Lazy(Stage):
    gives = {"video": FRAMES}

class BadAxes(Toy):
    gives = {"video": ["f", "h"]}

class NoStage:
    pass
'''


@pytest.fixture
def brighten(tmp_path: Path) -> Path:
    (tmp_path / "brighten.py").write_text(BRIGHTEN)
    (tmp_path / "mine.yaml").write_text(
        'extends: nano\nstages:\n  brighten: {uses: "brighten:Brighten", by: 40}\n'
        "execution:\n  brighten: {device: cpu}\n"
    )
    return tmp_path / "mine.yaml"


@pytest.fixture
def toys(tmp_path: Path):
    """A pipeline of toy stages, from the text of its file."""
    (tmp_path / "toys.py").write_text(TOYS)

    def load(text: str, *overrides: str) -> Pipeline:
        (tmp_path / "mine.yaml").write_text(text)
        return Pipeline.load(tmp_path / "mine.yaml", overrides, tmp_path / "toys.py")

    return load


def test_the_example_of_a_stage_of_ones_own(brighten):
    pipeline = Pipeline.load(brighten, code=brighten.parent / "brighten.py")
    *_, last, mine = pipeline.wired()
    assert (mine.name, mine.settings.by, mine.execution.device) == ("brighten", 40, "cpu")
    assert (last.gives["video"], mine.takes["video"].line) == ("latent_super_resolution.video",) * 2
    assert (mine.gives["video"], str(pipeline.video)) == ("video", "brighten.video")
    assert pipeline.video_shape == Shape("f h w c", (29, 96, 144, 3), "uint8")
    recipe = pipeline.resolved().recipe()
    assert recipe["order"][-1] == "brighten"
    assert recipe["stages"]["brighten"] == {"uses": "brighten:Brighten", "by": 40}
    assert recipe["code"]["brighten"].startswith("sha256:")
    assert set(recipe) == {"dtype", "fps", "stages", "order", "code"}


def test_the_digest_of_the_source_is_a_part_of_the_recipe(brighten):
    code = brighten.parent / "brighten.py"
    before = Pipeline.load(brighten, code=code)
    code.write_text(code.read_text().replace("clip(0, 255)", "clip(0, 200)"))
    after = Pipeline.load(brighten, code=code)
    assert before.recipe_hash() != after.recipe_hash()
    assert before.wired()[-1].cls is not after.wired()[-1].cls
    assert Pipeline.load(brighten, ["brighten.by=41"], code).recipe_hash() != after.recipe_hash()
    assert Pipeline.load(brighten, ["brighten.batch_size=2"], code).recipe_hash() == after.recipe_hash()


def test_without_code_nothing_is_imported(brighten):
    (brighten.parent / "brighten.py").write_text("raise SystemExit('imported')")
    with pytest.raises(ConfigError, match=r"mine\.yaml: stages\.brighten\.uses: .*give --code brighten\.py"):
        Pipeline.load(brighten)


def test_a_dataset_s_own_pipeline_file_says_the_same_and_imports_nothing_unasked(brighten):
    import yaml

    code = brighten.parent / "brighten.py"
    pipeline = Pipeline.load(brighten, code=code)
    kept = brighten.parent / "kept.yaml"
    kept.write_text(yaml.safe_dump({"name": "mine", **pipeline.document()}, sort_keys=False))
    assert Pipeline.load(kept, code=code).recipe() == pipeline.recipe()
    with pytest.raises(ConfigError, match="--code"):
        Pipeline.load(kept)


def test_code_comes_along_where_a_stage_is_pickled_and_is_named_by_its_own_file_and_line(brighten, tmp_path):
    code = brighten.parent / "brighten.py"
    code.write_text(BRIGHTEN.replace("return [", "raise ValueError('a bug')\n        return ["))
    kept = tmp_path / "stage.pickle"
    kept.write_bytes(pickle.dumps(Pipeline.load(brighten, code=code).wired()[-1]))
    code.unlink()
    program = """if True:
        import pickle, sys, traceback
        stage = pickle.load(open(sys.argv[1], "rb"))
        print(stage.settings.by, stage.takes["video"].line)
        try:
            stage.cls(stage.settings, stage.execution, stage.context).run([1], [{}])
        except ValueError:
            traceback.print_exc()
        """
    run = subprocess.run([sys.executable, "-c", program, kept], capture_output=True, text=True, check=False, cwd="/")
    assert run.stdout.split() == ["40", "latent_super_resolution.video"]
    assert f'File "{code}", line 14, in run' in run.stderr
    assert "raise ValueError('a bug')" in run.stderr


def test_a_folder_and_a_package_are_code_too(tmp_path):
    folder = tmp_path / "stages"
    (folder / "inner").mkdir(parents=True)
    (folder / "helper.py").write_text("FRAMES = 'f h w c'")
    (folder / "inner" / "__init__.py").write_text("from helper import FRAMES")
    source = (
        "from show1_ray import Stage\nfrom inner import FRAMES\n\n\nclass One(Stage):\n    gives = {'video': FRAMES}\n"
    )
    source += "    def run(self, clips, values): ...\n"
    (folder / "one.py").write_text(source)
    (tmp_path / "mine.yaml").write_text("stages: {one: {uses: 'one:One'}}")
    assert Pipeline.load(tmp_path / "mine.yaml", code=folder).video.line == "video"

    package = tmp_path / "acme"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "names.py").write_text("FRAMES = 'f h w c'")
    (package / "one.py").write_text(source.replace("from inner", "from .names"))
    (tmp_path / "mine.yaml").write_text("stages: {one: {uses: 'acme.one:One'}}")
    pipeline = Pipeline.load(tmp_path / "mine.yaml", code=package)
    assert pipeline.wired()[0].cls.__module__ == "acme.one"
    pipeline.code.write(tmp_path / "there")
    there = tmp_path / "there" / pipeline.code.place
    assert Pipeline.load(tmp_path / "mine.yaml", code=there).recipe_hash() == pipeline.recipe_hash()


def test_stages_are_appended_put_before_or_after_another_and_dropped(toys):
    assert [part.name for part in toys("stages: {a: {uses: 'toys:Draw'}, b: {uses: 'toys:Upscale'}}").parts] == [
        "a",
        "b",
    ]
    middle = toys("extends: nano\nstages: {up: {uses: 'toys:Upscale', after: interpolation, takes: {video: frames}}}")
    assert [part.name for part in middle.parts][3] == "up"
    first = toys("extends: nano\nstages: {draw: {uses: 'toys:Draw', before: text}}")
    assert first.parts[0].name == "draw"
    dropped = toys("extends: nano\nstages: {latent_super_resolution: null, super_resolution: null}")
    assert [part.name for part in dropped.parts] == ["text", "keyframes", "interpolation"]
    assert str(dropped.video) == "interpolation.frames"
    assert dropped.video_shape.sizes == (29, 16, 24, 3)


@pytest.mark.parametrize(
    ("moves", "order"),
    [
        ({}, "a b c d"),
        ({"d": ("before", "a")}, "d a b c"),
        ({"c": ("after", "a"), "d": ("after", "a")}, "a c d b"),
        ({"c": ("before", "a"), "d": ("before", "a")}, "c d a b"),
        ({"c": ("after", "d"), "d": ("after", "a")}, "a d c b"),
        ({"a": ("after", "d")}, "b c d a"),
    ],
)
def test_the_order_of_stages_that_stand_before_or_after_others(moves, order):
    assert ordered(["a", "b", "c", "d"], moves) == (order.split(), [])


def test_a_place_of_an_extending_file_is_instead_of_the_one_below(toys, tmp_path):
    (tmp_path / "base.yaml").write_text(
        "stages: {draw: {uses: 'toys:Draw'}, up: {uses: 'toys:Upscale'}, judge: {uses: 'toys:Judge', after: draw,"
        " takes: {image: draw.video[0]}}}"
    )
    assert [part.name for part in toys("extends: ./base.yaml").parts] == ["draw", "judge", "up"]
    assert [p.name for p in toys("extends: ./base.yaml\nstages: {judge: {before: up}}").parts] == [
        "draw",
        "judge",
        "up",
    ]
    assert [p.name for p in toys("extends: ./base.yaml\nstages: {judge: {after: up}}").parts] == ["draw", "up", "judge"]


def test_a_stage_that_comes_back_under_a_dropped_name_has_nothing_of_the_one_before(toys, tmp_path):
    toys("stages: {a: {uses: 'toys:Draw'}, b: {uses: 'toys:Upscale'}}\nexecution: {b: {batch_size: 7}}")
    (tmp_path / "mine.yaml").rename(tmp_path / "first.yaml")
    toys("extends: first.yaml\nstages: {b: null}")
    (tmp_path / "mine.yaml").rename(tmp_path / "second.yaml")
    pipeline = toys("extends: second.yaml\nstages: {b: {uses: 'toys:Draw', frames: 5}}")
    assert (pipeline.stages.b.frames, pipeline.execution.b.batch_size) == (5, 1)


def test_a_stage_that_uses_another_class_has_none_of_the_settings_below_and_stands_where_it_stood(toys):
    pipeline = toys(
        "extends: show1\nstages:\n  latent_super_resolution: {uses: 'toys:Upscale', takes: {video: frames_sr}}\n"
        "  text: {max_tokens: 7}"
    )
    assert [part.name for part in pipeline.parts] == list(Pipeline.load("show1").stages)
    assert pipeline.execution.latent_super_resolution.batch_size == 1
    assert (str(pipeline.video), pipeline.video_shape.sizes) == ("latent_super_resolution.video", (29, 320, 512, 3))
    assert pipeline.stages.text.max_tokens == 7
    with pytest.raises(ConfigError, match=r"mine\.yaml: stages\.keyframes\.steps: unknown key"):
        toys("extends: show1\nstages: {keyframes: {uses: 'toys:Draw', steps: 5}}")


def test_a_name_is_the_newest_value_of_it_unless_the_file_says_whose(toys):
    text = "stages: {{draw: {{uses: 'toys:Draw'}}, up: {{uses: 'toys:Upscale'}}, more: {{uses: 'toys:Upscale'{}}}}}"
    newest, said = toys(text.format("")), toys(text.format(", takes: {video: draw.video}"))
    assert [str(pipeline.wired()[2].takes["video"]) for pipeline in (newest, said)] == ["up.video", "draw.video"]
    assert newest.video_shape.sizes == (4, 32, 64, 3)
    assert said.video_shape.sizes == (4, 16, 32, 3)
    assert newest.recipe_hash() != said.recipe_hash()
    # What says only what would be anyway is no other recipe; a stage's name means its frames.
    assert toys(text.format(", takes: {video: up}")).recipe_hash() == newest.recipe_hash()
    assert newest.recipe()["versions"] == {"up": 3, "more": 3}


def test_frames_are_turned_and_one_of_them_can_be_taken(toys):
    pipeline = toys(
        "stages:\n  draw: {uses: 'toys:Draw'}\n  up: {uses: 'toys:Upscale'}\n"
        "  judge: {uses: 'toys:Judge', takes: {image: up[0]}}"
    )
    _, up, judge = pipeline.wired()
    assert (up.takes["video"].axes, up.taken["video"]) == ("f h w c", Shape("c f h w", (3, 4, 8, 16), "float32"))
    image = judge.takes["image"]
    assert (image.line, image.axes, image.index) == ("video", "c h w", 0)
    assert judge.taken["image"] == Shape("h w c", (16, 32, 3), "uint8")
    assert (judge.takes["score"].line, judge.gives["verdict"]) == ("draw.score", "judge.verdict")


def test_the_clip_is_the_newest_frames_unless_the_file_says_which(toys):
    text = "stages: {draw: {uses: 'toys:Draw'}, up: {uses: 'toys:Upscale'}}"
    assert (str(toys(text).video), str(toys(text + "\nclip: draw.video").video)) == ("up.video", "draw.video")
    assert "clip" not in toys(text + "\nclip: up").recipe()
    assert toys(text + "\nclip: draw").recipe()["clip"] == "draw.video"


FAULTS = [
    ("stages: {keyframs: {}}", "stages.keyframs: no stage 'keyframs'; did you mean 'keyframes'"),
    ("stages: {a: {uses: 'toys:Drow'}}", "stages.a.uses: toys has no 'Drow'; it has Draw"),
    ("stages: {a: {uses: 'toyz:Draw'}}", "stages.a.uses: --code .* has no module 'toyz'"),
    ("stages: {a: {uses: 'os:system'}}", "stages.a.uses: --code .* has no module 'os'"),
    ("stages: {a: {uses: 'toys:NoStage'}}", "stages.a.uses: 'toys:NoStage' is no stage"),
    ("stages: {a: {uses: 'toys:Lazy'}}", r"stages.a.uses: .*Lazy has no run\(\)"),
    ("stages: {a: {uses: 'toys:Wrong'}}", "stages.a.uses: .*field 'takes', which is a word of pipeline files"),
    ("stages: {a: {uses: 'toys:BadAxes'}}", "stages.a.uses: .*write axes with spaces"),
    ("stages: {a: {uses: 5}}", r"stages.a.uses: must be a name \(it is 5"),
    ("stages: {a: {uses: 'toys:'}}", "stages.a.uses: write it as MODULE:CLASS"),
    (
        "stages: {a: {uses: 'toys:Broken'}}",
        r"stages.a: Broken.shapes failed: KeyError: 'nothing' \(.*toys.py, line \d+",
    ),
    ("stages: {a: {uses: 'toys:Draw', frames: 3.5}}", "stages.a.frames: .*integer"),
    ("stages: {a: {uses: 'toys:Draw', frames: 101}}", "stages.a.frames: 101 are too many"),
    ("stages: {a: {uses: 'toys:Draw', frame: 3}}", "stages.a.frame: unknown key; did you mean 'frames'"),
    (
        "stages: {a: {uses: 'toys:Draw'}, b: {uses: 'toys:Upscale', width: 3}}",
        "stages.b.width: unknown key; it is a setting of a",
    ),
    ("stages: {a: {uses: 'toys:Draw', device: cpu}}", "stages.a.device: unknown key; it is written execution.a.device"),
    ("stages: {a: {uses: 'toys:Draw'}}\nexecution: {a: {frames: 3}}", "execution.a.frames: .* written stages.a.frames"),
    ("stages: {a: {uses: 'toys:Draw'}}\nexecution: {b: {}}", "execution.b: there is no such stage; there is a"),
    ("stages: {a: {uses: 'toys:Draw'}}\nexecution: {a: cpu}", "execution.a: must be a mapping"),
    ("stages: {a: {uses: 'toys:Upscale'}}", "stages.a: it takes 'video', which no stage before it gives"),
    (
        "stages: {a: {uses: 'toys:Upscale'}, b: {uses: 'toys:Draw'}}",
        "stages.a: it takes 'video', which only 'b' gives, and that comes later",
    ),
    (
        "stages: {a: {uses: 'toys:Left'}, b: {uses: 'toys:Right'}}",
        "stages.a: it takes 'right', which only 'b' gives, .* needs 'a' itself: they go round in a circle",
    ),
    (
        "stages: {a: {uses: 'toys:Latents'}, b: {uses: 'toys:Decode'}}",
        "stages.b: it takes 'latents' as 'c h w', but .*'l d'",
    ),
    ("stages: {a: {uses: 'toys:Latents'}}", "stages: no stage gives frames"),
    ("stages: {a: {uses: 'toys:Draw', before: b}}", "stages.a.before: there is no stage 'b'"),
    (
        "stages: {a: {uses: 'toys:Draw', before: b}, b: {uses: 'toys:Draw', before: a}}",
        "a.before: goes round .*a → b → a",
    ),
    (
        "stages: {a: {uses: 'toys:Draw', before: b, after: b}, b: {uses: 'toys:Draw'}}",
        "a.after: stands beside 'before'",
    ),
    (
        "stages: {a: {uses: 'toys:Draw'}, b: {uses: 'toys:Upscale', takes: {video: a.vido}}}",
        "stages.b.takes.video: 'a' gives no 'vido'; did you mean 'video'",
    ),
    (
        "stages: {a: {uses: 'toys:Draw'}, b: {uses: 'toys:Upscale', takes: {video: c.video}}}",
        "stages.b.takes.video: there is no stage 'c'",
    ),
    (
        "stages: {a: {uses: 'toys:Draw'}, b: {uses: 'toys:Upscale', takes: {video: b.video}}}",
        "stages.b.takes.video: a stage cannot take 'video' from itself",
    ),
    (
        "stages: {a: {uses: 'toys:Draw'}, b: {uses: 'toys:Upscale', takes: {image: a.video}}}",
        "stages.b.takes.image: it takes no 'image', but 'video'",
    ),
    ("stages: {a: {uses: 'toys:Draw', takes: [video]}}", "stages.a.takes: must be a mapping"),
    (
        "stages: {a: {uses: 'toys:Draw'}, b: {uses: 'toys:Judge', takes: {image: 'a.video[9]'}}}",
        "stages.b.takes.image: a.video has 4 frames, and none with the number 9",
    ),
    ("stages: {a: {uses: 'toys:Draw'}}\nclip: a.score", "clip: a clip is frames"),
    ("stages: {a: {uses: 'toys:Draw'}}\nclip: b", "clip: it takes 'b'"),
    ("stages: {land: {uses: 'toys:Draw'}}", "stages.land: is taken"),
    ("stages: {a b: {uses: 'toys:Draw'}}", "stages.a b: letters, digits and _ make a name"),
    ("stages: [text]", "stages: must be a mapping"),
    ("stages: {a: {uses: 'toys:Draw', width: 15}}", "stages.a: 15x8 frames, but H.264 needs an even width"),
    ("stages:\n  a: {uses: 'toys:Draw'}\n  a: {uses: 'toys:Draw'}", "the key 'a' is there twice, in lines 2 and 3"),
    (
        "stages: {a: {uses: 'toys:Draw'}, a_score: {uses: 'toys:Draw', takes: {}}, b: {uses: 'toys:Draw'}}\nfoo: 1",
        "foo: unknown key",
    ),
    ("stages: {a: {uses: 'toys:Draw'}}\ninputs: {seed: int}", "inputs.seed: is the name of a column"),
    ("stages: {a: {uses: 'toys:Draw'}}\ninputs: {n: integer}", "inputs.n: give one type"),
    (
        "stages: {a: {uses: 'toys:Draw'}}\ninputs: {n: {int: a.frames}}",
        "inputs.n: a setting is written stages.STAGE.KEY",
    ),
    ("stages: {a: {uses: 'toys:Draw'}}\ninputs: {n: {int: stages.b.frames}}", "inputs.n.int: .*there is no stage 'b'"),
    ("stages: {a: {uses: 'toys:Draw'}}\ninputs: {n: {int: stages.a.frame}}", "inputs.n.int: .*a has no such setting"),
    (
        "stages: {a: {uses: 'toys:Draw'}}\ninputs: {n: {int: stages.a.width}}",
        "inputs.n.int: .*is the same for all clips",
    ),
    ("stages: {a: {uses: 'toys:Draw'}}\ninputs: {n: {image: stages.a.frames}}", "inputs.n: .*images are values"),
    (
        "stages: {a: {uses: 'toys:Draw'}}\ninputs: {n: {int: stages.a.frames, default: x}}",
        "inputs.n: its default is 'x'",
    ),
    ("stages: {a: {uses: 'toys:Draw'}}\ninputs: [n]", "inputs: must be a mapping"),
    (
        "stages: {a: {uses: 'toys:Draw'}}\ninputs: {n: {float: null, default: .nan}}",
        "inputs.n: its default is nan, not",
    ),
    (
        "stages: {a: {uses: 'toys:Draw'}}\ninputs: {frames: int, input_frames: int}",
        "inputs.input_frames: the input 'input_frames' and the input 'frames' would both be the column 'input_frames'",
    ),
    (
        "stages: {a: {uses: 'toys:Draw'}}\ninputs: {b: image, b_sha256: text}",
        "inputs.b_sha256: the input 'b_sha256' and the SHA-256 of the input 'b' would both be the column 'b_sha256'",
    ),
    (
        "stages: {input: {uses: 'toys:Size'}}\ninputs: {width: int}",
        "stages.input: the value 'width' of the stage 'input' and the input 'width' would both be the column",
    ),
    (
        "stages: {shard: {uses: 'toys:Size'}}",
        "stages.shard: the value 'bytes' of the stage 'shard' would be the column 'shard_bytes', which the dataset's "
        "metadata uses itself",
    ),
]


@pytest.mark.parametrize(("text", "message"), FAULTS)
def test_every_fault_of_a_pipeline_file_is_one_line_with_file_key_and_reason(toys, text, message):
    with pytest.raises(ConfigError, match=message) as caught:
        toys(text)
    (line,) = str(caught.value).splitlines()
    assert line.split(": ")[0].endswith("mine.yaml")


def test_code_that_cannot_be_imported_says_where(toys, tmp_path):
    for source, message in [
        ("def", "SyntaxError: .*toys.py, line 1"),
        ("import nothing_of_the_kind", r"ModuleNotFoundError: .*nothing_of_the_kind.*toys\.py, line 1"),
        ("x = 1\n1 / 0", r"ZeroDivisionError: .*toys\.py, line 2"),
    ]:
        (tmp_path / "toys.py").write_text(source)
        (tmp_path / "mine.yaml").write_text("stages: {a: {uses: 'toys:Draw'}}")
        with pytest.raises(ConfigError, match=rf"mine\.yaml: stages\.a\.uses: .*{message}"):
            Pipeline.load(tmp_path / "mine.yaml", code=tmp_path / "toys.py")


@pytest.mark.parametrize("given", ["nowhere.py", "no_such_module_anywhere", "mine.yaml", "empty", "sys"])
def test_code_that_is_none_is_refused(tmp_path, monkeypatch, given):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "mine.yaml").write_text("stages: {}")
    with pytest.raises(ConfigError, match=f"--code {given}: "):
        Pipeline.load("nano", code=given)


def test_the_api_and_the_list_of_stages_wait_for_neither_ray_nor_torch():
    program = """if True:
        import sys
        import show1_ray
        from show1_ray.pipeline.describe import list_stages
        show1_ray.Stage, show1_ray.Reject, show1_ray.Pipeline, show1_ray.Clip, list_stages()
        print(sorted({"ray", "torch", "diffusers", "transformers"} & sys.modules.keys()))
        """
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_stages_of_installed_packages_are_named_by_their_entry_points(tmp_path):
    site = tmp_path / "site"
    (site / "acme-1.dist-info").mkdir(parents=True)
    (site / "acme-1.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: acme\nVersion: 1\n")
    points = "acme.draw = acme_stages:Draw\nacme.inner = acme_stages:Outer.Inner [extra]\n"
    (site / "acme-1.dist-info" / "entry_points.txt").write_text(f"[show1_ray.stages]\n{points}")
    (site / "acme_stages.py").write_text(TOYS + "\nclass Outer:\n    class Inner(Draw):\n        pass\n")
    (tmp_path / "mine.yaml").write_text("stages: {inner: {uses: acme.inner}, mine: {uses: acme.draw, frames: 3}}")
    run = subprocess.run(
        [sys.executable, "-m", "show1_ray", "check", "--json", tmp_path / "mine.yaml"],
        env={**os.environ, "PYTHONPATH": f"{os.environ.get('PYTHONPATH', '')}:{site}"},
        capture_output=True,
        text=True,
        check=True,
    )
    found = json.loads(run.stdout)
    assert [one["class"] for one in found["stages"]] == ["acme_stages:Outer.Inner", "acme_stages:Draw"]
    assert found["clip"]["sizes"] == [3, 8, 16, 3]
    listed = subprocess.run(
        [
            sys.executable,
            "-c",
            "from show1_ray.pipeline.registry import names; import sys; print(names(), *sys.modules)",
        ],
        env={**os.environ, "PYTHONPATH": f"{os.environ.get('PYTHONPATH', '')}:{site}"},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert "'acme.draw'" in listed
    assert "acme_stages" not in listed.split("]")[1]


@pytest.mark.parametrize("command", [["check"], ["render", "prompts.jsonl", "--out", "out", "--pipeline"]])
def test_a_fault_ends_a_command_with_one_line_and_exit_code_2(brighten, command):
    (brighten.parent / "prompts.jsonl").write_text('{"prompt": "a red circle"}')
    run = subprocess.run(
        [sys.executable, "-m", "show1_ray", *command, "mine.yaml"],
        cwd=brighten.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 2
    assert run.stderr.count("\n") == 1
    assert run.stderr.startswith("show1-ray: mine.yaml: stages.brighten.uses: 'brighten:Brighten' is code of somebody")
    assert not (brighten.parent / "out").exists()


def test_inputs_set_settings_of_their_row(toys):
    pipeline = toys(
        "stages: {draw: {uses: 'toys:Draw', frames: 8}, up: {uses: 'toys:Upscale'}}\n"
        "inputs: {frames: {int: stages.draw.frames, default: 6}, steps: {int: stages.draw.call.steps}, style: text}"
    )
    assert pipeline.row({"frames": 12, "style": "x"}).stages.draw.frames == 12
    assert pipeline.row({"frames": 12, "style": "x"}) is pipeline.row({"frames": 12, "style": "y"})
    assert pipeline.row({"frames": 12}).video_shape.sizes == (12, 16, 32, 3)
    assert pipeline.row({"steps": 3}).stages.draw.call == {"steps": 3}
    assert pipeline.row({"style": "x"}) is pipeline
    keys = pipeline.batch_keys({"frames": 12, "style": "x"})
    assert keys["draw"] == (12, None)
    assert keys["up"] != pipeline.batch_keys({"frames": 6})["up"]  # it is given more frames
    assert keys == pipeline.batch_keys({"frames": 12, "style": "y"})
    assert pipeline.sets("draw") == {"frames": ("frames",), "steps": ("call", "steps")}
    with pytest.raises(ConfigError, match=r"'frames' is 101: stages\.draw\.frames: 101 are too many"):
        pipeline.row({"frames": 101})
    assert pipeline.recipe()["inputs"] == {
        "frames": {"int": "stages.draw.frames", "default": 6},
        "steps": {"int": "stages.draw.call.steps"},
        "style": "text",
    }
