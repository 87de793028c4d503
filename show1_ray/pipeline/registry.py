"""Stages by name: of the package, of installed packages, or `module:Class` of somebody's own code."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from show1_ray.stage import Stage

PACKAGED = {
    "text": "show1_ray.show1.stages:Text",
    "keyframes": "show1_ray.show1.stages:Keyframes",
    "interpolation": "show1_ray.show1.stages:Interpolation",
    "super_resolution": "show1_ray.show1.stages:SuperResolution",
    "latent_super_resolution": "show1_ray.show1.stages:LatentSuperResolution",
}
"""The package's stages: as strings, so that nothing is imported before it is wanted."""


def stage_class(name: str) -> type[Stage]:
    """The class of a stage of the package. Raises KeyError if there is none."""
    return load(PACKAGED[name])


def load(path: str) -> Any:
    """What `module:Class` names; imports the module."""
    module, _, name = path.partition(":")
    return getattr(import_module(module), name)
