"""One job, from manifest to dataset: the one place where line, stages and dataset meet."""

from show1_ray.job.job import Control, fill, orders_of, origin, render
from show1_ray.job.summary import Summary

__all__ = ["Control", "Summary", "fill", "orders_of", "origin", "render"]
