"""Fused networks give what they gave before; Triton's kernels give what plain torch gives (where there is Triton)."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
from torch import nn

from show1_ray.show1 import fused
from show1_ray.show1.execution import put_channels_last
from show1_ray.show1.random import tiny_networks
from show1_ray.stages.replay import Replay

CUDA = torch.cuda.is_available()


@pytest.fixture(scope="module")
def networks():
    return {name: network.float() for name, network in tiny_networks().items() if "text" not in name}


def call(network, name):
    torch.manual_seed(0)
    where = next(network.parameters()).device
    if name.endswith("vae"):
        return network(torch.randn(2, 3, 24, 32).to(where)).sample
    config = network.config
    video = "IF-II" not in name
    shape = (2, config.in_channels, *((3,) if video else ()), 8, 12)
    width = config.encoder_hid_dim if config.get("encoder_hid_dim") else config.cross_attention_dim
    extra = {"class_labels": torch.tensor([3, 5]).to(where)} if config.get("class_embed_type") else {}
    out = network(torch.randn(shape).to(where), 7, torch.randn(2, 5, width).to(where), **extra)
    return out if isinstance(out, torch.Tensor) else out.sample


NAMES = [
    "show-1-base/unet",
    "show-1-interpolation/unet",
    "show-1-sr1/unet",
    "IF-II-L-v1.0/unet",
    "show-1-sr2/unet",
    "show-1-sr2/vae",
]


@pytest.mark.parametrize("name", NAMES)
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


@pytest.mark.parametrize("name", NAMES)
def test_a_network_of_kernels_gives_what_it_gave(networks, kernels, monkeypatch, name):
    if not CUDA and name != "show-1-sr1/unet":
        pytest.skip("minutes in Triton's interpreter")
    network = networks[name]
    with torch.no_grad():
        expected = call(network, name)
        other = fused.fuse(copy.deepcopy(network))
        put_channels_last(to(other))
        monkeypatch.setattr(fused, "WIDE", 1)  # frames are convolved by the kernel, whatever their size
        if not CUDA:
            monkeypatch.setattr(torch.Tensor, "is_cuda", True)
        found = call(other, name)
        monkeypatch.undo()
    close = 2e-2 if CUDA else 1e-3  # a GPU's convolutions are in TF32
    torch.testing.assert_close(found.cpu(), expected, rtol=close, atol=close)


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


@pytest.mark.parametrize(("channels", "out", "pixels"), [(128, 128, 33), (64, 320, 33), (96, 64, 128)])
@pytest.mark.parametrize("last", [False, True])
def test_the_convolution_kernel(kernels, channels, out, pixels, last):
    layer, x = nn.Conv3d(channels, out, (3, 1, 1), padding=(1, 0, 0)), torch.randn(2, 4, pixels, channels)
    weight = layer.weight.detach().flatten(2).transpose(1, 2).contiguous()
    more = (torch.randn(out), torch.randn(2, 4, pixels, out)) if last else (None, None)
    with torch.no_grad():
        expected = fused.convolve_frames(x, layer, *more)[0]
    found, sums = kernels.convolve_frames(to(x), to(weight), *(t if t is None else to(t) for t in more))
    torch.testing.assert_close(found.cpu(), expected, rtol=2e-3, atol=2e-3)
    check_sums(sums, found.flatten(0, 1) if pixels == 128 else found.flatten(1, 2))


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


@pytest.mark.parametrize("rows", [7, 300, 1100])
def test_what_adds_or_joins_takes_sums(kernels, rows):
    x, y, bias = torch.randn(2, rows, 64) + 3, torch.randn(2, rows, 64), torch.randn(64)
    for more in (None, bias):
        found, sums = kernels.add_up(to(x), to(y), more if more is None else to(more), 0.7)
        torch.testing.assert_close(found.cpu(), fused.add(x, y, more, 0.7))
        check_sums(sums, found)
    z = torch.randn(2, rows, 96)
    found, sums = kernels.join_up(to(x), to(z))
    assert torch.equal(found.cpu(), torch.cat([x, z], dim=2))
    check_sums(sums, found)


def check_sums(sums, x):
    """Sums are those of N R C, a unit a sample, and a norm that is given them is the norm."""
    assert sums.fit(x)
    for i, chunk in enumerate(x.split(sums.chunk_rows, dim=1)):
        mean = chunk.mean(dim=1)
        torch.testing.assert_close(sums.values[0, :, i], mean, rtol=1e-4, atol=1e-4)
        spread = (chunk - mean[:, None]).square().sum(dim=1)
        torch.testing.assert_close(sums.values[1, :, i], spread, rtol=1e-3, atol=1e-3)


def test_sums_of_frames_serve_the_norm_of_a_clip(kernels):
    x, norm = torch.randn(6, 700, 64) * 2 + 5, nn.GroupNorm(8, 64)
    y, sums = kernels.add_up(to(x), to(torch.zeros_like(x)), None, 1.0)
    clips, weights = y.view(2, 3 * 700, 64), (to(norm.weight.detach()), to(norm.bias.detach()), norm.eps)
    found = kernels.group_norm(clips, 8, *weights, sums=sums).cpu()
    torch.testing.assert_close(found, fused.group_norm(x.view(2, 2100, 64), norm).detach(), rtol=1e-4, atol=1e-4)
    assert not sums.fit(to(x.flatten(0, 1).view(12, 350, 64)))  # a frame must not lie in two samples


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
    assert torch.equal(fused.to_frames(doubled, size=(8, 20)), torch.nn.functional.interpolate(x, scale_factor=2))
    torch.testing.assert_close(fused.to_frames(halved, size=(2, 5)), torch.nn.functional.avg_pool2d(x, 2))


def test_no_kernel_lets_a_batch_change_a_sample(kernels):
    """Tiles are chosen by one sample's shape, so it is the same alone and among others, bit for bit."""

    def random(*shape):
        return to((torch.randn(shape) * 2 + 1).half())

    def sums(pair):
        return torch.cat([pair[0].flatten(1), *pair[1].values.unflatten(1, (len(pair[0]), -1)).flatten(2)], dim=1)

    many, some = 42, 6  # with as many samples a norm once took its sums in other tiles
    weight, kernel = random(24), random(64, 3, 32)
    wide, few, thin, film = random(many, 2500, 24), random(some, 600, 24), random(some, 600, 24), random(many, 48)
    clips, long = random(some, 3, 40, 32), random(some, 17, 5, 32)
    calls = [
        (lambda x, f: kernels.group_norm(x, 8, weight, weight, 1e-5, "silu", None, f), wide, film),
        (lambda x, y: sums(kernels.add_up(x, y, weight, 0.7)), few, thin),
        (lambda x, y: sums(kernels.join_up(x, y)), few, thin),
        (lambda x, y: kernels.add(x, y, weight, 0.7), few, thin),
        (kernels.join, few, thin),
        (lambda x: kernels.layer_norm(x, weight, weight, 1e-5), few),
        (kernels.gated_gelu, few),
        (lambda x: kernels.double(x, 20), few),
        (lambda x: kernels.halve(x, 20), few),
        (lambda x: kernels.attend_frames(x, x * 0.5, x, 4), clips),
        (lambda x: kernels.attend_frames(x, x * 0.5, x, 4), long),
        (lambda x: sums(kernels.convolve_frames(x, kernel)), clips),
    ]
    for call, *arguments in calls:
        whole = call(*arguments)
        for part in (slice(0, 1), slice(2, 3), slice(3, 6)):
            assert torch.equal(call(*(x[part] for x in arguments)), whole[part])


@pytest.mark.skipif(not CUDA, reason="CUDA graphs need CUDA")
@pytest.mark.parametrize("name", ["IF-II-L-v1.0/unet", "show-1-sr1/unet"])
def test_a_replayed_network_gives_what_it_gives(networks, name):
    network = fused.fuse(copy.deepcopy(networks[name]).cuda().half())
    put_channels_last(network)
    replay, config = Replay(network), network.config
    with torch.inference_mode():
        for i, batch in enumerate((2, 2, 4, 2, 4, 4)):
            shape = (batch, config.in_channels, *((8,) if "sr1" in name else ()), 16, 24)
            inputs = (random_half(*shape), torch.tensor(900 - i).cuda(), random_half(batch, 5, config.encoder_hid_dim))
            labels = {"class_labels": torch.arange(batch).cuda()} if config.class_embed_type else {}
            expected = network(*inputs, **labels)
            assert torch.equal(replay(*inputs, **labels), getattr(expected, "sample", expected))
    replay.release()


def random_half(*shape):
    return torch.randn(shape, device="cuda", dtype=torch.float16)


@pytest.fixture
def kernels():
    """On a GPU, or on a CPU with Triton and TRITON_INTERPRET=1."""
    pytest.importorskip("triton")
    from show1_ray.show1 import kernels

    return kernels


def to(x):
    return x.cuda() if CUDA else x
