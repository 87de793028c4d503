"""Recipes identify datasets that exist: a change of code must not change them."""

from pathlib import Path

import pytest
import yaml

from show1_ray.errors import UserError
from show1_ray.job import origin
from show1_ray.pipeline import Pipeline


@pytest.mark.parametrize(("name", "digest"), [("nano", "d0c0192257fc3d50"), ("nano-fast", "73683ccb6dfaef97")])
def test_recipes_of_local_weights_are_what_they_were(name: str, digest: str):
    assert Pipeline.load(name).resolved().recipe_hash() == digest


@pytest.mark.parametrize(
    ("name", "digest"),
    [("show1", "13a8399a335ef7b4"), ("show1-demo", "40f73816084ab8c8"), ("show1-fast", "c28193ed29f18498")],
)
def test_recipes_of_the_hubs_weights_are_what_they_were_before_revisions_are_resolved(name: str, digest: str):
    assert Pipeline.load(name).recipe_hash() == digest


def kept(name: str, folder: Path) -> Path:
    """The pipeline file that a dataset keeps."""
    pipeline = origin(Pipeline.load(name).resolved()).pipeline
    path = folder / "pipeline.yaml"
    path.write_text(yaml.safe_dump(dict(pipeline), sort_keys=False))
    return path


def test_the_pipeline_file_of_a_dataset_finds_the_packages_weights_by_what_they_are(tmp_path):
    again = Pipeline.load(kept("nano", tmp_path)).resolved()
    assert again.recipe_hash() == Pipeline.load("nano").resolved().recipe_hash()
    assert all(folder.is_dir() for folder in again.fetch())


def test_of_other_local_weights_it_is_said_that_the_file_does_not_name_them(tiny, tmp_path):
    with pytest.raises(
        UserError, match=r"^weights sha256:\w+: they were in a folder of the machine .*checkpoint\.repo="
    ):
        Pipeline.load(kept(str(tiny), tmp_path)).resolved()
