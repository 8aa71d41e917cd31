"""Functions of a user's own, named FILE.py:FUNCTION."""

import importlib.util
import inspect
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any
from zlib import crc32

from ganscope.errors import GanscopeError, reason_of
from ganscope.registry import unknown


def load_function(spec: str, option: str) -> tuple[Callable[..., Any], Path]:
    """The function that `FILE.py:FUNCTION` names, and its file, which is run.

    option: what a user typed, for messages. Raises `GanscopeError` if there is no such file or
    function, or the file cannot be run.
    """
    file, colon, name = spec.rpartition(":")
    if not colon or not name.isidentifier():
        raise GanscopeError(f"{option}: write python:FILE.py:FUNCTION")
    path = Path(file)
    if not path.is_file():
        raise GanscopeError(f"{option}: no such file: {file}")
    module = _run_file(option, path.resolve())
    function = getattr(module, name, None)
    if not callable(function):
        known = sorted(k for k, v in vars(module).items() if inspect.isfunction(v) and k[0] != "_")
        raise GanscopeError(f"{option}: {unknown(f'function of {path.name}', name, known)}")
    return function, path


def line_of(error: BaseException, file: str) -> str:
    """In which line of a user's file an error arose, in brackets; "" if in none."""
    lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == file]
    line = error.lineno if isinstance(error, SyntaxError) else lines[-1] if lines else None
    return f" (line {line} of {Path(file).name})" if line else ""


def _run_file(option: str, path: Path) -> ModuleType:
    module_name = f"ganscope_user_{path.stem}_{crc32(os.fsencode(path)):08x}"
    spec = importlib.util.spec_from_file_location(module_name, path)
    if spec is None or spec.loader is None:
        raise GanscopeError(f"{option}: {path.name} is no Python file; end it in .py")
    module = importlib.util.module_from_spec(spec)
    _make_room(str(path.parent))
    sys.modules[module_name] = module  # dataclasses look themselves up there
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # it may look at the command line
        raise GanscopeError(
            f"{option}: {path.name} cannot be run: {reason_of(error)}{line_of(error, str(path))}"
        ) from error
    return module


_folders: list[str] = []
"""Folders of files that were run."""


def _make_room(folder: str) -> None:
    """Let a file import its neighbours: behind all other modules, but ahead of the neighbours of
    other such files, which may have the same names and are forgotten.
    """
    if _folders[:1] == [folder]:
        return
    for name in [name for name in sys.modules if _is_neighbour(name)]:
        del sys.modules[name]
    sys.path[:] = [path for path in sys.path if path not in _folders]
    if folder not in sys.path:
        _folders[:] = [folder, *(other for other in _folders if other != folder)]
    sys.path += _folders


def _is_neighbour(name: str) -> bool:
    """Whether a module, or the package it is of, lies right beside a file that was run."""
    top = name.partition(".")[0]
    file = getattr(sys.modules.get(top), "__file__", None)
    ends = (f"{top}.py", os.path.join(top, "__init__.py"))
    return file in [os.path.join(folder, end) for folder in _folders for end in ends]
