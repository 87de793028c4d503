"""The state of a dataset, from its files alone; needs no lease."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from show1_ray.dataset.endings import FAILED, REJECTED, Ending, read_endings
from show1_ray.dataset.identity import read_identity
from show1_ray.dataset.lease import Holder, read_holder
from show1_ray.dataset.metadata import id_digest
from show1_ray.dataset.stock import Stock, take_stock
from show1_ray.dataset.storage import Storage
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
class Rejection:
    """A clip that a stage rejected; `values` are its plain values, as JSON."""

    id: str
    prompt: str
    stage: str
    reason: str
    values: str
    rejected: str


@dataclass(frozen=True)
class Status:
    """The state of a dataset.

    `done` clips have landed (of these `without_row` have no row in the metadata yet: the next run adopts them),
    `failures` have not, `rejections` were not let go on, `left` are none of these: together `count`, the clips of the
    last manifest and the `others` that the dataset held before it. What is wrong is told in lines, as in `Stock`:
    `render` renders `lost` clips again, `render --verify` also `damaged` ones, which are looked for only when asked;
    both count as left. `foreign` files count for nothing.
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
    rejections: list[Rejection]
    lost: list[str]
    damaged: list[str]
    foreign: list[str]
    holder: Holder | None

    @property
    def is_sound(self) -> bool:
        """Whether nothing is wrong with the files; failures and clips left do not count as damage."""
        return not (self.lost or self.damaged or self.foreign)


def read_status(url: str, verify: bool = False) -> Status:
    """Read the status of the dataset at `url`; with `verify` all its clips too, to compare them with their checksums.

    Raises UserError where there is none, StorageError.
    """
    storage = Storage.at(url)
    about = read_identity(storage)
    if about is None:
        raise UserError(f"dataset {url}: there is none")
    stock = take_stock(storage, about.recipe_hash, verify=verify, contents=False)
    rejections = [Rejection(**row) for row in _standing(storage, stock, REJECTED, Rejection)]
    judged = {one.id for one in rejections}
    failures = [Failure(**row) for row in _standing(storage, stock, FAILED, Failure) if row["id"] not in judged]
    ended = len(failures) + len(rejections)
    clips = stock.count
    last_job = about.manifest
    others = 0 if last_job.count is None else last_job.others + last_job.other_failures
    # More than are known of: somebody has put files there.
    count = max((last_job.count or 0) + others, clips + ended)
    holder = read_holder(storage)
    return Status(
        pipeline=about.pipeline,
        recipe_hash=about.recipe_hash,
        format=about.format,
        manifest=last_job.url,
        count=count,
        done=clips,
        without_row=len(stock.waiting),
        left=count - clips - ended,
        others=others,
        bytes=stock.inventory.bytes,
        failures=failures,
        rejections=rejections,
        lost=stock.lost.told(),
        damaged=stock.damaged.told(),
        foreign=stock.foreign.told(),
        holder=None if holder is None or holder.is_dead else holder,
    )


def _standing(
    storage: Storage, stock: Stock, ending: Ending, kind: type[Failure] | type[Rejection]
) -> list[dict[str, Any]]:
    """Of each clip that has ended so and is not there after all, the last row, as `kind` names its columns."""
    last = {row["id"]: row for row in read_endings(storage, ending)}
    digests = [id_digest(clip_id) for clip_id in last]
    there = stock.inventory.done().find(digests) >= 0
    return [
        {name: row[name] for name in kind.__dataclass_fields__}
        for row, key, is_there in zip(last.values(), digests, there.tolist(), strict=True)
        if not is_there and key not in stock.waiting
    ]
