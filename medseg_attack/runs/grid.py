"""A study's grid: the product of attacks, losses and budgets, with its controls."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from medseg_attack import registry
from medseg_attack.errors import InputError
from medseg_attack.registry.parts import walk
from medseg_attack.runs.rows import Role, role_of
from medseg_attack.runs.study import Study
from medseg_attack.threat.budgets import Budget, parse_budget, stated


@dataclass(frozen=True)
class Cell:
    """One attack at one budget; `label` and `loss` are what tables show.

    Attributes:
        eps: a fraction of the window; NaN for a budget with a unit, which is another fraction for every case.
        budget: if it has a unit.
    """

    label: str
    loss: str
    eps: float
    attack: Any
    budget: Budget | None = None

    @property
    def role(self) -> Role:
        """What the run is for, as its header says."""
        return role_of(self.label)

    @property
    def spec(self) -> str:
        return stated(registry.spec(self.attack), self.budget)

    @property
    def ball(self) -> str:
        return stated(registry.spec(self.attack.ball), self.budget)

    @property
    def slug(self) -> str:
        """For the name of a folder."""
        size = str(self.budget or (registry.spec(self.eps) if self.eps else "")).replace("/", "of")
        label = self.label.replace(f" {self.budget}", "")
        return "_".join(filter(None, [safe(label)[:50], safe(self.loss)[:20], size and safe(f"eps{size}")]))


def safe(text: str) -> str:
    """What a file system takes."""
    return re.sub(r"[^A-Za-z0-9.=-]+", "_", text).strip("_")


def cells(study: Study) -> list[Cell]:
    """The product of attacks, losses and budgets, the noise control of every ball first; no attack twice.

    `losses`, `norm` and `steps` set that field of each attack that has it and does not set it itself, also of those
    that an attack is made of; `region` holds the ball of every attack to a part of the image.
    """
    _check_reach(study)
    made = [cell for text in study.attacks for cell in _of_attack(text, study)]
    if study.control:
        made = [*map(_control, (cell for cell in made if cell.budget or cell.attack.ball.eps > 0)), *made]
    if study.region:
        made = [_within(cell, study.region) for cell in made]
    return list({(registry.spec(cell.attack), cell.budget): cell for cell in made}.values())


NORMS = ("linf", "l2", "l0")


_BALL = re.compile(r"\b(linf|l2|l0)\b")  # spelled in an attack


def _check_reach(study: Study) -> None:
    """Refuses a loss, a goal or a norm that no attack would follow, or that some attack would not."""
    climbing = [
        text for text in study.attacks if registry.about(registry.parse_call(text, "attack")[0]).threat != "no model"
    ]
    own = [text for text in climbing if not registry.leaves_open(text, "objective") and "objective" not in text]
    objectives = {text: registry.build(text, "objective") for text in study.losses}
    goals = [text for text, one in objectives.items() if any(hasattr(part, "goal") for part in walk(one))]
    lost = goals or (study.losses if len(own) == len(climbing) else [])
    if own and lost:
        raise InputError(
            f"expected attacks that take an objective for --loss {lost[0]}, got {own[0]}, which takes none; "
            "drop --loss or that attack"
        )
    if study.norm is None:
        return
    ball = registry.build(study.norm, "ball")
    for text in climbing:
        kind = _kind(registry.build(text, "attack", {"ball": ball}).ball)
        if not _BALL.search(text) and kind in NORMS and kind != _kind(ball):
            raise InputError(
                f"expected attacks in any norm for --norm {study.norm}, got {text}, which is one of {kind}; "
                "drop --norm or that attack"
            )


def _within(cell: Cell, region: str) -> Cell:
    if getattr(cell.attack.ball, "eps", 0.0) == 0 and cell.budget is None:
        return cell
    return replace(cell, label=f"{cell.label} within {region}", attack=registry.within(cell.attack, region))


def _control(cell: Cell) -> Cell:
    """Noise in the attack's ball; of a change that is described (a field, a pose) a random one of its kind."""
    inner = _innermost(cell.attack)
    unit: str = getattr(inner.ball, "unit", "")
    if unit or hasattr(inner, "render"):
        return Cell(f"noise {cell.label}", "", cell.eps, replace(inner, steps=0), cell.budget)
    noise = registry.build("noise", "attack", {"ball": cell.attack.ball})
    return Cell(_in_unit(_label("noise", {}, noise.ball), cell.budget), "", cell.eps, noise, cell.budget)


def _innermost(attack: Any) -> Any:
    """The first attack inside one that is made of others."""
    while hasattr(attack, "attacks") or hasattr(attack, "attack"):
        attack = attack.attacks[0] if hasattr(attack, "attacks") else attack.attack
    return attack


def _of_attack(text: str, study: Study) -> list[Cell]:
    name, given = registry.parse_call(text, "attack")
    said = {
        field: as_typed if "attack" in field else registry.spec(given[field])
        for field, as_typed in registry.arguments_as_typed(text).items()
    }
    losses: Sequence[str | None] = [None]
    if registry.leaves_open(text, "objective"):
        losses = study.losses or [None]
    overrides: dict[str, Any] = {"steps": study.steps} if study.steps else {}
    if study.norm is not None:
        overrides["ball"] = registry.build(study.norm, "ball")
    budgets: list[Budget | None] = [parse_budget(eps) for eps in study.eps]
    made = []
    for loss in losses:
        objective = {} if loss is None else {"objective": registry.build(loss, "objective")}
        attack = registry.build(text, "attack", overrides | objective)
        label, shown = _label(name, said, attack.ball), objective.get("objective", getattr(attack, "objective", None))
        made += [_cell(label, registry.spec(shown) if shown else "", attack, budget) for budget in budgets or [None]]
    return made


def _cell(label: str, loss: str, attack: Any, budget: Budget | None) -> Cell:
    if budget is None:
        return Cell(label, loss, attack.ball.eps, attack)
    if not budget.unit:
        attack = registry.with_eps(attack, budget.value)
        return Cell(label, loss, attack.ball.eps, attack)
    if own := getattr(attack.ball, "unit", ""):
        raise InputError(
            f"expected the size of {label} in its own unit ({own}) as a plain number, got --eps {budget}; drop the unit"
        )
    attack = registry.with_eps(attack, 0.0)  # the loop sets each case's own
    return Cell(_in_unit(label, budget), loss, math.nan, attack, budget)


def _in_unit(label: str, budget: Budget | None) -> str:
    return f"{label} {budget}" if budget else label


def _label(name: str, given: dict[str, str], ball: Any) -> str:
    """The attack as it was typed, less what the columns beside it say; a ball that is not plain Linf is named."""
    said = [f"{field}={value}" for field, value in given.items() if field not in ("objective", "ball")]
    kind = _kind(ball)
    its_own = registry.takes(name, "ball") and not registry.takes_any_ball(name)
    if kind != (_kind(registry.default(name, "ball")) if its_own else "linf"):
        said = [kind, *said]
    return f"{name}({', '.join(said)})" if said else name


def _kind(ball: Any) -> str:
    """A ball's spec less its size."""
    return re.sub(r"\(eps=0\.0\)|\beps=0\.0, |, eps=0\.0\b", "", registry.spec(registry.with_eps(ball, 0.0)))
