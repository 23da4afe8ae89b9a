"""Networks that a Python function of somebody else returns."""

import importlib
import inspect
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import CodeType
from typing import Any

from medseg_attack.errors import InputError, raised, refusing
from medseg_attack.runtime import stdout_on_stderr
from medseg_attack.storage.paths import beside
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
    with _foreign(f"to import {source} for own({text!r})"):
        if not source.endswith(".py"):
            return importlib.import_module(source)
        path = Path(source)
        if not path.is_file():
            raise InputError(
                f"expected a Python file at {path}, got none; name another in own({text!r}): {beside(path)}"
            )
        name = f"medattack_own_{path.stem}"
        spec = spec_from_file_location(name, path, loader=_SourceAlone(name, str(path)))
        assert spec is not None
        assert spec.loader is not None
        module = module_from_spec(spec)
        sys.modules[spec.name] = module  # dataclasses of the file look themselves up in it
        spec.loader.exec_module(module)
    return module


class _SourceAlone(SourceFileLoader):
    """Reads no compiled code beside the file, which may be of another source, and writes none there."""

    def get_code(self, fullname: str) -> CodeType:
        code: CodeType = self.source_to_code(self.get_data(self.path), self.path)
        return code


def _call(factory: Any, text: str, task: Task) -> Any:
    if not callable(factory):
        kind = type(factory).__name__
        raise InputError(f"expected a function in own({text!r}), got a {kind}; name the function that makes the net")
    with _foreign(f"own({text!r}) to make a network"):
        return factory(task=task) if "task" in inspect.signature(factory).parameters else factory()


@contextmanager
def _foreign(expected: str) -> Iterator[None]:
    """A scope in which another's code runs, which may raise and print anything."""
    with refusing(expected, "repair that code", (Exception, SystemExit), words=raised), stdout_on_stderr():
        yield
