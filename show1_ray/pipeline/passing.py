"""Transient errors of files, stores and servers: those after which a retry may succeed."""

from __future__ import annotations

import errno
from collections.abc import Iterator

from show1_ray.errors import UserError

HOPELESS_ERRNOS = frozenset(
    {
        *(errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG, errno.ELOOP, errno.ENOTDIR, errno.EISDIR),
        *(errno.EINVAL, errno.EFBIG, errno.EMSGSIZE, errno.EILSEQ, errno.ENOSYS, errno.EOPNOTSUPP, errno.EEXIST),
    }
)
"""Permanent errors. A full disk (ENOSPC, EDQUOT) is not among them: somebody may make room."""
HOPELESS_CLASSES = (ValueError, TypeError, NotImplementedError, ImportError, AttributeError)
"""Errors about names and arguments that a store or its client cannot accept."""
HOPELESS_NAMES = frozenset(
    {
        *("ParamValidationError", "NoCredentialsError", "PartialCredentialsError", "ProfileNotFound", "NoRegionError"),
        *("InvalidRegionError", "DefaultCredentialsError", "UnsupportedSignatureVersionError"),
        "SSLCertVerificationError",
    }
)
"""Errors of botocore and google.auth about this machine's configuration, by name, because either may not be there; and
certificates that are not trusted."""
PASSING_CODES = frozenset(
    {
        *("RequestTimeout", "RequestTimeoutException", "SlowDown", "IncompleteBody", "BadDigest", "OperationAborted"),
        *("XAmzContentSHA256Mismatch", "PriorRequestNotComplete", "BandwidthLimitExceeded", "RequestLimitExceeded"),
        *("LimitExceededException", "TooManyRequestsException", "Throttling", "ThrottlingException"),
    }
)
"""Transient error codes of S3 that come with the status of a bad request."""
PASSING_STATUS = frozenset({408, 409, 423, 425, 429})


def can_become_good(error: BaseException) -> bool:
    """Whether what failed so may be asked again.

    Object stores' clients put their error behind one of Python's (`raise … from`), so causes are looked at first: a
    store's own answer tells most. What nobody knows may become good.
    """
    if not isinstance(error, Exception) or getattr(error, "is_permanent", False):
        return False
    for one in _chain(error, context=False):
        status, code = _answer(one)
        if code in PASSING_CODES:
            return True
        if status is not None and status >= 400:
            return status in PASSING_STATUS or (status >= 500 and status != 501)
    if any({kind.__name__ for kind in type(one).__mro__} & HOPELESS_NAMES for one in _chain(error, context=True)):
        return False
    if isinstance(error, (FileNotFoundError, UserError)):
        return False
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno not in HOPELESS_ERRNOS
    return not isinstance(error, (PermissionError, IsADirectoryError, NotADirectoryError, *HOPELESS_CLASSES))


def _chain(error: BaseException, context: bool) -> Iterator[BaseException]:
    """An error and its causes; with `context` also what was being handled when it came."""
    seen: list[BaseException] = []
    one: BaseException | None = error
    while one is not None and one not in seen:
        seen.append(one)
        yield one
        one = one.__cause__ or (one.__context__ if context else None)


def _answer(error: BaseException) -> tuple[int | None, str]:
    """A store's answer: the HTTP status, and its own code; of botocore, gcsfs, aiohttp, requests and Azure."""
    response = getattr(error, "response", None)
    if isinstance(response, dict):  # botocore
        status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        return status, str(response.get("Error", {}).get("Code", ""))
    for place in (error, response):
        for name in ("status_code", "status", "code"):
            found = getattr(place, name, None)
            if isinstance(found, int | str) and str(found).isdecimal():
                return int(found), ""
    return None, ""
