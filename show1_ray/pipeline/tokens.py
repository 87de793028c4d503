"""How many tokens a prompt has for a text encoder, counted as transformers' tokenizers do, without torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from show1_ray.errors import one_line
from show1_ray.pipeline.checkpoints import CheckpointError, folder_of, read_json
from show1_ray.stage import PromptLimit

SENTENCE_PIECES = ("spiece.model", "sentencepiece.model", "spm.model")
T5_SPECIAL = ("<pad>", "</s>", "<unk>")
CLIP_WORDS = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


class Counter:
    """Counts the tokens of prompts, with the special ones that a tokenizer adds.

    Args:
        limit: of a stage; its tokenizer is fetched if it is not there yet, and nothing else of the checkpoint.

    Raises:
        CheckpointError: it cannot be had, or is none that is known: `tokenizer.json`, T5's or CLIP's.
    """

    def __init__(self, limit: PromptLimit) -> None:
        self.limit = limit
        folder = folder_of(limit.checkpoint, (limit.tokenizer,)) / limit.tokenizer
        try:
            self._tokenizer = _tokenizer(folder)
        except CheckpointError:
            raise
        except Exception as error:  # the library's errors are plain `Exception`
            raise CheckpointError(f"{folder}: no tokenizer that can be read: {one_line(error)}") from None

    def __call__(self, prompts: Sequence[str]) -> list[int]:
        """The number of tokens of each prompt, uncut."""
        texts = [self.limit.prepare(prompt) for prompt in prompts]
        return [len(found.ids) for found in self._tokenizer.encode_batch(texts)]


def _tokenizer(folder: Path) -> Any:
    from tokenizers import Tokenizer

    if (folder / "tokenizer.json").is_file():
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        tokenizer.no_truncation()
        tokenizer.no_padding()
        return tokenizer
    pieces = next((folder / name for name in SENTENCE_PIECES if (folder / name).is_file()), None)
    if pieces is not None:
        return _t5(folder, pieces)
    if (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
        return _clip(folder)
    raise CheckpointError(f"{folder}: no tokenizer whose tokens can be counted (tokenizer.json, T5's, CLIP's)")


def _t5(folder: Path, pieces: Path) -> Any:
    """As transformers makes it of a file of sentencepiece."""
    from sentencepiece import sentencepiece_model_pb2
    from tokenizers import Tokenizer, normalizers, pre_tokenizers, processors
    from tokenizers.models import Unigram

    model = cast("Any", sentencepiece_model_pb2).ModelProto()
    model.ParseFromString(pieces.read_bytes())
    vocabulary = [(piece.piece, piece.score) for piece in model.pieces]
    said = read_json(folder / "tokenizer_config.json") if (folder / "tokenizer_config.json").is_file() else {}
    extra = [f"<extra_id_{number}>" for number in range(int(said.get("extra_ids", 100)))]
    known = {piece for piece, _ in vocabulary}
    vocabulary += [(one, 0.0) for one in reversed(extra) if one not in known]
    tokenizer = Tokenizer(Unigram(vocabulary, unk_id=2, byte_fallback=False))
    if model.normalizer_spec.precompiled_charsmap:
        tokenizer.normalizer = normalizers.Precompiled(model.normalizer_spec.precompiled_charsmap)
    blanks = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always", split=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), blanks])
    tokenizer.add_special_tokens([*T5_SPECIAL, *extra])
    end = ("</s>", tokenizer.token_to_id("</s>"))
    tokenizer.post_processor = processors.TemplateProcessing(single=["$A", "</s>"], special_tokens=[end])
    return tokenizer


def _clip(folder: Path) -> Any:
    """As transformers makes it of a vocabulary and merges."""
    from tokenizers import Regex, Tokenizer, normalizers, pre_tokenizers, processors
    from tokenizers.models import BPE

    begin, end = "<|startoftext|>", "<|endoftext|>"
    model = BPE.from_file(
        str(folder / "vocab.json"),
        str(folder / "merges.txt"),
        continuing_subword_prefix="",
        end_of_word_suffix="</w>",
        fuse_unk=False,
        unk_token=end,
    )
    tokenizer = Tokenizer(model)
    steps = [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    tokenizer.normalizer = normalizers.Sequence(steps)
    words = pre_tokenizers.Split(Regex(CLIP_WORDS), behavior="removed", invert=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([words, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    tokenizer.add_special_tokens([begin, end])
    ids = tokenizer.get_vocab()
    tokenizer.post_processor = processors.RobertaProcessing((end, ids[end]), (begin, ids[begin]), False, False)
    return tokenizer
