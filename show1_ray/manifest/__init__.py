"""What goes in: tables of prompts, read row by row, become clips."""

from show1_ray.manifest.checks import ManifestError
from show1_ray.manifest.manifest import COUNTED_SEEDS, Entry, Manifest, open_manifest
from show1_ray.manifest.table import all_rows

__all__ = ["COUNTED_SEEDS", "Entry", "Manifest", "ManifestError", "all_rows", "open_manifest"]
