"""The files of jobs/, each checked with what will read it."""

from __future__ import annotations

import copy
import json
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import botocore.session
import jsonschema
import pytest
import typer
import yaml
from botocore.validate import ParamValidator
from dockerfile_parse import DockerfileParser
from ray.autoscaler._private.util import prepare_config, validate_config

from show1_ray.cli import app, options_of_render, stations_of

ROOT = Path(__file__).parent.parent
JOBS = ROOT / "jobs"
CHECKS = {
    "Dockerfile": "test_the_dockerfile_builds_from_what_is_there",
    "README.md": "test_the_index_names_every_file",
    "aws.yaml": "test_ray_and_aws_take_the_launcher_file",
    "gcp.yaml": "test_ray_and_gcp_take_the_launcher_file",
    "grafana.json": "test_the_dashboard_asks_for_metrics_that_there_are",
    "ray_job.sh": "test_a_script_passes_bash_and_shellcheck",
    "rayjob.yaml": "test_the_rayjob_has_only_fields_that_kuberay_knows",
    "skypilot.yaml": "test_the_skypilot_file_has_only_fields_that_it_knows_and_its_scripts_pass_shellcheck",
    "slurm.sh": "test_a_script_passes_bash_and_shellcheck",
}
SCRIPTS = [name for name, check in CHECKS.items() if check.startswith("test_a_script")]
LAUNCHER = ["aws.yaml", "gcp.yaml"]
CARRIES_A_JOB = ["ray_job.sh", "skypilot.yaml", "slurm.sh", "rayjob.yaml", *LAUNCHER, "README.md"]
INSTRUCTIONS = {"ARG", "FROM", "USER", "RUN", "WORKDIR", "COPY", "ENV", "LABEL", "ENTRYPOINT", "CMD", "SHELL"}


def text(name: str) -> str:
    return (JOBS / name).read_text()


def load(name: str) -> Any:
    return yaml.safe_load(text(name))


def test_every_file_has_a_check():
    assert {path.name for path in JOBS.iterdir()} == set(CHECKS)
    assert set(CHECKS.values()) <= set(globals())


def test_the_index_names_every_file():
    named = set(re.findall(r"`([\w.]+)`", text("README.md"))) & set(CHECKS)
    assert named == set(CHECKS) - {"README.md"}


@pytest.mark.parametrize("name", sorted(set(CHECKS) - {"README.md", "grafana.json"}))
def test_a_header_says_how_to_use_it(name):
    lines = text(name).splitlines()
    lines = lines[1:] if lines[0].startswith("#!") else lines
    header = lines[: next(i for i, line in enumerate(lines) if not line.startswith("#"))]
    assert len(header) > 5
    assert any(line.startswith("#   ") for line in header), "no command to copy"
    assert "oken" in "".join(header)


@pytest.mark.parametrize("name", sorted(CHECKS))
def test_no_file_holds_a_token(name):
    assert not re.search(r"hf_[A-Za-z0-9]{8}|AKIA[A-Z0-9]{8}|_TOKEN[=:]\s*['\"]?[A-Za-z0-9]{8}", text(name))


@pytest.mark.parametrize("name", ["Dockerfile", "ray_job.sh", "rayjob.yaml", *LAUNCHER, "skypilot.yaml", "slurm.sh"])
def test_ray_asks_for_a_token_wherever_it_runs(name):
    lines = [line for line in text(name).splitlines() if not line.startswith("#")]
    assert re.search(r"RAY_AUTH_MODE(=|=\$\{RAY_AUTH_MODE:-)token\b|authOptions:\n +mode: token", "\n".join(lines))


# Scripts


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_passes_bash_and_shellcheck(name):
    shellcheck = str(Path(sys.executable).with_name("shellcheck"))
    for command in (["bash", "-n"], [shellcheck, "--enable", "check-unassigned-uppercase"]):
        result = subprocess.run([*command, str(JOBS / name)], capture_output=True, text=True)
        assert result.returncode == 0, result.stdout + result.stderr
    assert (JOBS / name).stat().st_mode & 0o111


def test_slurm_takes_the_options_before_the_first_command():
    lines = text("slurm.sh").splitlines()
    options = [i for i, line in enumerate(lines) if line.startswith("#SBATCH")]
    first_command = next(i for i, line in enumerate(lines) if line and not line.startswith("#"))
    assert options
    assert max(options) < first_command
    assert all(re.fullmatch(r"#SBATCH --[a-z-]+(=\S+)?", lines[i]) for i in options)


# Commands


def commands(name: str) -> list[list[str]]:
    """The `show1-ray` command lines in a file, its comments included, without what their shell does with them."""
    lines = re.sub(r"^#+ ?", "", text(name), flags=re.MULTILINE)
    if name == "rayjob.yaml":
        lines += "\n" + load(name)["spec"]["entrypoint"]
        lines = re.sub(r"^ +(show1-ray|--).*$", "", lines, flags=re.MULTILINE)  # the same, as YAML folds it
    lines = re.sub(r"\\\n\s*", "", lines)
    found = re.findall(r"^ *(?:ray job submit -- *)?(show1-ray (?:\w+) .*--.*)$", lines, flags=re.MULTILINE)
    return [shlex.split(line.removesuffix("&")) for line in found]


@pytest.mark.parametrize("name", CARRIES_A_JOB)
def test_the_command_lines_are_those_of_the_program(name):
    group = typer.main.get_command(app)
    found = commands(name)
    for _, command, *arguments in found:
        parsed = group.commands[command].make_context(command, list(arguments))
        given = parsed.params
        if command == "submit":  # what it does not know itself is render's
            _, pipeline, *_ = options_of_render([given["manifest"], "--out", given["out"], *parsed.args])
            assert given["address"].startswith("http://")
        else:
            pipeline = given["pipeline"]
            stations_of(given["gpus"])
        assert pipeline == "show1"
    renders = [line for line in found if line[1] == "render"]
    assert len(renders) == 1
    where = ["--address", "$address"] if name in ("skypilot.yaml", "slurm.sh") else ["--address", "auto"]
    assert renders[0][2].endswith("/prompts.parquet")
    assert renders[0][3] == "--out"
    assert renders[0][4:] == [renders[0][4], "--pipeline", "show1", *where, "--gpus", renders[0][-1]]


# SkyPilot


def test_the_skypilot_file_has_only_fields_that_it_knows_and_its_scripts_pass_shellcheck(tmp_path):
    task = load("skypilot.yaml")
    jsonschema.validate(task, schema("skypilot"))
    assert set(task["secrets"].values()) == {None}, "they come from the environment of whoever launches it"
    shellcheck = str(Path(sys.executable).with_name("shellcheck"))
    for part in ("setup", "run"):
        (tmp_path / part).write_text("#!/usr/bin/env bash\n" + task[part])
        result = subprocess.run([shellcheck, str(tmp_path / part)], capture_output=True, text=True)
        assert result.returncode == 0, result.stdout + result.stderr


# Ray's cluster launcher


@pytest.mark.parametrize("name", LAUNCHER)
def test_ray_takes_the_launcher_file_and_puts_no_work_on_the_head(name):
    config = launcher(name)
    head, workers = split(config)
    assert head["resources"] == {"CPU": 0}
    assert head["max_workers"] == 0
    assert workers
    for worker in workers:
        assert worker["resources"]["GPU"] > 0
        assert worker["min_workers"] == 0
    commands = [line for key in config if key.endswith("setup_commands") for line in config[key]]
    assert commands == [], "the image has all there is to install"
    assert "RAY_AUTH_MODE=token" in " ".join(config["docker"]["run_options"])


@pytest.mark.parametrize("name", LAUNCHER)
def test_ray_refuses_a_launcher_file_with_an_unknown_key(name):
    with pytest.raises(jsonschema.ValidationError, match="idle_minutes"):
        validate_config(prepare_config({**load(name), "idle_minutes": 1}))


def test_ray_and_aws_take_the_launcher_file():
    shape = botocore.session.get_session().get_service_model("ec2").operation_model("RunInstances").input_shape
    head, workers = split(launcher("aws.yaml"))
    for node in (head, *workers):
        request = {"MinCount": 1, "MaxCount": 1, **node["node_config"]}
        report = ParamValidator().validate(request, shape)
        assert not report.has_errors(), report.generate_report()
        assert "IamInstanceProfile" in node["node_config"], "clips are written from any node"
    assert all(node["node_config"]["InstanceMarketOptions"]["MarketType"] == "spot" for node in workers)
    assert "InstanceMarketOptions" not in head["node_config"]


def test_the_launcher_files_ask_for_no_full_access():
    assert not any("FullAccess" in text(name) or "roles/editor" in text(name) for name in LAUNCHER)


def test_ray_and_gcp_take_the_launcher_file():
    head, workers = split(launcher("gcp.yaml"))
    for node in (head, *workers):
        jsonschema.validate(node["node_config"], schema("gcp_instance"))
    assert all(node["node_config"]["scheduling"]["provisioningModel"] == "SPOT" for node in workers)
    assert all("serviceAccounts" in node["node_config"] for node in workers), "clips are written from any node"
    assert "scheduling" not in head["node_config"]


def launcher(name: str) -> dict[str, Any]:
    """A launcher file as `ray up` sees it, with Ray's defaults, after Ray's own validation."""
    config = prepare_config(load(name))
    validate_config(config)
    return config


def split(config: dict[str, Any]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    nodes = dict(config["available_node_types"])
    return nodes.pop(config["head_node_type"]), list(nodes.values())


# KubeRay


def test_the_rayjob_has_only_fields_that_kuberay_knows():
    job = load("rayjob.yaml")
    jsonschema.validate(job, schema("rayjob"))
    cluster = job["spec"]["rayClusterSpec"]
    assert cluster["enableInTreeAutoscaling"]
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    assert "gpu" not in json.dumps(cluster["headGroupSpec"])
    for group in cluster["workerGroupSpecs"]:
        assert (group["minReplicas"], group["replicas"]) == (0, 0)
        pod = group["template"]["spec"]
        assert int(pod["containers"][0]["resources"]["limits"]["nvidia.com/gpu"]) > 0
        assert any("spot" in toleration["key"] for toleration in pod["tolerations"])
        assert any("spot" in label for label in pod["nodeSelector"])
    for pod in pods(job):
        [token] = [one for one in pod["spec"]["containers"][0]["env"] if one["name"] == "HF_TOKEN"]
        assert "secretKeyRef" in token["valueFrom"]


@pytest.mark.parametrize(
    ("place", "key", "value"),
    [
        ("spec", "entryPoint", "x"),
        ("spec", "backoffLimit", "2"),
        ("spec.rayClusterSpec", "enableInTreeAutoScaling", True),
        ("spec.rayClusterSpec.autoscalerOptions", "version", "v3"),
        ("spec.rayClusterSpec.headGroupSpec.rayStartParams", "num-cpus", 0),
        ("spec.rayClusterSpec.workerGroupSpecs.0", "minReplica", 0),
        ("spec.rayClusterSpec.workerGroupSpecs.0.template.spec.containers.0", "envs", []),
        ("spec.rayClusterSpec.workerGroupSpecs.0.template.spec.tolerations.0", "effects", "NoSchedule"),
    ],
)
def test_a_rayjob_with_another_field_is_refused(place, key, value):
    job = copy.deepcopy(load("rayjob.yaml"))
    node: Any = job
    for step in place.split("."):
        node = node[int(step) if step.isdigit() else step]
    node[key] = value
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(job, schema("rayjob"))


def test_one_image_with_one_ray_is_used_everywhere():
    job = load("rayjob.yaml")
    images = {pod["spec"]["containers"][0]["image"] for pod in pods(job)}
    images |= {load(name)["docker"]["image"] for name in LAUNCHER}
    assert len(images) == 1
    assert images.pop() in text("Dockerfile")
    assert f"ARG RAY_VERSION={job['spec']['rayClusterSpec']['rayVersion']}\n" in text("Dockerfile")


def pods(job: dict[str, Any]) -> list[dict[str, Any]]:
    cluster = job["spec"]["rayClusterSpec"]
    return [group["template"] for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"])]


def schema(name: str) -> dict[str, Any]:
    """The JSON schema of an object, from the facts in job_fields.yaml."""
    facts = yaml.safe_load((ROOT / "tests/job_fields.yaml").read_text())

    def of(fact: Any) -> dict[str, Any]:
        if isinstance(fact, list):
            return {"enum": fact}
        if isinstance(fact, str):
            return of(facts[fact]) if fact in facts else {"type": ["integer", "string"] if fact == "quantity" else fact}
        if "*" in fact:
            return {"type": "object", "additionalProperties": of(fact["*"])}
        fields = {key.removesuffix("!"): of(value) for key, value in fact.items()}
        lists = {key[:-2]: {"type": "array", "items": fields[key]} for key in fields if key.endswith("[]")}
        required = [key[:-1].removesuffix("[]") for key in fact if key.endswith("!")]
        return {
            "type": "object",
            "additionalProperties": False,
            "properties": {key: value for key, value in fields.items() if not key.endswith("[]")} | lists,
            "required": required,
        }

    return of(facts[name])


# The image


def test_the_dockerfile_builds_from_what_is_there():
    steps = DockerfileParser(path=str(JOBS / "Dockerfile")).structure
    steps = [step for step in steps if step["instruction"] != "COMMENT"]
    assert {step["instruction"] for step in steps} <= INSTRUCTIONS
    assert [step["instruction"] for step in steps[:2]] == ["ARG", "FROM"]
    copied = [word for step in steps if step["instruction"] == "COPY" for word in step["value"].split()]
    sources = {word for word in copied if not word.startswith("-")} - {"./", "./show1_ray", "./pipelines"}
    assert all((ROOT / source).exists() for source in sources), sources
    # What the build of the package reads, as pyproject.toml says.
    assert {"pyproject.toml", "README.md", "LICENSE", "show1_ray", "pipelines", "constraints.txt"} <= sources


def test_the_image_has_the_torch_that_the_project_is_tested_with():
    installs = [
        step["value"]
        for step in DockerfileParser(path=str(JOBS / "Dockerfile")).structure
        if step["instruction"] == "RUN" and "pip install" in step["value"]
    ]
    assert installs
    assert all("--constraint constraints.txt" in install for install in installs)
    assert not re.search(r"torch\s*[=<>~]=", " ".join(installs)), "the version is in constraints.txt alone"
    assert re.search(r"^torch==", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    extras = re.findall(r"\.\[([\w,]+)\]", " ".join(installs))
    known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert all(set(extra.split(",")) <= set(known) for extra in extras)


# The dashboard


def test_the_dashboard_asks_for_metrics_that_there_are():
    from show1_ray.metrics import NAMES

    dashboard = json.loads(text("grafana.json"))
    queries = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    variables = [one["query"]["query"] for one in dashboard["templating"]["list"] if one["type"] == "query"]
    asked = set(re.findall(r"\bray_(\w+)", " ".join(queries + variables)))
    asked = {re.sub(r"^(show1_batch_seconds)_(bucket|sum|count)$", r"\1", name) for name in asked}
    assert asked == set(NAMES), "each metric is shown, and no other is asked for"
    assert all(query.count("(") == query.count(")") and query.count("{") == query.count("}") for query in queries)


def test_the_dashboards_panels_do_not_overlap():
    dashboard = json.loads(text("grafana.json"))
    panels = dashboard["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    cells = [
        (x, y)
        for at in (panel["gridPos"] for panel in panels)
        for x in range(at["x"], at["x"] + at["w"])
        for y in range(at["y"], at["y"] + at["h"])
    ]
    assert len(cells) == len(set(cells))
    assert max(x for x, _ in cells) < 24
    for wanted in (
        "Clips per hour",
        "Busy share",
        "Queues",
        "Seconds per batch",
        "Failures",
        "Bytes landed",
        "Stations",
    ):
        assert any(panel["title"].startswith(wanted) for panel in panels), wanted
