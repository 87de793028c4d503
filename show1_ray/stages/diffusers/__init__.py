"""Pipelines of diffusers on the line (`uses: diffusers`).

How it is put together. Without torch, for the driver: `settings` (what a pipeline file says), `signatures` (diffusers'
classes, read from its source), `layout` (a checkpoint's JSON files), `families` (all that is known of families),
`checks` (what cannot be), `stage` (the declaration), `pieces` (those of a pipeline that is cut). With torch, on
stations: `loading` (a pipeline with its scheduler, low-rank weights, quantisation, caches), `prompts` (prompts that are
cut), `outputs` (8-bit frames of what a pipeline gives), `whole` (a batch of clips through a pipeline), `split` (through
a part of it), `frames` (an image pipeline over the frames of clips).
"""

from show1_ray.stages.diffusers.stage import Diffusers

__all__ = ["Diffusers"]
