"""What goes in: tables of prompts, read row by row, become clips."""

from show1_ray.manifest.manifest import Entry, Manifest, ManifestError, open_manifest

__all__ = ["Entry", "Manifest", "ManifestError", "open_manifest"]
