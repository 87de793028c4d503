"""Datasets: video files or shards, their metadata, and what is done already."""

from show1_ray.dataset.dataset import Dataset, Settings
from show1_ray.dataset.lander import Lander, Origin, Rendering, Weights
from show1_ray.dataset.lease import LeaseError, LeaseTimes
from show1_ray.dataset.patience import Retries
from show1_ray.dataset.report import Report
from show1_ray.dataset.status import Failure, Status, read_status
from show1_ray.dataset.storage import StorageError
from show1_ray.dataset.survey import Survey, look

__all__ = [
    "Dataset",
    "Failure",
    "Lander",
    "LeaseError",
    "LeaseTimes",
    "Origin",
    "Rendering",
    "Report",
    "Retries",
    "Settings",
    "Status",
    "StorageError",
    "Survey",
    "Weights",
    "look",
    "read_status",
]
