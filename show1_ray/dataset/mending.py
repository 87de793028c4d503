"""What a dataset's writer removes: leftovers of interrupted writes, and clips that have changed."""

from __future__ import annotations

from show1_ray.dataset.lander import row_of_file
from show1_ray.dataset.layout import CLIPS, FAILURES, METADATA, REJECTIONS, SAVED_FRAMES, SHARDS, clip_path
from show1_ray.dataset.metadata import id_digest
from show1_ray.dataset.shards import read_videos
from show1_ray.dataset.stock import take_stock
from show1_ray.dataset.storage import Storage


def clean(storage: Storage) -> None:
    """Remove what interrupted writes have left in a dataset's folders. Raises StorageError."""
    if not storage.is_local:  # object stores have no such thing
        return
    stages = [f"{SAVED_FRAMES}/{name}" for name in storage.folders(SAVED_FRAMES)]
    folders = [f"{folder}/{name}" for folder in (CLIPS, *stages) for name in storage.folders(folder)]
    storage.clean(["", SHARDS, METADATA, FAILURES, REJECTIONS, *folders])


def remove_damaged(storage: Storage, recipe_hash: str) -> None:
    """Read all clips, and remove those whose checksum is wrong or that cannot be played. Of a shard that has one, the
    others become single files again, which are adopted. Raises StorageError."""
    stock = take_stock(storage, recipe_hash, verify=True, contents=False)
    for shard in {one.shard for one in stock.found if one.shard is not None}:
        wrong = {one.file_name: one for one in stock.found if one.shard == shard}
        for name, data in read_videos(storage, shard):
            row = row_of_file(data, recipe_hash)
            if row is None:
                continue
            # One without a row that counts is kept where it is the only one of its clip.
            if name not in wrong or (wrong[name].own is not None and id_digest(row["id"]) in stock.waiting):
                storage.write(clip_path(row["id"]), data)
        storage.delete(shard)
    files = [one.file_name for one in stock.found if one.shard is None]
    storage.delete_many([*files, *stock.unplayable])
