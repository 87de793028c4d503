"""One Ray for each module of tests."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator

import pytest
import ray


@pytest.fixture(scope="module")
def local_ray() -> Iterator[None]:
    with tempfile.TemporaryDirectory(prefix="ray", dir="/tmp") as folder:
        ray.init(
            address="local",
            include_dashboard=False,
            num_cpus=4,
            num_gpus=4,
            object_store_memory=200_000_000,
            _temp_dir=folder,
            log_to_driver=False,
        )
        yield
        ray.shutdown()
