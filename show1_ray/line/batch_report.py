"""What came of a batch, as a station tells it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from show1_ray.line.faults import Failure


@dataclass(frozen=True)
class BatchReport:
    """What a station says of a batch: small, and the only thing that the driver fetches."""

    started: float = 0.0
    """Seconds since the epoch when the batch itself began."""
    seconds: float = 0.0
    load_seconds: float = 0.0
    from_host: bool = False
    output_bytes: int = 0
    """Of the clip that gave most."""
    failure: Failure | None = None
    lost: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Values that are gone, by clip: the batch was not run."""
    plain: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Plain values that the stage gave, by clip and name."""
    rejected: dict[str, str] = field(default_factory=dict)
    """Why clips shall not go on, by clip."""
    left: tuple[int, ...] = ()
    """Stages that had to leave the device for host memory, because there was too little room with them there."""
    dropped: tuple[int, ...] = ()
    """… and those that left altogether."""
    weights: int = 0
    """Bytes on the device of the stage itself, if that was measured …"""
    work: int = 0
    """… and of what the batch took besides."""
