"""Listings of S3, parsed in a small part of the time that botocore takes.

A page of a thousand keys costs botocore some 50 ms of CPU, because it parses the answer twice and makes a Python object
of every value; a million clips, a minute. Here names and sizes are taken out of the answer before it sees them.
"""

from __future__ import annotations

import re
from contextvars import ContextVar
from dataclasses import dataclass, field
from html import unescape
from typing import Any, cast
from urllib.parse import unquote_plus

from fsspec import AbstractFileSystem
from fsspec.asyn import sync

BEGIN, END = b"<Contents>", b"</Contents>"
ENTRY = re.compile(rb"<Contents>.*?</Contents>", re.DOTALL)
KEY = re.compile(rb"<Key>([^<]*)</Key>")
SIZE = re.compile(rb"<Size>\s*(\d+)\s*</Size>")

_ours: ContextVar[bool] = ContextVar("whether names and sizes are all that is wanted", default=False)


@dataclass
class Page:
    """An answer: name → bytes of files, names of folders, and where the next page begins, if there is one."""

    files: dict[str, int] = field(default_factory=dict)
    folders: list[str] = field(default_factory=list)
    token: str | None = None


def can_list(fs: AbstractFileSystem) -> bool:
    """Whether this is s3fs, of the current versions of objects."""
    return hasattr(fs, "_call_s3") and hasattr(fs, "set_session") and not getattr(fs, "version_aware", False)


def list_folder(fs: AbstractFileSystem, full: str) -> tuple[dict[str, int], list[str]]:
    """Name → bytes of the files right in a folder, and the names of the folders there; nothing where there is none."""
    whole, page = Page(), Page(token="")
    while page.token is not None:
        page = cast(Page, sync(fs.loop, _list, fs, full, "", page.token or None, Delimiter="/"))
        whole.files |= page.files
        whole.folders += page.folders
    return whole.files, whole.folders


def list_page(fs: AbstractFileSystem, full: str, beginning: str, token: str | None = None) -> Page:
    """Some of what is anywhere below a folder and begins so, by its path from there. `token`: of the page before."""
    return cast(Page, sync(fs.loop, _list, fs, full, beginning, token))


async def _list(fs: Any, full: str, beginning: str, token: str | None, **options: str) -> Page:
    client = await fs.set_session()
    # By this name it is called before botocore's own handler, which parses the whole answer to look for an error in it.
    client.meta.events.register("before-parse.*.ListObjectsV2", _take_entries, unique_id="show1-ray: entries")
    _ours.set(True)
    bucket, key, _ = fs.split_path(full)
    prefix = f"{key.rstrip('/')}/" if key else ""
    asked: dict[str, Any] = {"Bucket": bucket, "Prefix": prefix + beginning, **options, **fs.req_kw}
    if token is not None:
        asked["ContinuationToken"] = token
    answer = await fs._call_s3("list_objects_v2", **asked)
    names, sizes = answer.get("Names", []), answer.get("Sizes", [])
    if answer.get("EncodingType") == "url" and any("%" in name or "+" in name for name in names):
        names = [unquote_plus(name) for name in names]  # botocore has asked for it, and would undo it
    names += [one["Key"] for one in answer.get("Contents", ())]
    sizes += [one["Size"] for one in answer.get("Contents", ())]
    cut = len(prefix)
    files = dict(zip([name[cut:] for name in names], sizes, strict=True))
    files.pop("", None)  # the folder itself
    folders = [one["Prefix"][cut:].rstrip("/") for one in answer.get("CommonPrefixes", ())]
    return Page(files, folders, answer["NextContinuationToken"] if answer.get("IsTruncated") else None)


def _take_entries(response_dict: dict[str, Any], customized_response_dict: dict[str, Any], **_: Any) -> None:
    """botocore's event before it parses a listing. What is not as expected is left to it."""
    body = response_dict.get("body")
    if not _ours.get() or response_dict.get("status_code") != 200 or not isinstance(body, bytes):
        return
    # Each entry has one key and one size, in whatever order: so they go together as they come.
    keys, sizes, count = KEY.findall(body), SIZE.findall(body), body.count(BEGIN)
    if not keys or not len(keys) == len(sizes) == count:
        return
    names = b"\0".join(keys).decode()
    customized_response_dict["Names"] = (unescape(names) if "&" in names else names).split("\0")
    customized_response_dict["Sizes"] = [*map(int, sizes)]
    begin, end = body.index(BEGIN), body.rindex(END) + len(END)
    is_one_block = body.count(END + BEGIN, begin, end) == count - 1
    response_dict["body"] = body[:begin] + body[end:] if is_one_block else ENTRY.sub(b"", body)
