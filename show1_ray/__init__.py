"""show1-ray: render text-to-video datasets at scale, pipelines of stages as an assembly line on Ray.

Names are imported when they are used: nobody waits for what they do not need, and stages work without Ray.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from show1_ray.clip import Clip
    from show1_ray.errors import UserError
    from show1_ray.job import Summary, render
    from show1_ray.live import open_line
    from show1_ray.pipeline import Pipeline
    from show1_ray.stage import Needs, Reject, Shape, Stage, StageExecution, StageSettings

__version__ = "0.1.0"

__all__ = [
    "Clip",
    "Needs",
    "Pipeline",
    "Reject",
    "Shape",
    "Stage",
    "StageExecution",
    "StageSettings",
    "Summary",
    "UserError",
    "__version__",
    "open_line",
    "render",
]

_PLACES = {
    "Clip": "clip",
    "Needs": "stage",
    "Pipeline": "pipeline",
    "Reject": "stage",
    "Shape": "stage",
    "Stage": "stage",
    "StageExecution": "stage",
    "StageSettings": "stage",
    "Summary": "job",
    "UserError": "errors",
    "open_line": "live",
    "render": "job",
}


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = getattr(import_module(f"{__name__}.{_PLACES[name]}"), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
