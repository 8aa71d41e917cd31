"""What `generate --generator NAME` means: the one place that knows every kind of generator.

What a kind is built from is imported only when one is asked for.
"""

from collections.abc import Callable
from pathlib import Path

from ganscope.config import GenerateSettings
from ganscope.errors import GanscopeError
from ganscope.folders import CONFIG, shipped
from ganscope.generator.model import AnyGenerator, load_generator
from ganscope.registry import Registry, unknown

prefixes: Registry[Callable[[str, GenerateSettings], AnyGenerator]] = Registry("kind of generator")
"""PREFIX:REST -> builder of (rest, settings); its docstring is what `list generators` shows."""


EDITS = ("faceswap", "selfblend", "splice")
"""Kinds that need nothing behind the colon, which is easily forgotten then."""


def open_generator(settings: GenerateSettings) -> AnyGenerator:
    """The generator that the settings name, told what to make.

    Raises `GanscopeError` if there is none, or it cannot do what is asked for.
    """
    name = settings.generator
    prefix, colon, rest = name.partition(":")
    if settings.prompts is not None and not (colon and prefix in ("diffusers", "inpaint")):
        raise GanscopeError(
            f"--prompts: {name!r} takes none; leave it out, or name a --generator diffusers:ID"
        )
    if colon and prefix in prefixes:
        _refuse_choices(settings)
        return prefixes[prefix](rest, settings)
    if colon and len(prefix) > 1:  # C:\\ is a folder
        raise GanscopeError(unknown("kind of generator", prefix, sorted(prefixes)))
    if not colon and name in EDITS and not Path(name).is_dir():
        raise GanscopeError(f"--generator {name}: write {name}: with a colon")
    if name not in shipped("generators") and not (Path(name) / CONFIG).is_file():
        from ganscope.generator.borrowed.functions import (
            entry_point_generator,
            entry_point_generators,
        )

        points = entry_point_generators()
        if name in points:
            _refuse_choices(settings)
            return entry_point_generator(points[name])
    return load_generator(name).choose(settings.class_, settings.truncation)


def _refuse_choices(settings: GenerateSettings) -> None:
    if settings.class_ is not None:
        raise GanscopeError(f"--class: {settings.generator!r} knows no classes; leave it out")
    if settings.truncation != 1:
        raise GanscopeError(f"--truncation: {settings.generator!r} has none; leave it out")


@prefixes.register("python")
def _python(rest: str, settings: GenerateSettings) -> AnyGenerator:
    """FILE.py:FUNCTION: your own function (n, seed) -> images"""
    from ganscope.generator.borrowed.functions import python_generator

    return python_generator(rest)


@prefixes.register("hub")
def _hub(rest: str, settings: GenerateSettings) -> AnyGenerator:
    """REPO:MODEL: a network of torch.hub, or of a local clone; ?key=value for its function"""
    from ganscope.generator.borrowed.hub import hub_generator

    return hub_generator(rest)


@prefixes.register("diffusers")
def _diffusers(rest: str, settings: GenerateSettings) -> AnyGenerator:
    """ID: a pipeline of Hugging Face diffusers, hub id or folder; ?steps, size, precision"""
    from ganscope.generator.borrowed.diffusers import diffusers_generator

    return diffusers_generator(rest, settings.prompts)


@prefixes.register("reconstruct")
def _reconstruct(rest: str, settings: GenerateSettings) -> AnyGenerator:
    """taesd: photographs through an autoencoder, hub id or folder; ?times, noise, blend"""
    from ganscope.generator.borrowed.reconstruction import reconstruction_generator

    return reconstruction_generator(rest)


@prefixes.register("upscale")
def _upscale(rest: str, settings: GenerateSettings) -> AnyGenerator:
    """FILE: photographs shrunk and enlarged by a network, TorchScript or torch.export's .pt2"""
    from ganscope.generator.borrowed.reconstruction import upscale_generator

    return upscale_generator(rest)


@prefixes.register("style")
def _style(rest: str, settings: GenerateSettings) -> AnyGenerator:
    """PAINTING: photographs painted like it; ?features, weights, steps, strength"""
    from ganscope.generator.borrowed.style_transfer import style_generator

    return style_generator(rest)


@prefixes.register("faceswap")
def _faceswap(rest: str, settings: GenerateSettings) -> AnyGenerator:
    """: another's face in each photograph with one, and a mask; ?finder"""
    from ganscope.generator.borrowed.faces import face_generator

    return face_generator("faceswap", rest)


@prefixes.register("selfblend")
def _selfblend(rest: str, settings: GenerateSettings) -> AnyGenerator:
    """: each face blended onto itself, and a mask; ?finder"""
    from ganscope.generator.borrowed.faces import face_generator

    return face_generator("selfblend", rest)


@prefixes.register("inpaint")
def _inpaint(rest: str, settings: GenerateSettings) -> AnyGenerator:
    """taesd: a region through an autoencoder or an inpainting pipeline; ?region, area, edge"""
    from ganscope.generator.borrowed.edits import inpaint_generator

    return inpaint_generator(rest, settings.prompts)


@prefixes.register("splice")
def _splice(rest: str, settings: GenerateSettings) -> AnyGenerator:
    """: a region of another photograph, and a mask; ?region, area, colour, edge"""
    from ganscope.generator.borrowed.edits import splice_generator

    return splice_generator(rest)
