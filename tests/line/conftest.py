"""One Ray for each module of tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.own_ray import own_ray


@pytest.fixture(scope="module")
def local_ray() -> Iterator[None]:
    with own_ray(4, num_gpus=4):
        yield
