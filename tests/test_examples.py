"""The examples of stages of one's own run as they stand, and a stage's bug is told by its file and line."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from show1_ray import render
from show1_ray.dataset.video import decode_video
from tests.own_ray import own_ray

EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A copy of the examples, beside which a Ray runs."""
    folder = tmp_path_factory.mktemp("mine") / "examples"
    shutil.copytree(EXAMPLES, folder)
    with own_ray(2):
        yield folder


def rows_of(out: Path, part: str = "metadata.parquet") -> dict[str, dict]:
    return {row["id"]: row for row in pq.read_table(out / part).to_pylist()}


def test_the_example_of_a_stage_of_ones_own_through_the_command_line(here, tmp_path):
    options = ["--out", "out", "--pipeline", "mine.yaml", "--code", "brighten.py", "--limit", "1"]
    command = [sys.executable, "-m", "show1_ray", "render", "prompts.parquet", *options]
    for each in (command, [*command[:-6], "--pipeline", "nano", *command[-2:]]):
        each[each.index("--out") + 1] = str(tmp_path / each[each.index("--pipeline") + 1])
        done = subprocess.run(each, cwd=here, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    [mine] = (tmp_path / "mine.yaml").glob("clips/*/*.mp4")
    [nano] = (tmp_path / "nano").glob("clips/*/*.mp4")
    brighter, plain = (decode_video(path.read_bytes()).astype(int) for path in (mine, nano))
    assert np.abs(brighter - (plain + 40).clip(0, 255)).mean() < 4  # both have been through H.264
    assert "brighten:Brighten" in (tmp_path / "mine.yaml" / "pipeline.yaml").read_text()


def test_the_example_of_an_image_input(here, tmp_path):
    with (here / "pictures.jsonl").open("a") as rows:
        for id, picture in (
            ("gone", "pictures/gone.png"),
            ("private", "http://127.0.0.1:9/a.png"),
            ("text", "zoom.py"),
        ):
            rows.write(json.dumps({"id": id, "prompt": "a picture", "picture": picture}) + "\n")
    out = tmp_path / "out"
    summary = render(str(here / "pictures.jsonl"), str(out), here / "zoom.yaml", code=here / "zoom.py")
    assert (summary.rendered, summary.failed) == (2, 3)
    rows = rows_of(out)
    assert {row["frames"] for row in rows.values()} == {16}
    assert all(len(row["picture_sha256"]) == 64 for row in rows.values())
    assert rows["stripes"]["picture"] == "pictures/stripes.png"
    [clip] = out.glob("clips/*/rings.mp4")
    assert decode_video(clip.read_bytes()).std() > 40
    failures = rows_of(out, "failures")
    assert {row["attempts"] for row in failures.values()} == {1}, "another attempt would end the same"
    said = {id: row["error"].strip().splitlines()[-1] for id, row in failures.items()}
    assert "column 'picture' 'pictures/gone.png' cannot be read here: No such file or directory" in said["gone"]
    assert "leads to 127.0.0.1, which is no public address: --allow-private-urls reads it" in said["private"]
    assert "column 'picture' is no image that is read here (PNG, JPEG, WebP, GIF, BMP or TIFF)" in said["text"]


def test_the_example_of_a_model_on_cpu_cores(here, tmp_path):
    subprocess.run([sys.executable, here / "judge.py"], check=True, capture_output=True)
    arguments = (str(EXAMPLES / "pictures.jsonl"), str(tmp_path / "out"), here / "judge.yaml")
    summary = render(*arguments, code=here)
    assert (summary.rendered, summary.rejected, summary.failed) == (2, 0, 0)
    for row in rows_of(tmp_path / "out").values():
        assert row["judge_label"] in ("calm", "busy")
        assert 0.5 <= row["judge_score"] <= 1
    strict = render(arguments[0], str(tmp_path / "strict"), arguments[2], code=here, overrides=["judge.least=1"])
    assert (strict.rendered, strict.rejected, strict.failed) == (0, 2, 0)
    assert all("less than 1" in row["reason"] for row in rows_of(tmp_path / "strict", "rejections").values())


def test_a_bug_is_told_with_the_file_and_line_of_its_authors_code(here, tmp_path):
    code = (here / "zoom.py").read_text()
    buggy = tmp_path / "zoom.py"
    buggy.write_text(code.replace("side = min(picture.size)", "side = min(picture.sise)"))
    line = next(n for n, text in enumerate(buggy.read_text().splitlines(), 1) if "picture.sise" in text)
    out = tmp_path / "out"
    summary = render(str(EXAMPLES / "pictures.jsonl"), str(out), here / "zoom.yaml", code=buggy)
    assert (summary.rendered, summary.failed, summary.exit_code) == (0, 2, 1)
    for row in rows_of(out, "failures").values():
        assert row["stage"] == "zoom"
        last = row["error"].strip().splitlines()[-1]
        assert last.startswith(f"stage zoom: {buggy}, line {line}, in zoomed: AttributeError: ")
