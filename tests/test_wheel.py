"""The built wheel, in an environment of its own outside the repository."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.timeout(900)
def test_the_wheel_installed_in_an_empty_environment_renders_with_nano(tmp_path):
    def run(*command: object) -> str:
        environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        result = subprocess.run(
            list(map(str, command)), capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=600
        )
        assert result.returncode == 0, result.stdout + result.stderr
        return result.stdout

    run(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", tmp_path, ROOT)
    [wheel] = tmp_path.glob("*.whl")
    run(sys.executable, "-m", "venv", tmp_path / "venv")
    install = [tmp_path / "venv/bin/pip", "install", "--quiet", "--constraint", ROOT / "constraints.txt"]
    run(*install, "torch")
    run(*install, wheel)

    command = tmp_path / "venv/bin/show1-ray"
    assert "nano" in run(command, "pipelines")
    run(command, "render", ROOT / "examples/prompts.parquet", "--out", "out", "--limit", "2")
    assert len(list(tmp_path.glob("out/clips/*/*.mp4"))) == 2
    where = run(tmp_path / "venv/bin/python", "-c", "import show1_ray; print(show1_ray.__file__)")
    assert where.startswith(str(tmp_path))
