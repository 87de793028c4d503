"""The examples of stages of one's own run as they stand, and a stage's bug is told by its file and line."""

from __future__ import annotations

import asyncio
import io
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from show1_ray import Clip, UserError, open_line, render
from show1_ray.dataset.video import decode_video, encode_video
from show1_ray.line import ClipDone, ClipFailed, Ended, LineSettings, Service
from show1_ray.show1.stages import STAGES
from tests.own_ray import own_ray

FEWER_STEPS = [
    *("keyframes.steps=1", "interpolation.steps=1", "super_resolution.steps=1", "super_resolution.first_frame.steps=1"),
    "latent_super_resolution.steps=4",
]
ONE_STATION = LineSettings(stations=1, gpus=False)
EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A copy of the examples, beside which a Ray runs."""
    folder = tmp_path_factory.mktemp("mine") / "examples"
    shutil.copytree(EXAMPLES, folder)
    with own_ray(2):
        yield folder


def picture_of(colour: str) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (128, 96), colour).save(file, "PNG")
    return file.getvalue()


MAGENTA = picture_of("magenta")


def with_a_bug(here: Path, folder: Path) -> tuple[Path, int]:
    """The example of an image input with a bug that magenta pictures meet; and its line."""
    code = (
        (here / "zoom.py")
        .read_text()
        .replace(
            "side = min(picture.size)",
            "side = min(picture.sise if picture.getpixel((0, 0)) == (255, 0, 255) else picture.size)",
        )
    )
    buggy = folder / "zoom.py"
    buggy.write_text(code)
    return buggy, next(number for number, text in enumerate(code.splitlines(), 1) if "picture.sise" in text)


def rows_of(out: Path, part: str = "metadata.parquet") -> dict[str, dict]:
    return {row["id"]: row for row in pq.read_table(out / part).to_pylist()}


def test_the_example_of_a_stage_of_ones_own_through_the_command_line_and_an_open_line(here, tmp_path):
    fewer = [argument for change in FEWER_STEPS for argument in ("--set", change)]
    options = ["--out", str(tmp_path), "--pipeline", "mine.yaml", "--code", "brighten.py", "--limit", "1"]
    command = [sys.executable, "-m", "show1_ray", "render", "prompts.parquet", *options, *fewer]
    done = subprocess.run(command, cwd=here, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    [mine] = tmp_path.glob("clips/*/*.mp4")
    assert "brighten:Brighten" in (tmp_path / "pipeline.yaml").read_text()
    [row] = rows_of(tmp_path).values()
    clip = Clip(row["id"], row["prompt"], row["negative_prompt"], row["seed"])

    async def rendered(line: Service) -> tuple[list[str], np.ndarray, np.ndarray]:
        stages, before = [], None
        async for event in line.render(clip, outputs=("latent_super_resolution.video",)):
            if isinstance(event, Ended):
                stages.append(event.stage)
                before = event.tensors.get("latent_super_resolution.video", before)
            last = event
        assert isinstance(last, ClipDone), last
        assert before is not None
        return stages, before, last.result["video"]

    with open_line(here / "mine.yaml", code=here / "brighten.py", overrides=FEWER_STEPS, settings=ONE_STATION) as line:
        stages, before, video = asyncio.run(rendered(line))
    assert stages == [*STAGES, "brighten"]
    assert np.array_equal(video, (before.astype(int) + 40).clip(0, 255))
    assert np.array_equal(decode_video(mine.read_bytes()), decode_video(encode_video(video, row["fps"])))


def test_images_and_bugs_in_an_open_line(here, tmp_path, monkeypatch):
    buggy, line_number = with_a_bug(here, tmp_path)
    picture = (here / "pictures" / "stripes.png").read_bytes()
    monkeypatch.chdir(here)

    async def ends(line: Service, **inputs: object) -> object:
        [*_, last] = [event async for event in line.render(Clip("a", "a", inputs=inputs))]
        return last

    async def all_ends(line: Service) -> tuple[object, ...]:
        done = [await ends(line, picture=given) for given in (picture, "pictures/stripes.png")]
        with pytest.raises(UserError, match=r"^clip 'a': 'picture' is empty, and has no default in the pipeline"):
            await ends(line)
        with pytest.raises(UserError, match=r"^clip 'a': zoom has no input 'image'; there is 'picture'$"):
            await ends(line, picture=picture, image=picture)
        return *done, await ends(line, picture=b"text"), await ends(line, picture=MAGENTA)

    with open_line(here / "zoom.yaml", code=buggy, settings=ONE_STATION) as line:
        by_bytes, by_path, unreadable, failed = asyncio.run(all_ends(line))
    assert isinstance(by_bytes, ClipDone)
    assert isinstance(by_path, ClipDone)
    assert np.array_equal(by_bytes.result["video"], by_path.result["video"])
    assert isinstance(unreadable, ClipFailed)
    assert isinstance(failed, ClipFailed)
    assert unreadable.attempts == 1
    assert "column 'picture' is no image that is read here (PNG, JPEG," in unreadable.reason
    assert failed.reason.startswith(f"stage zoom: {buggy}, line {line_number}, in zoomed: AttributeError: ")


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
    buggy, line = with_a_bug(here, tmp_path)
    (tmp_path / "magenta.png").write_bytes(MAGENTA)
    rows = ({"id": str(number), "prompt": "a", "picture": "magenta.png"} for number in range(2))
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    out = tmp_path / "out"
    summary = render(str(tmp_path / "rows.jsonl"), str(out), here / "zoom.yaml", code=buggy)
    assert (summary.rendered, summary.failed, summary.exit_code) == (0, 2, 1)
    for row in rows_of(out, "failures").values():
        assert row["stage"] == "zoom"
        last = row["error"].strip().splitlines()[-1]
        assert last.startswith(f"stage zoom: {buggy}, line {line}, in zoomed: AttributeError: ")
