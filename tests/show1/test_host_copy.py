"""Weights that go to host memory and come back. (Here host and device are the same memory; the copies are real.)"""

from __future__ import annotations

import pytest
import torch
from torch import nn

from show1_ray.clip import Clip
from show1_ray.pipeline import Pipeline
from show1_ray.show1.cascade import load_stages, run_stages
from show1_ray.stages.host_copy import HostCopy


@pytest.fixture
def networks() -> list[nn.Module]:
    convolution = nn.Conv2d(3, 5, 3)
    convolution.weight.data = convolution.weight.data.contiguous(memory_format=torch.channels_last)
    first = nn.Sequential(convolution, nn.BatchNorm2d(5), nn.Linear(7, 2).half())
    second = nn.Sequential(nn.Linear(7, 2), nn.Embedding(3, 4))
    second[0].weight = first[2].weight  # shared, as T5's embeddings are
    return [first, second]


def state(networks):
    return [tensor.clone() for network in networks for tensor in network.state_dict().values()]


def test_weights_come_back_bit_for_bit_and_are_whole_while_they_are_away(networks):
    before, strides = state(networks), networks[0][0].weight.stride()
    copy = HostCopy(networks)
    for _ in range(2):
        copy.leave()
        assert all(map(torch.equal, state(networks), before))
        copy.enter("cpu")
        assert all(map(torch.equal, state(networks), before))
    assert networks[0][0].weight.stride() == strides
    assert networks[0][0].weight.is_contiguous(memory_format=torch.channels_last)
    assert networks[0][2].weight.data_ptr() == networks[1][0].weight.data_ptr()


def test_weights_lie_in_one_block_that_is_made_once(networks):
    copy = HostCopy(networks)
    copy.leave()
    blocks = {tensor.untyped_storage().data_ptr() for network in networks for tensor in network.state_dict().values()}
    assert len(blocks) == 1
    copy.enter("cpu")
    assert networks[0][0].weight.untyped_storage().data_ptr() not in blocks
    copy.leave()
    assert networks[0][0].weight.untyped_storage().data_ptr() in blocks


def test_what_has_not_left_cannot_come_back(networks):
    with pytest.raises(ValueError, match="not left"):
        HostCopy(networks).enter("cpu")


def test_a_stage_that_left_and_came_back_renders_the_same(tiny):
    stages, clips = load_stages(Pipeline.load(tiny)), [Clip("a", "a red circle", seed=1)]
    expected = run_stages(stages, clips)[0]
    with pytest.raises(ValueError, match="text has not left its device"):
        stages[0].enter("cpu")
    for stage in stages:
        stage.leave()
        stage.enter("cpu")
    assert torch.equal(run_stages(stages, clips)[0], expected)
