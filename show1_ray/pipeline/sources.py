"""Files that a manifest names: which places may be read, and how large files may be."""

from __future__ import annotations

import hashlib
import ipaddress
import re
import socket
import ssl
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tenacity import Retrying, retry_if_exception, stop_after_attempt, wait_exponential

from show1_ray.errors import one_line, shown
from show1_ray.pipeline.inputs import InputError
from show1_ray.pipeline.passing import PASSING_STATUS, can_become_good

STORES = {"s3": "s3", "gs": "gcs"}
"""Schemes of object stores, and the extra that each needs."""
SCHEMES = ("https", "http", *STORES, "file")
CONNECT_SECONDS = 10.0
READ_SECONDS = 30.0
MOST_SECONDS = 300.0
"""Of a whole file over HTTP."""
REDIRECTS = 5
ATTEMPTS, FIRST_WAIT = 3, 1.0
"""How often a place is asked whose answer may be another one later, and the seconds of the first wait; each wait is
twice the one before."""
_OLD_IPV4 = ipaddress.ip_network("::/96")
"""IPv6 prefixes that embed IPv4 addresses, from before `::ffff:0:0/96`."""
_NAT64 = ipaddress.ip_network("64:ff9b::/96")


@dataclass(frozen=True)
class Sources:
    """What may be read.

    Attributes:
        root: the folder (any fsspec URL) that paths without a scheme are relative to, and must not leave; None: none.
        allow_private: also addresses that are not public, and local files anywhere.
    """

    root: str | None = None
    allow_private: bool = False

    def read(self, given: str | bytes, most: int) -> bytes:
        """A file's bytes.

        Args:
            given: its bytes; an https, http, s3, gs or file URL; or a path relative to `root`.
            most: bytes that it may have.

        Raises:
            InputError: a place that is not read, that cannot be read, or too many bytes. What may pass (a server that
                is down, a timeout) has been tried `ATTEMPTS` times, and the error says that it may.
        """
        if isinstance(given, bytes):
            return _bounded([given], most)
        asked = Retrying(
            stop=stop_after_attempt(ATTEMPTS),
            wait=wait_exponential(multiplier=FIRST_WAIT),
            retry=retry_if_exception(lambda error: isinstance(error, InputError) and error.passing),
            reraise=True,
        )
        try:
            return asked(self._read, given, most)
        except InputError as error:
            raise InputError(f"{shown(given, 200)} {error}", error.passing) from None

    def local_sha256(self, given: str | bytes) -> str | None:
        """The SHA-256 of a file's bytes, where it lies in a folder of this machine that may be read; None elsewhere."""
        if isinstance(given, bytes):
            return hashlib.sha256(given).hexdigest()
        scheme, is_url, rest = given.partition("://")
        if is_url and scheme.lower() != "file":
            return None
        try:
            with self._place(rest if is_url else self._whole(given)).open("rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()
        except (InputError, OSError, ValueError):
            return None

    def _read(self, given: str, most: int) -> bytes:
        scheme, is_url, rest = given.partition("://")
        if not is_url:
            return self._relative(given, most)
        scheme = scheme.lower()
        if scheme not in SCHEMES:
            raise InputError(f"is no place that is read: give bytes, a path, or a URL of {', '.join(SCHEMES)}")
        if scheme == "file":
            return self._local(rest, most)
        return self._http(given, most) if scheme in ("http", "https") else _stored(scheme, rest, most)

    def _relative(self, given: str, most: int) -> bytes:
        whole = self._whole(given)
        return self._local(whole, most) if "://" not in whole else Sources(None, self.allow_private)._read(whole, most)

    def _whole(self, given: str) -> str:
        """A path, or the URL that it stands for where `root` is one."""
        if Path(given).is_absolute() or self.root is None:
            return given
        if "://" in self.root and ".." in given.split("/"):
            raise InputError("leads out of the manifest's folder")
        return f"{self.root}/{given}"

    def _place(self, path: str) -> Path:
        place = Path(path).resolve()
        if not self.allow_private and (self.root is None or not place.is_relative_to(Path(self.root).resolve())):
            raise InputError("is a local file outside the manifest's folder: --allow-private-urls reads it")
        return place

    def _local(self, path: str, most: int) -> bytes:
        try:
            with self._place(path).open("rb") as file:
                return _bounded(iter(lambda: file.read(2**20), b""), most)
        except (OSError, ValueError) as error:
            raise InputError(f"cannot be read here: {_reason(error)}", can_become_good(error)) from None

    def _http(self, given: str, most: int) -> bytes:
        import httpcore
        import httpx

        until = time.monotonic() + MOST_SECONDS
        limits = {"connect": CONNECT_SECONDS, "read": READ_SECONDS, "write": READ_SECONDS, "pool": CONNECT_SECONDS}
        # Each connection's address is looked at where it is made: a name cannot lead elsewhere in between.
        backend = None if self.allow_private else _public_backend()
        headers: dict[bytes | str, bytes | str] = {"Accept-Encoding": "identity", "User-Agent": "show1-ray"}
        try:
            url = httpx.URL(given)
            with httpcore.ConnectionPool(ssl_context=httpx.create_ssl_context(), network_backend=backend) as pool:
                for _ in range(REDIRECTS + 1):
                    if url.scheme not in ("http", "https") or not url.host:
                        raise InputError(f"leads to {shown(str(url), 200)}, which is no http or https URL")
                    raw = httpcore.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path)
                    with pool.stream("GET", raw, headers=headers, extensions={"timeout": limits}) as answer:
                        if answer.status == 200:
                            return _bounded(answer.iter_stream(), most, until)
                        place = dict(answer.headers).get(b"location") or dict(answer.headers).get(b"Location")
                    if answer.status not in (301, 302, 303, 307, 308) or not place:
                        passing = answer.status >= 500 or answer.status in PASSING_STATUS
                        raise InputError(f"cannot be read: HTTP status {answer.status}", passing)
                    url = url.join(place.decode("latin-1"))
        except _http_errors() as error:
            raise InputError(f"cannot be read: {_reason(error)}", not _is_wrong_url(error)) from None
        raise InputError(f"leads on to other URLs more than {REDIRECTS} times")


def folder_of_manifest(manifest: str) -> str:
    """The folder that paths in a manifest (a file, a folder, a glob) are relative to: as a URL, or absolute."""
    manifest = manifest.removeprefix("file://")
    before = re.split(r"[*?\[]", manifest, maxsplit=1)[0]
    if before != manifest:
        before = before.rpartition("/")[0] or "."
    elif "://" in manifest:
        is_file = "." in manifest.rpartition("/")[2]
        before = manifest.rpartition("/")[0] if is_file else manifest
    elif not Path(manifest).is_dir():
        before = str(Path(manifest).parent)
    return before.rstrip("/") if "://" in before else str(Path(before).resolve())


def is_public(address: str) -> bool:
    """Whether an IP address is one of the public Internet, also where it wraps an IPv4 one."""
    ip: Any = ipaddress.ip_address(address.partition("%")[0])
    if ip.version == 6:
        wrapped = ip.ipv4_mapped or ip.sixtofour or (ip.teredo or (None, None))[1]
        if ip in _NAT64:
            wrapped = ipaddress.ip_address(int(ip) & (2**32 - 1))
        if wrapped is not None:
            return is_public(str(wrapped))
        if ip.is_site_local or ip in _OLD_IPV4:
            return False
    return bool(ip.is_global and not ip.is_multicast)


def _public_backend() -> Any:
    import httpcore

    class Public(httpcore.SyncBackend):
        """Connects to public addresses alone: all that a name stands for must be."""

        def connect_tcp(self, host: str, port: int, *rest: Any, **more: Any) -> Any:
            found = dict.fromkeys(str(one[4][0]) for one in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))
            private = next((address for address in found if not is_public(address)), None)
            if private is not None:
                at = host if private == host else f"{host} ({private})"
                raise InputError(f"leads to {at}, which is no public address: --allow-private-urls reads it")
            *others, last = found
            for address in others:
                with suppress(httpcore.ConnectError, httpcore.ConnectTimeout):
                    return super().connect_tcp(address, port, *rest, **more)
            return super().connect_tcp(last, port, *rest, **more)

    return Public()


def _http_errors() -> tuple[type[Exception], ...]:
    import httpcore
    import httpx

    http = (httpcore.NetworkError, httpcore.TimeoutException, httpcore.ProtocolError, httpcore.UnsupportedProtocol)
    return OSError, ValueError, httpx.InvalidURL, *http


def _is_wrong_url(error: BaseException) -> bool:
    """Whether there can be no such place: no URL, no such name, a certificate that is not trusted."""
    chain = [error, *filter(None, (error.__cause__, error.__context__))]
    if any(isinstance(one, ssl.SSLCertVerificationError) for one in chain):
        return True
    names = [one.errno for one in chain if isinstance(one, socket.gaierror)]
    if names:
        return socket.EAI_AGAIN not in names
    return isinstance(error, ValueError) or type(error).__name__ in ("InvalidURL", "UnsupportedProtocol")


def _stored(scheme: str, path: str, most: int) -> bytes:
    import fsspec

    try:
        with fsspec.filesystem(scheme).open(path, "rb") as file:
            return _bounded(iter(lambda: file.read(2**20), b""), most)
    except ImportError:
        raise InputError(f"needs `pip install 'show1-ray[{STORES[scheme]}]'`") from None
    except InputError:
        raise
    except Exception as error:  # stores' clients have errors of their own, of no common kind
        raise InputError(f"cannot be read: {_reason(error)}", can_become_good(error)) from None


def _bounded(chunks: Iterable[bytes], most: int, until: float | None = None) -> bytes:
    """All bytes. Raises InputError where there are more than may be, or none, or where it takes too long."""
    data = bytearray()
    for chunk in chunks:
        data += chunk
        if len(data) > most:
            raise InputError(f"has more than {most >> 20} MiB, the most")
        if until is not None and time.monotonic() > until:
            raise InputError(f"is not there after {MOST_SECONDS:.0f} s", passing=True)
    if not data:
        raise InputError("is empty")
    return bytes(data)


def _reason(error: BaseException) -> str:
    text = error.strerror if isinstance(error, OSError) and error.strerror else one_line(error)
    return text or type(error).__name__
