"""show1-ray: render text-to-video datasets at scale, the Show-1 cascade as an assembly line on Ray."""

from importlib.util import find_spec

from show1_ray.clip import Clip
from show1_ray.errors import UserError
from show1_ray.pipeline import Pipeline

if find_spec("ray"):  # models and stages are used, and measured on GPUs, without it too
    from show1_ray.job import Summary, render
    from show1_ray.open_line import open_line

__version__ = "0.1.0"

__all__ = ["Clip", "Pipeline", "Summary", "UserError", "__version__", "open_line", "render"]
