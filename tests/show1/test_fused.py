"""Fused networks give what they gave before; Triton's kernels give what plain torch gives (where there is Triton)."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
from torch import nn

from show1_ray.show1 import fused
from show1_ray.show1.random import tiny_networks
from show1_ray.stages.compilation import put_channels_last

CUDA = torch.cuda.is_available()


@pytest.fixture(scope="module")
def networks():
    return {name: network.float() for name, network in tiny_networks().items() if "text" not in name}


def call(network, name):
    torch.manual_seed(0)
    if name.endswith("vae"):
        return network(torch.randn(2, 3, 24, 32)).sample
    config = network.config
    video = "IF-II" not in name
    shape = (2, config.in_channels, *((3,) if video else ()), 8, 12)
    width = config.encoder_hid_dim if config.get("encoder_hid_dim") else config.cross_attention_dim
    extra = {"class_labels": torch.tensor([3, 5])} if config.get("class_embed_type") else {}
    out = network(torch.randn(shape), 7, torch.randn(2, 5, width), **extra)
    return out if isinstance(out, torch.Tensor) else out.sample


@pytest.mark.parametrize(
    "name",
    [
        "show-1-base/unet",
        "show-1-interpolation/unet",
        "show-1-sr1/unet",
        "IF-II-L-v1.0/unet",
        "show-1-sr2/unet",
        "show-1-sr2/vae",
    ],
)
def test_a_fused_network_gives_what_it_gave(networks, name):
    network = networks[name]
    with torch.no_grad():
        expected = call(network, name)
        other = fused.fuse(copy.deepcopy(network))
        put_channels_last(other)
        found = call(other, name)
    kinds = {type(module) for module in other.modules()}
    assert fused.FusedResnetBlock in kinds
    assert not kinds & set(fused.FUSED)
    assert other.state_dict().keys() == network.state_dict().keys()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert found.std() > 0.1


@pytest.mark.parametrize(
    ("shape", "groups", "activation", "before", "film"),
    [((2, 300, 128), 32, "silu", 0, False), ((3, 70, 320), 32, "gelu", 1, True), ((2, 600, 192), 32, "", 2, False)],
)
def test_the_norm_kernel(kernels, shape, groups, activation, before, film):
    x, norm = to(torch.randn(shape) * 2 + 5), to(nn.GroupNorm(groups, shape[2]))
    nn.init.normal_(norm.weight), nn.init.normal_(norm.bias)
    added = [None, to(torch.randn(shape[2])), to(torch.randn(shape[0], shape[2]))][before]
    factors = to(torch.randn(shape[0], 2 * shape[2])) if film else None
    arguments = (norm.num_groups, norm.weight.detach(), norm.bias.detach(), norm.eps, activation, added, factors)
    expected = fused.group_norm(x.cpu(), norm.cpu(), activation, *(t if t is None else t.cpu() for t in arguments[5:]))
    torch.testing.assert_close(kernels.group_norm(x, *arguments).cpu(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("frames", "heads", "dim"), [(8, 4, 12), (5, 6, 10), (29, 2, 64), (8, 3, 20), (3, 5, 5)])
def test_the_attention_kernel(kernels, frames, heads, dim, dtype):
    if dtype == torch.bfloat16 and frames >= 16 and not CUDA:
        pytest.skip("Triton's interpreter does not multiply bfloat16")
    q, k, v = (torch.randn(2, frames, 3, heads * dim).to(dtype) for _ in range(3))
    expected = fused.attend_frames(q, k, v, heads)
    found = kernels.attend_frames(to(q), to(k), to(v), heads).cpu()
    close = 2e-2 if dtype == torch.bfloat16 else 2e-3  # products of 16 frames and more are in TF32
    torch.testing.assert_close(found, expected, rtol=close, atol=close)


@pytest.mark.parametrize(("channels", "out"), [(128, 128), (64, 320), (96, 64)])
def test_the_convolution_kernel(kernels, channels, out):
    layer, x = nn.Conv3d(channels, out, (3, 1, 1), padding=(1, 0, 0)), torch.randn(2, 4, 33, channels)
    weight = layer.weight.detach().flatten(2).transpose(1, 2).contiguous()
    with torch.no_grad():
        expected = fused.convolve_frames(x, layer)
    torch.testing.assert_close(kernels.convolve_frames(to(x), to(weight), None).cpu(), expected, rtol=2e-3, atol=2e-3)


def test_the_kernels_that_add_and_join(kernels):
    for bias, shape in itertools.product((None, torch.randn(320)), [(3, 40, 320)]):
        x, y = torch.randn(shape), torch.randn(shape)
        found = kernels.add(to(x), to(y), bias if bias is None else to(bias), 0.7).cpu()
        torch.testing.assert_close(found, fused.add(x, y, bias, 0.7))
        torch.testing.assert_close(
            kernels.add(to(x), None, bias if bias is None else to(bias), 1.0).cpu(), fused.add(x, None, bias)
        )
    x, y = torch.randn(2, 20, 320), torch.randn(2, 20, 128)
    assert torch.equal(kernels.join(to(x), to(y)).cpu(), torch.cat([x, y], dim=2))


def test_the_layer_norm_kernel(kernels):
    x, norm = torch.randn(7, 3, 320) * 2 + 5, nn.LayerNorm(320)
    nn.init.normal_(norm.weight), nn.init.normal_(norm.bias)
    found = kernels.layer_norm(to(x), to(norm.weight.detach()), to(norm.bias.detach()), norm.eps).cpu()
    torch.testing.assert_close(found, norm.cpu()(x).detach(), rtol=1e-4, atol=1e-4)


def test_the_gate_kernel(kernels):
    x = torch.randn(3, 70, 640) * 3
    torch.testing.assert_close(kernels.gated_gelu(to(x)).cpu(), fused.gated_gelu(x), rtol=1e-5, atol=1e-5)


def test_the_kernels_that_double_and_halve(kernels):
    x = torch.randn(3, 96, 4, 10)
    doubled, halved = kernels.double(to(fused.to_rows(x)), 10).cpu(), kernels.halve(to(fused.to_rows(x)), 10).cpu()
    assert torch.equal(fused.to_frames(doubled, (8, 20)), torch.nn.functional.interpolate(x, scale_factor=2))
    torch.testing.assert_close(fused.to_frames(halved, (2, 5)), torch.nn.functional.avg_pool2d(x, 2))


@pytest.fixture
def kernels():
    """On a GPU, or on a CPU with Triton and TRITON_INTERPRET=1."""
    pytest.importorskip("triton")
    from show1_ray.show1 import kernels

    return kernels


def to(x):
    return x.cuda() if CUDA else x
