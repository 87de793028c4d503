"""What changes a pipeline's networks: low-rank weights, quantisation, caches; equal to diffusers' own calls."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict

from show1_ray.clip import Clip
from show1_ray.errors import ConfigError
from show1_ray.pipeline.checkpoints import CheckpointError
from tests import tiny_diffusers as tiny

CLIP = Clip("a", "a red ball", "blurred", 3)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("diffusers")


def lora(place: Path, family: str, number: int = 0, component: str = "transformer") -> Path:
    """Low-rank weights with random numbers."""
    target = place / f"lora_{family}_{number}"
    if not target.exists():
        pipe = diffusers.DiffusionPipeline.from_pretrained(tiny.folder(family, place))
        network = getattr(pipe, component)
        with torch.random.fork_rng():
            torch.manual_seed(number)
            network.add_adapter(LoraConfig(r=2, init_lora_weights=False, target_modules=["to_q", "to_k"]))
        pipe.save_lora_weights(target, **{f"{component}_lora_layers": get_peft_model_state_dict(network)})
    return target


@pytest.mark.parametrize(
    ("family", "component", "second", "split"),
    [
        ("wan", "transformer", None, True),
        ("wan22", "transformer", "transformer_2", "experts"),
        ("animatediff", "unet", None, True),
    ],
)
def test_low_rank_weights_are_those_of_the_direct_call(
    place: Path, family: str, component: str, second: str | None, split: Any
) -> None:
    folders = [lora(place, family, number, component) for number in (0, 1)]
    said = [{"repo": str(folders[0]), "weight": 0.7}, {"repo": str(folders[1]), "weight": 1.3, "component": second}]

    def change(pipe: Any) -> None:
        pipe.load_lora_weights(folders[0], adapter_name="x")
        pipe.load_lora_weights(folders[1], adapter_name="y", **({"load_into_transformer_2": True} if second else {}))
        pipe.set_adapters(["x", "y"], [0.7, 1.3])

    call = {**tiny.CALLS[family], "num_inference_steps": 5}
    expected = tiny.direct(place / family, CLIP, call, change=change)
    for more in ({}, {"split": split}):
        pipeline = tiny.pipeline(place, family, call, lora=said, **more)
        assert np.array_equal(tiny.rendered(pipeline, [CLIP])[0], expected)
    for others in ([], said[:1], [{**one, "weight": 1.0} for one in said]):
        found = tiny.rendered(tiny.pipeline(place, family, call, lora=others), [CLIP])[0]
        assert not np.array_equal(found, expected)


@pytest.mark.parametrize(
    ("own", "file", "expected"),
    [
        ({"component": "transformer_2"}, "", "lora.component: 'transformer_2'; did you mean 'transformer'?"),
        ({"component": "text_encoder"}, "", "lora.component: 'text_encoder'; there is transformer"),
        ({}, "unet", "are of none of its networks, which are transformer"),
        ({}, "ltx", "do not fit: Target modules"),
    ],
)
def test_low_rank_weights_that_do_not_fit_are_refused(
    place: Path, own: dict[str, Any], file: str, expected: str
) -> None:
    folder = lora(
        place, {"": "wan", "unet": "animatediff"}.get(file, file), 0, "unet" if file == "unet" else "transformer"
    )
    pipeline = tiny.pipeline(place, "wan", lora={"repo": str(folder), **own})
    with pytest.raises(CheckpointError) as error:
        tiny.rendered(pipeline, [CLIP])
    assert expected in str(error.value)
    assert "\n" not in str(error.value)


def test_low_rank_weights_and_their_strength_are_a_part_of_the_recipe(place: Path) -> None:
    said = [(lora(place, "wan", number), weight) for number, weight in ((0, 0.5), (0, 1.0), (1, 1.0))]
    hashes = {
        tiny.pipeline(place, "wan", lora={"repo": str(folder), "weight": weight}).resolved().recipe_hash()
        for folder, weight in said
    }
    assert len(hashes) == 3


def test_quantised_networks_are_those_of_the_direct_call(place: Path) -> None:
    """With torchao 0.18 and torch 2.13, on a CPU. It is not installed for the tests: where it is, importing diffusers
    prints lines about torchao's libraries for GPUs to the standard error of every process.
    """
    int8 = pytest.importorskip("torchao.quantization").Int8WeightOnlyConfig
    said = {"backend": "torchao", "quant_type": "Int8WeightOnlyConfig"}
    tiny.folder("wan", place)
    config = diffusers.PipelineQuantizationConfig(quant_mapping={"transformer": diffusers.TorchAoConfig(int8())})
    pipe = diffusers.WanPipeline.from_pretrained(place / "wan", dtype=torch.bfloat16, quantization_config=config)
    generator = torch.Generator("cpu").manual_seed(CLIP.seed)
    call = tiny.CALLS["wan"] | {"negative_prompt": CLIP.negative_prompt, "generator": generator}
    frames = pipe(CLIP.prompt, **call, output_type="pil").frames[0]
    expected = np.stack([np.asarray(frame) for frame in frames])
    for split in (False, True):
        pipeline = tiny.pipeline(place, "wan", dtype="bfloat16", quantize=said, split=split)
        assert np.array_equal(tiny.rendered(pipeline, [CLIP])[0], expected)
    assert not np.array_equal(tiny.direct(place / "wan", CLIP, tiny.CALLS["wan"], "bfloat16"), expected)


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (
            {"quant_type": "Int8WeightOnly"},
            "has no configuration Int8WeightOnly; did you mean 'Int8WeightOnlyConfig'",
        ),
        ({}, "quantize: quant_type: torchao has no configuration None; there is"),
        ({"quant_type": {"class": "Int8WeightOnlyConfig", "sise": 1}}, "unexpected keyword argument 'sise'"),
        ({"quant_type": "Int8WeightOnlyConfig", "components": "vae"}, "TorchAoConfig finds nothing in its vae"),
        ({"backend": "quanto", "weights_dtype": "int8"}, "quantize: quanto"),
    ],
)
def test_what_cannot_be_quantised_is_refused_in_a_line(place: Path, said: dict[str, Any], expected: str) -> None:
    if "backend" not in said:
        pytest.importorskip("torchao")
    pipeline = tiny.pipeline(place, "wan", quantize={"backend": "torchao", **said})
    with pytest.raises(CheckpointError) as error:
        tiny.rendered(pipeline, [CLIP])
    assert expected in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.skipif(find_spec("torchao") is not None, reason="torchao is here")
def test_quantisation_without_its_library_is_refused_in_a_line(place: Path) -> None:
    said = {"backend": "torchao", "quant_type": "Int8WeightOnlyConfig"}
    with pytest.raises(CheckpointError, match=r"^[^\n]*torchao[^\n]*$"):
        tiny.rendered(tiny.pipeline(place, "wan", quantize=said), [CLIP])


@pytest.mark.parametrize(
    ("family", "said", "expected"),
    [
        ("wan", "TaylorSeer", "cache: TaylorSeerCacheConfig finds no blocks in WanTransformer3DModel: it would change"),
        ("animatediff", "FirstBlock", "cache: UNetMotionModel of diffusers has no caches"),
    ],
)
def test_a_cache_that_would_change_nothing_is_refused(place: Path, family: str, said: str, expected: str) -> None:
    """diffusers 0.42.1 turns it on without a word."""
    with pytest.raises(CheckpointError) as error:
        tiny.rendered(tiny.pipeline(place, family, cache=said), [CLIP])
    assert expected in str(error.value)
    with pytest.raises(ConfigError, match="diffusers has no cache 'GroupOffloading'; there is FasterCacheConfig"):
        tiny.pipeline(place, "wan", cache="GroupOffloading")


def test_a_cache_that_is_told_its_blocks_changes_clips(place: Path) -> None:
    call = {**tiny.CALLS["wan"], "num_inference_steps": 8}
    cache = {"class": "TaylorSeer", "cache_interval": 3, "disable_cache_before_step": 2}
    cache["cache_identifiers"] = [r"blocks\.\d+\.attn1", r"blocks\.\d+\.attn2"]
    forth = tiny.rendered(tiny.pipeline(place, "wan", call, cache=cache), [CLIP, Clip("b", "a cat", None, 4)])
    back = tiny.rendered(tiny.pipeline(place, "wan", call, cache=cache, split=True), [CLIP])
    plain = tiny.rendered(tiny.pipeline(place, "wan", call), [CLIP])
    assert np.array_equal(forth[0], back[0])
    assert not np.array_equal(forth[0], plain[0])
