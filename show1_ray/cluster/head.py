"""Whether a cluster's head is at an address: found out in seconds, where Ray itself tries for minutes."""

from __future__ import annotations

import os
from pathlib import Path

import grpc

from show1_ray.errors import UserError

ANSWER_SECONDS = 10.0
QUESTION = "/ray.rpc.NodeInfoGcsService/GetClusterId"
"""What Ray asks first of a head."""
WANTS_TOKEN = (
    "the cluster wants its token: put it into ~/.ray/auth_token or RAY_AUTH_TOKEN (ray get-auth-token shows it)"
)


def check_head(address: str, where: str) -> None:
    """Sees that a Ray head answers at HOST:PORT, and takes this machine's token.

    Args:
        address: of the head.
        where: how that is called in an error.

    Raises:
        UserError: nothing answers there, or something else.
    """
    host, colon, port = address.rpartition(":")
    if not colon or not port.isdecimal() or not host:
        raise UserError(f"{where}: not an address; give HOST:PORT, such as {address or 'head'}:6379")
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
    """Whether this machine is told to talk to Ray by TLS only: with certificates that only Ray knows."""
    return os.environ.get("RAY_USE_TLS", "0").lower() in ("1", "true")


def _reason(error: grpc.RpcError, host: str, port: str) -> str:
    """What is there instead, and what would be right."""
    code, details = error.code(), " ".join((error.details() or "").split())
    if code in (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED):
        told = "" if os.environ.get("RAY_AUTH_MODE") == "token" else ", and RAY_AUTH_MODE=token into the environment"
        return f"{WANTS_TOKEN}{told}"
    head = f"the head's own port, {host}:6379 where nothing else was asked for"
    if "http1" in details or "HTTP/2" in details:
        dashboard = f"`show1-ray submit --address http://{host}:{port}` takes a dashboard's"
        return f"a web server answers there and no Ray head; give {head}; {dashboard}"
    if code == grpc.StatusCode.UNIMPLEMENTED:
        return f"something else of Ray's, or of others, answers there and no head; give {head}"
    if code == grpc.StatusCode.DEADLINE_EXCEEDED:
        return f"no Ray cluster there: no answer for {ANSWER_SECONDS:.0f} s"
    return f"no Ray cluster there: {details.rpartition('last error: ')[2]}"


def _token() -> str:
    """This machine's token for Ray, where it is told to show one."""
    if os.environ.get("RAY_AUTH_MODE") != "token":
        return ""
    if token := os.environ.get("RAY_AUTH_TOKEN"):
        return token.strip()
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or "~/.ray/auth_token").expanduser()
    return path.read_text().strip() if path.is_file() else ""
