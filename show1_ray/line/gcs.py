"""The cluster's state, asked of its head (Ray calls it GCS) with an end.

`ray.nodes()` and `ray.cluster_resources()` say the same, but have no timeout: while the head is away they block, after
a minute of that Ray ends the process, and where the head was started anew meanwhile they abort it with a stack trace.
The client asked here is the one that Ray's own tools use; it raises.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import ray

ANSWER_SECONDS = 5.0
"""The head answers in so many seconds, or it does not."""
DEAD = 1


class HeadError(Exception):
    """The head gave no answer. `is_another`: there is one, but not that of the cluster that was connected to."""

    def __init__(self, text: str, is_another: bool = False) -> None:
        super().__init__(text)
        self.is_another = is_another


def nodes(timeout: float = ANSWER_SECONDS) -> list[dict[str, Any]]:
    """The nodes, those included that have gone: what `ray.nodes()` tells that is needed here.

    Raises:
        HeadError: no answer in `timeout` seconds.
    """
    return [
        {
            "NodeID": node_id.hex(),
            "Alive": info.state != DEAD,
            "NodeManagerAddress": info.node_manager_address,
            "NodeManagerPort": info.node_manager_port,
            "Resources": dict(info.resources_total) if info.state != DEAD else {},
            "Labels": dict(info.labels),
        }
        for node_id, info in _ask("get_all_node_info", timeout).items()
    ]


def resources(timeout: float = ANSWER_SECONDS) -> dict[str, float]:
    """What the cluster has in all, as `ray.cluster_resources()`. Raises HeadError."""
    return total(nodes(timeout))


def total(found: list[dict[str, Any]]) -> dict[str, float]:
    """What nodes have together."""
    together: Counter[str] = Counter()
    for node in found:
        together.update(node["Resources"])
    return dict(together)


def free(timeout: float = ANSWER_SECONDS) -> dict[str, float]:
    """What nobody has taken, as `ray.available_resources()`. Raises HeadError."""
    usage = _ask("get_all_resource_usage", timeout)
    together: Counter[str] = Counter()
    for node in usage.resource_usage_data.batch:
        together.update(dict(node.resources_available))
    return dict(together)


def _ask(question: str, timeout: float) -> Any:
    try:
        # Private, but what `ray.nodes` should be made of; public ways need the dashboard.
        client = ray._private.worker.global_worker.gcs_client  # type: ignore[attr-defined]
        return getattr(client, question)(timeout=timeout)
    except Exception as error:  # Ray's own classes for it have changed from version to version
        text = " ".join(str(error).split())
        raise HeadError(text, "WrongClusterID" in text) from error
