"""Pipelines: files that say what a clip is and how it is computed."""

from show1_ray.pipeline.checkpoints import Checkpoint
from show1_ray.pipeline.file import PIPELINE_FOLDERS, find, names
from show1_ray.pipeline.pipeline import Pipeline
from show1_ray.pipeline.wiring import Ref, Wired

__all__ = ["PIPELINE_FOLDERS", "Checkpoint", "Pipeline", "Ref", "Wired", "find", "names"]
