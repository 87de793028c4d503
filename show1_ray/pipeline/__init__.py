"""Pipelines: files that say what a clip is and how it is computed."""

from show1_ray.pipeline.checkpoints import Checkpoint
from show1_ray.pipeline.file import PIPELINE_FOLDERS, find, names
from show1_ray.pipeline.pipeline import COMPONENTS, STAGES, Pipeline

__all__ = ["COMPONENTS", "PIPELINE_FOLDERS", "STAGES", "Checkpoint", "Pipeline", "find", "names"]
