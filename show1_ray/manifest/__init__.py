"""What goes in: tables of prompts, read row by row, become clips."""

from show1_ray.manifest.checks import ManifestError
from show1_ray.manifest.manifest import COUNTED_SEEDS, Entry, Manifest, open_manifest
from show1_ray.manifest.naming import AS_THEY_ARE, Columns
from show1_ray.manifest.parquet import all_rows

__all__ = ["AS_THEY_ARE", "COUNTED_SEEDS", "Columns", "Entry", "Manifest", "ManifestError", "all_rows", "open_manifest"]
