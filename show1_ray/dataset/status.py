"""How a dataset stands, told from its files alone; needs no lease."""

from __future__ import annotations

from dataclasses import dataclass

from show1_ray.dataset.compaction import read_failures
from show1_ray.dataset.identity import read_identity
from show1_ray.dataset.inventory import take_inventory
from show1_ray.dataset.lease import Holder, read_holder
from show1_ray.dataset.metadata import id_digest
from show1_ray.dataset.storage import Storage
from show1_ray.dataset.verify import without_damaged
from show1_ray.errors import UserError


@dataclass(frozen=True)
class Failure:
    """A clip that could not be rendered."""

    id: str
    prompt: str
    stage: str
    attempts: int
    error: str
    failed: str


@dataclass(frozen=True)
class Status:
    """How a dataset stands.

    `done` clips have landed (of these `without_row` have no row in the metadata yet: the next run adopts them),
    `failures` have not, `left` are neither: together `count`, the clips of the last manifest and the `others` that
    the dataset held before it. `damaged` are there but not as they were written, and count as left; looked for only
    when asked.
    `bytes` are those of clips with rows. `holder` is the job that writes to it, if one does.
    """

    pipeline: str
    recipe_hash: str
    format: str
    manifest: str
    count: int
    done: int
    without_row: int
    left: int
    others: int
    bytes: int
    failures: list[Failure]
    damaged: list[str]
    holder: Holder | None


def read_status(url: str, verify: bool = False) -> Status:
    """Read the status of the dataset at `url`; with `verify` all its clips too, to compare them with their checksums.

    Raises UserError where there is none, StorageError.
    """
    storage = Storage.at(url)
    about = read_identity(storage)
    if about is None:
        raise UserError(f"dataset {url}: there is none")
    inventory = take_inventory(storage)
    damaged = without_damaged(storage, inventory) if verify else []
    done = inventory.done()
    last = {failure["id"]: failure for failure in read_failures(storage)}
    landed = {path.rpartition("/")[2].removesuffix(".mp4") for path in inventory.without_row}
    there = done.find([id_digest(clip_id) for clip_id in last]) >= 0
    failures = [
        Failure(**{name: failure[name] for name in Failure.__dataclass_fields__})
        for failure, is_there in zip(last.values(), there.tolist(), strict=True)
        if not is_there and failure["id"] not in landed
    ]
    clips = inventory.count + len(landed)
    last_job = about.manifest
    others = 0 if last_job.count is None else last_job.others + last_job.other_failures
    # More than are known of: somebody has put files there.
    count = max((last_job.count or 0) + others, clips + len(failures))
    holder = read_holder(storage)
    return Status(
        pipeline=about.pipeline,
        recipe_hash=about.recipe_hash,
        format=about.format,
        manifest=last_job.url,
        count=count,
        done=clips,
        without_row=len(landed),
        left=count - clips - len(failures),
        others=others,
        bytes=inventory.bytes,
        failures=failures,
        damaged=[str(one) for one in damaged],
        holder=None if holder is None or holder.is_dead else holder,
    )
