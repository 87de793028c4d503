"""Tokenizers and text encoders: small T5 and CLIP, trained to tell a scene's attributes from its captions.

A network that draws learns slowly what words mean, because its gradient is mostly about pixels. So the text encoders
learn it first, in minutes, and are frozen for the rest of the training. What pools T5's tokens into one vector
(`TextTimeEmbedding`) is trained with it and is where all pixel UNets start from.
"""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import sentencepiece
import torch
from diffusers.models.embeddings import TextTimeEmbedding
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from tokenizers.pre_tokenizers import ByteLevel
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from transformers import AutoTokenizer, CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

from training.captions import caption
from training.world import BACKGROUNDS, COLOURS, MOTIONS, SHAPES, Scene, sample_scene

MAX_TOKENS = 32
"""Of T5; the longest caption has 26."""
CLIP_TOKENS = 40
WIDTH = 96
"""Of T5's embeddings."""
CLIP_WIDTH = 64
TIME_WIDTH = 256
"""Of the time embedding of all pixel UNets, into which the pooled text goes."""
POOLING_HEADS = 8
CAPTIONS_FOR_TOKENIZERS = 20_000


def write_t5_tokenizer(folder: Path, seed: int = 0) -> None:
    """Trains sentencepiece on captions: `folder` gets what `AutoTokenizer` needs to make a T5 tokenizer.

    Its unigram model finds only pieces that several words share. The words themselves are given to it.
    """
    pieces = io.BytesIO()
    captions = _captions(seed)
    words = sorted({word for text in captions for word in text.replace(",", " ").split()})
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(captions),
        model_writer=pieces,
        user_defined_symbols=[f"▁{word}" for word in words],
        vocab_size=200,
        required_chars="abcdefghijklmnopqrstuvwxyz",
        hard_vocab_limit=False,
        num_threads=1,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=2,
    )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "spiece.model").write_bytes(pieces.getvalue())
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "T5Tokenizer", "extra_ids": 0}))


def write_clip_tokenizer(folder: Path, seed: int = 0) -> None:
    """Trains byte pairs on captions: `folder` gets what `AutoTokenizer` needs to make a CLIP tokenizer."""
    bpe = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    bpe.normalizer = normalizers.Lowercase()
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Whitespace(), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    alphabet = sorted(ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=1200, initial_alphabet=alphabet, end_of_word_suffix="</w>", show_progress=False
    )
    bpe.train_from_iterator(_captions(seed), trainer)
    merges = [tuple(pair) for pair in json.loads(bpe.to_str())["model"]["merges"]]
    tokens = [*alphabet, *(letter + "</w>" for letter in alphabet), *(a + b for a, b in merges)]
    tokens = [*dict.fromkeys(tokens), "<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}))
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n")
    config = {"tokenizer_class": "CLIPTokenizer", "model_max_length": CLIP_TOKENS}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def _captions(seed: int) -> list[str]:
    rng = np.random.default_rng(seed)
    return [caption(sample_scene(rng), rng) for _ in range(CAPTIONS_FOR_TOKENIZERS)] + ["low resolution, blur"] * 100


def make_t5(vocabulary: int) -> T5EncoderModel:
    """An untrained T5 encoder.

    A third of its heads look back, a third ahead, to begin with: T5 knows the order of words only by its table of
    relative positions, which starts near 0, and finding out which of two shapes comes first then takes too long.
    """
    config = T5Config(
        vocab_size=vocabulary,
        d_model=WIDTH,
        d_ff=192,
        d_kv=16,
        num_heads=6,
        num_layers=2,
        dropout_rate=0.0,
        feed_forward_proj="gated-gelu",
        architectures=["T5EncoderModel"],
    )
    model = T5EncoderModel(config)
    bias = model.encoder.block[0].layer[0].SelfAttention.relative_attention_bias.weight
    buckets, heads = bias.shape
    with (
        torch.no_grad()
    ):  # the buckets' first half is for what lies behind, by distance, the second for what lies ahead
        bias[buckets // 2 :, : heads // 3] = -4
        bias[: buckets // 2, heads // 3 : 2 * heads // 3] = -4
    return model


def make_clip(vocabulary: int) -> CLIPTextModel:
    """An untrained CLIP text model. The last two tokens of the vocabulary are its start and its end."""
    config = CLIPTextConfig(
        vocab_size=vocabulary,
        hidden_size=CLIP_WIDTH,
        intermediate_size=192,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=CLIP_TOKENS,
        bos_token_id=vocabulary - 2,
        eos_token_id=vocabulary - 1,
        pad_token_id=vocabulary - 1,
        architectures=["CLIPTextModel"],
    )
    return CLIPTextModel(config)


def load_tokenizer(folder: Path) -> Any:
    """A tokenizer that was written by one of the functions above."""
    return AutoTokenizer.from_pretrained(folder)


def tokenize(tokenizer: Any, texts: Sequence[str], length: int) -> tuple[Tensor, Tensor]:
    """Token ids and attention mask, each B L, padded and truncated as the text stage does."""
    tokens = tokenizer(list(texts), padding="max_length", max_length=length, truncation=True, return_tensors="pt")
    return tokens.input_ids, tokens.attention_mask


class Attributes(nn.Module):
    """A text encoder, the pooling of its tokens, and heads that tell the attributes from the pooled text.

    The heads are orthonormal and not learned: so texts that differ in any attribute lie equally far apart. Heads that
    learn are content with pooled texts of which those of "growing" and "shrinking" are hardly apart.

    Args:
        encoder: T5 or CLIP.
        width: of its embeddings.
        mask: whether padding is hidden from the encoder, as the stage that uses it does.
    """

    def __init__(self, encoder: nn.Module, width: int, *, mask: bool) -> None:
        super().__init__()
        self.encoder, self.mask = encoder, mask
        self.pool = TextTimeEmbedding(width, TIME_WIDTH, num_heads=POOLING_HEADS)
        classes = [len(BACKGROUNDS)] + 2 * [1 + len(COLOURS), 1 + len(SHAPES), 1 + len(MOTIONS)]
        self.heads = nn.ModuleList(nn.Linear(TIME_WIDTH, count, bias=False) for count in classes)
        rows = nn.init.orthogonal_(torch.empty(sum(classes), TIME_WIDTH))
        for head, weight in zip(self.heads, rows.split(classes), strict=True):
            head.weight = nn.Parameter(weight.clone())

    def forward(self, ids: Tensor, mask: Tensor) -> list[Tensor]:
        """Logits, one tensor B K an attribute; see `labels`."""
        hidden = self.encoder(ids, attention_mask=mask if self.mask else None)[0]
        pooled = self.pool(hidden)
        return [head(pooled) for head in self.heads]

    def loss(self, ids: Tensor, mask: Tensor, wanted: Tensor) -> Tensor:
        """Cross entropy, summed over the attributes. `wanted`: see `labels`."""
        logits = self(ids, mask)
        losses = [F.cross_entropy(x, y) for x, y in zip(logits, wanted.unbind(1), strict=True)]
        return torch.stack(losses).sum()


def labels(scenes: Sequence[Scene]) -> Tensor:
    """B 7: the background, then colour, shape and motion of each shape; 0 for a shape that is not there."""
    rows = []
    for scene in scenes:
        row = [list(BACKGROUNDS).index(scene.background)]
        for shape in scene.shapes:
            row += [
                1 + list(COLOURS).index(shape.colour),
                1 + SHAPES.index(shape.kind),
                1 + MOTIONS.index(shape.motion),
            ]
        rows.append(row + [0] * (7 - len(row)))
    return torch.tensor(rows)
