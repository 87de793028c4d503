"""Finding out in seconds whether a cluster's head is at an address; Ray itself tries for minutes."""

from __future__ import annotations

import os
import re
from pathlib import Path

import grpc

from show1_ray.errors import UserError

ANSWER_SECONDS = 10.0
QUESTION = "/ray.rpc.NodeInfoGcsService/GetClusterId"
"""The first request that Ray sends to a head."""
WANTS_TOKEN = (
    "the cluster wants its token: put it into ~/.ray/auth_token or RAY_AUTH_TOKEN (ray get-auth-token shows it)"
)


REFUSED = r"(?i)\bstatus code 40[13]\b|\b40[13]:? (un|for)|authentication (token|required|failed)|invalidauthtoken"
"""How Ray's error begins when a cluster requires a token, or another token."""
GIVE = "give auto, for the cluster that this machine is a part of, or HOST:PORT of a cluster's head, such as"


def explained(error: Exception) -> str:
    """Ray's error on one line; in our own words if it is about tokens."""
    text = " ".join(str(error).split())[:300]
    return WANTS_TOKEN + _mode_to_set() if re.search(REFUSED, text) else text


def check_form(address: str, where: str) -> None:
    """Checks that an address is that of a head: HOST:PORT, [IPV6]:PORT. Raises UserError, which names it `where`."""
    if address.startswith("ray://"):
        raise UserError(f"{where}: jobs run on the cluster, not through a client; see `show1-ray submit`")
    if "://" in address:
        raise UserError(f"{where}: give HOST:PORT of the cluster's head; `show1-ray submit` takes URLs of dashboards")
    host, _, port = address.rpartition(":")
    name = re.fullmatch(r"\[([0-9A-Fa-f:.]+)\]|([A-Za-z0-9_]([A-Za-z0-9_.-]*[A-Za-z0-9_.])?)", host)
    if not name or not re.fullmatch(r"[0-9]{1,5}", port, re.ASCII) or not 0 < int(port) < 2**16:
        raise UserError(f"{where}: not an address; {GIVE} {_like(address)}:6379")


def _like(address: str) -> str:
    """The host for an example: that of the address, if it has one."""
    host = address.partition(":")[0]
    return host if re.fullmatch(r"[A-Za-z0-9_.-]+", host) else "head"


def check_head(address: str, where: str) -> None:
    """Sees that a Ray head answers at HOST:PORT, and takes this machine's token.

    Args:
        address: of the head.
        where: how that is called in an error.

    Raises:
        UserError: nothing answers there, or something else.
    """
    check_form(address, where)
    host, _, port = address.rpartition(":")
    if wants_tls():
        return
    token = _token()
    metadata = [("authorization", f"Bearer {token}")] if token else []
    channel = grpc.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)])
    try:
        channel.unary_unary(QUESTION)(b"", timeout=ANSWER_SECONDS, metadata=metadata)
    except grpc.RpcError as error:
        raise UserError(f"{where}: {_reason(error, host, port)}") from None
    finally:
        channel.close()


def wants_tls() -> bool:
    """Whether this machine talks to Ray by TLS only, with certificates that only Ray knows."""
    return os.environ.get("RAY_USE_TLS", "0").lower() in ("1", "true")


def _reason(error: grpc.RpcError, host: str, port: str) -> str:
    """What is there instead, and what would be right."""
    code, details = error.code(), " ".join((error.details() or "").split())
    if code in (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED):
        return WANTS_TOKEN + _mode_to_set()
    head = f"the head's own port, {host}:6379 where nothing else was asked for"
    if "http1" in details or "HTTP/2" in details:
        dashboard = f"`show1-ray submit --address http://{host}:{port}` takes a dashboard's"
        return f"a web server answers there and no Ray head; give {head}; {dashboard}"
    if code == grpc.StatusCode.UNIMPLEMENTED:
        return f"something else of Ray's, or of others, answers there and no head; give {head}"
    if code == grpc.StatusCode.DEADLINE_EXCEEDED:
        return f"no Ray cluster there: no answer for {ANSWER_SECONDS:.0f} s"
    return f"no Ray cluster there: {details.rpartition('last error: ')[2]}"


def _mode_to_set() -> str:
    return "" if os.environ.get("RAY_AUTH_MODE") == "token" else ", and RAY_AUTH_MODE=token into the environment"


def _token() -> str:
    """This machine's token for Ray, if it is configured to send one."""
    if os.environ.get("RAY_AUTH_MODE") != "token":
        return ""
    if token := os.environ.get("RAY_AUTH_TOKEN"):
        return token.strip()
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or "~/.ray/auth_token").expanduser()
    return path.read_text().strip() if path.is_file() else ""
