"""Fixtures that all tests share."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from show1_ray.show1.random import write_tiny_cascade
from tests.goldens import Golden

torch.set_num_threads(1)

QUIET = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
QUIET += ["--disable-sync", "--no-first-run"]


@pytest.fixture(scope="session")
def golden(tmp_path_factory: pytest.TempPathFactory) -> Golden:
    return Golden.unpacked(tmp_path_factory.mktemp("golden"))


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pipeline file of a cascade with random weights, in the published layout."""
    return write_tiny_cascade(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def s3() -> Iterator[str]:
    """A bucket of a real S3 server on this machine, which AWS's environment variables lead to: its URL."""
    import fsspec
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.WARNING)  # a line for each request
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    _, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
        environment.setenv("AWS_DEFAULT_REGION", "us-east-1")
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            environment.setenv(name, "testing")
        fsspec.filesystem("s3").mkdir("bucket")
        yield "s3://bucket"
    server.stop()


@pytest.fixture(scope="session")
def network_calls() -> Any:
    """Counts the batches that a network is called with: `with network_calls(unet) as sizes:`."""
    return NetworkCalls


class NetworkCalls:
    """Batch sizes of a network's calls."""

    def __init__(self, network: nn.Module) -> None:
        self.network, self.sizes = network, list[int]()

    def __enter__(self) -> Sequence[int]:
        self.handle = self.network.register_forward_pre_hook(lambda _, args: self.sizes.append(len(args[0])))
        return self.sizes

    def __exit__(self, *_: object) -> None:
        self.handle.remove()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium of this machine; the one that Playwright downloads does not play H.264."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    path = next((found for found in map(shutil.which, names) if found), None)
    if path is None:
        pytest.skip("no Chromium on this machine: looked for " + ", ".join(names))
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, args=QUIET)
        yield browser
        browser.close()
