"""What goes in: tables of prompts, read row by row, become clips."""

from show1_ray.manifest.manifest import COUNTED_SEEDS, Entry, Manifest, ManifestError, open_manifest

__all__ = ["COUNTED_SEEDS", "Entry", "Manifest", "ManifestError", "open_manifest"]
