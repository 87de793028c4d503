"""What `dataset.json` says is read by one function, which refuses what it cannot trust in one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from show1_ray.cli import app
from show1_ray.dataset import look, read_status
from show1_ray.dataset.identity import read_identity
from show1_ray.dataset.storage import Storage
from show1_ray.errors import UserError
from tests.dataset.toys import ORIGIN, entries

GOOD = {
    "show1_ray_dataset": 1,
    "format": "mp4",
    "pipeline": "toy",
    "recipe_hash": ORIGIN.recipe_hash,
    "recipe": dict(ORIGIN.recipe),
    "manifest": {"url": "a.csv", "count": 3, "fingerprint": "f"},
}
MEND = "; bring back what was there, or give another --out"
WRONG = {
    "no JSON": ("{", f"is not JSON: EOF while parsing an object at line 1 column 1{MEND}"),
    "no text": (b"\xff\xfe", f"is not JSON: expected value at line 1 column 1{MEND}"),
    "deep": ("[" * 100_000, "is not JSON: recursion limit exceeded at line 1 column 20"),
    "a list": ("[]", "is not one of show1-ray; give another --out"),
    "another tool's": ('{"name": "x"}', "is not one of show1-ray; give another --out"),
    "newer": (
        {**GOOD, "show1_ray_dataset": 2, "format": 7},
        "is of version 2, and this show1-ray knows 1; use a newer show1-ray",
    ),
    "format": ({**GOOD, "format": 7}, f"has a 'format' that is 7: input should be 'mp4' or 'webdataset'{MEND}"),
    "recipe": ({**GOOD, "recipe": []}, f"has a 'recipe' that is []: input should be an object{MEND}"),
    "no pipeline": ({k: v for k, v in GOOD.items() if k != "pipeline"}, f"lacks 'pipeline'{MEND}"),
    "count": (
        {**GOOD, "manifest": {"count": "many"}},
        f"has a 'manifest.count' that is 'many': input should be a valid integer{MEND}",
    ),
    "less than nothing": (
        {**GOOD, "manifest": {"others": -1}},
        f"has a 'manifest.others' that is -1: input should be greater than or equal to 0{MEND}",
    ),
}


def put(folder: Path, content: object) -> Storage:
    data = content if isinstance(content, bytes) else (content if isinstance(content, str) else json.dumps(content))
    (folder / "dataset.json").write_bytes(data if isinstance(data, bytes) else data.encode())
    return Storage.at(str(folder))


def test_what_a_dataset_says_of_itself_is_read(tmp_path):
    about = read_identity(put(tmp_path, {**GOOD, "added by a later version that changes nothing": 1}))
    assert about is not None
    assert (about.format, about.recipe, about.manifest.count, about.manifest.others) == ("mp4", ORIGIN.recipe, 3, 0)
    (tmp_path / "dataset.json").unlink()
    assert read_identity(Storage.at(str(tmp_path))) is None


@pytest.mark.parametrize("case", WRONG)
def test_a_dataset_json_that_cannot_be_trusted_is_refused_in_one_line_everywhere(job, tmp_path, case):
    content, told = WRONG[case]
    put(tmp_path, content)
    job.url = str(tmp_path)
    for command in (
        lambda: read_status(job.url),
        lambda: look(job.url, entries(1), origin=ORIGIN),
        lambda: job.open(),
    ):
        with pytest.raises(UserError) as error:
            command()
        assert str(error.value).startswith(f"dataset {tmp_path}: its dataset.json {told}")
        assert "\n" not in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["dataset.json"]
    told_by_command = CliRunner().invoke(app, ["status", str(tmp_path)])
    assert isinstance(told_by_command.exception, UserError)
