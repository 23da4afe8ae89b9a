"""Names and what they stand for: every attack, ball, objective, model ... is registered under one.

Modules are searched on first look-up, so a new file in `attacks`, `data`, `metrics` or `models` is the only edit that a
new name takes.
"""

import functools
import importlib
import inspect
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

F = TypeVar("F", bound=Callable[..., Any])


KINDS = ("attack", "ball", "criterion", "dataset", "goal", "metric", "model", "network", "objective")


VALUES = ("metric", "objective")  # kinds whose functions are used as they are; elsewhere a function is a factory


_PACKAGES = ("attacks", "data.datasets", "metrics", "models", "threat")


@dataclass(frozen=True)
class About:
    """What `medattack ls attacks --explain` cannot read off an attack itself; "" leaves it to be read off.

    Attributes:
        paper: whose it is; otherwise what the docstring cites in brackets.
        threat: what the attacker must have: "white box", "queries", "surrogate" ...; otherwise told by its passes.
        norm: of an attack that is not held to any ball it is given, such as "l0" or "least l2".
    """

    paper: str = ""
    threat: str = ""
    norm: str = ""


@dataclass(frozen=True)
class Entry:
    name: str
    kind: str
    make: Callable[..., Any]
    about: About
    trained: bool


@dataclass(frozen=True)
class Bound:
    """A registered function with some of its options set; unlike a partial, equal to another with the same."""

    function: Callable[..., Any]
    options: tuple[tuple[str, Any], ...]

    def __call__(self, *args: Any) -> Any:
        return self.function(*args, **dict(self.options))


entries: dict[str, Entry] = {}


known_as: dict[Any, str] = {}


def register(name: str, *, kind: str, about: About = About(), trained: bool = False) -> Callable[[F], F]:
    """Gives a function or a frozen dataclass its name; one namespace, so a name means one thing everywhere.

    Args:
        trained: of a model: it brings its weights, so that it can be attacked without a checkpoint.
    """

    def add(make: F) -> F:
        taken = entries.get(name)
        if taken and (taken.make.__module__, taken.make.__qualname__) != (make.__module__, make.__qualname__):
            raise ValueError(f"the name {name!r} is taken by {taken.make.__module__}.{taken.make.__qualname__}")
        if kind not in KINDS:
            raise ValueError(f"expected a kind among {KINDS}, got {kind!r}")
        entries[name] = Entry(name, kind, make, about, trained)
        known_as[make] = name
        return make

    return add


@functools.cache
def load() -> None:
    for package in _PACKAGES:
        found = importlib.import_module(f"medseg_attack.{package}")
        for info in pkgutil.walk_packages(found.__path__, f"{found.__name__}."):
            importlib.import_module(info.name)


def names(kind: str) -> list[str]:
    """All registered names of a kind, sorted."""
    load()
    return sorted(entry.name for entry in entries.values() if entry.kind == kind)


def describe(name: str) -> str:
    """The first line of a registered thing's docstring."""
    return document(name).partition("\n")[0]


def document(name: str) -> str:
    """A registered thing's docstring."""
    load()
    return inspect.getdoc(entries[name].make) or ""


def about(name: str) -> About:
    """What a registered attack says of itself beyond its docstring."""
    load()
    return entries[name].about


def brings_weights(text: str) -> bool:
    """Whether a spec is of a model that needs no training here."""
    load()
    entry = entries.get(text.partition("(")[0].strip())
    return entry is not None and entry.trained


def takes(name: str, parameter: str) -> bool:
    """Whether the registered thing has a field or parameter of that name."""
    load()
    return parameter in inspect.signature(entries[name].make).parameters


def default(name: str, parameter: str) -> Any:
    """What stands in a field that a spec leaves open."""
    load()
    return inspect.signature(entries[name].make).parameters[parameter].default


def takes_any_ball(name: str) -> bool:
    """Whether a norm may stand in for the attack's ball; a published variant's own ball is part of it."""
    load()
    field = inspect.signature(entries[name].make).parameters.get("ball")
    return field is not None and not entries[name].about.norm and known_as.get(type(field.default)) in ("linf", "l2")


def fields_of(entry: Entry) -> dict[str, inspect.Parameter]:
    """What can be set, in order."""
    parameters = inspect.signature(entry.make).parameters
    if entry.kind in VALUES and not inspect.isclass(entry.make):  # tensors are not options
        return {n: p for n, p in parameters.items() if p.kind is inspect.Parameter.KEYWORD_ONLY}
    return {n: p for n, p in parameters.items() if n != "task" or entry.kind != "model"}


def kind_of(thing: Any) -> str:
    """The kind of a registered object or of an instance of a registered class; "" of anything else."""
    make = thing.function if isinstance(thing, Bound) else thing
    known = make if inspect.isfunction(make) else type(make)
    return entries[known_as[known]].kind if known in known_as else ""
