"""The text stage on a real tokenizer and a real, small T5."""

from __future__ import annotations

import pytest
import torch

from show1_ray.clip import Clip
from show1_ray.pipeline import Pipeline
from show1_ray.show1.cascade import load_stage


@pytest.fixture
def text(tiny):
    return load_stage(Pipeline.load(tiny), "text")


def embed(stage, prompt):
    return stage([Clip("a", prompt)], [{}])[0]["prompt_embeds"]


def test_prompts_are_lowered_and_stripped(text):
    assert torch.equal(embed(text, "  A Red CIRCLE "), embed(text, "a red circle"))
    assert not torch.equal(embed(text, "a red circle"), embed(text, "a red square"))


def test_caption_cleaning_is_a_setting(tiny):
    cleaning = load_stage(Pipeline.load(tiny, ["text.clean_caption=true"]), "text")
    plain = load_stage(Pipeline.load(tiny), "text")
    assert cleaning.prepare("a &quot;red&quot;   circle") == 'a "red" circle'
    assert "http" not in cleaning.prepare("a red circle https://example.com/x.jpg")
    assert plain.prepare("a &quot;red&quot;   circle") == "a &quot;red&quot;   circle"


def test_each_distinct_text_is_encoded_once(text):
    calls = []
    text.encoder.model.register_forward_pre_hook(lambda *_: calls.append(1))
    text([Clip(str(i), prompt) for i, prompt in enumerate(["a cat", "a dog", "a cat"])], [{}] * 3)
    assert len(calls) == 3  # two prompts, and the negative prompt
    text([Clip("x", "a cat")], [{}])
    assert len(calls) == 3


def test_embeddings_are_padded_and_truncated_to_max_tokens(text):
    assert embed(text, "a").shape == (12, 32)
    assert embed(text, "a red circle " * 50).shape == (12, 32)


def test_the_clip_s_negative_prompt_replaces_the_pipeline_s(tiny):
    stage = load_stage(Pipeline.load(tiny, ["text.negative_prompt=snow"]), "text")
    [given, default] = stage([Clip("a", "x", negative_prompt="a dog"), Clip("b", "x")], [{}, {}])
    assert torch.equal(given["negative_prompt_embeds"], embed(stage, "a dog"))
    assert torch.equal(default["negative_prompt_embeds"], embed(stage, "snow"))


def test_padding_is_hidden_from_t5_but_not_from_the_unet(text):
    long, short = embed(text, "a red circle moving left on"), embed(text, "a")
    assert long.shape == short.shape
    tokens = text.encoder.tokenizer(["a"], padding="max_length", max_length=12, return_tensors="pt")
    with torch.inference_mode():
        expected = text.encoder.model(tokens.input_ids, attention_mask=tokens.attention_mask)[0][0]
    assert torch.equal(short, expected)
