"""Errors that are shown as one line without a traceback, and how text from outside is shown."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

UNSHOWN = ("Cc", "Cf", "Cs", "Zl", "Zp")
"""Unicode's categories of characters that a terminal obeys, hides or cannot write: controls, directions of writing,
halves of characters, other line breaks."""
HIDDEN = "***"
SECRET_NAME = re.compile(r"(TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIALS?|ACCESS_KEY|ACCOUNT_KEY|API_KEY|_AUTH)$")
"""Variables of the environment that hold one."""
SHORTEST_SECRET = 8
"""Shorter ones would hide words of every text."""
_KEPT: set[str] = set()
TOKEN_FILES = ("~/.ray/auth_token", "~/.cache/huggingface/token")
SECRETS = re.compile(
    r"(?P<user>\b[a-z][a-z0-9+.-]*://[^\s/:@'\"]*:)[^\s/@'\"]+(?=@)"  # user:password@ of a URL
    r"|(?P<scheme>\bhttps?://)[^\s/:@'\"]{16,}(?=@)"  # token@ of one
    r"|(?P<before>"
    r"[?&#](?:[a-z0-9_.-]*(?:signature|credential|token|secret|key|keyid|auth|authorization)|sig|password|passwd|pwd|jwt"
    r"|hmac)="
    r"|\b(?:x-ray-)?authorization['\"]?\s*[:=]\s*['\"]?(?:bearer\s+|basic\s+)?(?=\S{8})"
    r"|\bbearer\s+(?=\S{16})"
    r")[^\s&@'\",;]+"
    r"|(?-i:\bhf_[A-Za-z0-9]{16,}|\b(?:AKIA|ASIA)[A-Z0-9]{16}\b)",
    re.IGNORECASE,
)
"""What is secret by its position or form."""
JOINERS = "\u200c\u200d"
"""Invisible, but parts of words and emoji, so they stay."""


class UserError(Exception):
    """Bad input or a wrong environment: one line that says where, what is wrong, and what would be right.

    The command line prints it and exits with `exit_code`.
    """

    exit_code = 2


class ConfigError(UserError, ValueError):
    """A configuration (of a network, of a pipeline) that cannot be built or does not fit together."""


@dataclass(frozen=True)
class Notice:
    """One line that a job reports besides the line's events."""

    text: str


class Aside:
    """Something that a job does besides rendering (its report, its metrics). A failure is reported once, and the job
    goes on.
    """

    def __init__(self, what: str, tell: Callable[[str], None]) -> None:
        self._what = what
        self._tell = tell
        self.failed = False

    def fail(self, error: Exception) -> None:
        """It does not work."""
        if not self.failed:
            self.failed = True
            reason = " ".join(str(error).split()) or type(error).__name__
            self._tell(f"{self._what}: {reason}; the job goes on")


def escaped(text: str, keep: str = "\n") -> str:
    """What a terminal would obey or could not write is escaped, as in a Python string. Characters of `keep` stay."""
    if text.isascii() and text.replace("\n", "").isprintable() and "\n" in keep:
        return text
    return "".join(
        one.encode("unicode_escape").decode()
        if unicodedata.category(one) in UNSHOWN and one not in keep + JOINERS
        else one
        for one in text
    )


def printable(text: object) -> str:
    """Text from outside, safe to print: `escaped`, and without secrets. Line breaks stay."""
    return escaped(without_secrets(str(text)))


def without_secrets(text: str) -> str:
    """The text with tokens and passwords hidden: those of this process's environment and files, those in URLs and HTTP
    headers, and what has the form of a hub's or a cloud's.
    """
    for secret in _secrets():
        text = text.replace(secret, HIDDEN)
    return unsigned(text)


def unsigned(text: str) -> str:
    """The text without what is secret by its place or its form, such as a signed URL's signature; the same on every
    machine.
    """
    return SECRETS.sub(lambda found: (found["before"] or found["user"] or found["scheme"] or "") + HIDDEN, text)


def hidden(value: Any) -> Any:
    """Plain data (mappings, lists, text, numbers) `without_secrets`."""
    if isinstance(value, str):
        return without_secrets(value)
    if isinstance(value, Mapping):
        return {without_secrets(key) if isinstance(key, str) else key: hidden(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [hidden(one) for one in value]
    return value


def keep_secret(secret: str) -> None:
    """Makes this process hide a secret that is neither in its environment nor in a file that it knows."""
    _KEPT.add(secret)


def keep_secrets_of(url: str) -> None:
    """Let this process hide what a signed URL's query says, whatever the store calls its signature: values with digits
    in them that are no part of its path.
    """
    scheme, is_url, rest = url.partition("://")
    path, _, query = rest.partition("?")
    if not (is_url and scheme):
        return
    for _, _, value in (one.partition("=") for one in re.split("[&#]", query)):
        if re.search(r"\d", value) and value not in path:
            keep_secret(value)


def _secrets() -> list[str]:
    """What this process knows, the longest first: one may be a part of another."""
    values = [*_KEPT, *(value for name, value in os.environ.items() if SECRET_NAME.search(name))]
    values += [value.partition(":")[2] for name, value in os.environ.items() if name.endswith("_AUTH")]
    files = [os.environ.get("RAY_AUTH_TOKEN_PATH"), os.environ.get("HF_TOKEN_PATH"), *TOKEN_FILES]
    values += [_content(file) for file in files if file]
    return sorted({one.strip() for one in values if len(one.strip()) >= SHORTEST_SECRET}, key=len, reverse=True)


def _content(file: str) -> str:
    try:
        return Path(file).expanduser().read_text()[:4096]
    except (OSError, RuntimeError, ValueError):
        return ""


def one_line(error: object) -> str:
    """An error's message on one line, safe to print; its class if it has no message."""
    return printable(" ".join(str(error).split())) or type(error).__name__


def last_line(text: str) -> str:
    """The last non-empty line; of a traceback, the error itself."""
    lines = [line for line in text.strip().splitlines() if line.strip()]
    return lines[-1].strip() if lines else ""


def shown(value: object, most: int = 60) -> str:
    """A value of somebody's input for an error's line: as Python writes it, and of a long one the beginning."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # numbers of thousands of digits, lists in lists in lists
        return f"a {type(value).__name__} that is too long to show"
    text = without_secrets(text)
    return escaped(text if len(text) <= most else f"{text[:most]}…", keep="")
