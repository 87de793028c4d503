"""Prompts that are longer than what a text encoder takes: counted as the encoder counts, told, refused where asked."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from show1_ray import Pipeline
from show1_ray.clip import Clip
from show1_ray.job.prompts import Prompts
from show1_ray.manifest import Columns, open_manifest
from show1_ray.pipeline.checkpoints import Checkpoint
from show1_ray.pipeline.tokens import Counter
from show1_ray.show1.cascade import load_stages
from show1_ray.stage import PromptLimit

HOSTILE = [
    *("a red circle", "a  red \t circle\nmoving", "größe", "日本語のプロンプト", "ﷺ", "😀 red", "x" * 500, "", " "),
    *("</s> red", "<pad>", "<extra_id_0> a", "a\u200bb", "▁a ▁ b", "<unk>", "it's the cat's", "1234 5678", "A  B", "é"),
    *("<|endoftext|>", "a <|startoftext|> b", "\x00", "\ufeffx", "don't! stop?!"),
]


@pytest.fixture(scope="module")
def tokenizers(tiny, tmp_path_factory) -> dict[str, Path]:
    """Folders that have a `tokenizer`: T5's as Show-1 has it, CLIP's, and both as the library saves them today."""
    nano = {stage: need.checkpoint.folder for stage, need in Pipeline.load("nano").needs()}
    found = {"t5": nano["text"], "clip": nano["latent_super_resolution"], "tiny clip": tiny.parent / "show-1-sr2"}
    for name in ("t5", "clip"):
        folder = tmp_path_factory.mktemp(name)
        AutoTokenizer.from_pretrained(found[name] / "tokenizer").save_pretrained(folder / "tokenizer")
        assert (folder / "tokenizer" / "tokenizer.json").is_file()
        found[f"saved {name}"] = folder
    return found


@pytest.mark.parametrize("name", ["t5", "clip", "tiny clip", "saved t5", "saved clip"])
def test_tokens_are_counted_as_transformers_does(tokenizers, name):
    folder = tokenizers[name]
    theirs = AutoTokenizer.from_pretrained(folder / "tokenizer")
    ours = Counter(PromptLimit(Checkpoint(repo=str(folder)), 77))

    @settings(max_examples=150, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(st.text(max_size=60))
    def same(text: str) -> None:
        assert ours([text]) == [len(theirs(text)["input_ids"])]

    same()
    assert ours(HOSTILE) == [len(theirs(text)["input_ids"]) for text in HOSTILE]


def written(folder: Path, *prompts: str) -> str:
    path = folder / "m.jsonl"
    path.write_text("".join(json.dumps({"caption": one, "id": f"c{i}"}) + "\n" for i, one in enumerate(prompts)))
    return str(path)


WORDS = "a red circle moving left and a blue square moving right and a green triangle standing still on a white ground"
LONG = f"{WORDS}, {WORDS}, {WORDS}, and a purple"
COLUMNS = Columns({"prompt": "caption"})


def test_what_is_cut_is_told_with_how_many_of_how_many_and_the_first_row(tmp_path):
    manifest = open_manifest(
        written(tmp_path, WORDS, f"{LONG} circle", "a", f"{LONG} square", "b"), columns=COLUMNS, samples=2, limit=9
    )
    prompts = Prompts(Pipeline.load("nano"))
    t5, clip = prompts.notes(manifest)
    tokens = prompts.columns(f"{LONG} circle")["prompt_tokens"]
    path = tmp_path / "m.jsonl"
    assert t5 == (
        "2 of 5 prompts are longer than the 32 tokens that stage text takes, which cuts them: the first is row 2 of "
        f"{path}, with {tokens}"
    )
    assert clip.startswith("2 of 5 prompts are longer than the 40 tokens that stage latent_super_resolution takes")
    (fewer,) = prompts.notes(open_manifest(str(path), columns=COLUMNS, limit=2))[:1]
    assert fewer.startswith("1 of 2 prompts")


def test_a_prompt_is_cut_where_the_encoder_cuts_it(tiny):
    """One token more is told, and changes nothing; one less changes the embeddings."""
    pipeline = Pipeline.load(tiny)
    prompts = Prompts(pipeline)
    text = load_stages(pipeline)[0]
    limit = pipeline.prompt_limits()[0][1].tokens
    words = "circle red"
    while prompts.columns(words)["prompt_tokens"] < limit:
        words += " a"
    assert prompts.columns(words) == {"prompt_tokens": limit, "prompt_truncated": False}
    assert prompts.columns(f"{words} a")["prompt_tokens"] > limit

    def embeds(prompt: str):
        return text([Clip("a", prompt)], [{}])[0]["prompt_embeds"]

    assert prompts.columns(f"{words} b c d")["prompt_truncated"]
    assert (embeds(f"{words} a b") == embeds(f"{words} a c")).all()
    assert (embeds(words) != embeds(words.removesuffix(" a"))).any()


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "show1_ray", *arguments, "--column", "prompt=caption"]
    return subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)


def test_long_prompts_are_told_before_they_are_rendered_refused_if_asked_and_noted_in_their_rows(tiny, tmp_path):
    manifest, out = written(tmp_path, f"{LONG} circle", "a", f"{LONG} square"), tmp_path / "out"
    render = ("render", manifest, "--out", str(out), "--pipeline", str(tiny))
    note = "note: 2 of 3 prompts are longer than the 12 tokens that stage text takes"
    refused = run(*render, "--strict-prompts")
    assert (refused.returncode, refused.stdout, out.exists()) == (2, "", False)
    assert refused.stderr.startswith(f"show1-ray: manifest {manifest}: row 1: 'prompt' has ")
    assert refused.stderr.endswith(
        ", and stage text takes 12; 2 of 3 prompts are too long: shorten them, or render without --strict-prompts\n"
    )
    dry = run(*render, "--dry-run")
    assert dry.returncode == 0
    assert note in dry.stderr
    assert not out.exists()
    done = run(*render)
    assert done.returncode == 0, done.stderr
    assert done.stderr.index(note) < done.stderr.index("3 clips rendered")
    rows = {row["id"]: row for row in pq.read_table(out / "metadata.parquet").to_pylist()}
    assert [rows[one]["prompt_truncated"] for one in ("c0", "c1", "c2")] == [True, False, True]
    prompts = Prompts(Pipeline.load(tiny))
    assert all(row["prompt_tokens"] == prompts.columns(row["prompt"])["prompt_tokens"] for row in rows.values())


def test_where_tokens_cannot_be_counted_that_is_said_and_strictness_refuses(tiny, tmp_path):
    pipeline = Pipeline.load(tiny)
    folder = pipeline.prompt_limits()[0][1].checkpoint.folder / "tokenizer"
    away = folder.rename(tmp_path / "away")
    try:
        folder.mkdir()
        (folder / "tokenizer_config.json").write_text("{}")
        manifest, out = written(tmp_path, "a"), tmp_path / "out"
        render = ("render", manifest, "--out", str(out), "--pipeline", str(tiny), "--dry-run")
        assert "note: prompts are not counted: " in run(*render).stderr
        refused = run(*render, "--strict-prompts")
        assert refused.returncode == 2
        assert refused.stderr.startswith("show1-ray: --strict-prompts: prompts cannot be counted: ")
    finally:
        (folder / "tokenizer_config.json").unlink()
        folder.rmdir()
        away.rename(folder)
