"""What must come out of a round of chaos.py: every clip once, with its frames, and nothing rendered twice."""

from __future__ import annotations

import collections
import hashlib
import io
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from chaos_faults import Round

from show1_ray.dataset.video import decode_video

PIPELINE = """fps: 8
stages:
  draw: {uses: 'chaos_stages:Draw', seconds: %g}
  invert: {uses: 'chaos_stages:Invert', seconds: %g}
execution:
  draw: {batch_size: 4}
  invert: {batch_size: 2}
"""


def write_manifest(folder: Path, count: int, seconds: float) -> None:
    """What the job of a round renders, and with what: stages that take so many seconds a clip."""
    rows = {"id": [f"clip-{i}" for i in range(count)], "prompt": ["a red circle"] * count, "seed": list(range(count))}
    pq.write_table(pa.table(rows), folder / "prompts.parquet")
    (folder / "chaos.yaml").write_text(PIPELINE % (seconds, seconds))


def files_of(this: Round) -> dict[str, bytes]:
    """The dataset's files that hold videos, and their names."""
    storage, root = this.storage, this.out.removeprefix("s3://")
    paths = [path for path in storage.find(root) if path.endswith((".mp4", ".tar"))]
    found = storage.cat(paths) if paths else {}
    return {path.removeprefix(root).lstrip("/"): data for path, data in sorted(found.items())}


def videos(this: Round) -> Iterator[tuple[str, bytes]]:
    """Ids and files, each as often as it is there."""
    for name, data in files_of(this).items():
        if name.startswith("clips/") and name.endswith(".mp4"):
            yield Path(name).stem, data
        elif name.startswith("shards/") and name.endswith(".tar"):
            with tarfile.open(fileobj=io.BytesIO(data)) as tar:
                for member in tar:
                    if member.name.endswith(".mp4"):
                        file = tar.extractfile(member)
                        assert file is not None
                        yield Path(member.name).stem, file.read()


def digest(video: bytes) -> str:
    """Of its frames."""
    return hashlib.sha256(np.ascontiguousarray(decode_video(video)).tobytes()).hexdigest()


def check_landed(this: Round, before: dict[str, str]) -> dict[str, str]:
    """What had landed is what it was: a clip that is rendered again is another file, which tells when it was made."""
    now = {name: hashlib.sha256(video).hexdigest() for name, video in videos(this)}
    again = [name for name in before if name in now and now[name] != before[name]]
    gone = [name for name in before if name not in now]
    if again or gone:
        this.wrong.append(f"rendered again: {again[:5]}; gone: {gone[:5]}")
    return now


def check_dataset(this: Round, expected: dict[str, str]) -> None:
    """Nothing is lost or doubled, and frames are those of a job that nothing happened to."""
    found = [(name, digest(video)) for name, video in videos(this)]
    counts = collections.Counter(name for name, _ in found)
    wanted = {name: expected[name] for name in (f"clip-{i}" for i in range(this.clips))}
    lost, twice = wanted.keys() - counts.keys(), [name for name, count in counts.items() if count > 1]
    other = [name for name, value in found if wanted.get(name) != value]
    storage, root = this.storage, this.out.removeprefix("s3://")
    rows = pq.read_table(io.BytesIO(storage.cat_file(f"{root}/metadata.parquet")))["id"].to_pylist()
    if lost or twice or other or sorted(rows) != sorted(wanted):
        this.wrong.append(f"lost {sorted(lost)[:5]}, twice {twice[:5]}, other frames {other[:5]}, {len(rows)} rows")
    begun = [path for path in storage.find(root) if ".tmp" in path]
    if begun:
        this.wrong.append(f"{len(begun)} files that were begun: {begun[:5]}")
