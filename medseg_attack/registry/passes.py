"""Passes that an attack takes for an image, by the formula that it is registered with. Imports no torch.

A formula is arithmetic of the attack's fields: "steps + 2 forward, steps backward". A field that is an attack stands
for the passes of that attack; `sum(attacks)` adds those of several, and `count(radii)` is the length of a tuple.
`unit == 'volume'` and `gradients >= 120` are 1 or 0. "up to ..." is the cost of an attack that may stop earlier.
"""

import ast
import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from medseg_attack.registry.declared import Declaration
from medseg_attack.registry.grammar import Items, Literal, Node, Spec

_FORMULA = re.compile(r"(up to )?(.+) forward, (.+) backward")
_OPERATIONS: Mapping[type[ast.operator] | type[ast.cmpop], Callable[[Any, Any], int]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
    ast.Eq: operator.eq,
    ast.GtE: operator.ge,
}


@dataclass(frozen=True)
class Passes:
    """Passes for an image.

    Attributes:
        at_most: whether the attack may stop earlier.
    """

    forwards: int
    backwards: int
    at_most: bool

    def __str__(self) -> str:
        return f"{'up to ' if self.at_most else ''}{self.forwards} forward, {self.backwards} backward"


def passes_of(attack: Spec, attacks: Mapping[str, Declaration]) -> Passes | None:
    """The passes of an attack; None of one that declares none.

    Args:
        attacks: declarations of the attacks that there are, by name.
    """
    declaration = attacks[attack.name]
    formula = _FORMULA.fullmatch(declaration.facts.get("cost", ""))
    if formula is None:
        return None
    values = dict(declaration.options)
    values |= dict(zip(values, attack.positional, strict=False)) | dict(attack.keywords)
    forwards = _Counting(values, attacks, lambda passes: passes.forwards)
    backwards = _Counting(values, attacks, lambda passes: passes.backwards)
    parts = [part for node in values.values() for part in _inner(node, attacks)]
    if None in parts:
        return None
    at_most = bool(formula[1]) or any(part.at_most for part in parts if part)
    return Passes(forwards.number(formula[2]), backwards.number(formula[3]), at_most)


def _inner(node: Node | None, attacks: Mapping[str, Declaration]) -> list[Passes | None]:
    """The passes of the attacks that a field holds."""
    nodes = node.items if isinstance(node, Items) else (node,)
    return [passes_of(item, attacks) for item in nodes if isinstance(item, Spec) and item.name in attacks]


@dataclass(frozen=True)
class _Counting:
    """Numbers of a formula, for passes of one direction.

    Attributes:
        values: fields of the attack.
        passes: number of an inner attack's passes that counts.
    """

    values: Mapping[str, Node | None]
    attacks: Mapping[str, Declaration]
    passes: Callable[[Passes], int]

    def number(self, formula: str) -> int:
        return int(self._value(ast.parse(formula, mode="eval").body))

    def _value(self, expression: ast.expr) -> Any:
        match expression:
            case ast.Constant(value=value):
                return value
            case ast.BinOp(left=left, op=op, right=right):
                return _OPERATIONS[type(op)](self._value(left), self._value(right))
            case ast.Compare(left=left, ops=[op], comparators=[right]):
                return _OPERATIONS[type(op)](self._value(left), self._value(right))
            case ast.Name(id=field):
                node = self.values[field]
                return node.value if isinstance(node, Literal) else self._sum(node)
            case ast.Call(func=ast.Name(id="sum"), args=[ast.Name(id=field)]):
                return self._sum(self.values[field])
            case ast.Call(func=ast.Name(id="count"), args=[ast.Name(id=field)]):
                node = self.values[field]
                return len(node.items) if isinstance(node, Items) else 1
        raise ValueError(f"expected arithmetic of fields, got {ast.unparse(expression)}; write such as steps + 2")

    def _sum(self, node: Node | None) -> int:
        return sum(self.passes(part) for part in _inner(node, self.attacks) if part)
