"""Names to objects and back: `build("pgd(linf(4/255), steps=40)", "attack")` and its inverse `spec`.

The grammar is Python call syntax restricted to names, numbers, strings, tuples, minus, division and nesting; nothing
is evaluated. Modules are searched on first look-up, so a new file in `attacks`, `data`, `metrics` or `models` is
the only edit that a new name takes.
"""

import ast
import dataclasses
import functools
import importlib
import inspect
import math
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, TypeVar

from medseg_attack.errors import InputError, nearest

F = TypeVar("F", bound=Callable[..., Any])

KINDS = ("attack", "ball", "criterion", "dataset", "goal", "metric", "model", "network", "objective")
_VALUES = (
    "metric",
    "objective",
)  # kinds whose functions are used as they are; elsewhere a function is a factory
_MODULES = ("balls", "region", "criteria", "goals", "objectives", "stored_goals")
_PACKAGES = ("attacks", "data", "metrics", "models")


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
class _Entry:
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


_entries: dict[str, _Entry] = {}
_names: dict[Any, str] = {}


def register(name: str, *, kind: str, about: About = About(), trained: bool = False) -> Callable[[F], F]:
    """Gives a function or a frozen dataclass its name; one namespace, so a name means one thing everywhere.

    Args:
        trained: of a model: it brings its weights, so that it can be attacked without a checkpoint.
    """

    def add(make: F) -> F:
        taken = _entries.get(name)
        if taken and (taken.make.__module__, taken.make.__qualname__) != (make.__module__, make.__qualname__):
            raise ValueError(f"the name {name!r} is taken by {taken.make.__module__}.{taken.make.__qualname__}")
        if kind not in KINDS:
            raise ValueError(f"expected a kind among {KINDS}, got {kind!r}")
        _entries[name] = _Entry(name, kind, make, about, trained)
        _names[make] = name
        return make

    return add


@functools.cache
def _load() -> None:
    for module in _MODULES:
        importlib.import_module(f"medseg_attack.{module}")
    for package in _PACKAGES:
        found = importlib.import_module(f"medseg_attack.{package}")
        for info in pkgutil.iter_modules(found.__path__):
            importlib.import_module(f"medseg_attack.{package}.{info.name}")


def names(kind: str) -> list[str]:
    """All registered names of a kind, sorted."""
    _load()
    return sorted(entry.name for entry in _entries.values() if entry.kind == kind)


def describe(name: str) -> str:
    """The first line of a registered thing's docstring."""
    return document(name).partition("\n")[0]


def document(name: str) -> str:
    """A registered thing's docstring."""
    _load()
    return inspect.getdoc(_entries[name].make) or ""


def about(name: str) -> About:
    """What a registered attack says of itself beyond its docstring."""
    _load()
    return _entries[name].about


def options(name: str) -> str:
    """What can be set in a spec of that name, with defaults, as one line."""
    _load()
    fields = _fields(_entries[name]).items()
    shown = (f"{n}={spec(p.default)}" if p.default is not p.empty else n for n, p in fields)
    return ", ".join(shown)


def brings_weights(text: str) -> bool:
    """Whether a spec is of a model that needs no training here."""
    _load()
    entry = _entries.get(text.partition("(")[0].strip())
    return entry is not None and entry.trained


def takes(name: str, parameter: str) -> bool:
    """Whether the registered thing has a field or parameter of that name."""
    _load()
    return parameter in inspect.signature(_entries[name].make).parameters


def takes_any_ball(name: str) -> bool:
    """Whether a norm may stand in for the attack's ball; a published variant's own ball is part of it."""
    _load()
    field = inspect.signature(_entries[name].make).parameters.get("ball")
    return field is not None and not _entries[name].about.norm and _names.get(type(field.default)) in ("linf", "l2")


def build(text: str, kind: str, overrides: Mapping[str, Any] | None = None) -> Any:
    """The object that a spec describes.

    Args:
        overrides: values for fields that an attack in the text has and the text leaves open, however deep it stands.

    Raises:
        InputError: the text is not a spec, or a name, a field or a value in it is not known.
    """
    return _value(_parsed(text), kind, text, overrides or {})


def leaves_open(text: str, field: str) -> bool:
    """Whether an attack in the text has that field and the text does not set it, at any depth.

    >>> leaves_open("restarts(pgd(steps=3))", "steps"), leaves_open("restarts(pgd(steps=3))", "objective")
    (False, True)
    """
    seen: list[Any] = [_parsed(text)]
    while seen:
        node = seen.pop()
        if isinstance(node, ast.Tuple | ast.List):
            seen += node.elts
        elif isinstance(node, ast.Name | ast.Call) and (entry := _entries.get(_called(node, text))):
            given = _placed(node, entry, text) if isinstance(node, ast.Call) else {}
            if entry.kind == "attack" and _open(entry, field, given):
                return True
            seen += [*given.values(), *_inner(entry, given).values()]
    return False


def _open(entry: _Entry, field: str, given: Mapping[str, Any]) -> bool:
    free = field in _fields(entry) and field not in given
    return free and (field != "ball" or takes_any_ball(entry.name))


def _inner(entry: _Entry, given: Mapping[str, Any]) -> dict[str, ast.expr]:
    """The attacks that stand in an attack's defaults."""
    defaults = {n: p.default for n, p in _fields(entry).items() if n not in given}
    return {n: _parsed(spec(d)) for n, d in defaults.items() if entry.kind == "attack" and _attacks(d)}


def _attacks(default: Any) -> bool:
    return all(map(_attacks, default)) and default != () if isinstance(default, tuple) else _kind(default) == "attack"


def call(text: str, kind: str | None = None) -> tuple[str, dict[str, Any]]:
    """A spec's name and its arguments by field, without building it.

    Args:
        kind: that the name must be of.

    >>> call("linf(4/255)") == ("linf", {"eps": 4 / 255})
    True
    """
    node = _parsed(text)
    entry = _known(_called(node, text), kind)
    return entry.name, _arguments(node, entry, text) if isinstance(node, ast.Call) else {}


def _parsed(text: str) -> ast.expr:
    _load()
    try:
        return ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError) as error:
        raise InputError(f"expected a name or a call such as pgd(steps=40), got {text!r}; check it") from error


def _value(node: ast.expr, kind: str | None, text: str, overrides: Mapping[str, Any] = MappingProxyType({})) -> Any:
    match node:
        case ast.Constant(value=bool() | int() | float() | str() | None as value) if kind is None:
            return value
        case ast.Name(id="inf") if kind is None:
            return math.inf
        case ast.UnaryOp(op=ast.USub(), operand=operand) if kind is None:
            return -_number(_value(operand, None, text), text)
        case ast.BinOp(left=left, op=ast.Div(), right=right) if kind is None:
            below = _number(_value(right, None, text), text)
            if below == 0:
                raise InputError(f"expected a number, got a division by zero in {text!r}; check it")
            return _number(_value(left, None, text), text) / below
        case ast.Tuple(elts=items) | ast.List(elts=items) if kind is None:
            return tuple(_value(item, None, text, overrides) for item in items)
        case ast.Name() | ast.Call():
            entry = _known(_called(node, text), kind)
            given = _arguments(node, entry, text, overrides) if isinstance(node, ast.Call) else {}
            if entry.kind in _VALUES and not inspect.isclass(entry.make):
                return entry.make if isinstance(node, ast.Name) else Bound(entry.make, tuple(given.items()))
            return _make(entry, _filled(entry, given, overrides))
    raise InputError(f"expected {kind or 'a value'}, got {ast.unparse(node)!r} in {text!r}; check it")


def _number(value: Any, text: str) -> int | float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InputError(f"expected a number, got {value!r} in {text!r}; check it")
    return value


def _called(node: ast.expr, text: str) -> str:
    match node:
        case ast.Name(id=name) | ast.Call(func=ast.Name(id=name)):
            return name
    raise InputError(f"expected a name or a call such as pgd(steps=40), got {text!r}; check it")


def _known(name: str, kind: str | None) -> _Entry:
    entry = _entries.get(name)
    if entry is None or (kind is not None and entry.kind != kind):
        what = kind or "name"
        there = names(kind) if kind else list(_entries)
        found = f"the {entry.kind} {name!r}" if entry else f"{name!r}"
        raise InputError(f"unknown {what}: expected one that is registered, got {found}; {nearest(name, there)}")
    return entry


def _fields(entry: _Entry) -> dict[str, inspect.Parameter]:
    parameters = inspect.signature(entry.make).parameters
    if entry.kind in _VALUES and not inspect.isclass(entry.make):  # tensors are not options
        return {n: p for n, p in parameters.items() if p.kind is inspect.Parameter.KEYWORD_ONLY}
    return {n: p for n, p in parameters.items() if n != "task" or entry.kind != "model"}


def _filled(entry: _Entry, given: dict[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """What is given, and the overrides of what is not, in the attack and in those that stand in its defaults."""
    if entry.kind != "attack" or not overrides:
        return given
    inner = {n: _value(node, None, entry.name, overrides) for n, node in _inner(entry, given).items()}
    return {n: v for n, v in overrides.items() if _open(entry, n, given)} | inner | given


def _arguments(
    node: ast.Call, entry: _Entry, text: str, overrides: Mapping[str, Any] = MappingProxyType({})
) -> dict[str, Any]:
    fields, given = _fields(entry), _placed(node, entry, text)
    return {n: _checked(entry.name, fields[n], _value(one, None, text, overrides)) for n, one in given.items()}


def _placed(node: ast.Call, entry: _Entry, text: str) -> dict[str, ast.expr]:
    """The arguments of a call by field."""
    fields = _fields(entry)
    if len(node.args) > len(fields):
        raise InputError(f"{entry.name} takes {len(fields)} values, got {len(node.args)} in {text!r}; drop some")
    given = dict(zip(fields, node.args, strict=False))
    for keyword in node.keywords:
        if keyword.arg not in fields:
            raise InputError(f"{entry.name} has no field {keyword.arg!r}; {nearest(str(keyword.arg), fields)}")
        if keyword.arg in given:
            raise InputError(f"{entry.name} got {keyword.arg!r} twice in {text!r}; drop one")
        given[str(keyword.arg)] = keyword.value
    return given


def _checked(owner: str, field: inspect.Parameter, value: Any) -> Any:
    """`value`, if it can stand where the field's default stands."""
    default = field.default
    if default is None and value is not None and field.name in KINDS and _kind(value) != field.name:
        raise InputError(f"{owner}.{field.name} takes a {field.name} or None, got {value!r}; see 'medattack ls'")
    if default is inspect.Parameter.empty or default is None or value is None:
        return value
    plain = (bool, int, float, str, tuple)
    if not isinstance(default, plain):
        if isinstance(value, plain) or _kind(value) != _kind(default):
            raise InputError(f"{owner}.{field.name} takes something like {spec(default)}, got {value!r}; check it")
        return value
    expected: Any = (int, float) if isinstance(default, float) else type(default)
    if not isinstance(value, expected) or (isinstance(value, bool) and not isinstance(default, bool)):
        wanted = type(default).__name__
        raise InputError(f"{owner}.{field.name} takes a value of type {wanted}, got {value!r}; check it")
    return value


def _kind(thing: Any) -> str:
    """The kind of a registered object or of an instance of a registered class; "" of anything else."""
    make = thing.function if isinstance(thing, Bound) else thing
    known = make if inspect.isfunction(make) else type(make)
    return _entries[_names[known]].kind if known in _names else ""


def _make(entry: _Entry, arguments: dict[str, Any]) -> Any:
    if entry.kind == "model":  # a model is built for a task, which its spec does not name
        return functools.partial(entry.make, **arguments)
    missing = [n for n, p in _fields(entry).items() if p.default is p.empty and n not in arguments]
    if missing:
        raise InputError(f"{entry.name} needs {', '.join(missing)}, got {arguments or 'nothing'}; add it")
    try:
        return entry.make(**arguments)
    except (TypeError, ValueError) as error:
        raise error if isinstance(error, InputError) else InputError(f"{entry.name}: {error}") from error


def spec(thing: Any) -> str:
    """The text that `build` turns into `thing`: only fields that differ from their defaults, fractions of 255 as such.

    >>> spec(8 / 255), spec(0.01), spec(("a", 1))
    ('8/255', '0.01', "('a', 1)")
    """
    if isinstance(thing, functools.partial):
        return _spelled(_names[thing.func], {}, thing.keywords)
    if isinstance(thing, Bound):
        return _spelled(_names[thing.function], {}, dict(thing.options))
    if callable(thing) and not dataclasses.is_dataclass(thing) and thing in _names:
        return _names[thing]
    if dataclasses.is_dataclass(thing) and type(thing) in _names:
        given = {field.name: getattr(thing, field.name) for field in dataclasses.fields(thing) if field.init}
        defaults = {n: p.default for n, p in inspect.signature(type(thing)).parameters.items()}
        return _spelled(_names[type(thing)], defaults, given)
    if isinstance(thing, tuple):
        return "(" + ", ".join(map(spec, thing)) + (",)" if len(thing) == 1 else ")")
    if isinstance(thing, float):
        return _float(thing)
    if thing is None or isinstance(thing, bool | int | str):
        return repr(thing)
    raise TypeError(f"{thing!r} has no registered name")


def _spelled(name: str, defaults: dict[str, Any], given: dict[str, Any]) -> str:
    shown = [f"{field}={spec(v)}" for field, v in given.items() if field not in defaults or defaults[field] != v]
    return f"{name}({', '.join(shown)})" if shown else name


def _float(value: float) -> str:
    if math.isfinite(value) and 0 < round(value * 255) / 255 == value < 1:
        return f"{round(value * 255)}/255"
    return repr(value)


def with_eps(thing: Any, eps: float) -> Any:
    """A copy of an attack (or a ball, or a tuple of them) with that budget, however deep its balls sit."""
    if isinstance(thing, tuple):
        return tuple(with_eps(item, eps) for item in thing)
    if not dataclasses.is_dataclass(thing) or isinstance(thing, type) or _kind(thing) not in ("attack", "ball"):
        return thing
    fields = {field.name: getattr(thing, field.name) for field in dataclasses.fields(thing) if field.init}
    changed = {n: with_eps(v, eps) for n, v in fields.items()}
    if _kind(thing) == "ball" and "eps" in fields:  # one that wraps another has its eps from there
        changed["eps"] = eps
    return dataclasses.replace(thing, **changed)


def within(thing: Any, region: str) -> Any:
    """A copy of an attack (or of a tuple of them) whose every ball is held to a region of the image."""
    if isinstance(thing, tuple):
        return tuple(within(item, region) for item in thing)
    if not dataclasses.is_dataclass(thing) or isinstance(thing, type) or _kind(thing) not in ("attack", "ball"):
        return thing
    if _kind(thing) == "ball":
        return dataclasses.replace(build("within", "ball"), ball=thing, region=region)
    fields = {field.name: getattr(thing, field.name) for field in dataclasses.fields(thing) if field.init}
    return dataclasses.replace(thing, **{name: within(value, region) for name, value in fields.items()})
