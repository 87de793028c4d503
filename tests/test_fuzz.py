"""Random manifests, pipeline files, datasets and command lines: no traceback, no hang, nothing written by a refusal.

`benchmarks/fuzz.py` runs a hundred times as many.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings

from tests import fuzz_cases, fuzzing


@pytest.mark.parametrize(
    ("kind", "count"),
    [
        (fuzz_cases.manifest_case(), 250),
        (fuzz_cases.pipeline_case(), 200),
        (fuzz_cases.dataset_case(), 250),
        (fuzz_cases.command_case(), 200),
        (fuzz_cases.refused_case(), 100),
    ],
    ids=["manifests", "pipelines", "datasets", "commands", "refused"],
)
@pytest.mark.timeout(900)
def test_random_input_is_taken_or_refused_with_a_line(kind, count):
    @settings(
        max_examples=count,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate],
    )
    @given(kind)
    def run(case: fuzzing.Case) -> None:
        fault = fuzzing.fault_of(case)
        assert not fault, f"{fault}\n{fuzzing.written(case)}"

    run()


def test_the_fuzzer_sees_what_is_wrong(tmp_path, monkeypatch):
    """A traceback, a file that a refusal left, a hang: each is found where it is."""
    monkeypatch.setattr(fuzzing, "CPU_SECONDS", 0.5)
    case = fuzzing.Case("command", {}, ())

    def found(command) -> str:
        monkeypatch.setattr(fuzzing, "COMMAND", command)
        return fuzzing.fault_of(case)

    def leave(**_: object) -> None:
        Path("left").touch()
        print("refused")
        raise SystemExit(2)

    def hang(**_: object) -> None:
        while True:
            pass

    def show(**_: object) -> None:
        print("a\x1b[31mb")

    assert "a traceback" in found(lambda **_: 1 // 0)
    assert "['left'] changed" in found(leave)
    assert "took more than" in found(hang)
    assert r"'\x1b' in the output" in found(show)
    assert found(lambda **_: None) == ""
