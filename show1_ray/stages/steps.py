"""Which steps of a denoising loop are guided, and which reuse deep features: known before the first of them."""

from __future__ import annotations

from dataclasses import dataclass

from show1_ray.stages.settings import Denoising


@dataclass(frozen=True)
class Step:
    """One step of a loop: whether guidance's two halves are computed, and whether the whole network is.

    Where it is not, the deep features are those of the last step that had the whole network.
    """

    guided: bool
    whole: bool = True


def plan_steps(settings: Denoising, count: int) -> list[Step]:
    """The loop's steps, in order.

    Step i is guided if i / count lies in `guidance_interval`, its end excluded. The whole network runs at the first
    step, every `reuse.every` steps from there, and wherever guidance begins: features of the prompt's half alone do not
    serve both halves. (Those of both serve one.)

    Args:
        settings: of the loop.
        count: steps that are walked.
    """
    begin, end = settings.guidance_interval or (0.0, 1.0)
    steps: list[Step] = []
    last, had_both = 0, False
    for i in range(count):
        guided = settings.guidance > 1 and begin * count <= i < end * count
        whole = settings.reuse is None or not steps or i - last >= settings.reuse.every or (guided and not had_both)
        if whole:
            last, had_both = i, guided
        steps.append(Step(guided, whole))
    return steps
