"""The assembly line. `Service` takes clips one by one and gives each its events; `Line` renders a whole manifest."""

from show1_ray.line.events import ClipDone, ClipFailed, ClipRejected
from show1_ray.line.line import Line
from show1_ray.line.service import Began, ClipEvent, Ended, FullError, Queued, Repeated, Service, StoppedError
from show1_ray.line.spec import LineSettings, Rejected, StageSpec

__all__ = [
    "Began",
    "ClipDone",
    "ClipEvent",
    "ClipFailed",
    "ClipRejected",
    "Ended",
    "FullError",
    "Line",
    "LineSettings",
    "Queued",
    "Rejected",
    "Repeated",
    "Service",
    "StageSpec",
    "StoppedError",
]
