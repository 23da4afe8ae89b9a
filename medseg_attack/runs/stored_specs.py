"""Attacks and balls as runs store them, in text: parsed without torch, and without the registry.

A stored spec may hold a size with a unit, such as `linf(eps=5HU)`, which cannot be built: it is another for each case.
"""

import contextlib
import re
from collections.abc import Mapping
from typing import Any

from medseg_attack.errors import InputError
from medseg_attack.registry.grammar import Literal, Spec, parse
from medseg_attack.runs.rows import Role
from medseg_attack.threat.budgets import parse_budget

AROUND = ("averaged", "bpda")  # attacks that know a defence, around those that do not
_STRING_OR_BUDGET = re.compile(
    r"""'(?:\\.|[^'\\])*'|"(?:\\.|[^"\\])*"|(?<=[(=])[0-9.][-+.\w/]*(?i:%window|HU|raw|sigma)\b"""
)
# fields of balls that hold another one, `linf` unless they say, to a part of the image
HOLDING = {"within": ("ball", "region"), "channels": ("ball", "channels", "shares")}


def role_of(header: Mapping[str, Any]) -> Role:
    """The role of a stored run; where an older header says none, the first word of its attack does, a registered name.

    >>> role_of({"attack": "noise deformation(folds=False)"}), role_of({"attack": "pgd(steps=40)"})
    ('control', 'attack')
    """
    roles: dict[str, Role] = {"noise": "control", "shuffled": "control", "clean": "clean"}
    own: Role = header.get("role") or roles.get(attack_spec(str(header["attack"])).name, "attack")
    return own


def was_checked(header: Mapping[str, Any]) -> bool:
    """Whether a stored run's model and rows were checked; where an older header does not say, its flags do.

    >>> was_checked({"flags": []}), was_checked({}), was_checked({"checks": False, "flags": []})
    (True, False, False)
    """
    return bool(header.get("checks", "flags" in header))


def attack_spec(label: str) -> Spec:
    """The attack that a label begins with; a budget with a unit or a region may follow it.

    >>> str(attack_spec("pgd(l2, steps=40) 5HU within ring:10mm"))
    'pgd(l2, steps=40)'
    """
    text, _ = split_label(label)
    with contextlib.suppress(InputError):
        return parse(text)
    return Spec(label)


def split_label(label: str) -> tuple[str, str]:
    """The text of the attack that a label begins with, and what follows; all of a label that begins with none.

    >>> split_label("pgd(l2, steps=40) 5HU within ring:10mm")
    ('pgd(l2, steps=40)', ' 5HU within ring:10mm')
    """
    for gap in re.finditer(r" |$", label):
        with contextlib.suppress(InputError):
            parse(label[: gap.start()])
            return label[: gap.start()], label[gap.start() :]
    return label, ""


def without_budget(label: str, ball: str) -> str:
    """The label of an attack without its budget if that has a unit, which another column shows.

    >>> without_budget("pgd(steps=40) 5HU within ring:10mm", "linf(eps=5HU)"), without_budget("noise", "linf")
    ('pgd(steps=40) within ring:10mm', 'noise')
    """
    budget = budget_of(ball_spec(ball)) if ball else ""
    text, rest = split_label(label)
    return text + rest.replace(f" {budget}", "", 1) if budget else label


def core_of(attack: Spec) -> Spec:
    """The attack within those that know a defence.

    >>> str(core_of(attack_spec("averaged(bpda(pgd(l2, steps=40)), passes=4) 5HU")))
    'pgd(l2, steps=40)'
    """
    if attack.name not in AROUND:
        return attack
    first = [*attack.positional, *(node for name, node in attack.keywords if name == "attack")]
    return core_of(first[0]) if first and isinstance(first[0], Spec) else attack


def ball_spec(text: str) -> Spec:
    """The ball of a header. An inner ball that it leaves out is filled in, and a size with a unit becomes a string.

    >>> str(ball_spec("within(linf(5HU))")), str(ball_spec("channels"))
    ("within(ball=linf(eps='5HU'))", 'channels(ball=linf)')
    """
    return _named_ball(_parsed(text))


def attack_of(config: Mapping[str, Any]) -> Spec:
    """The attack of a run's config; a budget with a unit, which is another size for every case, is 0 in it.

    >>> str(attack_of({"attack": "pgd(ball=linf(eps=5HU), steps=3)", "budget": "5HU"}))
    'pgd(ball=linf(eps=0.0), steps=3)'
    """
    spec = _parsed(config["attack"])
    return spec.replace(eps=0.0) if config.get("budget") else spec


def _parsed(text: str) -> Spec:
    """The tree of a stored spec, whose sizes with a unit are no Python; a mask's name, in quotes, may look like one."""
    return parse(_STRING_OR_BUDGET.sub(lambda m: m[0] if m[0][0] in "'\"" else repr(m[0]), text))


def _named_ball(ball: Spec) -> Spec:
    fields = HOLDING.get(ball.name, ("eps",))
    values = dict(zip(fields, ball.positional, strict=False)) | dict(ball.keywords)
    if ball.name in HOLDING:
        held = values.pop("ball", Spec("linf"))
        values = {"ball": _named_ball(held) if isinstance(held, Spec) else held, **values}
    if str(values.get("region")) == "'body'":  # its default
        del values["region"]
    return Spec(ball.name, ball.positional[len(fields) :], tuple(values.items()))


def sizeless(ball: Spec) -> Spec:
    """A ball less its size: the same of balls that differ in nothing else."""
    return ball.replace(eps=None)


def norm_of(ball: Spec) -> str:
    """The name of the innermost ball."""
    return list(ball.walk())[-1].name


def budget_of(ball: Spec) -> str:
    """A ball's size with its unit, such as 5HU; "" for a plain number, also one in a unit of the ball's own."""
    sizes = [node for part in ball.walk() for name, node in part.keywords if name == "eps"]
    return next((node.value for node in sizes if isinstance(node, Literal) and isinstance(node.value, str)), "")


def unit_of(ball: Spec) -> str:
    """The unit of a ball's size, a key of `budgets.UNITS`; "" for a plain number, also one in the ball's own unit."""
    text = budget_of(ball)
    return parse_budget(text).unit if text else ""
