"""Convolutions over frames, against torch's 3D convolution."""

import pytest
import torch
from diffusers.models.attention_processor import Attention, AttnAddedKVProcessor2_0, AttnProcessor2_0
from torch import nn

from show1_ray.show1 import temporal
from show1_ray.show1.random import tiny_networks
from show1_ray.show1.temporal import ManySequences, TemporalConv, attend_many_sequences, convolve_frames_in_2d


@pytest.mark.parametrize("shape", [(2, 4, 8, 3, 5), (1, 4, 1, 2, 2)])
def test_it_equals_the_3d_convolution_forward_and_backward(shape):
    reference = nn.Conv3d(4, 6, (3, 1, 1), padding=(1, 0, 0)).double()
    ours = convolve_frames_in_2d(nn.Sequential(nn.Conv3d(4, 6, (3, 1, 1), padding=(1, 0, 0)))).double()
    ours[0].load_state_dict(reference.state_dict())
    x = torch.randn(shape, dtype=torch.double).transpose(-1, -2)
    assert torch.allclose(ours(x), reference(x), atol=1e-12)
    ours(x).square().sum().backward()
    reference(x).square().sum().backward()
    assert torch.allclose(ours[0].weight.grad, reference.weight.grad, atol=1e-10)


def test_only_kernels_that_span_frames_alone_are_changed():
    network = convolve_frames_in_2d(
        nn.Sequential(nn.Conv3d(2, 2, (3, 1, 1)), nn.Conv3d(2, 2, 3), nn.Conv2d(2, 2, (3, 1)))
    )
    assert [type(module) for module in network] == [TemporalConv, nn.Conv3d, nn.Conv2d]


@pytest.fixture(scope="module")
def networks():
    return {place: network for place, network in tiny_networks().items() if place.endswith(("unet", "vae"))}


def test_all_attention_of_diffusers_networks_is_scaled_dot_product_attention(networks):
    for place, network in networks.items():
        layers = [module for module in network.modules() if isinstance(module, Attention)]
        assert layers, place
        assert all(isinstance(a.processor, AttnProcessor2_0 | AttnAddedKVProcessor2_0) for a in layers), place


def test_many_sequences_are_attended_in_parts(networks, monkeypatch):
    unet = attend_many_sequences(networks["show-1-base/unet"].float())
    processors = [module.processor for module in unet.modules() if isinstance(module, Attention)]
    assert {type(processor) for processor in processors} == {ManySequences, AttnAddedKVProcessor2_0}
    x, text = torch.randn(2, 3, 4, 8, 12), torch.randn(2, 5, 32)
    with torch.inference_mode():
        at_once = unet(x, torch.tensor(3), text)
        monkeypatch.setattr(temporal, "MOST_SEQUENCES", 7)
        assert torch.allclose(unet(x, torch.tensor(3), text), at_once, atol=1e-5)
