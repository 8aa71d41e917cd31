"""What `generate --generator NAME` means: the one place that knows every kind of generator."""

from collections.abc import Callable

from ganscope.config import GenerateSettings
from ganscope.errors import GanscopeError
from ganscope.generator.model import AnyGenerator, load_generator
from ganscope.registry import Registry, unknown

prefixes: Registry[Callable[[str, GenerateSettings], AnyGenerator]] = Registry("kind of generator")
"""PREFIX:REST -> builder of (rest, settings)."""


def open_generator(settings: GenerateSettings) -> AnyGenerator:
    """The generator that the settings name, told what to make.

    Raises `GanscopeError` if there is none, or it cannot do what is asked for.
    """
    prefix, colon, rest = settings.generator.partition(":")
    if colon and prefix in prefixes:
        generator = prefixes[prefix](rest, settings)
        if settings.class_ is not None:
            raise GanscopeError(f"--class: {prefix} generators know no classes")
        if settings.truncation != 1:
            raise GanscopeError(f"--truncation: {prefix} generators have none; leave it out")
        return generator
    if colon and len(prefix) > 1:  # C:\\ is a folder
        raise GanscopeError(unknown("kind of generator", prefix, sorted(prefixes)))
    return load_generator(settings.generator).choose(settings.class_, settings.truncation)
