"""Checkpoints: what is loaded is what was written, and what is wrong with one is said in a line."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from diffusers import UNet3DConditionModel
from transformers import T5EncoderModel

from show1_ray.clip import Clip
from show1_ray.errors import ConfigError, UserError
from show1_ray.pipeline import Pipeline
from show1_ray.pipeline.checkpoints import Checkpoint, CheckpointError, fingerprint, folder_of, forms, one_form
from show1_ray.show1.cascade import load_stage, load_stages, run_stages
from show1_ray.show1.keyframes import Keyframes
from show1_ray.show1.loading import load_network, load_tokenizer
from show1_ray.show1.random import tiny_networks
from show1_ray.show1.text import Text, TextEncoder
from show1_ray.show1.video_unet import VideoUNet

CLIPS = [Clip("a", "a red circle moving left", seed=3)]


@pytest.fixture
def base(tiny, tmp_path):
    """A copy of the tiny keyframe checkpoint, to be damaged."""
    return Path(shutil.copytree(tiny.parent / "show-1-base", tmp_path / "base"))


def test_what_was_saved_in_the_published_layout_renders_the_same_frames(tiny):
    in_memory = load_stages(Pipeline.load(tiny))
    networks = tiny_networks()
    folders = ["show-1-base", "show-1-base", "show-1-interpolation", "show-1-sr1", "show-1-sr2"]
    for stage, folder in zip(in_memory, folders, strict=True):
        for name, network in stage.networks.items():
            place = "IF-II-L-v1.0/unet" if name == "first_frame.unet" else f"{folder}/{name}"
            network.load_state_dict(networks[place].float().state_dict())
    [ours], [loaded] = run_stages(in_memory, CLIPS), run_stages(load_stages(Pipeline.load(tiny)), CLIPS)
    assert torch.equal(ours, loaded)


def test_a_stage_is_built_from_ready_components(tiny):
    pipeline, networks = Pipeline.load(tiny), tiny_networks()
    loaded = load_stages(pipeline)
    encoder = TextEncoder(
        load_tokenizer(tiny.parent / "show-1-base"),
        networks["show-1-base/text_encoder"],
        12,
        attends_mask=True,
    )
    text = Text(encoder, pipeline.stages.text, torch.float32)
    unet = networks["show-1-base/unet"].float()
    keyframes = Keyframes(unet, loaded[1].scheduler, pipeline.stages.keyframes)
    ours = keyframes(CLIPS, text(CLIPS, [{}]))[0]["keyframes"]
    assert torch.equal(ours, loaded[1](CLIPS, loaded[0](CLIPS, [{}]))[0]["keyframes"])


def test_the_published_layout_is_pickles_with_a_sharded_text_encoder(tiny):
    folder = tiny.parent / "show-1-base"
    assert [path.name for path in (folder / "unet").glob("*.bin")] == ["diffusion_pytorch_model.bin"]
    assert len(list((folder / "text_encoder").glob("pytorch_model-*-of-00002.bin"))) == 2
    weights = torch.load(folder / "unet" / "diffusion_pytorch_model.bin", weights_only=True)
    assert {weight.dtype for weight in weights.values()} == {torch.float16}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_weights_are_loaded_in_the_wanted_type(tiny, dtype):
    unet = load_network(VideoUNet, tiny.parent / "show-1-base", "cpu", dtype)
    assert {parameter.dtype for parameter in unet.parameters()} == {dtype}


def test_t5_keeps_its_wo_matrices_in_single_precision_under_half(tiny):
    t5 = load_network(T5EncoderModel, tiny.parent / "show-1-base", "cpu", torch.float16)
    types = {name.endswith("wo.weight"): parameter.dtype for name, parameter in t5.named_parameters()}
    assert types == {True: torch.float32, False: torch.float16}


def test_safetensors_are_read_too_and_come_first(base):
    unet = load_network(VideoUNet, base, "cpu", torch.float32)
    with torch.no_grad():
        unet.conv_out.bias.fill_(5)
    unet.save_pretrained(base / "unet")
    assert (load_network(VideoUNet, base, "cpu", torch.float32).conv_out.bias == 5).all()


def test_latent_unet_takes_published_numbers_of_heads_as_heads_of_64(tiny, tmp_path):
    folder = Path(shutil.copytree(tiny.parent / "show-1-sr2", tmp_path / "sr2"))
    config = json.loads((folder / "unet" / "config.json").read_text())
    (folder / "unet" / "config.json").write_text(json.dumps({**config, "attention_head_dim": [5, 10]}))
    with pytest.raises(CheckpointError):  # tiny weights have heads of 8
        load_network(UNet3DConditionModel, folder, "cpu", torch.float32)
    (folder / "unet" / "config.json").write_text(json.dumps({**config, "attention_head_dim": 8}))
    assert load_network(UNet3DConditionModel, folder, "cpu", torch.float32).config.attention_head_dim == 8


class Evil:
    """A pickle that would run a command if it were unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return os.system, (f"touch {self.mark}",)


def test_no_code_in_a_pickle_is_run(base, tmp_path):
    path = base / "unet" / "diffusion_pytorch_model.bin"
    torch.save({"conv_in.weight": Evil(tmp_path / "ran")}, path, pickle_module=pickle)
    with pytest.raises(CheckpointError, match="unet"):
        load_network(VideoUNet, base, "cpu", torch.float32)
    assert not (tmp_path / "ran").exists()


def test_a_missing_file_is_named(base):
    (base / "unet" / "diffusion_pytorch_model.bin").unlink()
    with pytest.raises(CheckpointError, match=r"unet.*missing file.*\.safetensors or \.bin"):
        load_network(VideoUNet, base, "cpu", torch.float32)
    with pytest.raises(CheckpointError, match="missing file: unet/ has no weights"):
        folder_of(Checkpoint(repo=str(base)), ["unet"])
    with pytest.raises(CheckpointError, match="missing file: no vae/ folder"):
        folder_of(Checkpoint(repo=str(base)), ["vae"])
    with pytest.raises(CheckpointError, match="nowhere: no such folder"):
        folder_of(Checkpoint(repo=str(base / "nowhere")), ["unet"])


def edit(base, change):
    path = base / "unet" / "diffusion_pytorch_model.bin"
    weights = torch.load(path, weights_only=True)
    change(weights)
    torch.save(weights, path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda weights: weights.pop("conv_out.bias"), "lacks weights: conv_out.bias"),
        (lambda weights: weights.update(extra=torch.zeros(1)), "no place for: extra"),
        (lambda weights: weights.update({"conv_in.bias": torch.zeros(7)}), "shape .*: conv_in.bias 7 instead of 32$"),
    ],
)
def test_a_name_or_shape_that_does_not_fit_is_named_in_one_line(base, change, message):
    edit(base, change)
    with pytest.raises(CheckpointError, match=message) as caught:
        load_network(VideoUNet, base, "cpu", torch.float32)
    assert "\n" not in str(caught.value)


def test_a_text_encoder_that_does_not_fit_is_refused(base):
    path = base / "text_encoder" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "num_layers": 3}))
    with pytest.raises(CheckpointError, match=r"lacks weights: encoder\.block\.2"):
        load_network(T5EncoderModel, base, "cpu", torch.float32)
    path.write_text(json.dumps({**json.loads(path.read_text()), "num_layers": 2, "d_model": 48}))
    with pytest.raises(
        CheckpointError, match=r"another shape .*: encoder\.\S+ 32x32 instead of 32x48.* more$"
    ) as caught:
        load_network(T5EncoderModel, base, "cpu", torch.float32)
    assert "\n" not in str(caught.value)


def test_a_shard_or_an_index_that_is_missing_or_damaged_is_named(base):
    folder = base / "text_encoder"
    shard, index = folder / "pytorch_model-00002-of-00002.bin", folder / "pytorch_model.bin.index.json"
    kept = shard.read_bytes()

    def refused(message: str) -> None:
        with pytest.raises(CheckpointError, match=message):
            load_network(T5EncoderModel, base, "cpu", torch.float32)

    shard.write_bytes(kept[:1000])
    refused(r"text_encoder: pytorch_model-00002-of-00002\.bin: damaged")
    shard.unlink()
    refused("text_encoder: missing file: has 1 of the 2 shards of its weights")
    shard.write_bytes(kept)
    index.write_text("{")
    refused(r"pytorch_model\.bin\.index\.json: cannot be read")
    index.unlink()
    refused(r"pytorch_model\.bin\.index\.json: missing file")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "cannot be read"),
        ("[]", "is no JSON object"),
        (None, "missing file"),
        ('{"act_fn": "silu"}', "VideoUNet: act_fn = 'silu' is not supported; Show-1 has 'gelu'"),
    ],
)
def test_a_damaged_or_foreign_configuration_is_refused(base, text, message):
    path = base / "unet" / "config.json"
    path.unlink() if text is None else path.write_text(text)
    with pytest.raises(UserError, match=rf"unet/config\.json: {message}"):
        load_network(VideoUNet, base, "cpu", torch.float32)


@pytest.mark.parametrize("name", ["diffusion_pytorch_model.bin", "diffusion_pytorch_model.safetensors"])
@pytest.mark.parametrize(
    "content", [b"", b"version https://git-lfs.github.com/spec/v1", b"PK\x03\x04 and no more", None]
)
def test_a_file_that_is_no_weights_is_named(base, name, content):
    path = base / "unet" / name
    path.write_bytes(content) if content is not None else torch.save([1, 2], path)
    with pytest.raises(CheckpointError, match=rf"unet: {name}: damaged, or no file of weights") as caught:
        load_network(VideoUNet, base, "cpu", torch.float32)
    assert "\n" not in str(caught.value)


def test_half_precision_variants_are_taken_when_half_is_wanted():
    names = ["model.safetensors", "model.fp16.safetensors", "pytorch_model.bin"]
    assert one_form(names, forms(True)) == ["model.fp16.safetensors"]
    assert one_form(names, forms(False)) == ["model.safetensors"]
    shards = ["pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin"]
    assert one_form([*shards, "pytorch_model.bin.index.json"], forms(True)) == shards


def test_a_fingerprint_is_of_names_and_contents_not_of_the_place(base, tmp_path):
    copy = Path(shutil.copytree(base, tmp_path / "copy"))
    assert fingerprint(copy) == fingerprint(base)
    edit(copy, lambda weights: weights["conv_in.bias"].add_(1))
    assert fingerprint(copy) != fingerprint(base)


def test_loading_needs_no_second_copy_of_the_weights_in_host_memory(tmp_path):
    # A 200 MB network in a process of its own: its peak stays under twice the weights, beside what importing takes.
    script = """
import resource, sys, torch
from pathlib import Path
from show1_ray.show1.loading import load_network
from show1_ray.show1.random import network
from show1_ray.show1.video_unet import VideoUNet
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
folder = Path(sys.argv[1])
if sys.argv[2] == "write":
    config = {"block_out_channels": [320, 640], "layers_per_block": 2, "encoder_hid_dim": 64, "cross_attention_dim": 64,
              "addition_embed_type_num_heads": 4,
              "down_block_types": ["ResnetDownsampleBlock3D", "SimpleCrossAttnDownBlock3D"],
              "up_block_types": ["SimpleCrossAttnUpBlock3D", "ResnetUpsampleBlock3D"]}
    unet = network(VideoUNet, config, "cpu", torch.float16)
    unet.save_config(folder / "unet")
    torch.save(unet.state_dict(), folder / "unet" / "diffusion_pytorch_model.bin")
else:
    before = peak()
    unet = load_network(VideoUNet, folder, "cpu", torch.float16)
    size = sum(p.numel() * p.element_size() for p in unet.parameters()) / 2**20
    print((peak() - before) / size, size)
"""
    for step in ("write", "read"):
        result = subprocess.run(
            [sys.executable, "-c", script, str(tmp_path), step], capture_output=True, text=True, check=True
        )
    ratio, size = map(float, result.stdout.split())
    assert size > 150
    assert ratio < 2.3  # the mapped file and the weights; a third copy would be 3


def test_video_unet_is_what_loads_a_pixel_checkpoint(tiny):
    assert isinstance(load_network(VideoUNet, tiny.parent / "show-1-sr1", "cpu", torch.float32), VideoUNet)


def test_a_checkpoint_of_another_stage_is_refused(tiny, tmp_path):
    folder = Path(shutil.copytree(tiny.parent, tmp_path / "mixed"))
    shutil.rmtree(folder / "show-1-interpolation" / "unet")
    shutil.copytree(folder / "show-1-base" / "unet", folder / "show-1-interpolation" / "unet")
    message = r"show-1-interpolation: its unet takes 3 channels, this stage gives 7; "
    with pytest.raises(CheckpointError, match=message):
        load_stage(Pipeline.load(folder / tiny.name), "interpolation")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"_class_name": "EulerDiscreteScheduler"}, "base: scheduler: scheduler 'EulerDiscreteScheduler' is not supp"),
        ({"beta_schedule": "wavy"}, "base: scheduler: wavy is not implemented"),
    ],
)
def test_a_scheduler_that_is_not_known_is_refused_with_its_checkpoint(tiny, tmp_path, change, message):
    folder = Path(shutil.copytree(tiny.parent, tmp_path / "tiny"))
    path = folder / "show-1-base" / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(ConfigError, match=message):
        load_stage(Pipeline.load(folder / tiny.name), "keyframes")
