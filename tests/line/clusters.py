"""How the tests end a cluster of several nodes."""

from __future__ import annotations

import ray
from ray.cluster_utils import Cluster


def end(cluster: Cluster) -> None:
    """At once: a node that may end its workers in peace takes up to 20 seconds."""
    ray.shutdown()
    for node in cluster.list_all_nodes()[::-1]:  # the head is the first
        cluster.remove_node(node, allow_graceful=False)
    cluster.shutdown()
