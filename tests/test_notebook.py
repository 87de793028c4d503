"""The tutorial, executed from the first cell to the last one, as a reader does."""

from __future__ import annotations

import ast
import re
import tempfile
from pathlib import Path
from typing import Any

import pytest

from tests.own_ray import own_ray

nbformat = pytest.importorskip("nbformat", reason="nbclient is not installed")
nbclient = pytest.importorskip("nbclient", reason="nbclient is not installed")
pytest.importorskip("ipykernel", reason="ipykernel is not installed")

NOTEBOOK = Path(__file__).parent.parent / "examples" / "show1_ray.ipynb"


def text_of(outputs: list[dict]) -> str:
    """What a cell shows, as plain text or HTML."""
    pages = [output.get("data", {"text/plain": output.get("text")}) for output in outputs]
    return "\n".join(page.get("text/html") or page["text/plain"] for page in pages)


def test_the_tutorial_runs_and_shows_five_clips(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    with tempfile.TemporaryDirectory(prefix="ray", dir="/tmp") as folder:
        monkeypatch.setenv("RAY_TMPDIR", folder)
        client = nbclient.NotebookClient(notebook, timeout=240, resources={"metadata": {"path": str(tmp_path)}})
        client.execute()
    shown = [text_of(cell.outputs) for cell in notebook.cells if cell.cell_type == "code"]
    assert "5 of 5 clips rendered, 0 failed" in shown[1]
    assert "0 rendered, 5 were there" in shown[2]
    assert len(re.findall(r'<video src="data:video/mp4;base64,\w', shown[3])) == 5
    assert shown[4].count("clip-") == shown[5].count("clip-") == 5


OWN = '''
import numpy as np
from show1_ray import Stage

class Grey(Stage):
    """Grey frames: it reads no prompt."""
    gives = {"frames": "f h w c"}

    def run(self, clips, values):
        return [{"frames": np.full((4, 16, 32, 3), clip.seed, "uint8")} for clip in clips]
'''


def test_its_cells_do_for_any_pipeline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cells = [cell.source for cell in nbformat.read(NOTEBOOK, as_version=4).cells if cell.cell_type == "code"]
    assert sum('pipeline, code = "nano", None' in cell for cell in cells) == 1
    (tmp_path / "own.py").write_text(OWN)
    (tmp_path / "own.yaml").write_text('stages: {grey: {uses: "own:Grey"}}')
    # The example of a stage of one's own, with fewer steps.
    few = [
        *("keyframes: {steps: 1}", "interpolation: {steps: 1}", "latent_super_resolution: {steps: 4}"),
        "super_resolution: {steps: 1, first_frame: {steps: 1}}",
    ]
    mine = "".join(f"  {line}\n" for line in few)
    (tmp_path / "mine.yaml").write_text(f"extends: {NOTEBOOK.parent / 'mine.yaml'}\nstages:\n{mine}")
    with own_ray(2):
        for pipeline, code in (("own.yaml", "own.py"), ("mine.yaml", str(NOTEBOOK.parent / "brighten.py"))):
            here = tmp_path / pipeline.removesuffix(".yaml")
            here.mkdir()
            monkeypatch.chdir(here)
            names: dict[str, Any] = {}
            for cell in cells:
                chosen = f'pipeline, code = "{tmp_path / pipeline}", {str(tmp_path / code)!r}'
                exec(_without_last(cell.replace('pipeline, code = "nano", None', chosen), names), names)
            assert (names["summary"].rendered, names["again"].rendered, names["again"].done_before) == (5, 0, 5)
            assert names["shown"][-1].filter(like="brighten" if "mine" in pipeline else "grey").shape == (5, 1)
            assert len(re.findall(r'<video src="data:video/mp4;base64,\w', names["shown"][-3].data)) == 5


def _without_last(cell: str, names: dict[str, Any]) -> Any:
    """A cell's code, whose last expression, if it is one, is what it shows: kept in `shown`."""
    tree = ast.parse(cell)
    names.setdefault("shown", [])
    if isinstance(tree.body[-1], ast.Expr):
        last = tree.body.pop()
        keep = ast.parse("shown.append(None)").body[0]
        keep.value.args = [last.value]  # type: ignore[attr-defined]
        tree.body.append(keep)
    return compile(ast.fix_missing_locations(tree), "cell", "exec")


def test_what_the_tutorial_shows_is_kept_with_it_and_small() -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    assert all(cell.outputs for cell in notebook.cells if cell.cell_type == "code")
    assert NOTEBOOK.stat().st_size < 400_000
