"""What storage's errors are worth: asked again where they may pass, told at once where not; and silence has an end."""

from __future__ import annotations

import errno
import os
import ssl
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import pytest
from botocore.exceptions import ClientError, EndpointConnectionError, NoCredentialsError, ParamValidationError
from fsspec.implementations.memory import MemoryFileSystem
from s3fs.errors import translate_boto_error

from show1_ray.dataset import patience
from show1_ray.dataset.patience import LISTENER, Retries, can_become_good, patiently
from show1_ray.dataset.storage import Storage, StorageError
from tests.dataset.toys import QUICK


def of_s3(code: str, status: int) -> Exception:
    """An error of S3 as s3fs raises it."""
    response: Any = {"Error": {"Code": code, "Message": code}, "ResponseMetadata": {"HTTPStatusCode": status}}
    return translate_boto_error(ClientError(response, "PutObject"))


def behind(error: Exception, handled: Exception) -> Exception:
    """An error that came while another one was handled."""
    error.__context__ = handled
    return error


class HttpError(Exception):
    """As gcsfs has it."""

    def __init__(self, code: int) -> None:
        self.code = code


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENAMETOOLONG, "File name too long"),
        OSError(errno.ELOOP, "Too many levels of symbolic links"),
        PermissionError(errno.EACCES, "Permission denied"),
        PermissionError("Access Denied"),
        OSError(errno.EROFS, "Read-only file system"),
        ValueError("embedded null byte"),
        UnicodeEncodeError("utf-8", "\ud800", 0, 1, "surrogates not allowed"),
        NotImplementedError("a read-only file system"),
        of_s3("AccessDenied", 403),
        of_s3("NoSuchBucket", 404),
        of_s3("InvalidBucketName", 400),
        of_s3("KeyTooLongError", 400),
        of_s3("InvalidAccessKeyId", 403),
        of_s3("ANewCode", 400),
        of_s3("NotImplemented", 501),
        HttpError(403),
        HttpError(404),
        NoCredentialsError(),
        ParamValidationError(report="bucket"),
        behind(EndpointConnectionError(endpoint_url="https://s3"), ssl.SSLCertVerificationError("self-signed")),
    ],
    ids=repr,
)
def test_what_cannot_become_good_is_not_asked_again(error):
    assert not can_become_good(error)


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        OSError(errno.EIO, "Input/output error"),
        OSError(errno.ESTALE, "Stale file handle"),
        ConnectionResetError("connection reset by peer"),
        TimeoutError(),
        of_s3("SlowDown", 503),
        of_s3("InternalError", 500),
        of_s3("RequestTimeout", 400),
        of_s3("IncompleteBody", 400),
        of_s3("OperationAborted", 409),
        HttpError(429),
        HttpError(502),
        EndpointConnectionError(endpoint_url="https://s3"),
        behind(ConnectionResetError("reset"), FileNotFoundError("handled before")),
        RuntimeError("nobody knows"),
    ],
    ids=repr,
)
def test_what_may_pass_is_asked_again(error):
    assert can_become_good(error)


def looped(folder: Path) -> str:
    (folder / "loop").symlink_to(folder / "loop")
    return str(folder / "loop" / "out")


PLACES: list[Callable[[Path], str]] = [looped, lambda folder: str(folder / ("x" * 300)), lambda folder: "/proc/1/out"]


@pytest.mark.parametrize("place", PLACES, ids=["a loop of links", "a name too long", "a place that takes no files"])
def test_such_places_are_refused_at_the_first_attempt(tmp_path, place):
    storage = Storage(place(tmp_path))
    with pytest.raises((StorageError, FileNotFoundError)) as read:
        storage.read("file")
    with pytest.raises(StorageError) as written:
        storage.write("file", b"x")
    assert "attempts" not in f"{read.value} {written.value}"


@pytest.mark.parametrize("bucket", ["nowhere-at-all", "NOT_A_BUCKET", "x"])
def test_a_bucket_that_cannot_be_is_refused_at_the_first_attempt(s3, bucket):
    with pytest.raises(StorageError) as error:
        Storage(f"s3://{bucket}/out").write("file", b"x")
    assert "attempts" not in str(error.value)


class HangingFileSystem(MemoryFileSystem):
    """Says nothing as long as it is not released."""

    protocol = "hanging"
    store: ClassVar[dict] = {}
    pseudo_dirs: ClassVar[list] = [""]
    released = threading.Event()

    def cat_file(self, path, start=None, end=None, **options):
        type(self).released.wait()
        return b"x"


fsspec.register_implementation("hanging", HangingFileSystem, clobber=True)


@pytest.fixture
def hanging(monkeypatch) -> Iterator[threading.Event]:
    monkeypatch.setattr(patience, "NAMED_SECONDS", 0.05)
    monkeypatch.setattr(patience, "SILENT_SECONDS", 0.2)
    monkeypatch.setattr(patience, "AGAIN_SECONDS", 0.1)
    HangingFileSystem.released.clear()
    yield HangingFileSystem.released
    HangingFileSystem.released.set()


def test_storage_that_says_nothing_is_named_and_then_given_up(hanging):
    said: list[str] = []
    storage = Storage("hanging://bucket/out", QUICK)
    with LISTENER.told(said.append):
        for _ in range(2):
            with pytest.raises(StorageError, match=r"^cannot read hanging://bucket/out/file: no answer for \d s$"):
                storage.read("file")
        assert len(said) == 1, "it is named once"
        assert "hanging://bucket/out: no answer for" in said[0]
        hanging.set()
        assert storage.read("file") == b"x"
    assert said[1:] == ["storage hanging://bucket/out: answers again"]


def test_what_hangs_hangs_alone(hanging, tmp_path):
    with pytest.raises(StorageError):
        Storage("hanging://bucket/out", QUICK).read("file")
    threads = threading.active_count()
    for number in range(20):
        Storage(str(tmp_path), QUICK).write(f"file-{number}", b"x")
    assert threading.active_count() <= threads + 1


def test_attempts_and_waits_are_those_that_were_asked_for():
    attempts = []

    def fail() -> None:
        attempts.append(os.getpid())
        raise ConnectionResetError("reset")

    with pytest.raises(ConnectionResetError):
        patiently(fail, Retries(attempts=4, first_wait=0.001), "store")
    assert len(attempts) == 4
