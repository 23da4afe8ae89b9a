"""Networks that a Python function of somebody else returns."""

import importlib
import importlib.util
import inspect
import sys
from pathlib import Path
from typing import Any

from medseg_attack.errors import InputError, raised
from medseg_attack.runtime import stdout_on_stderr
from medseg_attack.types import Task


def from_python(text: str, task: Task) -> Any:
    """The network of `file.py:factory` or `package.module:factory`; a factory with a parameter `task` gets the task.

    Raises:
        InputError: there is no such factory, or it fails.
    """
    source, _, name = text.rpartition(":")
    factory: Any = _module(source, text)
    for part in name.split("."):
        if not hasattr(factory, part):
            raise InputError(f"expected {name!r} in {source}, got no such name; name a function of it in own({text!r})")
        factory = getattr(factory, part)
    return _call(factory, text, task)


def _module(source: str, text: str) -> Any:
    try:
        if not source.endswith(".py"):
            with stdout_on_stderr():
                return importlib.import_module(source)
        path = Path(source)
        if not path.is_file():
            raise InputError(f"expected a Python file at {path}, got none; name the file in own({text!r})")
        spec = importlib.util.spec_from_file_location(f"medattack_own_{path.stem}", path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module  # dataclasses of the file look themselves up in it
        with stdout_on_stderr():
            spec.loader.exec_module(module)
    except InputError:
        raise
    except (Exception, SystemExit) as error:  # another's code may raise anything
        raise InputError(
            f"expected to import {source} for own({text!r}), got {raised(error)}; repair that code"
        ) from error
    return module


def _call(factory: Any, text: str, task: Task) -> Any:
    if not callable(factory):
        kind = type(factory).__name__
        raise InputError(f"expected a function in own({text!r}), got a {kind}; name the function that makes the net")
    try:
        with stdout_on_stderr():
            return factory(task=task) if "task" in inspect.signature(factory).parameters else factory()
    except (Exception, SystemExit) as error:  # another's code may raise anything
        raise InputError(f"expected own({text!r}) to make a network, got {raised(error)}; repair that code") from error
