"""Specs to objects and back: `build("pgd(linf(4/255), steps=40)", "attack")` and its inverse `spec`."""

import dataclasses
import inspect
import math
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from medseg_attack.errors import InputError, is_finite
from medseg_attack.registry.grammar import Items, Literal, Node, Spec, parse, specs_in
from medseg_attack.registry.table import KINDS, Bound, Entry, entries, find, kind_of, known_as, options_of

_TUPLE = re.compile(r"^tuple\[(int|float|str), \.\.\.\]$")
_PLAIN = re.compile(r"(?:float|int|str|tuple|None|[\[\], .|])+$")
LARGEST = 2**63 - 1  # what seeds of draws and sizes of tensors can be


class NoNameError(TypeError):
    """No spec can be written of a value: nothing is registered of its kind.

    Attributes:
        what: the value in a few words.
    """

    def __init__(self, value: Any) -> None:
        super().__init__(f"{value!r} has no registered name")
        self.what = (
            f"the function {value.__name__}" if inspect.isfunction(value) else f"an object of {type(value).__name__}"
        )


def build(spec: str | Spec, kind: str, overrides: Mapping[str, Any] | None = None) -> Any:
    """The object that a spec describes.

    Args:
        overrides: values for fields that an attack in the spec has and the spec leaves open, at any depth.

    Raises:
        InputError: the text is not a spec, or a name, a field or a value in it is not known.
    """
    return _built(_tree(spec, kind), kind, overrides or {})


def parse_call(spec: str | Spec, kind: str | None = None) -> tuple[str, dict[str, Any]]:
    """A spec's name and its arguments by field, without building it.

    Args:
        kind: kind that the name must be of; None for any.

    >>> parse_call("linf(4/255)") == ("linf", {"eps": 4 / 255})
    True
    """
    tree = _tree(spec)
    entry = find(tree.name, kind)
    return entry.name, _arguments(entry, tree, {})


def named(spec: str | Spec) -> Spec:
    """The tree of a spec with the field's name before every argument.

    >>> str(named("restarts(pgd(linf, bce), n=2)"))
    'restarts(attack=pgd(ball=linf, objective=bce), n=2)'
    """

    def node_named(node: Node) -> Node:
        match node:
            case Spec():
                return named(node)
            case Items(items):
                return Items(tuple(map(node_named, items)))
        return node

    tree = _tree(spec)
    arguments = find(tree.name).place(tree)
    return Spec(tree.name, (), tuple((field, node_named(node)) for field, node in arguments.items()))


def leaves_open(spec: str | Spec, field: str) -> bool:
    """Whether an attack in the spec has that field and the spec does not set it, at any depth.

    >>> leaves_open("restarts(pgd(steps=3))", "steps"), leaves_open("restarts(pgd(steps=3))", "objective")
    (False, True)
    """
    tree = _tree(spec)
    entry = find(tree.name)
    arguments = entry.place(tree)
    if _leaves_open(entry, field, arguments):
        return True
    inner = [*arguments.values(), *_default_attacks(entry, arguments).values()]
    return any(leaves_open(part, field) for node in inner for part in specs_in(node))


def with_option(spec: Spec, field: str, value: Any) -> Spec:
    """A copy in which every attack, at any depth, has that value in a field that is open and has another by default.

    >>> str(with_option(parse("restarts(attack=strongest)"), "unit", "slice"))
    "restarts(attack=strongest(unit='slice'))"
    >>> str(with_option(parse("best_of((sea, strongest(unit='volume')))"), "unit", "slice"))
    "best_of((sea, strongest(unit='volume')))"
    >>> str(with_option(parse("restarts"), "steps", 9))
    'restarts(attack=pgd(steps=9))'
    """

    def changed(node: Node) -> Node:
        match node:
            case Items(items):
                return Items(tuple(map(changed, items)))
            case Spec():
                return with_option(node, field, value)
        return node

    entry = find(spec.name)
    arguments = entry.place(spec)
    is_set = not _leaves_open(entry, field, arguments) or entry.default(field) == value
    option = () if is_set else ((field, Literal(value, repr(value))),)
    keywords = tuple((name, changed(node)) for name, node in spec.keywords)
    default_attacks = _default_attacks(entry, arguments).items()
    spelled_out = tuple((name, new) for name, node in default_attacks if (new := changed(node)) != node)
    return replace(spec, positional=tuple(map(changed, spec.positional)), keywords=keywords + spelled_out + option)


def canonical(text: str, kind: str) -> str:
    """The one spelling of a function of that kind with its options: without those that are as by default.

    >>> canonical("nsd(tolerance_mm = 2)", "metric"), canonical("hd95_mm()", "metric")
    ('nsd', 'hd95_mm')

    Raises:
        InputError: nothing is registered under the name, or an option is refused.
    """
    value = build(text, kind)
    if not isinstance(value, Bound):
        return spec(value)
    entry = entries[known_as[value.function]]
    defaults = {name: field.default for name, field in entry.fields.items()}
    return str(_call(entry.name, defaults, dict(value.options)))


def options(entry: Entry) -> str:
    """Fields that a spec of that name can set, with defaults, as one line."""
    return ", ".join(n if p.default is p.empty else f"{n}={spec(p.default)}" for n, p in entry.fields.items())


def spec(value: Any) -> str:
    """The text that `build` turns into `value`: only fields that differ from their defaults, fractions of 255 as such,
    unless decimals are shorter.

    >>> spec(8 / 255), spec(0.01), spec(51 / 255), spec(("a", 1))
    ('8/255', '0.01', '0.2', "('a', 1)")
    """
    return str(node_of(value))


def shown(value: Any) -> str:
    """The text of a value in a sentence: its spec, or its type where no spec builds it.

    >>> shown((1, "a")), shown(object())
    ("(1, 'a')", 'an object of type object')
    """
    try:
        return spec(value)
    except NoNameError:
        return f"an object of type {type(value).__name__}"


def spec_of(value: Any) -> Spec:
    """The tree that `build` turns into a registered object.

    >>> str(spec_of(build("pgd(l2(3), steps=40)", "attack")).replace(eps=None))
    'pgd(ball=l2, steps=40)'
    """
    node = node_of(value)
    if not isinstance(node, Spec):
        raise NoNameError(value)
    return node


def _tree(spec: str | Spec, kind: str | None = None) -> Spec:
    return spec if isinstance(spec, Spec) else parse(spec, kind) if kind else parse(spec)


def _built(tree: Spec, kind: str | None, overrides: Mapping[str, Any]) -> Any:
    entry = find(tree.name, kind)
    arguments = _arguments(entry, tree, overrides)
    return entry.instance(_open_fields(entry, arguments, overrides) | arguments)


def _value(node: Node, overrides: Mapping[str, Any]) -> Any:
    match node:
        case Literal(value):
            return value
        case Items(items):
            return tuple(_value(item, overrides) for item in items)
        case Spec():
            return _built(node, None, overrides)


def _arguments(entry: Entry, tree: Spec, overrides: Mapping[str, Any]) -> dict[str, Any]:
    return {field: _checked(entry, field, node, _value(node, overrides)) for field, node in entry.place(tree).items()}


def _open_fields(entry: Entry, arguments: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """The overrides of fields that an attack leaves open, and the attacks in its defaults with theirs."""
    if entry.kind != "attack" or not overrides:
        return {}
    inner = {field: _value(node, overrides) for field, node in _default_attacks(entry, arguments).items()}
    return {n: value for n, value in overrides.items() if _leaves_open(entry, n, arguments)} | inner


def _leaves_open(entry: Entry, field: str, arguments: Mapping[str, Any]) -> bool:
    is_open = entry.kind == "attack" and entry.takes(field) and field not in arguments
    return is_open and (field != "ball" or entry.accepts_any_ball)


def _default_attacks(entry: Entry, arguments: Mapping[str, Any]) -> dict[str, Node]:
    """The attacks in the defaults of an attack's open fields, by field."""
    if entry.kind != "attack":
        return {}
    return {n: node_of(p.default) for n, p in entry.fields.items() if n not in arguments and _is_attack(p.default)}


def _is_attack(value: Any) -> bool:
    return all(map(_is_attack, value)) and value != () if isinstance(value, tuple) else kind_of(value) == "attack"


def _checked(entry: Entry, field: str, node: Node, value: Any) -> Any:
    """The value of a node, if it can stand where the field's default stands."""
    default, place = entry.default(field), f"{entry.name}.{field}"
    if not is_finite(value):
        such = "" if default in (inspect.Parameter.empty, None) else f", such as {spec(default)}"
        raise InputError(f"expected a finite number for {place}, got {node}; write one{such}")
    if field == entry.wraps:
        _require_models(place, node, value)
    annotation = str(entry.fields[field].annotation)
    if default is None:
        if value is not None and field in KINDS and kind_of(value) != field:
            raise InputError(f"{place} takes a {field} or None, got {node}; see 'medattack ls'")
        if value is not None and _PLAIN.match(annotation) and not _are_plain(value, annotation):
            raise InputError(f"{place} takes a value of type {annotation}, got {node}; write one")
    if default is inspect.Parameter.empty or default is None or (value is None and "None" in annotation):
        return value
    if isinstance(default, bool | int | float | str | tuple):
        _require_plain(entry, field, node, value)
    elif kind_of(value) != kind_of(default) or not kind_of(value):
        known = entries.get(value.partition("(")[0].strip()) if isinstance(value, str) else None
        is_quoted = known is not None and known.kind == kind_of(default)
        remedy = f"write {value} without quotes" if is_quoted else "take another from 'medattack ls'"
        raise InputError(f"{place} takes something like {spec(default)}, got {node}; {remedy}")
    return value


def _are_plain(value: Any, annotation: str) -> bool:
    """Whether a value, or each in a tuple, is a text or a number, as far as an annotation of those allows it."""
    types = ((str,) if "str" in annotation else ()) + ((int, float) if re.search("int|float", annotation) else ())
    return all(isinstance(each, types) for each in (value if isinstance(value, tuple) else (value,)))


def _require_plain(entry: Entry, field: str, node: Node, value: Any) -> None:
    """Refuses a value of another type than that of the default, which is a number, a text or a tuple."""
    default, place = entry.default(field), f"{entry.name}.{field}"
    expected: Any = (int, float) if isinstance(default, float) else type(default)
    if not isinstance(value, expected) or (isinstance(value, bool) and not isinstance(default, bool)):
        kind = type(default).__name__
        raise InputError(f"{place} takes a value of type {kind}, got {node}; write one, such as {spec(default)}")
    if isinstance(value, tuple):
        _require_items(entry, field, node, value)
    if isinstance(value, int) and not -LARGEST <= value <= LARGEST:
        raise InputError(f"{place} takes a number of 64 bits, got {node}; write one, such as {spec(default)}")


def _require_models(place: str, node: Node, value: Any) -> None:
    """Refuses what is neither a model nor the name or folder of one, nor a tuple of those."""
    items = value if isinstance(value, tuple) else () if value is None else (value,)
    if not all(isinstance(item, str) or kind_of(item) == "model" for item in items):
        raise InputError(
            f"{place} takes a trained model, got {node}; write the name or folder of a checkpoint in quotes, or a spec "
            "that brings its weights, such as nnunet('RESULTS')"
        )


def _require_items(entry: Entry, field: str, node: Node, value: tuple[Any, ...]) -> None:
    """Refuses a tuple with an item that is of another kind than those of the default, or than the annotation says."""
    default: tuple[Any, ...] = entry.default(field)
    item = _TUPLE.search(str(entry.fields[field].annotation))
    if kinds := {kind_of(each) for each in default} - {""}:
        expected = " or ".join(f"{kind}s" for kind in sorted(kinds))
        fits = all(kind_of(each) in kinds for each in value)
    elif item:
        expected = {"int": "whole numbers", "float": "numbers", "str": "texts"}[item[1]]
        fits = all(isinstance(each, str if item[1] == "str" else int | float) for each in value)
    else:
        return
    if not fits:
        such = f", such as {spec(default)}" if default else ""
        raise InputError(f"{entry.name}.{field} takes a tuple of {expected}, got {node}; write one{such}")


def node_of(value: Any) -> Node:
    """The text of a value in a spec, as a tree."""
    if isinstance(value, Bound):
        return _call(known_as[value.function], {}, dict(value.options))
    if callable(value) and not dataclasses.is_dataclass(value) and value in known_as:
        return Spec(known_as[value])
    if dataclasses.is_dataclass(value) and type(value) in known_as:
        defaults = {n: p.default for n, p in entries[known_as[type(value)]].fields.items()}
        return _call(known_as[type(value)], defaults, options_of(value))
    if isinstance(value, tuple):
        return Items(tuple(map(node_of, value)))
    if value is None or isinstance(value, bool | int | float | str):
        return Literal(value, _number(value) if isinstance(value, float) else repr(value))
    raise NoNameError(value)


def _call(name: str, defaults: Mapping[str, Any], values: Mapping[str, Any]) -> Spec:
    shown = ((field, node_of(v)) for field, v in values.items() if field not in defaults or defaults[field] != v)
    return Spec(name, (), tuple(shown))


def _number(value: float) -> str:
    decimal = repr(value)
    if math.isfinite(value) and 0 < round(value * 255) / 255 == value < 1:
        return min(f"{round(value * 255)}/255", decimal, key=len)
    return decimal
