"""Convolutions over frames, against torch's 3D convolution."""

import pytest
import torch
from torch import nn

from show1_ray.models.temporal import TemporalConv, convolve_frames_in_2d


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
