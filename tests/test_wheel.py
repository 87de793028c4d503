"""The built wheel, in an environment of its own outside the repository."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.metadata import Distribution, distribution, distributions
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).parent.parent


def requirements(package: Distribution, extra: str = "") -> list[Requirement]:
    """What an installation of a package, with an extra, needs on this machine."""
    found = map(Requirement, package.requires or ())
    return [one for one in found if one.marker is None or one.marker.evaluate({"extra": extra})]


def link_requirements(package: Distribution, site: Path) -> None:
    """Links what a package requires, and what that requires, from the environment of the tests: nothing else.

    As if it were installed: `torch` alone takes a minute.
    """
    waiting, met = [(package, "")], set[tuple[str, str]]()
    while waiting:
        for one in requirements(*waiting.pop()):
            for extra in ("", *one.extras):
                if (one.name, extra) not in met:
                    met.add((one.name, extra))
                    waiting.append((distribution(one.name), extra))
    for name in {name for name, _ in met}:
        found = distribution(name)
        for entry in {file.parts[0] for file in found.files or ()} - {"..", "__pycache__"}:
            if not (site / entry).exists():
                (site / entry).symlink_to(Path(str(found.locate_file(entry))).resolve())


def test_the_wheel_in_an_environment_of_what_it_requires_renders_with_nano(tmp_path):
    def run(*command: object) -> str:
        environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        result = subprocess.run(
            list(map(str, command)), capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=240
        )
        assert result.returncode == 0, result.stdout + result.stderr
        return result.stdout

    pip = (sys.executable, "-m", "pip", "--quiet")
    run(*pip, "wheel", "--no-deps", "--wheel-dir", tmp_path, ROOT)
    [wheel] = tmp_path.glob("*.whl")
    run(sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv")
    [site] = tmp_path.glob("venv/lib/python*/site-packages")
    run(*pip, "--python", tmp_path / "venv", "install", "--no-deps", "--no-index", wheel)
    [package] = distributions(path=[str(site)])
    link_requirements(package, site)
    run(*pip, "--python", tmp_path / "venv", "check")

    command = tmp_path / "venv/bin/show1-ray"
    assert "nano" in run(command, "pipelines")
    run(command, "render", ROOT / "examples/prompts.parquet", "--out", "out", "--limit", "1")
    assert len(list(tmp_path.glob("out/clips/*/*.mp4"))) == 1
    where = run(tmp_path / "venv/bin/python", "-c", "import show1_ray; print(show1_ray.__file__)")
    assert where.startswith(str(tmp_path))
