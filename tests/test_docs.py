"""What the documentation says can be done: its commands, its files, and the parts that are made from the code."""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import jsonschema
import pyarrow.parquet as pq
import pytest
import typer
import yaml

from show1_ray.cli import app, options_of_render, stations_of
from show1_ray.dataset.metadata import BY_STAGE, FAILURE_SCHEMA, IN_SHARDS, OF_PROMPTS, REJECTION_SCHEMA, SCHEMA
from show1_ray.pipeline import Pipeline
from show1_ray.pipeline.describe import schema

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = sorted(
    [
        *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md")),
        *(ROOT / name for name in ("jobs/README.md", "findings/README.md", "training/README.md")),
        *DOCS.rglob("*.md"),
    ]
)
FOREIGN = {"cd", "export", "git", "head", "kubectl", "pre-commit", "sbatch", "sky", "source"}
"""Programs whose arguments are not looked at: they are not installed with the tests."""


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    language: str
    title: str
    text: str


def blocks(page: Path) -> list[Block]:
    fenced = re.findall(r"^( *)```(\w*)(?: title=\"(.*?)\")?\n(.*?)^\1```$", page.read_text(), re.DOTALL | re.MULTILINE)
    return [
        Block(language, title, re.sub(f"^{indent}", "", text, flags=re.M)) for indent, language, title, text in fenced
    ]


def commands(page: Path) -> Iterator[list[str]]:
    """The command lines of a page's blocks, as a shell splits them."""
    for block in blocks(page):
        if block.language in ("", "sh"):
            for line in re.sub(r"\\\n\s*", "", block.text).splitlines():
                words = shlex.split(re.sub(r"(^|\s+)#.*", "", line).removesuffix("&"))
                if words:
                    yield words


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def with_commands() -> list[Path]:
    return [page for page in PAGES if page.name != "cli.md" and any(commands(page))]


@pytest.mark.parametrize("page", with_commands(), ids=name)
def test_the_commands_of_a_page_are_taken_by_the_programs_that_they_call(page: Path) -> None:
    for program, *arguments in commands(page):
        program = program.removeprefix(".venv/bin/")
        if program in CHECKS:
            CHECKS[program](arguments, page)
        else:
            assert program in FOREIGN, f"{program} {' '.join(arguments)}: add a check for it"


def check_show1_ray(arguments: list[str], page: Path) -> None:
    command, *rest = arguments
    found = typer.main.get_command(app).commands[command]  # type: ignore[attr-defined]
    if "--help" in rest:
        return
    context = found.make_context(command, list(rest))
    if command == "submit" and context.params["manifest"] is not None:  # what it does not know itself is render's
        options_of_render([context.params["manifest"], "--out", context.params["out"], *context.args])
    elif command == "render" and context.params["gpus"] is not None:
        stations_of(context.params["gpus"])


def check_python(arguments: list[str], page: Path) -> None:
    if arguments[:1] == ["-m"]:
        assert importlib.util.find_spec(arguments[1]) or arguments[1] == "build"
        return
    script, *rest = arguments
    own = [block.text for block in blocks(page) if block.title == script]
    text = own[0] if own else (ROOT / script).read_text()
    for option in (word for word in rest if word.startswith("--")):
        assert f'"{option}"' in text, f"{script} has no {option}"


def check_make(arguments: list[str], page: Path) -> None:
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert arguments
    assert set(arguments) <= set(targets)


def check_pip(arguments: list[str], page: Path) -> None:
    assert arguments[0] == "install"
    known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for extras in re.findall(r"\.\[([\w,]+)\]", " ".join(arguments)):
        assert set(extras.split(",")) <= set(known)


def check_pytest(arguments: list[str], page: Path) -> None:
    path, *rest = arguments
    assert (ROOT / path).exists()
    if rest:
        assert rest[0] == "-k"
        assert any(rest[1] in test for test in re.findall(r"def (test_\w+)", (ROOT / path).read_text()))


def check_bash(arguments: list[str], page: Path) -> None:
    assert (ROOT / arguments[0]).is_file()


def check_ray(arguments: list[str], page: Path) -> None:
    from ray.scripts.scripts import cli

    command, *rest = arguments
    cli.commands[command].make_context(command, rest)


def check_hf(arguments: list[str], page: Path) -> None:
    from huggingface_hub.cli.hf import app as hf

    assert arguments[0] in hf.commands


CHECKS = {
    "bash": check_bash,
    "hf": check_hf,
    "make": check_make,
    "pip": check_pip,
    "pytest": check_pytest,
    "python": check_python,
    "ray": check_ray,
    "show1-ray": check_show1_ray,
}


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_what_a_page_says_of_the_command_line_in_its_text_is_there(page: Path) -> None:
    group = typer.main.get_command(app)
    text = re.sub(r"^ *```.*?^ *```$", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    for said in re.findall(r"`show1-ray ([^`]+)`", text):
        command, *rest = said.split()
        assert command in group.commands, said  # type: ignore[attr-defined]
        commands = [command, "render"] if command == "submit" else [command]
        known = {option for one in commands for parameter in group.commands[one].params for option in parameter.opts}  # type: ignore[attr-defined]
        assert {word for word in rest if word.startswith("--")} <= known | {"--help"}, said
    for said in re.findall(r"`make ([^`]+)`", text):
        check_make(said.split(), page)
    for said in re.findall(r"`((?:show1_ray|tests|benchmarks|jobs|examples|docs|pipelines)/[\w./-]+)`", text):
        assert (ROOT / said).exists(), said


@pytest.mark.parametrize("page", [page for page in PAGES if "```yaml" in page.read_text()], ids=name)
def test_the_pipeline_files_of_a_page_are_right(page: Path, tmp_path: Path) -> None:
    (tmp_path / "judge_model").symlink_to(ROOT / "examples")
    for block in (block for block in blocks(page) if block.language == "yaml"):
        said = yaml.safe_load(block.text)
        if "stages" not in said:  # a part of one
            said = {"extends": "nano", **said}
        jsonschema.validate(said, {**schema(), "required": []})
        if "uses: diffusers" not in block.text and said.keys() & {"stages", "execution"}:
            path = tmp_path / (block.title or "page.yaml")
            path.write_text(block.text if "stages" in block.text else yaml.safe_dump(said))
            Pipeline.load(path, code=ROOT / "examples")


@pytest.mark.parametrize("page", [page for page in PAGES if "```python" in page.read_text()], ids=name)
def test_the_python_of_a_page_is_python_and_that_of_an_example_is_the_example(page: Path) -> None:
    for block in blocks(page):
        if block.language == "python":
            ast.parse(block.text.replace("return [", "[", 1) if block.text.startswith("return ") else block.text)
        example = ROOT / "examples" / block.title
        if block.title and example.is_file():
            assert example.read_text() == block.text


def test_the_generated_pages_are_as_the_code_is() -> None:
    reference = load("_reference")
    for page, write in reference.PAGES.items():
        assert (DOCS / "reference" / page).read_text() == write(), "run `make reference`"


def load(module: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(module, DOCS / f"{module}.py")
    assert spec is not None
    assert spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


def test_the_reference_has_all_columns_of_a_dataset() -> None:
    page = (DOCS / "reference/dataset.md").read_text()
    ours = {*SCHEMA.names, *IN_SHARDS.names, *OF_PROMPTS.names, *FAILURE_SCHEMA.names, *REJECTION_SCHEMA.names}
    ours |= {f"{beginning}<stage>" for beginning in BY_STAGE}
    assert {column for column in ours if f"`{column}`" not in page} == set()


def test_the_reference_has_all_environment_variables_that_the_code_reads() -> None:
    page = (DOCS / "reference/environment.md").read_text()
    text = "".join(path.read_text() for path in (ROOT / "show1_ray").rglob("*.py"))
    read = set(re.findall(r"environ(?:\.get)?[\[(]\"(\w+)\"", text)) | set(re.findall(r"envvar=\"(\w+)\"", text))
    told_elsewhere = {"PYTHONPATH", "RAY_JOB_CONFIG_JSON_ENV_VAR"}  # what Ray's Jobs API sets
    set_here = set(re.findall(r"os\.environ\[\"(\w+)\"\] = ", text))
    assert {one for one in read - told_elsewhere - set_here if f"`{one}`" not in page} == set()


def test_every_result_is_among_the_numbers() -> None:
    page = (DOCS / "numbers.md").read_text()
    assert [one.name for one in (ROOT / "benchmarks/results").glob("*.txt") if f"results/{one.name})" not in page] == []


def test_the_hooks_of_pre_commit_are_what_ci_runs() -> None:
    [repository] = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    makefile = (ROOT / "Makefile").read_text()
    for hook in repository["hooks"]:
        tool = hook["entry"].split()[0].removeprefix(".venv/bin/")
        assert f"$(BIN)/{tool}" in makefile


def test_the_issue_templates_are_forms() -> None:
    for path in (ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml"):
        form = yaml.safe_load(path.read_text())
        if path.name != "config.yml":
            assert form.keys() >= {"name", "description", "body"}
            assert {part["type"] for part in form["body"]} <= {
                "markdown",
                "textarea",
                "input",
                "dropdown",
                "checkboxes",
            }


@pytest.mark.timeout(900)
def test_start_can_be_followed(tiny: Path, tmp_path: Path) -> None:
    """With the tiny cascade in place of nano, each command of the page in its order; then what how-tos do with it."""
    page = DOCS / "start.md"
    [csv] = [block for block in blocks(page) if block.language == "csv"]
    (tmp_path / csv.title).write_text(csv.text)
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}

    def run(*command: object) -> str:
        done = subprocess.run(
            list(map(str, command)), cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=240
        )
        assert done.returncode == 0, done.stderr
        return done.stdout + done.stderr

    followed = [words[1:] for words in commands(page) if words[0] == "show1-ray"]
    said: list[str] = []
    for words in followed:
        if words[0] == "render" and said and "--dry-run" not in words and "clips rendered" in "".join(said):
            with (tmp_path / csv.title).open("a") as manifest:
                manifest.write("three,a blue square growing on a gray background\n")
        extra = ["--pipeline", tiny, "--gpus", "1"] if words[0] == "render" else []
        said.append(run(sys.executable, "-m", "show1_ray", *words, *extra))
    told = "".join(said)
    assert "2 clips rendered" in told
    assert "1 clips rendered" in told
    shown = re.findall(r"^  ([\w.-]+/?(?:\w+/[\w.]+)?)", page.read_text().partition("my-clips/\n")[2], re.MULTILINE)
    there = {one for one in shown if one not in ("failures/", "rejections/")}
    assert {"clips/b1/red.mp4", "metadata.parquet", "report.html"} <= there
    assert [one for one in there if not (tmp_path / "my-clips" / one).exists()] == []

    [script] = [block for block in blocks(DOCS / "how-to/upload.md") if block.title == "to_shards.py"]
    (tmp_path / script.title).write_text(script.text)
    run(sys.executable, script.title, "my-clips", "my-shards")
    from webdataset import WebDataset

    samples = list(WebDataset(str(tmp_path / "my-shards/shard-000000.tar"), shardshuffle=False))
    rows = {row["id"]: row for row in pq.read_table(tmp_path / "my-clips/metadata.parquet").to_pylist()}
    assert {sample["__key__"] for sample in samples} == set(rows) == {"red", "two", "three"}
    for sample in samples:
        row = rows[sample["__key__"]]
        assert sample["mp4"] == (tmp_path / "my-clips" / row["file_name"]).read_bytes()
        assert json.loads(sample["json"])["prompt"] == row["prompt"]
