"""Reuse of deep features, for the three kinds of UNet."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from show1_ray.show1.random import tiny_networks
from show1_ray.stages.deep_features import DeepFeatures

UNETS = ("show-1-base/unet", "show-1-sr1/unet", "IF-II-L-v1.0/unet", "show-1-sr2/unet")


@pytest.fixture(scope="module")
def networks():
    return {place: network.float() for place, network in tiny_networks().items() if place in UNETS}


def inputs(unet, batch: int = 1, seed: int = 0):
    """Arguments of a call, by name: 4 frames (or an image) of 8 x 12."""
    generator = torch.Generator().manual_seed(seed)
    is_image = type(unet).__name__ == "UNet2DConditionModel"
    shape = (batch, unet.config.in_channels, *(() if is_image else (4,)), 8, 12)
    width = unet.config.get("encoder_hid_dim") or unet.config.cross_attention_dim
    given = {
        "sample": torch.randn(shape, generator=generator),
        "timestep": torch.tensor(500),
        "encoder_hidden_states": torch.randn(batch, 5, width, generator=generator),
    }
    if unet.config.get("class_embed_type"):
        given["class_labels"] = torch.full((batch,), 100)
    return given


def call(unet, given):
    with torch.inference_mode():
        output = unet(**given)
    return output if isinstance(output, torch.Tensor) else output.sample


@pytest.mark.parametrize("place", UNETS)
def test_the_whole_form_is_the_network_bit_for_bit(networks, place):
    unet = networks[place]
    assert torch.equal(call(DeepFeatures(unet, 1).whole, inputs(unet)), call(unet, inputs(unet)))


@pytest.mark.parametrize("place", UNETS)
def test_with_the_same_inputs_the_shallow_form_gives_the_same_bit_for_bit(networks, place):
    # Everything that is computed is computed alike, and what is remembered is what would have been computed.
    unet, deep = networks[place], DeepFeatures(networks[place], 1)
    expected = call(deep.whole, inputs(unet))
    assert torch.equal(call(deep.shallow, inputs(unet)), expected)


@pytest.mark.parametrize("place", UNETS)
def test_the_shallow_form_computes_less_and_sees_its_own_input(networks, place):
    unet, deep = networks[place], DeepFeatures(networks[place], 1)
    with FlopCounterMode(display=False) as whole:
        first = call(deep.whole, inputs(unet))
    with FlopCounterMode(display=False) as shallow:
        second = call(deep.shallow, inputs(unet, seed=1))
    assert shallow.get_total_flops() < 0.9 * whole.get_total_flops()
    assert not torch.equal(first, second)
    assert not torch.equal(second, call(unet, inputs(unet, seed=1)))


@pytest.mark.parametrize("place", UNETS)
def test_of_both_halves_the_prompt_s_serves_alone(networks, place):
    unet, deep = networks[place], DeepFeatures(networks[place], 1)
    both = inputs(unet, batch=2)
    positive = {name: value[1:] if value.dim() else value for name, value in both.items()}
    expected = call(deep.whole, both)[1:]
    assert torch.allclose(call(deep.shallow, positive), expected, atol=1e-4)


def test_one_half_does_not_serve_both(networks):
    unet = networks["show-1-base/unet"]
    deep = DeepFeatures(unet, 1)
    with pytest.raises(ValueError, match="call `whole` first"):
        call(deep.shallow, inputs(unet))
    call(deep.whole, inputs(unet))
    with pytest.raises(ValueError, match="no deep features of 8 rows"):
        call(deep.shallow, inputs(unet, batch=2))


def test_two_loops_do_not_see_each_other_s_features(networks):
    unet = networks["show-1-base/unet"]
    one, other = DeepFeatures(unet, 1), DeepFeatures(unet, 1)
    expected = call(one.whole, inputs(unet))
    call(other.whole, inputs(unet, seed=1))
    call(unet, inputs(unet, seed=2))
    assert torch.equal(call(one.shallow, inputs(unet)), expected)


def test_the_network_is_left_as_it_was_and_features_go_with_the_loop(networks):
    unet = networks["show-1-base/unet"]
    names, hooks = list(unet.state_dict()), sum(len(module._forward_pre_hooks) for module in unet.modules())
    deep = DeepFeatures(unet, 1)
    call(deep.whole, inputs(unet))
    features = weakref.ref(deep.shallow.mid_block.features)
    gc.disable()  # features must not wait for the collector: they lie on the GPU
    try:
        del deep
        assert features() is None
    finally:
        gc.enable()
    assert list(unet.state_dict()) == names
    assert sum(len(module._forward_pre_hooks) for module in unet.modules()) == hooks


@pytest.mark.parametrize("levels", [0, 2])
def test_a_level_must_be_left(networks, levels):
    with pytest.raises(ValueError, match=f"{levels} levels of a network that has 2"):
        DeepFeatures(networks["show-1-base/unet"], levels)


def test_both_forms_have_the_network_s_weights_and_no_others(networks):
    unet = networks["show-1-base/unet"]
    deep = DeepFeatures(unet, 1)
    for form in (deep.whole, deep.shallow):
        assert {id(p) for p in form.parameters()} <= {id(p) for p in unet.parameters()}
