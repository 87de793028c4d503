"""The tutorial, executed from the first cell to the last one, as a reader does."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path

import pytest

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


def test_what_the_tutorial_shows_is_kept_with_it_and_small() -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    assert all(cell.outputs for cell in notebook.cells if cell.cell_type == "code")
    assert NOTEBOOK.stat().st_size < 400_000
