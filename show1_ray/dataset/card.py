"""The dataset's card: a README.md as the Hugging Face hub reads it."""

from __future__ import annotations

from typing import Any

import yaml

from show1_ray.dataset.lander import Origin
from show1_ray.dataset.layout import CLIPS, FAILURES, METADATA_FILE, PIPELINE, REJECTIONS, SHARDS

LOADING = {
    "mp4": """\
```python
from datasets import load_dataset

clips = load_dataset("path/of/this/folder", split="train")
```

`load_dataset("videofolder", data_dir=…)` works too, unless ids begin with words that it takes for splits
(`test-1`, `train_2`).
""",
    "webdataset": """\
```python
import webdataset

clips = webdataset.WebDataset("{shards}/shard-{{000000..NNNNNN}}.tar")  # mp4 and json
```

A clip's key is its id (dots replaced, see `file_name` in `{metadata}`); its row is in `json` and in
`{metadata}`.
""",
}


def dataset_card(origin: Origin, format: str, clips: int, size: int, failures: int, rejections: int = 0) -> str:
    """The card of a finished dataset of so many clips, bytes of video, clips that failed and that were rejected."""
    files = [METADATA_FILE, f"{CLIPS}/**/*.mp4"] if format == "mp4" else [f"{SHARDS}/*.tar"]
    front: dict[str, Any] = {
        "license": "other",
        "license_name": "see-weights",
        "task_categories": ["text-to-video"],
        "tags": ["synthetic", "video", "show1-ray"],
        "configs": [{"config_name": "default", "data_files": [{"split": "train", "path": files}]}],
    }
    weights = [f"| {w.repo} | {w.revision} | {w.licence or 'not stated'} |" for w in origin.weights]
    failed = f" {failures:,} clips failed: see `{FAILURES}/`." if failures else ""
    failed += f" {rejections:,} clips were rejected: see `{REJECTIONS}/`." if rejections else ""
    head = yaml.safe_dump(front, sort_keys=False)
    loading = LOADING[format].format(metadata=METADATA_FILE, shards=SHARDS)
    return f"""---
{head}---

# {clips:,} synthetic clips

Rendered from text with show1-ray, pipeline `{origin.name}`, recipe `{origin.recipe_hash}` (`{PIPELINE}`):
{clips:,} clips, {size / 1e6:,.1f} MB of H.264 at {origin.fps:g} frames a second.{failed}

Each clip's prompt, seed, checksum and making are in `{METADATA_FILE}`, and as JSON in its video file's
comment.

## Loading

{loading}
## Weights and their licences

The clips are the output of these weights; what may be done with them is for the weights' licences to say.

| weights | revision | licence |
| --- | --- | --- |
{chr(10).join(weights) or "| none | | |"}
"""
