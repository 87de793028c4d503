"""Undoing: a refused job leaves no dataset behind."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from show1_ray.dataset.layout import CARD, DATASET, PIPELINE
from show1_ray.dataset.lease import LeaseError
from show1_ray.dataset.report.report import REPORT
from show1_ray.dataset.storage import Storage, StorageError
from show1_ray.errors import UserError

WRITTEN = (REPORT, CARD, PIPELINE, DATASET)
"""What a job writes before its first clip. The identity is removed last: without it, the rest would look foreign."""


class Undo:
    """What existed before the job."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._is_new = DATASET not in storage.sizes("")
        self._made = _missing(Path(storage.full(""))) if storage.is_local else []
        self.kept = False

    def keep(self) -> None:
        """The job renders: what there is tells of it."""
        self.kept = True

    def undo(self) -> None:
        """Removes what the job has written, if it began the dataset and nothing is in it."""
        storage = self._storage
        if self.kept or not self._is_new or DATASET not in storage.sizes("") or storage.folders(""):
            return
        for name in WRITTEN:
            storage.delete(name)
        for folder in self._made:
            folder.rmdir()


@contextmanager
def undone_if_refused(url: str) -> Iterator[Undo]:
    """A dataset that is begun within this block goes again if the block ends with UserError, unless it is kept.

    Raises:
        StorageError: it cannot be looked at.
    """
    undo = Undo(Storage.at(url))
    try:
        yield undo
    except LeaseError:  # it is another job's
        raise
    except UserError:
        with suppress(StorageError, OSError):  # that error is what the job is to end with
            undo.undo()
        raise


def _missing(folder: Path) -> list[Path]:
    """The folders that have to be made for this one, itself first."""
    return [one for one in (folder, *folder.parents) if not one.exists()]
