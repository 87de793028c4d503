"""Errors that are shown to people as one line, without a traceback; and how text from outside is shown."""

from __future__ import annotations

import unicodedata

UNSHOWN = ("Cc", "Cf", "Cs", "Zl", "Zp")
"""Unicode's categories of characters that a terminal obeys, hides or cannot write: controls, directions of writing,
halves of characters, other line breaks."""
JOINERS = "\u200c\u200d"
"""Hidden, too, but parts of words and of emoji."""


class UserError(Exception):
    """Bad input or a wrong environment: one line that says what is wrong, where, and what would be right.

    The command line prints it and exits with 2.
    """


class ConfigError(UserError, ValueError):
    """A configuration (of a network, of a pipeline) that cannot be built or does not fit together."""


def printable(text: object, keep: str = "\n") -> str:
    """Text from outside as it may be printed: what a terminal would obey or could not write is escaped, as in a Python
    string. Characters of `keep` stay.
    """
    text = str(text)
    if text.isascii() and text.replace("\n", "").isprintable() and "\n" in keep:
        return text
    return "".join(
        one.encode("unicode_escape").decode()
        if unicodedata.category(one) in UNSHOWN and one not in keep + JOINERS
        else one
        for one in text
    )


def shown(value: object, most: int = 60) -> str:
    """A value of somebody's input for an error's line: as Python writes it, and of a long one the beginning."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # numbers of thousands of digits, lists in lists in lists
        return f"a {type(value).__name__} that is too long to show"
    return printable(text if len(text) <= most else f"{text[:most]}…", keep="")
