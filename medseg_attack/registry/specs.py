"""Names to objects and back: `build("pgd(linf(4/255), steps=40)", "attack")` and its inverse `spec`.

The grammar is Python call syntax restricted to names, numbers, strings, tuples, minus, division and nesting; nothing
is evaluated.
"""

import ast
import dataclasses
import functools
import inspect
import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from medseg_attack.errors import InputError, nearest
from medseg_attack.registry.table import (
    KINDS,
    VALUES,
    Bound,
    Entry,
    entries,
    fields_of,
    kind_of,
    known_as,
    load,
    names,
    takes_any_ball,
)


def options(name: str) -> str:
    """What can be set in a spec of that name, with defaults, as one line."""
    load()
    fields = fields_of(entries[name]).items()
    shown = (f"{n}={spec(p.default)}" if p.default is not p.empty else n for n, p in fields)
    return ", ".join(shown)


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
        elif isinstance(node, ast.Name | ast.Call) and (entry := entries.get(_called(node, text))):
            given = _placed(node, entry, text) if isinstance(node, ast.Call) else {}
            if entry.kind == "attack" and _open(entry, field, given):
                return True
            seen += [*given.values(), *_inner(entry, given).values()]
    return False


def _open(entry: Entry, field: str, given: Mapping[str, Any]) -> bool:
    free = field in fields_of(entry) and field not in given
    return free and (field != "ball" or takes_any_ball(entry.name))


def _inner(entry: Entry, given: Mapping[str, Any]) -> dict[str, ast.expr]:
    """The attacks that stand in an attack's defaults."""
    defaults = {n: p.default for n, p in fields_of(entry).items() if n not in given}
    return {n: _parsed(spec(d)) for n, d in defaults.items() if entry.kind == "attack" and _attacks(d)}


def _attacks(default: Any) -> bool:
    return all(map(_attacks, default)) and default != () if isinstance(default, tuple) else kind_of(default) == "attack"


def parse_call(text: str, kind: str | None = None) -> tuple[str, dict[str, Any]]:
    """A spec's name and its arguments by field, without building it.

    Args:
        kind: that the name must be of.

    >>> parse_call("linf(4/255)") == ("linf", {"eps": 4 / 255})
    True
    """
    node = _parsed(text)
    entry = _known(_called(node, text), kind)
    return entry.name, _arguments(node, entry, text) if isinstance(node, ast.Call) else {}


def arguments_as_typed(text: str) -> dict[str, str]:
    """The arguments of a spec as they were typed: an attack among them by its name, not by what that stands for.

    >>> arguments_as_typed("restarts(strongest, n=2)")
    {'attack': 'strongest', 'n': '2'}
    """
    node = _parsed(text)
    if not isinstance(node, ast.Call):
        return {}
    placed = _placed(node, _known(_called(node, text), None), text)
    return {name: ast.unparse(one) for name, one in placed.items()}


def _parsed(text: str) -> ast.expr:
    load()
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
            if entry.kind in VALUES and not inspect.isclass(entry.make):
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


def _known(name: str, kind: str | None) -> Entry:
    entry = entries.get(name)
    if entry is None and kind is None:
        raise InputError(
            f"unknown name: expected one that is registered, got {name!r}; write it in quotes if it is a text, such as "
            f"an organ, or look it up with 'medattack ls': {nearest(name, entries)}"
        )
    if entry is None or (kind is not None and entry.kind != kind):
        found = f"the {entry.kind} {name!r}" if entry else f"{name!r}"
        raise InputError(
            f"unknown {kind}: expected one that is registered, got {found}; {nearest(name, names(str(kind)))}"
        )
    return entry


def _filled(entry: Entry, given: dict[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """What is given, and the overrides of what is not, in the attack and in those that stand in its defaults."""
    if entry.kind != "attack" or not overrides:
        return given
    inner = {n: _value(node, None, entry.name, overrides) for n, node in _inner(entry, given).items()}
    return {n: v for n, v in overrides.items() if _open(entry, n, given)} | inner | given


def _arguments(
    node: ast.Call, entry: Entry, text: str, overrides: Mapping[str, Any] = MappingProxyType({})
) -> dict[str, Any]:
    fields, given = fields_of(entry), _placed(node, entry, text)
    for n, one in given.items():  # of a name that nobody knows, what there is of the kind that is wanted here is told
        named = one.func if isinstance(one, ast.Call) else one
        if isinstance(named, ast.Name) and named.id not in ("inf", *entries):
            _known(named.id, kind_of(fields[n].default) or None)
    return {n: _checked(entry.name, fields[n], _value(one, None, text, overrides)) for n, one in given.items()}


def _placed(node: ast.Call, entry: Entry, text: str) -> dict[str, ast.expr]:
    """The arguments of a call by field."""
    fields = fields_of(entry)
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
    if default is None and value is not None and field.name in KINDS and kind_of(value) != field.name:
        raise InputError(f"{owner}.{field.name} takes a {field.name} or None, got {value!r}; see 'medattack ls'")
    if default is inspect.Parameter.empty or default is None or value is None:
        return value
    plain = (bool, int, float, str, tuple)
    if not isinstance(default, plain):
        if isinstance(value, plain) or kind_of(value) != kind_of(default):
            raise InputError(f"{owner}.{field.name} takes something like {spec(default)}, got {value!r}; check it")
        return value
    expected: Any = (int, float) if isinstance(default, float) else type(default)
    if not isinstance(value, expected) or (isinstance(value, bool) and not isinstance(default, bool)):
        wanted = type(default).__name__
        raise InputError(f"{owner}.{field.name} takes a value of type {wanted}, got {value!r}; check it")
    return value


def _make(entry: Entry, arguments: dict[str, Any]) -> Any:
    if entry.kind == "model":  # a model is built for a task, which its spec does not name
        return functools.partial(entry.make, **arguments)
    missing = [n for n, p in fields_of(entry).items() if p.default is p.empty and n not in arguments]
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
        return _spelled(known_as[thing.func], {}, thing.keywords)
    if isinstance(thing, Bound):
        return _spelled(known_as[thing.function], {}, dict(thing.options))
    if callable(thing) and not dataclasses.is_dataclass(thing) and thing in known_as:
        return known_as[thing]
    if dataclasses.is_dataclass(thing) and type(thing) in known_as:
        given = {field.name: getattr(thing, field.name) for field in dataclasses.fields(thing) if field.init}
        defaults = {n: p.default for n, p in inspect.signature(type(thing)).parameters.items()}
        return _spelled(known_as[type(thing)], defaults, given)
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
