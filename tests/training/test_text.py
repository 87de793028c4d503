from pathlib import Path

import numpy as np
import pytest
import torch

from training import text
from training.captions import caption
from training.world import sample_scene


@pytest.mark.parametrize(
    ("write", "length"), [(text.write_t5_tokenizer, text.MAX_TOKENS), (text.write_clip_tokenizer, text.CLIP_TOKENS)]
)
def test_tokenizers_keep_every_caption_whole(tmp_path: Path, write, length: int):
    write(tmp_path)
    tokenizer = text.load_tokenizer(tmp_path)
    rng = np.random.default_rng(0)
    captions = [caption(sample_scene(rng), rng) for _ in range(300)]
    assert max(len(tokenizer(c).input_ids) for c in captions) <= length
    known = tokenizer(captions).input_ids
    assert all(tokenizer.unk_token_id not in ids for ids in known) or tokenizer.unk_token == tokenizer.eos_token
    decoded = tokenizer.batch_decode(known, skip_special_tokens=True)
    for original, again in zip(captions, decoded, strict=True):
        assert again.replace(" ", "") == original.replace(" ", "")


def test_the_encoders_tell_the_order_of_words(tmp_path: Path):
    text.write_t5_tokenizer(tmp_path)
    tokenizer = text.load_tokenizer(tmp_path)
    torch.manual_seed(0)
    network = text.Attributes(text.make_t5(len(tokenizer)), text.WIDTH, mask=True)
    optimizer = torch.optim.AdamW(network.parameters(), 2e-3)
    pairs = ["a red circle growing and a blue square growing", "a blue square growing and a red circle growing"]
    ids, mask = text.tokenize(tokenizer, pairs, text.MAX_TOKENS)
    wanted = torch.tensor([[0, 1, 1, 6, 3, 2, 6], [0, 3, 2, 6, 1, 1, 6]])
    for _ in range(40):
        loss = network.loss(ids, mask, wanted)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.1
