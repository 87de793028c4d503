"""How a dataset stands, told from its files alone; needs no lease."""

from __future__ import annotations

from dataclasses import dataclass

from show1_ray.dataset.compaction import read_failures
from show1_ray.dataset.identity import read_identity
from show1_ray.dataset.lease import Holder, read_holder
from show1_ray.dataset.metadata import id_digest
from show1_ray.dataset.stock import take_stock
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
class Status:
    """How a dataset stands.

    `done` clips have landed (of these `without_row` have no row in the metadata yet: the next run adopts them),
    `failures` have not, `left` are neither: together `count`, the clips of the last manifest and the `others` that
    the dataset held before it. What is wrong is told in lines, as in `Stock`: `render` renders `lost` clips again,
    `render --verify` also `damaged` ones, which are looked for only when asked; both count as left. `foreign` files
    count for nothing.
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
    lost: list[str]
    damaged: list[str]
    foreign: list[str]
    holder: Holder | None

    @property
    def is_sound(self) -> bool:
        """Whether nothing of what is there is wrong; failures and what is left are no damage."""
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
    last = {failure["id"]: failure for failure in read_failures(storage)}
    digests = [id_digest(clip_id) for clip_id in last]
    there = stock.inventory.done().find(digests) >= 0
    failures = [
        Failure(**{name: failure[name] for name in Failure.__dataclass_fields__})
        for failure, key, is_there in zip(last.values(), digests, there.tolist(), strict=True)
        if not is_there and key not in stock.waiting
    ]
    clips = stock.count
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
        without_row=len(stock.waiting),
        left=count - clips - len(failures),
        others=others,
        bytes=stock.inventory.bytes,
        failures=failures,
        lost=stock.lost.told(),
        damaged=stock.damaged.told(),
        foreign=stock.foreign.told(),
        holder=None if holder is None or holder.is_dead else holder,
    )
