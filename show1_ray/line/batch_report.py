"""A station's report of a batch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from show1_ray.line.faults import Failure


@dataclass(frozen=True)
class BatchReport:
    """A station's report of a batch: small, and the only thing that the driver fetches."""

    started: float = 0.0
    """Seconds since the epoch when the batch itself began."""
    seconds: float = 0.0
    load_seconds: float = 0.0
    from_host: bool = False
    output_bytes: int = 0
    """Of the clip with the largest outputs."""
    failure: Failure | None = None
    lost: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Lost values, by clip: the batch did not run."""
    plain: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Plain values from the stage, by clip and name."""
    rejected: dict[str, str] = field(default_factory=dict)
    """Why clips were rejected, by clip."""
    left: tuple[int, ...] = ()
    """Stages that had to leave the device for host memory, because there was too little room with them there."""
    dropped: tuple[int, ...] = ()
    """… and those that left altogether."""
    weights: int = 0
    """Bytes on the device of the stage itself, if that was measured …"""
    work: int = 0
    """… and of what the batch took besides."""
