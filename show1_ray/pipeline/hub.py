"""Checkpoints on the hub: fetched to its cache, with errors that say what to do. Its client is imported with this."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HTTPError,  # of whichever HTTP library this version uses
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from show1_ray.output import say
from show1_ray.pipeline.checkpoints import Checkpoint, CheckpointError, is_commit, wanted_files


def check_access(checkpoint: Checkpoint) -> None:
    """Shows the licence of a checkpoint on the hub and sees that this machine's token may read it.

    Raises:
        CheckpointError: it may not, or there is no such repository.
    """
    try:
        HfApi().auth_check(checkpoint.repo)
    except (HfHubHTTPError, HTTPError, OSError) as error:
        raise CheckpointError(_reason(checkpoint, error)) from None
    say(f"{checkpoint}: licence of the weights: {checkpoint.licence or 'not stated'}", sys.stderr)


def commit_of(checkpoint: Checkpoint) -> str:
    """The commit that a revision means; without a network, that of the cache. Raises CheckpointError."""
    try:
        return str(HfApi().model_info(checkpoint.repo, revision=checkpoint.revision).sha)
    except (HfHubHTTPError, HTTPError, OSError) as error:
        cached = cache_of(checkpoint)
        if cached is not None and not isinstance(error, RepositoryNotFoundError | RevisionNotFoundError):
            return cached.name
        raise CheckpointError(_reason(checkpoint, error)) from None


def fetch(checkpoint: Checkpoint, components: Sequence[str], variants: Sequence[str]) -> Path:
    """See `folder_of`."""
    cached = cache_of(checkpoint) if is_commit(checkpoint.revision) else None
    if cached is not None:  # a commit does not change: a thousand stations need not ask the hub
        with suppress(CheckpointError):
            names = [str(path.relative_to(cached)) for path in cached.rglob("*") if path.is_file()]
            wanted_files(str(checkpoint), names, components, variants)
            return cached
    try:
        info = HfApi().model_info(checkpoint.repo, revision=checkpoint.revision)
        names = [sibling.rfilename for sibling in info.siblings or []]
        wanted = wanted_files(str(checkpoint), names, components, variants)
        if cache_of(checkpoint) is None:
            card = info.card_data
            licence = checkpoint.licence or (card.get("license") if card else None) or "not stated"
            say(f"fetching {checkpoint} (commit {info.sha}); licence of the weights: {licence}", sys.stderr)
        return Path(snapshot_download(checkpoint.repo, revision=checkpoint.revision, allow_patterns=wanted))
    except (HfHubHTTPError, HTTPError, OSError) as error:
        cached = cache_of(checkpoint)
        if cached is None or isinstance(error, RepositoryNotFoundError | RevisionNotFoundError):
            raise CheckpointError(_reason(checkpoint, error)) from None
        names = [str(path.relative_to(cached)) for path in cached.rglob("*") if path.is_file()]
        wanted_files(f"{checkpoint} (in the cache; the hub is out of reach)", names, components, variants)
        return cached


def fetch_configurations(checkpoint: Checkpoint, index: str) -> None:
    """Fetches an index and the components' configurations, which are small. Raises CheckpointError."""
    wanted = [index, *(f"*/{name}config.json" for name in ("", "scheduler_", "guider_"))]
    try:
        folder = snapshot_download(checkpoint.repo, revision=checkpoint.revision, allow_patterns=wanted)
    except (HfHubHTTPError, HTTPError, OSError) as error:
        raise CheckpointError(_reason(checkpoint, error)) from None
    if not (Path(folder) / index).is_file():
        raise CheckpointError(f"{checkpoint}: missing file: no {index}; is it a checkpoint of this stage?")


def cache_of(checkpoint: Checkpoint) -> Path | None:
    """The hub's cache of a revision, if there is one; perhaps not whole."""
    try:
        return Path(snapshot_download(checkpoint.repo, revision=checkpoint.revision, local_files_only=True))
    except LocalEntryNotFoundError as error:  # has the path where the cache is known not to be whole
        path = getattr(error, "snapshot_path", None)
        return Path(path) if path else None


def _reason(checkpoint: Checkpoint, error: Exception) -> str:
    """One line: what is wrong and what to do."""
    page = f"https://huggingface.co/{checkpoint.repo}"
    match error:
        case GatedRepoError():
            return (
                f"{checkpoint}: gated: accept its licence at {page}, then give your token: "
                "`hf auth login`, or HF_TOKEN in the environment of each node"
            )
        case RevisionNotFoundError():
            return f"{checkpoint}: no such revision; commits are listed at {page}/commits"
        case RepositoryNotFoundError():
            return (
                f"{checkpoint}: no such repository, or a private one: check its name, or give a token that may read it"
            )
        case OfflineModeIsEnabled():
            return f"{checkpoint}: not in the cache, and HF_HUB_OFFLINE is set: fetch it with `show1-ray fetch` first"
        case HfHubHTTPError():
            return f"{checkpoint}: the hub answered: {' '.join(str(error).split())}"
        case OSError() if error.errno is not None:
            return f"{checkpoint}: cannot be stored: {error}"
    return f"{checkpoint}: not in the cache, and the hub cannot be reached: {' '.join(str(error).split())}"
