"""What stages and pipelines say of themselves: `show1-ray stages`, `check`, `schema`."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest
import yaml
from typer.testing import CliRunner

from show1_ray.cli import app
from show1_ray.errors import UserError
from show1_ray.pipeline import PIPELINE_FOLDERS, Pipeline, names
from show1_ray.pipeline.describe import check, describe_stage, list_stages, schema
from show1_ray.pipeline.registry import names as stage_names

OWN = '''
from show1_ray import Stage, StageSettings

class Brighten(Stage):
    """Adds `by` to every pixel."""

    class Settings(StageSettings):
        by: int = 10

    takes = {"video": "f h w c"}
    gives = {"video": "f h w c", "mean": "value"}

    def run(self, clips, values):
        return []
'''


@pytest.fixture
def own(tmp_path: Path) -> Path:
    (tmp_path / "brighten.py").write_text(OWN)
    (tmp_path / "mine.yaml").write_text("extends: nano\nstages: {brighten: {uses: 'brighten:Brighten'}}")
    return tmp_path


def shown(*arguments: object) -> str:
    result = CliRunner().invoke(app, list(map(str, arguments)), catch_exceptions=False)
    assert result.exit_code == 0
    return result.output


def test_all_stages_are_listed_with_a_line_each(own):
    listed = json.loads(shown("stages", "--json", "--code", own / "brighten.py"))
    assert [one["name"] for one in listed] == [*stage_names(), "brighten:Brighten"]
    assert all(one["description"] and "\n" not in one["description"] for one in listed)
    assert listed[-1]["description"] == "Adds `by` to every pixel."
    assert "Adds `by` to every pixel." in shown("stages", "--code", own / "brighten.py")
    assert all(name in shown("stages") for name in stage_names())


@pytest.mark.parametrize("name", [one["name"] for one in list_stages()])
def test_every_setting_of_the_package_s_stages_has_a_type_and_a_meaning(name):
    for row in [*(found := describe_stage(name))["settings"], *found["execution"]]:
        assert row["type"]
        assert row["meaning"], row["key"]


def test_a_stage_s_settings_are_shown_with_types_defaults_and_what_it_takes_and_gives(own):
    found = json.loads(shown("stages", "brighten:Brighten", "--json", "--code", own / "brighten.py"))
    assert found["takes"] == {"video": "f h w c"}
    assert found["gives"] == {"video": "f h w c", "mean": "value"}
    assert found["settings"] == [{"key": "by", "type": "integer", "required": False, "default": 10, "meaning": ""}]
    text = shown("stages", "keyframes")
    for words in ("takes prompt_embeds (l d)", "gives keyframes (c f h w)", "integer from 1 to 1000", "batch_size"):
        assert words in text


def test_an_unknown_stage_is_refused_with_the_nearest():
    with pytest.raises(Exception, match="no stage 'keyframs'; did you mean 'keyframes'"):
        shown("stages", "keyframs")


def test_check_shows_what_passes_from_stage_to_stage(own):
    found = json.loads(shown("check", own / "mine.yaml", "--code", own / "brighten.py", "--json"))
    assert [stage["name"] for stage in found["stages"]] == [*Pipeline.load("nano").stages, "brighten"]
    text, *_, brighten = found["stages"]
    assert text["gives"]["prompt_embeds"]["sizes"] == [32, 96]
    assert text["checkpoints"][0]["licence"] == "Apache-2.0"
    video = {"axes": "f h w c", "sizes": [29, 96, 144, 3], "type": "uint8", "bytes": 29 * 96 * 144 * 3}
    assert brighten["takes"]["video"] == {"from": "latent_super_resolution.video", **video}
    assert brighten["gives"]["video"] == {"on_the_line": "video", **video}
    assert brighten["gives"]["mean"]["on_the_line"] == "brighten.mean"
    assert found["clip"] == {"value": "brighten.video", **video}
    assert "29 x 96 x 144 x 3 uint8" in shown("check", "nano")


def test_check_finds_a_checkpoint_that_lacks_something_without_loading_it(tiny, tmp_path):
    found = Pipeline.load(tiny, [f"keyframes.checkpoint.repo={tmp_path}"])
    with pytest.raises(Exception, match="no such folder, or nothing in it"):
        check(found)


def test_the_schema_knows_the_package_s_pipelines_and_what_is_wrong():
    validator = jsonschema.Draft202012Validator(schema())
    validator.check_schema(validator.schema)
    for name in names():
        text = (PIPELINE_FOLDERS[0] / f"{name}.yaml").read_text()
        assert not list(validator.iter_errors(yaml.safe_load(text))), name
    for text in (
        "extends: nano\nstages: {mine: {uses: 'a:B', by: 3}, text: null}\ninputs: {image: image}",
        "inputs: {n: {int: stages.a.b, default: 3}, style: {text: null, default: x}}",
    ):
        assert validator.is_valid(yaml.safe_load(text)), text
    for text in (
        "stages: {keyframes: {stepz: 5}}",
        "stages: {keyframes: {steps: many}}",
        "stages: {super_resolution: {first_frame: {steps: 0}}}",
        "execution: {keyframes: {compile: on}}",
        "inputs: {n: {integer: null}}",
        "colour: red",
    ):
        assert not validator.is_valid(yaml.safe_load(text)), text


def test_a_place_that_no_schema_can_be_written_to_is_refused(tmp_path):
    for place in (tmp_path, tmp_path / "nothing" / "schema.json"):
        result = CliRunner().invoke(app, ["schema", "--out", str(place)])
        assert isinstance(result.exception, UserError)
        assert str(result.exception).startswith("--out ")


def test_the_schema_goes_to_a_file_too(tmp_path):
    shown("schema", "--out", tmp_path / "schema.json")
    assert json.loads((tmp_path / "schema.json").read_text()) == json.loads(shown("schema"))
