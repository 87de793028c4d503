"""A Ray of the tests' own, beside whatever else runs on the machine."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

import ray

from show1_ray.cluster.connection import on_loopback


@contextmanager
def own_ray(
    num_cpus: int, object_store_memory: int = 200_000_000, num_gpus: int | None = None, **config: float
) -> Iterator[None]:
    """Starts Ray on this machine in a folder of its own, and ends it. `config` is for Ray's own system settings."""
    with tempfile.TemporaryDirectory(prefix="ray", dir="/tmp") as folder:
        with on_loopback():
            ray.init(
                address="local",
                include_dashboard=False,
                num_cpus=num_cpus,
                num_gpus=num_gpus,
                object_store_memory=object_store_memory,
                _temp_dir=folder,
                _system_config=config or None,
                log_to_driver=False,
            )
        try:
            yield
        finally:
            ray.shutdown()
