"""What `submit` takes along: the manifest's files in their folders, the profiles, and nothing else that lies there."""

from __future__ import annotations

import zipfile

from show1_ray.cluster.shipment import shipment
from show1_ray.manifest import open_manifest
from show1_ray.pipeline import Pipeline
from show1_ray.planning.profile import BatchCost, Profile, StageProfile, find_profile, profile_path, save_profile
from tests.test_render import write_manifest


def test_manifests_keep_their_folders_and_nothing_else_is_shipped(tmp_path, monkeypatch):
    job = tmp_path / "job"
    for name, prompt in {"a/part-0.csv": "a", "b/part-0.csv": "b", "lang=en/year=2024/c.csv": "c"}.items():
        (job / name).parent.mkdir(parents=True)
        (job / name).write_text(f"prompt\n{prompt}\n")
    for name in (".env", ".git/config", "notes.docx", "a/.env", "a/big.mp4", "_drafts/d.csv"):
        (job / name).parent.mkdir(exist_ok=True)
        (job / name).write_text("SECRET=1")
    with zipfile.ZipFile(job / "m.zip", "w") as archive:
        archive.write(job / "a/part-0.csv", "in/a.csv")
    monkeypatch.chdir(job)

    def shipped(given: str) -> tuple[list[str], list[str]]:
        with shipment(given, "nano", []) as (folder, there, _):
            files = [str(one.relative_to(folder)) for one in (folder / "manifest").rglob("*") if one.is_file()]
            with monkeypatch.context() as place:
                place.chdir(folder)
                found = [(one.clip, one.extra) for one in open_manifest(there)]
        assert found == [(one.clip, one.extra) for one in open_manifest(given)]
        return sorted(files), [clip.prompt for clip, _ in found]

    parts = ["a/part-0.csv", "b/part-0.csv", "lang=en/year=2024/c.csv"]
    for given in (str(job), f"{job}/", f"file://{job}"):
        assert shipped(given) == ([f"manifest/job/{one}" for one in parts], ["a", "b", "c"])
    assert shipped("../job") == ([f"manifest/job/{one}" for one in parts], ["a", "b", "c"])
    assert shipped("*/part-0.csv") == ([f"manifest/{one}" for one in parts[:2]], ["a", "b"])
    assert shipped(f"{job}/[ab]/*.csv")[0] == [f"manifest/{one}" for one in parts[:2]]
    for given in ("lang=en/year=2024/c.csv", "lang=en", "lang=en/year=2024/*.csv"):
        assert shipped(given) == (["manifest/lang=en/year=2024/c.csv"], ["c"])
    assert shipped("zip://in/a.csv::m.zip") == (["manifest/m.zip"], ["a"])
    with shipment("zip://in/a.csv::s3://bucket/m.zip", "nano", []) as (folder, there, _):
        assert there == "zip://in/a.csv::s3://bucket/m.zip"
        assert not (folder / "manifest").exists()


def test_the_profiles_of_a_pipeline_are_shipped_and_found(tmp_path):
    manifest = write_manifest(tmp_path)
    pipelines = tmp_path / "pipelines"
    pipelines.mkdir()
    (pipelines / "mine.yaml").write_text("extends: nano\n")
    pipeline = Pipeline.load(pipelines / "mine.yaml")
    cost = StageProfile(
        load_seconds=1, leave_seconds=1, swap_seconds=1, weights=1, batches=(BatchCost(size=1, seconds=1, memory=1),)
    )
    profile = Profile(
        pipeline="mine",
        recipe_hash=pipeline.resolved().recipe_hash(),
        dtype="float32",
        kind="cuda",
        device="NVIDIA A100",
        device_memory=80 << 30,
        memory="peak",
        threads=1,
        import_seconds=1,
        versions={},
        stages={stage.name: cost for stage in pipeline.wired()},
    )
    save_profile(profile, profile_path(pipeline, "NVIDIA A100"))
    save_profile(profile, pipelines / "profiles" / "other.a100.json")
    with shipment(manifest, str(pipelines / "mine.yaml"), []) as (folder, _, there):
        shipped = Pipeline.load(folder / there)
        assert find_profile(shipped, "NVIDIA A100") == (profile, [])
        assert [one.name for one in (folder / "profiles").iterdir()] == ["mine.nvidia-a100.json"]
