"""Many clips at a glance: a picture with a row of frames for each clip, or an animation of all of them."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from show1_ray.dataset.identity import read_identity
from show1_ray.dataset.parts import BROKEN, metadata_parts, read_part
from show1_ray.dataset.shards import read_videos
from show1_ray.dataset.storage import Storage
from show1_ray.dataset.video import BrokenVideoError, decode_video
from show1_ray.errors import UserError

CAPTION = 14  # pixels in height
GAP = 4
COLUMNS = 4
PLAYING = (".gif", ".webp")


def write_sheet(url: str, out: Path, count: int = 12, tell: Callable[[str], None] = lambda text: None) -> int:
    """Writes a sheet of a dataset's clips, evenly from its first to its last row, from single files and shards.

    Args:
        url: the dataset.
        out: a picture. In a .gif or .webp the clips play; another one has a row of frames for each.
        count: clips at most.
        tell: is told of clips that were chosen and are not there.

    Returns:
        How many there are on it.

    Raises:
        UserError: no dataset there, or no clips in it; a picture that cannot be written; StorageError.
    """
    storage = Storage.at(url)
    if read_identity(storage) is None:
        raise UserError(f"dataset {url}: there is none")
    rows = list(_rows(storage).values())
    if not rows:
        raise UserError(f"dataset {url}: has no clips to show yet")
    chosen = [rows[at] for at in np.linspace(0, len(rows) - 1, min(count, len(rows))).round().astype(int)]
    videos = _videos(storage, chosen)
    there = [row for row in chosen if row["id"] in videos]
    if len(there) < len(chosen):
        wrong = next(row["file_name"] for row in chosen if row["id"] not in videos)
        lacking = f"{len(chosen) - len(there)} of {len(chosen)} clips are not there whole"
        tell(f"dataset {url}: {lacking}, such as {wrong}: `render --verify` renders them again")
    if not there:
        raise UserError(f"dataset {url}: has no clips that can be shown: none is complete")
    clips, captions = [videos[row["id"]] for row in there], [row["prompt"] for row in there]
    try:
        if out.suffix in PLAYING:
            out.write_bytes(playing_sheet(clips, captions, there[0]["fps"], out.suffix))
        else:
            contact_sheet(clips, captions).save(out)
    except (OSError, ValueError) as error:
        raise UserError(f"{out}: cannot be written: {error}") from error
    return len(there)


def _rows(storage: Storage) -> dict[str, dict[str, Any]]:
    """By id, the last row of each clip. Raises UserError for rows that no job writes."""
    rows: dict[str, dict[str, Any]] = {}
    for part in metadata_parts(storage):
        with suppress(*BROKEN):  # not whole: its clips are found again by the next job
            for batch in read_part(storage, part, ["id", "prompt", "file_name", "shard", "fps"]):
                rows |= {row["id"]: row for row in batch.to_pylist()}
    for row in rows.values():
        has_texts = all(isinstance(row.get(name), str) for name in ("prompt", "file_name"))
        if not has_texts or not isinstance(row.get("fps"), float) or not 0 < row["fps"] < 1000:
            what = f"its metadata has no prompt, file name or rate of {row.get('id')!r}"
            raise UserError(f"dataset {storage.url}: {what}")
    return rows


def _videos(storage: Storage, rows: Sequence[dict[str, Any]]) -> dict[str, np.ndarray]:
    """By id, the frames of those that are there whole."""

    def read(row: dict[str, Any]) -> bytes:
        try:
            return storage.read(row["file_name"])
        except FileNotFoundError:
            return b""

    files = [row for row in rows if row.get("shard") is None]
    found = dict(zip((row["id"] for row in files), storage.map(read, files), strict=True))
    for shard in {row["shard"] for row in rows if row.get("shard") is not None}:
        wanted = {row["file_name"]: row["id"] for row in rows if row.get("shard") == shard}
        found |= {wanted[name]: data for name, data in read_videos(storage, shard) if name in wanted}
    videos = {}
    for clip_id, data in found.items():
        with suppress(BrokenVideoError):
            videos[clip_id] = decode_video(data)
    return videos


def contact_sheet(clips: Sequence[np.ndarray], captions: Sequence[str], frames: int = 6) -> Image.Image:
    """A picture with a row for each clip: its caption above, `frames` of its frames evenly from first to last.

    `clips` are F H W C, uint8 RGB, all of one height and width (see `video.decode_video`). Raises ValueError for no
    clips, and where there are more clips than captions or fewer.
    """
    if not clips:
        raise ValueError("no clips to show")
    height, width = clips[0].shape[1:3]
    row = CAPTION + height + GAP
    sheet = Image.new("RGB", (frames * (width + GAP) - GAP, len(clips) * row - GAP), "white")
    draw = ImageDraw.Draw(sheet)
    for number, (clip, caption) in enumerate(zip(clips, captions, strict=True)):
        draw.text((0, number * row), caption, fill="black")
        for place, at in enumerate(np.linspace(0, len(clip) - 1, frames).round().astype(int).tolist()):
            sheet.paste(Image.fromarray(clip[at]), (place * (width + GAP), number * row + CAPTION))
    return sheet


def playing_sheet(clips: Sequence[np.ndarray], captions: Sequence[str], fps: float, suffix: str = ".gif") -> bytes:
    """An animated picture, a GIF or a WebP, of clips in four columns, each with its caption (two lines at most) above.

    `clips` as for `contact_sheet`; the shorter ones stay at their last frame. Raises ValueError as that does.
    """
    if not clips:
        raise ValueError("no clips to show")
    height, width = clips[0].shape[1:3]
    head = 2 * CAPTION
    columns = min(COLUMNS, len(clips))
    rows = -(-len(clips) // columns)
    base = Image.new("RGB", (columns * (width + GAP) - GAP, rows * (head + height + GAP) - GAP), "white")
    draw = ImageDraw.Draw(base)
    places = [(n % columns * (width + GAP), n // columns * (head + height + GAP)) for n in range(len(clips))]
    for (left, top), caption in zip(places, _wrapped(captions, draw, width), strict=True):
        draw.multiline_text((left, top), caption, fill="black", spacing=2)
    pictures = []
    for at in range(max(map(len, clips))):
        picture = base.copy()
        for (left, top), clip in zip(places, clips, strict=True):
            picture.paste(Image.fromarray(clip[min(at, len(clip) - 1)]), (left, top + head))
        pictures.append(picture)
    file = io.BytesIO()
    kind = {".gif": "GIF", ".webp": "WEBP"}[suffix]
    more = pictures[1:]
    pictures[0].save(file, kind, save_all=True, append_images=more, duration=round(1000 / fps), loop=0)
    return file.getvalue()


def _wrapped(captions: Sequence[str], draw: ImageDraw.ImageDraw, width: int) -> list[str]:
    """Captions in at most two lines of `width` pixels, the rest left out."""
    wrapped = []
    for caption in captions:
        lines = [""]
        for word in caption.split():
            if draw.textlength(f"{lines[-1]} {word}") > width:
                lines.append("")
            lines[-1] = f"{lines[-1]} {word}".strip()
        wrapped.append("\n".join(lines[:2]) + ("…" if len(lines) > 2 else ""))
    return wrapped
