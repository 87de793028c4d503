"""Submitting, following and stopping jobs through Ray's Jobs API. The job runs `show1-ray render` on the cluster."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from show1_ray.cluster.head import explained
from show1_ray.cluster.shipment import CODE, Files, shipment
from show1_ray.cluster.shipped import ARGUMENTS
from show1_ray.cluster.watch import ClusterGoneError
from show1_ray.errors import UserError, keep_secrets_of, shown, without_secrets
from show1_ray.manifest import Columns
from show1_ray.output import Lines, say
from show1_ray.pipeline.code import Code

if TYPE_CHECKING:
    from ray.job_submission import JobDetails, JobSubmissionClient

AGENT_SECONDS = 120.0
"""A head that has just started has no agent yet to run a job."""
LOST_SECONDS = 50.0
"""How long to retry when the connection to a cluster is lost."""
RETRY_SECONDS = 2.0

T = TypeVar("T")


@dataclass(frozen=True)
class Job:
    """What a cluster reports about a job. `exit_code` is None while it runs."""

    id: str
    status: str
    message: str
    exit_code: int | None
    driver_exit_code: int | None = None
    """The exit code as Ray knows it; None if the job's process did not exit by itself."""


class Cluster:
    """A cluster's Jobs API.

    Args:
        address: of its dashboard, `http://HOST:8265`.

    Raises:
        UserError: nothing answers there, or it does not accept this machine's token.
    """

    def __init__(self, address: str) -> None:
        self.address = address = _url(address)
        _use_token()
        from ray.job_submission import JobSubmissionClient

        self._client: JobSubmissionClient = self._patiently(
            lambda: JobSubmissionClient(address), "No available agent", AGENT_SECONDS
        )

    def submit(self, folder: Path, arguments: Sequence[str]) -> str:
        """Hands over `show1-ray render`; waits until the cluster has an agent that takes it.

        Args:
            folder: what is shipped; where the job runs.
            arguments: of `render`, but for the address.

        Returns:
            The job's id.
        """
        whole = ["render", *arguments, "--address", "auto"]
        told = [without_secrets(argument) for argument in whole]
        command = ["python", "-m", "show1_ray", *whole]
        if told != whole:  # such as a presigned URL: the command and the metadata can be read in the dashboard
            (folder / ARGUMENTS).write_text(json.dumps(whole))
            command = ["python", "-m", "show1_ray.cluster.shipped"]
        return self._patiently(
            lambda: self._client.submit_job(
                entrypoint=shlex.join(command),
                runtime_env={"working_dir": str(folder)},
                metadata={"show1_ray": " ".join(told[1:-2])},
            ),
            "No available agent",
            AGENT_SECONDS,
        )

    def job(self, job: str) -> Job:
        """The state of a job. Raises UserError if there is no such job."""
        details: JobDetails = self._patiently(lambda: self._client.get_job_info(job), "", LOST_SECONDS)
        code = details.driver_exit_code
        return Job(job, str(details.status), details.message or "", _exit_code(details), code)

    def stop(self, job: str) -> None:
        """Stops a job, which can be resumed. Raises UserError if there is no such job."""
        self._patiently(lambda: self._client.stop_job(job), "", LOST_SECONDS)

    def follow(self, job: str, out: Lines) -> int:
        """Writes a job's log to `out` until the job ends, over lost connections too.

        Returns:
            Its exit code.

        Raises:
            ClusterGoneError: the cluster has not answered for `LOST_SECONDS`, and the job may be gone with it or go on;
                or it knows nothing of the job any more; or the job ended with its node.
            UserError: the cluster could not begin it.
        """
        shown = 0
        while True:
            shown = asyncio.run(self._tail(job, out, shown))
            code = self._code(job)
            if code is not None:
                rest = self._patiently(lambda: self._client.get_job_logs(job), "", LOST_SECONDS)[shown:]
                out.write(rest)
                out.end()
                return code
            time.sleep(RETRY_SECONDS)

    def _code(self, job: str) -> int | None:
        """The exit code of a followed job; see `follow`."""
        try:
            stands = self.job(job)
        except ClusterGoneError as error:
            again = f"`show1-ray submit --follow {job}` looks for the job again, or submit it again"
            raise ClusterGoneError(f"{error}; {again}") from None
        except UserError as error:
            if "does not exist" not in str(error):
                raise
            why = f"it knows nothing of job {job} any more; it has been started anew"
            raise ClusterGoneError(f"cluster {self.address}: {why}; submit the job again") from None
        if stands.status != "FAILED" or stands.driver_exit_code is not None:
            return stands.exit_code
        told = " ".join(stands.message.split())[:300]
        if "runtime_env" in told:
            raise UserError(f"cluster {self.address}: job {job} could not start: {told}")
        raise ClusterGoneError(f"cluster {self.address}: job {job} was lost with its node: {told}; resubmit to resume")

    async def _tail(self, job: str, out: Lines, shown: int) -> int:
        """Follows over one connection, whose log starts over: skips `shown` characters; returns the new count."""
        import aiohttp

        seen = 0
        try:
            async for text in self._client.tail_job_logs(job):
                seen += len(text)
                if seen > shown:
                    out.write(text[-(seen - shown) :])
                    shown = seen
        except (aiohttp.ClientError, OSError, RuntimeError):
            return shown  # whether the cluster is there, and the job, is seen by asking
        return shown

    def _patiently(self, ask: Callable[[], T], passing: str, seconds: float) -> T:
        """Retries while the cluster is not reachable or answers `passing`. Raises UserError when time is up."""
        import requests
        from ray.exceptions import RayError

        end = time.monotonic() + seconds
        told = False
        while True:
            try:
                return ask()
            except (requests.ConnectionError, ConnectionError, requests.Timeout) as error:
                problem = f"cluster {self.address}: no answer: {explained(error)}"
                wait = hasattr(self, "_client")  # a first connection that fails is a wrong address
            except (RuntimeError, ValueError, RayError) as error:
                problem = f"cluster {self.address}: {explained(error)}"
                wait = bool(passing) and passing in str(error)
            if not wait:
                raise UserError(problem)
            if time.monotonic() > end:
                raise ClusterGoneError(problem)
            if not told:
                say(f"{problem}; trying again", sys.stderr)
                told = True
            time.sleep(RETRY_SECONDS)


def submit(
    manifest: str,
    out: str,
    address: str,
    options: Sequence[str] = (),
    pipeline: str = "nano",
    changes: Sequence[str] = (),
    code: str | None = None,
) -> str:
    """Hands a manifest to a cluster.

    Args:
        manifest: see `show1_ray.render`; a file of this machine is shipped, with the images and videos that it names by
            paths below its folder.
        out: the dataset; a URL that all nodes reach.
        address: of the cluster's dashboard, `http://HOST:8265`.
        options: more arguments of `show1-ray render`.
        pipeline: its name, or a pipeline file, which is shipped; `changes` as `--set`.
        code: a Python file, a folder or a module, whose stages the pipeline may use; it is shipped.

    Returns:
        The job's id.

    Raises:
        UserError: bad input, or a cluster that does not take the job.
    """
    keep_secrets_of(manifest)
    cluster = Cluster(address)
    own = None if code is None else Code.at(code)
    said = {name: _values_of(name, options) for name in ("--limit", "--column", "--drop")}
    columns = Columns.said(said["--column"], ",".join(said["--drop"]))
    limit = int(said["--limit"][-1]) if said["--limit"] else None
    files = Files(limit, "--allow-private-urls" in options, columns)
    with shipment(manifest, pipeline, changes, own, files) as (folder, manifest_there, pipeline_there):
        where = out if "://" in out else str(Path(out).expanduser().absolute())
        sets = [argument for change in changes for argument in ("--set", change)]
        there = [] if own is None else ["--code", f"{CODE}/{own.place}"]
        arguments = [manifest_there, "--out", where, "--pipeline", pipeline_there, *there, *sets, *options]
        return cluster.submit(folder, arguments)


def _values_of(name: str, options: Sequence[str]) -> list[str]:
    """What options of a name say."""
    return [value for flag, value in pairwise(options) if flag == name]


def _url(address: str) -> str:
    """The URL of a dashboard: `http://HOST:8265`, also given without `http://`. Raises UserError."""
    url = address if "://" in address else f"http://{address}"
    try:
        parts = urlsplit(url)
        whole = (
            parts.scheme in ("http", "https") and re.fullmatch(r"[\w.:-]+", parts.hostname or "") and parts.port != 0
        )
    except ValueError:  # a port that is none, brackets that do not close
        whole = False
    if not whole or address == "auto":
        what = "give the address of the cluster's dashboard, http://HOST:8265"
        raise UserError(f"cluster {address or shown(address)}: {what}")
    return url


def _exit_code(details: Any) -> int | None:
    match str(details.status):
        case "SUCCEEDED":
            return 0
        case "STOPPED":
            return 130
        case "FAILED":
            return int(details.driver_exit_code or 1)
    return None


def _use_token() -> None:
    """Makes Ray's client send this machine's token, if there is one; by default it does not."""
    there = any(os.environ.get(name) for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"))
    if there or Path("~/.ray/auth_token").expanduser().is_file():
        os.environ.setdefault("RAY_AUTH_MODE", "token")
