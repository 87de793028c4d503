"""A job as `show1-ray render` runs it, with deadlines of seconds in place of minutes: what chaos.py starts.

python benchmarks/chaos_job.py MANIFEST OUT PIPELINE FORMAT [ADDRESS] [CODE]
"""

from __future__ import annotations

import sys

from show1_ray import supervisor
from show1_ray.__main__ import main


def job() -> None:
    """Renders, and ends with the job's exit code. Imports as the command line does, when it knows what to do."""
    from show1_ray.cli import stopped_by_signals
    from show1_ray.job import Control, render
    from show1_ray.line import LineSettings
    from show1_ray.output import Console
    from show1_ray.progress import Progress, summary_lines

    quick = LineSettings(deadline_floor=10, first_deadline=45)  # a stopped process is noticed only by its deadline
    manifest, out, pipeline, form, address, code = (*sys.argv[1:], *[""] * 6)[:6]
    console, control = Console(stderr=True), Control()
    with Progress(console) as progress, stopped_by_signals(control, console):
        summary = render(
            manifest,
            out,
            pipeline,
            format=form,  # type: ignore[arg-type]
            address=address or None,
            code=code or None,
            observe=progress.observe,
            control=control,
            line=quick,
        )
    print(summary_lines(summary), file=sys.stderr)
    sys.exit(summary.exit_code)


if __name__ == "__main__":
    supervisor.supervise()  # as of `render`
    main(job)
