"""What is wrong is called wrong: `status`, `render --dry-run` and `render` find the same, whatever happened to a file.

Each case does something to a finished dataset of nine clips, and says what has to be rendered again without and with
`--verify`, and what is told of it.
"""

from __future__ import annotations

import io
import json
import shutil
import tarfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from show1_ray.cli import app
from show1_ray.clip import Clip
from show1_ray.dataset import Rendering, look, read_status
from show1_ray.dataset.layout import clip_path
from show1_ray.dataset.video import encode_video
from show1_ray.errors import UserError
from tests.dataset.test_dataset import assert_complete, spoil, truncate, video
from tests.dataset.toys import ORIGIN, Job, entries, frames

COUNT = 9
ROWS = "metadata.parquet"


@dataclass(frozen=True)
class Case:
    """`again`: the numbers of the clips that `render` renders; `verified`: those of `render --verify`."""

    damage: Callable[[Job], object]
    again: set[int] = field(default_factory=set)
    verified: set[int] | None = None
    lost: tuple[str, ...] = ()
    damaged: tuple[str, ...] = ()
    foreign: tuple[str, ...] = ()
    stays: bool = False  # what is foreign is there afterwards, too


def clip(number: int) -> str:
    return clip_path(f"clip-{number}")


def shard(job: Job, number: int = 0) -> Path:
    return Path(job.url) / f"shards/shard-{number:06}.tar"


def swap(first: Path, second: Path) -> None:
    contents = first.read_bytes(), second.read_bytes()
    first.write_bytes(contents[1])
    second.write_bytes(contents[0])


def padded(job: Job, number: int, size: int) -> bytes:
    """A clip's file made longer by a box that players skip."""
    data = video(job, f"clip-{number}").read_bytes()
    return data + (size - len(data)).to_bytes(4, "big") + b"free" + bytes(size - len(data) - 8)


def swap_equally_long(job: Job) -> None:
    """Two clips exchanged whose rows tell of the same size."""
    size = 20 + max(video(job, f"clip-{n}").stat().st_size for n in (1, 2))
    contents = {n: padded(job, n, size) for n in (1, 2)}
    for n, data in contents.items():
        video(job, f"clip-{n}").write_bytes(data)
    job.run(COUNT, manifest={"url": "a.csv", "count": COUNT})  # adopts them with their new sizes
    assert read_status(job.url, verify=True).is_sound
    swap(video(job, "clip-1"), video(job, "clip-2"))


def foreign_video(job: Job, path: str) -> None:
    place = Path(job.url) / path
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_bytes(encode_video(frames(Clip("x", "p", None, 77)), 8, "not a row"))


def move(job: Job) -> None:
    place = Path(job.url) / "clips/00/clip-1.mp4"
    place.parent.mkdir(exist_ok=True)
    video(job, "clip-1").rename(place)


def rewrite(path: Path, change: Callable[[list[tuple[str, bytes]]], list[tuple[str, bytes]]]) -> None:
    with tarfile.open(path) as tar:
        members = [(one.name, file.read()) for one in tar if (file := tar.extractfile(one))]
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        for name, data in change(members):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def without(*names: str) -> Callable[[list[tuple[str, bytes]]], list[tuple[str, bytes]]]:
    return lambda members: [one for one in members if not one[0].startswith(names)]


def keep_rows(job: Job, keep: Callable[[pa.Table], pa.Table]) -> None:
    path = Path(job.url) / ROWS
    pq.write_table(keep(pq.read_table(path)), path)


def not_clip_2(table: pa.Table) -> pa.Table:
    return table.filter(pc.not_equal(table["id"], "clip-2"))


def foreign_shard(job: Job) -> None:
    with tarfile.open(shard(job, 7), "w") as tar:
        tar.addfile(tarfile.TarInfo("holiday.mp4"))


NO_ROW = "clip-2.mp4 in shards/shard-000000.tar, for which no row counts"
FILES = {
    "cut": Case(
        lambda job: truncate(video(job, "clip-3")),
        {3},
        lost=(f"{clip(3)}: cut, or not made by this dataset's recipe",),
    ),
    "empty": Case(
        lambda job: video(job, "clip-3").write_bytes(b""),
        {3},
        lost=(f"{clip(3)}: cut, or not made by this dataset's recipe",),
    ),
    "gone": Case(lambda job: video(job, "clip-3").unlink(), {3}, lost=(f"{clip(3)}: is not there",)),
    "all gone": Case(
        lambda job: shutil.rmtree(Path(job.url) / "clips"),
        set(range(COUNT)),
        lost=tuple(f"{clip(n)}: is not there" for n in range(COUNT)),
    ),
    "exchanged": Case(
        lambda job: swap(video(job, "clip-1"), video(job, "clip-2")),
        {1, 2},
        lost=(f"{clip(1)}: holds the clip 'clip-2'", f"{clip(2)}: holds the clip 'clip-1'"),
    ),
    "exchanged and of one size": Case(swap_equally_long, set(), {1, 2}, damaged=(clip(1), clip(2))),
    "a bit": Case(
        lambda job: spoil(video(job, "clip-3"), video(job, "clip-3").read_bytes()), set(), {3}, damaged=(clip(3),)
    ),
    "elsewhere": Case(move, {1}, lost=(f"{clip(1)}: is not there",), foreign=("clips/00/clip-1.mp4",), stays=True),
    "another's video in a clip's place": Case(
        lambda job: foreign_video(job, clip(4)), {4}, lost=(f"{clip(4)}: cut, or not made by this dataset's recipe",)
    ),
    "another's video": Case(
        lambda job: foreign_video(job, clip_path("holiday")),
        foreign=(f"{clip_path('holiday')}: cut, or not made by this dataset's recipe",),
        stays=True,
    ),
    "another's file": Case(
        lambda job: (Path(job.url) / clip(0)).with_name("notes.txt").write_text("x"),
        foreign=(str(Path(clip(0)).with_name("notes.txt")),),
        stays=True,
    ),
    "no rows": Case(lambda job: (Path(job.url) / ROWS).unlink()),
    "a row less": Case(lambda job: keep_rows(job, not_clip_2)),
    "cut rows": Case(
        lambda job: truncate(Path(job.url) / ROWS),
        lost=(f"{ROWS}: cut, or not Parquet; its rows are taken from the clips",),
    ),
}
SHARDS = {
    "cut": Case(
        lambda job: truncate(shard(job)),
        {0, 1, 2, 3},
        lost=("shards/shard-000000.tar: not as it was written; 4 clips",),
    ),
    "gone": Case(
        lambda job: shard(job, 1).unlink(), {4, 5, 6, 7}, lost=("shards/shard-000001.tar: is not there; 4 clips",)
    ),
    "exchanged": Case(
        lambda job: swap(shard(job), shard(job, 2)),  # each is whole, and carries its rows
    ),
    "a member less": Case(
        lambda job: rewrite(shard(job), without("clip-2")),
        {2},
        lost=("shards/shard-000000.tar: not as it was written; 1 clips",),
    ),
    "another's member": Case(
        lambda job: rewrite(shard(job), lambda members: [*members, ("holiday.mp4", b"x" * 60_000)]),
        foreign=("shards/shard-000000.tar: 1 of its videos",),
        damaged=("holiday.mp4 in shards/shard-000000.tar, for which no row counts",),
    ),
    "another's member that changes no size": Case(
        lambda job: rewrite(shard(job), lambda members: [*members, ("holiday.mp4", b"x")]),
        damaged=("holiday.mp4 in shards/shard-000000.tar, for which no row counts",),
    ),
    "another's shard": Case(foreign_shard, foreign=("shards/shard-000007.tar",), stays=True),
    "no rows": Case(lambda job: (Path(job.url) / ROWS).unlink()),
    "a row less": Case(lambda job: keep_rows(job, not_clip_2), {2}, set(), damaged=(NO_ROW,)),
    "a bit": Case(
        lambda job: spoil(shard(job), dict(members(shard(job)))["clip-2.mp4"]),
        set(),
        {2},
        damaged=("clip-2.mp4 in shards/shard-000000.tar",),
    ),
}


def members(path: Path) -> list[tuple[str, bytes]]:
    with tarfile.open(path) as tar:
        return [(one.name, file.read()) for one in tar if (file := tar.extractfile(one))]


CASES = [("mp4", name) for name in FILES] + [("webdataset", name) for name in SHARDS]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A finished dataset of each form."""
    folder = tmp_path_factory.mktemp("finished")
    for format in ("mp4", "webdataset"):
        Job(str(folder / format)).run(COUNT, format=format, manifest={"url": "a.csv", "count": COUNT})
    return {format: folder / format for format in ("mp4", "webdataset")}


@pytest.mark.parametrize("verify", [False, True], ids=["sizes", "verified"])
@pytest.mark.parametrize(("format", "name"), CASES)
def test_what_render_would_render_again_is_what_is_told(job, finished, format, name, verify):
    case = (FILES if format == "mp4" else SHARDS)[name]
    shutil.copytree(finished[format], job.url)
    case.damage(job)
    wanted = case.verified if verify and case.verified is not None else case.again
    damaged = case.damaged if verify else ()

    status = read_status(job.url, verify)
    assert sorted(status.lost) == sorted(case.lost)
    assert sorted(status.damaged) == sorted(damaged)
    assert sorted(status.foreign) == sorted(case.foreign)
    assert (status.done, status.left, status.count) == (COUNT - len(wanted), len(wanted), COUNT)
    assert look(job.url, entries(COUNT), origin=ORIGIN, format=format, verify=verify).left == len(wanted)
    told = CliRunner().invoke(app, ["status", job.url, *(["--verify"] if verify else [])])
    assert told.exit_code == (1 if case.lost or damaged or case.foreign else 0)
    assert f"{COUNT - len(wanted)} of {COUNT} clips done, 0 failed, {len(wanted)} left" in told.output
    assert all(line in told.output for line in (*case.lost, *damaged, *case.foreign))
    as_json = CliRunner().invoke(app, ["status", job.url, "--json", *(["--verify"] if verify else [])])
    assert (json.loads(as_json.output), as_json.exit_code) == (json.loads(json.dumps(asdict(status))), told.exit_code)

    options = {"format": format, "verify": verify, "manifest": {"url": "a.csv", "count": COUNT}}
    assert set(job.run(COUNT, **options)) == {f"clip-{n}" for n in wanted}
    after = read_status(job.url, verify)
    assert (after.done, after.left, after.lost, after.damaged) == (COUNT, 0, [], [])
    assert bool(after.foreign) == case.stays
    if not after.foreign and (verify or not case.damaged):
        assert_complete(job, COUNT)


def test_a_clip_that_landed_without_a_row_is_read_when_asked(job):
    """Nothing but its frames tells that it is damaged."""
    with job.open() as dataset:
        row = dataset.lander(entries(1)[0].clip, frames(entries(1)[0].clip), Rendering(), {})
        dataset.abandon()
    data = bytearray(video(job, "clip-0").read_bytes())
    at = data.index(b"mdat") + 4
    data[at:] = bytes(len(data) - at)
    video(job, "clip-0").write_bytes(data)
    assert read_status(job.url).without_row == 1
    status = read_status(job.url, verify=True)
    assert (status.done, status.lost) == (0, [f"{row['file_name']}: its frames cannot be decoded"])
    assert look(job.url, entries(1), origin=ORIGIN, verify=True).left == 1
    assert job.run(1, verify=True) == ["clip-0"]
    assert_complete(job, 1)


def test_of_very_many_that_are_lost_the_first_are_named(job, monkeypatch):
    monkeypatch.setattr("show1_ray.dataset.stock.TOLD", 3)
    job.run(COUNT)
    shutil.rmtree(Path(job.url) / "clips")
    status = read_status(job.url)
    assert len(status.lost) == 4
    assert status.lost[-1] == "and 6 more"


@pytest.mark.parametrize(
    ("was", "now"), [(b'"prompt"', b'"prOmpt"'), (b'"seed": ', b'"seed":"'), (b'"landed": "2', b'"landed": "x')]
)
def test_a_row_of_a_clip_that_is_spoilt_is_told(job, finished, was, now):
    """A byte of the JSON that a video file carries; what it says then is no row any more."""
    shutil.copytree(finished["mp4"], job.url)
    (Path(job.url) / ROWS).unlink()
    data = video(job, "clip-3").read_bytes()
    assert data.count(was) == 1
    video(job, "clip-3").write_bytes(data.replace(was, now))
    for command in (["status", job.url], ["status", job.url, "--verify"]):
        told = CliRunner().invoke(app, command)
        assert told.exit_code == 1, told.output
        assert f"{clip(3)}: cut, or not made by this dataset's recipe" in told.output


def test_a_damaged_column_that_gives_too_few_rows_is_told(tmp_path):
    """pyarrow reads none of its rows, and says nothing: the file's index has them all."""
    out = shutil.copytree(Path(__file__).parents[1] / "golden" / "begun_before", tmp_path / "out")
    data = bytearray((out / ROWS).read_bytes())
    data[102] = 3  # the header of the file names' page: how they are encoded
    (out / ROWS).write_bytes(data)
    with pq.ParquetFile(out / ROWS) as table:
        assert sum(len(batch) for batch in table.iter_batches(columns=["file_name"])) == 0
        assert table.metadata.num_rows == 3
    shutil.rmtree(out / "clips")  # whose names it would tell
    told = CliRunner().invoke(app, ["status", str(out)])
    assert isinstance(told.exception, UserError)
    assert f"{ROWS} is not whole" in str(told.exception)
