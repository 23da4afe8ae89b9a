"""The text of a spec as a tree that knows no names: `parse("pgd(linf(4/255), steps=40)")`.

The grammar is Python call syntax restricted to names, numbers, strings, tuples, minus, division and nesting; nothing
is evaluated. The text of a tree, `str(tree)`, is a spec again.
"""

import ast
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

from medseg_attack.errors import InputError

CALL = "a name or a call such as pgd(steps=40)"
NOT_FINITE = ("inf", "nan")  # numbers that are written as names


@dataclass(frozen=True)
class Literal:
    """A number, a string, a truth value or None, and its text."""

    value: Any
    text: str

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True)
class Items:
    """A tuple of nodes, and its text in brackets."""

    items: tuple["Node", ...]

    def __str__(self) -> str:
        return f"({', '.join(map(str, self.items))}{',' if len(self.items) == 1 else ''})"


@dataclass(frozen=True)
class Spec:
    """A name with its arguments.

    Attributes:
        positional: arguments without a name, which come first.
        keywords: arguments with a name, in order; a name may stand twice.
    """

    name: str
    positional: tuple["Node", ...] = ()
    keywords: tuple[tuple[str, "Node"], ...] = ()

    def __str__(self) -> str:
        arguments = [*map(str, self.positional), *(f"{name}={node}" for name, node in self.keywords)]
        return f"{self.name}({', '.join(arguments)})" if arguments else self.name

    def walk(self) -> Iterator["Spec"]:
        """The spec, then all those in it, at any depth."""
        yield self
        for node in (*self.positional, *(node for _, node in self.keywords)):
            for spec in specs_in(node):
                yield from spec.walk()

    def sets(self, argument: str) -> bool:
        """Whether the spec, or one in it at any depth, has an argument of that name."""
        return any(argument == name for spec in self.walk() for name, _ in spec.keywords)

    def replace(self, **values: Any) -> "Spec":
        """A copy in which each argument of these names, at any depth, has another value, or none where that is None."""

        def changed(node: "Node") -> "Node":
            match node:
                case Items(items):
                    return Items(tuple(map(changed, items)))
                case Spec():
                    return node.replace(**values)
            return node

        keywords = (
            (name, Literal(values[name], str(values[name])) if name in values else changed(node))
            for name, node in self.keywords
            if values.get(name, node) is not None
        )
        return replace(self, positional=tuple(map(changed, self.positional)), keywords=tuple(keywords))


Node: TypeAlias = Spec | Items | Literal


def specs_in(node: Node) -> Iterator[Spec]:
    """The spec that a node is, or those that a tuple holds."""
    if isinstance(node, Spec):
        yield node
    elif isinstance(node, Items):
        for item in node.items:
            yield from specs_in(item)


def _repair(text: str) -> str:
    """The sentence on how to mend a text that is no name and no call, most often for a path in it."""
    if "\\" in text:
        return "write / for \\ in a path"
    if text.count("'") % 2:
        return "write a path with ' in it between double quotes"
    return "write it in that form"


def parse(text: str, expected: str = CALL) -> Spec:
    """The tree of a spec.

    Args:
        expected: what the text stands for, in words.

    Raises:
        InputError: the text is not a name or a call, or a value in it is of no kind that a spec may hold.
    """
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError) as error:
        raise InputError(f"expected {CALL}, got {text!r}; {_repair(text)}") from error
    node = _node(tree, text) if isinstance(tree, ast.Name | ast.Call) else None
    if isinstance(node, Spec):
        return node
    raise InputError(f"expected {expected}, got {ast.unparse(tree)!r}; write {CALL}")


def _node(tree: ast.expr, text: str) -> Node:
    match tree:
        case ast.Constant(value=bool() | int() | float() | str() | None as value):
            return Literal(value, ast.unparse(tree))
        case ast.Name(id=name) if name.lower() in NOT_FINITE:
            return Literal(float(name), str(float(name)))
        case ast.UnaryOp(op=ast.USub()) | ast.BinOp(op=ast.Div()):
            return Literal(_number(tree, text), ast.unparse(tree))
        case ast.Tuple(elts=items) | ast.List(elts=items):
            return Items(tuple(_node(item, text) for item in items))
        case ast.Name(id=name):
            return Spec(name)
        case ast.Call(func=ast.Name(id=name), args=args, keywords=keywords) if all(keyword.arg for keyword in keywords):
            positional = tuple(_node(arg, text) for arg in args)
            return Spec(name, positional, tuple((str(keyword.arg), _node(keyword.value, text)) for keyword in keywords))
    raise InputError(
        f"expected a value, got {ast.unparse(tree)!r} in {text!r}; write a number, a string, a tuple, a name or a call"
    )


def _number(tree: ast.expr, text: str) -> int | float:
    match tree:
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_number(operand, text)
        case ast.BinOp(left=left, op=ast.Div(), right=right):
            dividend, divisor = _number(left, text), _number(right, text)
            if divisor == 0:
                raise InputError(f"expected a number, got a division by zero in {text!r}; divide by another number")
            return dividend / divisor
        case ast.Constant(value=int() | float() as value) if not isinstance(value, bool):
            return value
        case ast.Name(id=name) if name.lower() in NOT_FINITE:
            return float(name)
    raise InputError(f"expected a number, got {ast.unparse(tree)!r} in {text!r}; write a number there")
