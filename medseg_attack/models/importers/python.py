"""Networks made by a Python function of somebody else."""

import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from medseg_attack.errors import InputError, raised
from medseg_attack.types import Task


def from_python(text: str, task: Task) -> Any:
    """What the factory of `file.py:factory` or `package.module:factory` returns; it is given the task if it takes one.

    Raises:
        InputError: there is no such factory, or it fails.
    """
    place, _, name = text.rpartition(":")
    make: Any = _module(place, text)
    for part in name.split("."):
        if not hasattr(make, part):
            raise InputError(f"expected {name!r} in {place}, got no such name there; check own({text!r})")
        make = getattr(make, part)
    return _called(make, text, task)


def _module(place: str, text: str) -> Any:
    try:
        if not place.endswith(".py"):
            return importlib.import_module(place)
        path = Path(place)
        if not path.is_file():
            raise InputError(f"expected a Python file at {path}, got none; check own({text!r})")
        found = importlib.util.spec_from_file_location(f"medattack_own_{path.stem}", path)
        assert found is not None
        assert found.loader is not None
        module = importlib.util.module_from_spec(found)
        sys.modules[found.name] = module  # dataclasses of the file look themselves up there
        found.loader.exec_module(module)
    except InputError:
        raise
    except (Exception, SystemExit) as error:  # another's code may raise anything
        raise InputError(f"expected to import {place} for own({text!r}), got {raised(error)}; repair it") from error
    return module


def _called(make: Callable[..., Any], text: str, task: Task) -> Any:
    if not callable(make):
        raise InputError(f"expected a function in own({text!r}), got a {type(make).__name__}; name what makes the net")
    try:
        takes = "task" in inspect.signature(make).parameters
        return make(task=task) if takes else make()
    except (Exception, SystemExit) as error:  # another's code may raise anything
        raise InputError(f"expected own({text!r}) to make a network, got {raised(error)}; repair it") from error
