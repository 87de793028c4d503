"""What of a diffusers stage cannot be, found before anything is loaded: from signatures and configurations."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from typing import Any

from show1_ray.pipeline.checkpoints import CheckpointError
from show1_ray.pipeline.registry import RegistryError
from show1_ray.stage import FRAMES, Context, Fault, Shape
from show1_ray.stages.diffusers import families, signatures
from show1_ray.stages.diffusers.layout import Layout, layout, signature
from show1_ray.stages.diffusers.signatures import Signature, UnknownClassError, near

OWNED = {
    "prompt": "it is the row's",
    "negative_prompt": "it is the row's; for rows that have none: the stage's own key 'negative_prompt'",
    "generator": "it is made of the row's seed",
    "latents": "they are drawn from the row's seed",
    "output_type": "frames are 8 bits as pil rounds them",
    "return_dict": "the line takes the frames",
    "num_videos_per_prompt": "a row is one clip; give it several rows, with seeds of their own",
    "num_images_per_prompt": "a row is one clip; give it several rows, with seeds of their own",
    "num_waveforms_per_prompt": "a row is one clip",
}
"""Arguments of calls that the line gives itself, and why."""

_OWNED_ENDS = ("prompt_embeds", "prompt_attention_mask", "prompt_embeds_mask", "_callback", "_latents")
_OWNED_STARTS = ("callback", "prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds")


def why_owned(name: str) -> str | None:
    """Why an argument cannot be given in a pipeline file; None: it can."""
    if name in OWNED:
        return OWNED[name]
    if name.startswith("callback"):
        return "functions cannot be given in a pipeline file"
    if name.startswith(_OWNED_STARTS) or name.endswith(_OWNED_ENDS):
        return "it is computed from the row's prompt and seed"
    return None


def free_arguments(pipeline: Signature) -> list[str]:
    """Arguments of its call that a pipeline file may give."""
    return [name for name in pipeline.call if why_owned(name) is None]


def faults(settings: Any, context: Context, given: Mapping[str, Shape]) -> Iterator[Fault]:
    """See `Stage.faults`."""
    try:
        found = layout(settings.checkpoint)
        present = () if found is None else found.present
    except CheckpointError as error:
        yield "checkpoint", str(error)
        return
    try:
        pipeline = signature(settings)
    except RegistryError as error:
        yield "checkpoint" if settings.pipeline is None else "pipeline", str(error)
        return
    yield from _classes(settings, found)
    if found is not None and settings.variant is not None and settings.checkpoint.is_local:
        files = [path.name for path in found.place.glob("*/*")]
        if not any(f".{settings.variant}." in name or f".{settings.variant}-" in name for name in files):
            yield "variant", f"the checkpoint has no weights of the variant {settings.variant!r}"
    if pipeline is None:
        return
    if found is not None:
        lacking = [
            name
            for name, one in pipeline.init.items()
            if one.is_required and name not in found.index and "[" not in one.annotation
        ]
        if lacking:
            what = f"which the checkpoint does not have ({', '.join(present)})"
            yield "pipeline", f"{pipeline.name} needs {', '.join(lacking)}, {what}"
    yield from _call(settings, pipeline, given)
    needed = families.family_of(pipeline).vae
    if needed and needed not in settings.vae:
        yield "vae", f"{pipeline.name} cannot decode without {needed}: give vae: {needed}"
    if settings.negative_prompt and (reason := no_negative(settings, pipeline)):
        yield "negative_prompt", f"is given, but {reason}"
    yield from _numbers(settings, pipeline, found, given)
    yield from _batches(settings, pipeline, context)


def no_negative(settings: Any, pipeline: Signature) -> str:
    """Why a negative prompt would be dropped; "": it is not."""
    if "negative_prompt" not in pipeline.call:
        return f"{pipeline.name} takes none"
    scale = families.default_of(pipeline, settings.call, "true_cfg_scale")
    if isinstance(scale, int | float) and scale <= 1:
        return (
            f"{pipeline.name} leaves it out with a true_cfg_scale of {scale}: give call: {{true_cfg_scale: …}} over 1"
        )
    return ""


def _call(settings: Any, pipeline: Signature, given: Mapping[str, Shape]) -> Iterator[Fault]:
    free = free_arguments(pipeline)
    for name, value in settings.call.items():
        key = f"call.{name}"
        if name not in pipeline.call:
            yield key, f"{pipeline.name} takes no {name!r}{near(name, free)}"
        elif (reason := why_owned(name)) is not None:
            yield key, f"cannot be given here: {reason}"
        elif name in given:
            yield key, "is taken from an earlier stage or an input, too: give it once"
        elif (wrong := pipeline.call[name].why_not(value)) is not None:
            yield key, wrong
    for name in given:
        if name in pipeline.call and (reason := why_owned(name)) is not None:
            yield f"takes.{name}", f"cannot be given: {reason}"
    for name in free:
        if families.is_needed(pipeline, name) and name not in settings.call and name not in given:
            value = "STAGE.VALUE" if "video" in name or "frames" in name else "STAGE.VALUE[0]"
            place = f"takes: {{%s: {value}}}, or an input of that name" if _is_picture(name) else "call: {%s: …}"
            yield "", f"{pipeline.name} needs {name!r}: give {place.replace('%s', name)}"


def _is_picture(name: str) -> bool:
    return any(word in name for word in ("image", "video", "mask", "frames"))


def _numbers(settings: Any, pipeline: Signature, found: Layout | None, given: Mapping[str, Shape]) -> Iterator[Fault]:
    """Frame counts and sizes that the model cannot make, with the nearest that it can."""
    who = families.family_of(pipeline).name or pipeline.name
    argument = families.frames_argument(pipeline)
    count = None if argument is None else settings.call.get(argument)
    if isinstance(count, int) and not isinstance(count, bool):
        step = families.frames_step(pipeline, found)
        if count < 1:
            yield f"call.{argument}", f"{count} frames: give 1 or more"
        elif step > 1 and count % step != 1:
            best = families.nearest(count, step, 1)
            yield f"call.{argument}", f"{who} makes {step}·k + 1 frames, not {count}; the nearest is {best}"
    for side in ("height", "width"):
        value = settings.call.get(side)
        if side not in pipeline.call or not isinstance(value, int) or isinstance(value, bool):
            continue
        step = families.size_step(pipeline, found, side)
        if value < 1:
            yield f"call.{side}", f"{value}: give {step} or more"
        elif value % step:
            best = families.nearest(value, step, 0)
            yield f"call.{side}", f"{who} needs multiples of {step}, not {value}; the nearest is {best}"
    yield from _steps(settings, pipeline)
    yield from _limits(settings, found)
    if settings.over is not None:
        yield from _over_frames(settings, pipeline, found, given)


def _steps(settings: Any, pipeline: Signature) -> Iterator[Fault]:
    steps = families.default_of(pipeline, settings.call, "num_inference_steps")
    strength = families.default_of(pipeline, settings.call, "strength")
    if not isinstance(steps, int) or isinstance(steps, bool):
        return
    if steps < 1:
        yield "call.num_inference_steps", f"{steps}: give 1 or more"
    elif isinstance(strength, int | float) and not isinstance(strength, bool):
        is_said = settings.call.get("denoising_start") is None and pipeline.cuts_strength
        if strength <= 0 or (is_said and int(steps * strength) < 1):
            key = "strength" if "strength" in settings.call else "num_inference_steps"
            yield f"call.{key}", f"{strength} of {steps} steps is not one step"


def _limits(settings: Any, found: Layout | None) -> Iterator[Fault]:
    """Arguments for which the checkpoint's index has a limit, such as `max_noise_level`."""
    for name, value in settings.call.items():
        most = None if found is None else found.index.get(f"max_{name}")
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if isinstance(most, int | float) and is_number and not 0 <= value <= most:
            yield f"call.{name}", f"{value}: the checkpoint takes 0 to {most}"


def picture_arguments(pipeline: Signature) -> list[str]:
    """Arguments of its call that take images, and that a pipeline file may give."""
    return [name for name in free_arguments(pipeline) if _is_picture(name) and "embeds" not in name]


def _over_frames(
    settings: Any, pipeline: Signature, found: Layout | None, given: Mapping[str, Shape]
) -> Iterator[Fault]:
    pictures = picture_arguments(pipeline)
    if families.frames_argument(pipeline) is not None or "video" in pipeline.call:
        yield "over", f"{pipeline.name} gives video; only pipelines that give images go over frames"
        return
    if not pictures:
        yield "over", f"{pipeline.name} takes no image: there is nothing to go over"
        return
    frames = {name: shape for name, shape in given.items() if shape.axes == FRAMES}
    if not frames:
        yield (
            "over",
            f"there are no frames to go over: give takes: {{{pictures[0]}: STAGE}}, of a stage that gives some",
        )
    counts = {name: shape.size("f") for name, shape in frames.items() if shape.sizes}
    if len(set(counts.values()) - {None}) > 1:
        each = ", ".join(f"{count} of {name}" for name, count in counts.items())
        yield "over", f"as many frames of each are needed, and there are {each}"
    if any(name in settings.call for name in ("height", "width")):
        return  # it resizes to what is asked for
    for name, shape in frames.items():
        sides = [("height", "h"), ("width", "w")]
        sizes = {side: shape.size(axis) if shape.sizes else None for side, axis in sides}
        if settings.resize is not None:
            sizes = settings.resize.model_dump()
        best = families.cut_size(pipeline, found, sizes)
        if best is not None:
            what = f"{pipeline.name} would cut frames of {sizes['width']}x{sizes['height']} without a word"
            near = f"resize: {{height: {best['height']}, width: {best['width']}}}"
            yield ("resize" if settings.resize is not None else f"takes.{name}"), f"{what}; give {near}"


def _batches(settings: Any, pipeline: Signature, context: Context) -> Iterator[Fault]:
    size = getattr(context.execution, "batch_size", 1)
    alone = families.family_of(pipeline).alone
    if size > 1 and alone and not ("slicing" in settings.vae and "slicing" in alone):
        yield "execution.batch_size", f"{pipeline.name} is called clip by clip, since {alone}: give 1"


def _classes(settings: Any, found: Layout | None) -> Iterator[Fault]:
    """Classes of diffusers that settings name, and their arguments."""
    if settings.scheduler is not None:
        yield from _scheduler(settings.scheduler, found)
    if settings.cache is not None:
        known = signatures.cache_configs()
        name = cache_class(settings.cache["class"])
        if name is None:
            said = settings.cache["class"]
            yield "cache.class", f"diffusers has no cache {said!r}{near(said, known)}"
        else:
            yield from _arguments("cache", settings.cache, known[name], name)
    backends = signatures.attention_backends()
    if settings.attention is not None and settings.attention not in backends:
        yield "attention", f"diffusers has no backend {settings.attention!r}{near(settings.attention, backends, 40)}"
    if settings.lora and find_spec("peft") is None:
        yield "lora", "low-rank weights need the package peft, which is not installed here"
    if settings.quantize is not None:
        backend = settings.quantize["backend"]
        libraries = signatures.quantization_backends()
        if backend not in libraries:
            yield "quantize.backend", f"diffusers has no backend {backend!r}{near(backend, libraries)}"
        components = settings.quantize.get("components")
        present = [] if found is None else found.present
        for one in components if isinstance(components, list) else [components] if components else []:
            if present and one not in present:
                yield "quantize.components", f"the checkpoint has no {one!r}{near(one, present)}"


def _scheduler(said: Mapping[str, Any], found: Layout | None) -> Iterator[Fault]:
    name = said.get("class") or (found and (found.components.get("scheduler") or (None, None))[1])
    if not name:
        if found is not None:
            yield "scheduler", "the checkpoint has no component of that name: nothing to be changed"
        return
    try:
        known = signatures.scheduler(str(name))
    except UnknownClassError as error:
        yield "scheduler.class", str(error)
        return
    yield from _arguments("scheduler", said, known.init, known.name)


def _arguments(key: str, said: Mapping[str, Any], known: Mapping[str, Any], owner: str) -> Iterator[Fault]:
    for name, value in said.items():
        if name == "class":
            continue
        if name not in known:
            yield f"{key}.{name}", f"{owner} has no {name!r}{near(name, known, 30)}"
        elif (wrong := known[name].why_not(value)) is not None:
            yield f"{key}.{name}", wrong
    for name, one in known.items():
        if key == "cache" and one.is_required and name not in said:
            yield key, f"{owner} needs {name!r}"


def cache_class(name: str) -> str | None:
    """The class that a cache's short or whole name means."""
    known = signatures.cache_configs()
    return next((one for one in (name, f"{name}Config", f"{name}CacheConfig") if one in known), None)
