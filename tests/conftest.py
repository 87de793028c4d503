"""Fixtures that all tests share."""

from __future__ import annotations

import json
import logging
import shutil
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel, UNet3DConditionModel
from safetensors.torch import load_file
from torch import Tensor, nn

from show1_ray.models import VideoUNet
from show1_ray.models.random import write_tiny_cascade
from show1_ray.stages.sampling import Scheduler, make_scheduler

torch.set_num_threads(1)

QUIET = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
QUIET += ["--disable-sync", "--no-first-run"]


@dataclass(frozen=True)
class Golden:
    """Tensors that the published code produced; see golden/README.md."""

    folder: Path

    def tensors(self, path: str) -> dict[str, Tensor]:
        return load_file(self.folder / f"{path}.safetensors")

    def meta(self, path: str, name: str = "meta") -> dict[str, Any]:
        return json.loads((self.folder / path / f"{name}.json").read_text())

    def network(self, path: str) -> Any:
        """The network of a case, loaded as the project loads published ones."""
        config = self.meta(path, "config")
        kind, init = self.kind(config), dict(config["init"])
        if kind is UNet3DConditionModel and config["class"].startswith("show1"):
            init["attention_head_dim"] = 64  # show-1-sr2's configuration gives numbers of heads there
        known = kind._get_init_keys(kind) if kind is not VideoUNet else init
        network = kind.from_config({key: value for key, value in init.items() if key in known})
        weights = self.tensors(f"{path}/weights")
        network.load_state_dict({name: weight.float() for name, weight in weights.items()})
        return network.eval()

    @staticmethod
    def kind(config: Mapping[str, Any]) -> Any:
        library, _, name = config["class"].rpartition(".")
        if library == "show1" and not config["init"]["transfromer_in_opt"]:
            return VideoUNet
        return {
            "UNet2DConditionModel": UNet2DConditionModel,
            "UNet3DConditionModel": UNet3DConditionModel,
            "AutoencoderKL": AutoencoderKL,
        }[name]

    @staticmethod
    def scheduler(meta: Mapping[str, Any]) -> Scheduler:
        init = {key: float(value) if value == "-inf" else value for key, value in meta["init"].items()}
        return make_scheduler({"_class_name": meta["class"], **init})


@pytest.fixture(scope="session")
def golden(tmp_path_factory: pytest.TempPathFactory) -> Golden:
    folder = tmp_path_factory.mktemp("golden")
    with tarfile.open(Path(__file__).parent / "golden" / "golden.tar.xz") as archive:
        archive.extractall(folder, filter="data")
    return Golden(folder)


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
