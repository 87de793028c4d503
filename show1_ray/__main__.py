"""`python -m show1_ray` is `show1-ray`."""

from __future__ import annotations

import sys
from collections.abc import Callable

from show1_ray import supervisor

DRIVERS = ("render", "demo")
"""Commands that run a line, whose process Ray may end."""


def main(command: Callable[[], object] | None = None) -> None:
    """What the `show1-ray` script calls. Ctrl-C ends it without a traceback also while the program is imported."""
    if sys.argv[1:] and sys.argv[1] in DRIVERS:
        supervisor.supervise()
    try:
        from show1_ray import cli
    except KeyboardInterrupt:
        supervisor.done(130)
        sys.exit(130)
    cli.main(command or cli.app)


if __name__ == "__main__":
    main()
