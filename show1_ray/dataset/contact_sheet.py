"""Many clips at a glance: a picture with a row of frames for each, or one where all of them play."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from show1_ray.dataset.parts import metadata_parts, read_part
from show1_ray.dataset.storage import Storage
from show1_ray.dataset.video import decode_video
from show1_ray.errors import UserError

CAPTION = 14  # pixels in height
GAP = 4
COLUMNS = 4
PLAYING = (".gif", ".webp")


def write_sheet(url: str, out: Path, count: int = 12) -> int:
    """Writes a sheet of a dataset's clips, evenly from its first to its last row.

    Args:
        url: the dataset.
        out: a picture. In a .gif or .webp the clips play; another one has a row of frames for each.
        count: clips at most.

    Returns:
        How many there are on it.

    Raises:
        UserError: no clips there, or none that are files of their own; a picture that cannot be written; StorageError.
    """
    storage = Storage.at(url)
    columns = ["id", "prompt", "file_name", "shard", "fps"]
    rows = [
        row
        for part in metadata_parts(storage)
        for batch in read_part(storage, part, columns)
        for row in batch.to_pylist()
    ]
    rows = [row for row in rows if row.get("shard") is None]
    if not rows:
        raise UserError(f"dataset {url}: no clips that are files of their own to show")
    chosen = [rows[at] for at in np.linspace(0, len(rows) - 1, min(count, len(rows))).round().astype(int)]
    clips = list(storage.map(lambda row: decode_video(storage.read(row["file_name"])), chosen))
    captions = [row["prompt"] for row in chosen]
    try:
        if out.suffix in PLAYING:
            out.write_bytes(playing_sheet(clips, captions, chosen[0]["fps"], out.suffix))
        else:
            contact_sheet(clips, captions).save(out)
    except (OSError, ValueError) as error:
        raise UserError(f"--out {out}: {error}") from error
    return len(chosen)


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
