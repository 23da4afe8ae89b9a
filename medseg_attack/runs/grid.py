"""A study's grid: the product of attacks, losses and budgets, with its controls.

`evaluation.studies.running` runs it on every model of the study.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from medseg_attack import registry
from medseg_attack.errors import InputError
from medseg_attack.registry.abilities import Aimed, Climbs, Composed, Controlled, Several
from medseg_attack.registry.parts import walk
from medseg_attack.runs.rows import Knowledge, Role
from medseg_attack.runs.stored_specs import AROUND
from medseg_attack.runs.study import Study
from medseg_attack.threat.budgets import Budget, parse_budget

if TYPE_CHECKING:  # runs import no torch
    from medseg_attack.types import Attack, Ball

NORMS = ("linf", "l2", "l0")


@dataclass(frozen=True)
class Cell:
    """One attack at one budget.

    Attributes:
        label: the attack as tables show it.
        loss: spec of the objective that it climbs; "" for none.
        eps: size of its ball, a fraction of the window unless the ball has a unit; NaN for a budget with a unit, which
            is another fraction for every case.
        role: purpose of the run, as its header says.
        budget: the budget, if it has a unit.
        knowledge: whether the attack knows the model's defence: `evaluation.knowledge` says so for each model.
    """

    label: str
    loss: str
    eps: float
    attack: "Attack"
    role: Role
    budget: Budget | None = None
    knowledge: Knowledge = ""

    @property
    def spec(self) -> str:
        return self._text(self.attack)

    @property
    def ball(self) -> str:
        return self._text(self.attack.ball)

    def _text(self, part: Any) -> str:
        """Spec of a part, with the budget where it has a unit, which no ball can hold: `pgd(ball=linf(eps=5HU))`."""
        spec = registry.spec_of(part)
        return str(spec.replace(eps=self.budget) if self.budget else spec)

    @property
    def slug(self) -> str:
        """The cell as a part of the name of a folder."""
        size = str(self.budget or (registry.spec(self.eps) if self.eps else "")).replace("/", "of")
        label = self.label.replace(f" {self.budget}", "")
        return "_".join(filter(None, [safe(label)[:50], safe(self.loss)[:20], size and safe(f"eps{size}")]))


def safe(text: str) -> str:
    """The text with all characters replaced that a file system may refuse."""
    return re.sub(r"[^A-Za-z0-9.=-]+", "_", text).strip("_")


def cells(study: Study) -> list[Cell]:
    """The product of attacks, losses and budgets, the noise control of every ball first; no attack twice.

    `losses`, `norm` and `steps` set that field of each attack that has it and does not set it itself, also of those
    that an attack is made of; `region` holds the ball of every attack to a part of the image.
    """
    attacks = [spec for text in study.attacks for spec in _members(registry.parse(text, "attack"))]
    _check_applicable(attacks, study)
    grid = [cell for spec in attacks for cell in _cells(spec, study)]
    if study.control:
        grid = [*map(_control, (cell for cell in grid if cell.budget or cell.attack.ball.eps > 0)), *grid]
    if study.region:
        grid = [_within(cell, study.region) for cell in grid]
    return list({(registry.spec(cell.attack), cell.budget): cell for cell in grid}.values())


def judged_by_unit(study: Study) -> Study:
    """The study with its attacks on the Dice of slices where slices are scored: those that are on that of volumes by
    default, and do not say which.
    """
    if study.unit != "slice":
        return study
    attacks = [(text, registry.parse(text, "attack")) for text in study.attacks]
    changed = [(text, spec, registry.with_option(spec, "unit", "slice")) for text, spec in attacks]
    return study.model_copy(
        update={"attacks": [text if after == before else str(after) for text, before, after in changed]}
    )


def _members(spec: registry.Spec) -> list[registry.Spec]:
    """The specs that one stands for in a study."""
    attack = registry.build(spec, "attack")
    return [registry.spec_of(each) for each in attack.members()] if isinstance(attack, Several) else [spec]


def _check_applicable(attacks: Sequence[registry.Spec], study: Study) -> None:
    """Refuses a loss, a goal or a norm that no attack would follow, or that one of them would not."""
    climbing = [spec for spec in attacks if registry.find(spec.name, "attack").threat != "no model"]
    fixed = [
        spec
        for spec in climbing
        if not (registry.leaves_open(spec, "objective") or registry.named(spec).sets("objective"))
    ]
    objectives = {text: registry.build(text, "objective") for text in study.losses}
    goals = [text for text, goal in objectives.items() if any(isinstance(part, Aimed) for part in walk(goal))]
    unused = goals or (study.losses if len(fixed) == len(climbing) else [])
    if fixed and unused:
        raise InputError(
            f"expected attacks that take an objective for --loss {unused[0]}, got {fixed[0]}, which takes none; "
            "drop --loss or that attack"
        )
    if study.norm is None:
        return
    ball = registry.build(study.norm, "ball")
    for spec in climbing:
        kind = _kind(registry.build(spec, "attack", {"ball": ball}).ball)
        names_norm = any(part.name in NORMS for part in spec.walk())
        if not names_norm and kind in NORMS and kind != study.norm:
            raise InputError(
                f"expected attacks in any norm for --norm {study.norm}, got {spec}, which is one of {kind}; "
                "drop --norm or that attack"
            )


def _within(cell: Cell, region: str) -> Cell:
    if cell.attack.ball.eps == 0 and cell.budget is None:
        return cell
    return replace(cell, label=f"{cell.label} within {region}", attack=registry.within(cell.attack, region))


def control_of(attack: Any) -> tuple[Any, bool]:
    """The control of an attack, and whether it is a random change of its own kind (a field, a pose) or noise in its
    ball.
    """
    inner = attack
    while isinstance(inner, Composed):
        inner = inner.attacks[0]
    if isinstance(inner, Controlled):
        return inner.control(), True
    return registry.build("noise", "attack", {"ball": attack.ball}), False


def _control(cell: Cell) -> Cell:
    control, is_own = control_of(cell.attack)
    if is_own:
        return Cell(f"noise {cell.label}", "", cell.eps, control, "control", cell.budget)
    label = _in_unit(_label(registry.Spec("noise"), control.ball), cell.budget)
    return Cell(label, "", cell.eps, control, "control", cell.budget)


def _cells(spec: registry.Spec, study: Study) -> list[Cell]:
    """The cells of one attack: with every loss and budget of the study."""
    family = registry.find(spec.name, "attack").family
    role: Role = "clean" if spec.name == "clean" else "control" if family == "controls" else "attack"
    losses: Sequence[str | None] = study.losses if registry.leaves_open(spec, "objective") else []
    overrides: dict[str, Any] = {"steps": study.steps} if study.steps else {}
    if study.norm is not None:
        overrides["ball"] = registry.build(study.norm, "ball")
    budgets: list[Budget | None] = [parse_budget(eps) for eps in study.eps]
    grid = []
    for loss in losses or [None]:
        objective = {} if loss is None else {"objective": registry.build(loss, "objective")}
        attack = registry.build(spec, "attack", overrides | objective)
        climbed = objective.get("objective", attack.objective if isinstance(attack, Climbs) else None)
        shown = registry.with_option(spec, "steps", study.steps) if study.steps else spec
        label, loss_text = _label(shown, attack.ball), registry.spec(climbed) if climbed else ""
        grid += [_cell(label, loss_text, attack, role, budget) for budget in budgets or [None]]
    return grid


def _cell(label: str, loss: str, attack: "Attack", role: Role, budget: Budget | None) -> Cell:
    attack, in_unit = at_budget(attack, budget, label)
    if in_unit is None:
        return Cell(label, loss, attack.ball.eps, attack, role)
    return Cell(_in_unit(label, in_unit), loss, math.nan, attack, role, in_unit)


def at_budget(attack: "Attack", budget: Budget | None, label: str) -> tuple["Attack", Budget | None]:
    """An attack with a budget in it, and the budget itself if it has a unit and is another fraction for every case.

    Args:
        budget: None leaves the attack as it is.
        label: name of the attack in the error.

    Raises:
        InputError: the budget has a unit, and so has the attack's ball; or the attack's ball keeps its own size.
    """
    if budget is None:
        return attack, None
    if not budget.unit:
        return _with_eps(attack, budget.value, budget, label), None
    if own := attack.ball.unit:
        raise InputError(
            f"expected the size of {label} in its own unit ({own}) as a plain number, got --eps {budget}; drop the unit"
        )
    return _with_eps(attack, 0.0, budget, label), budget  # the loop sets each case's own


def _with_eps(attack: "Attack", eps: float, budget: Budget, label: str) -> "Attack":
    sized: Attack = registry.with_eps(attack, eps)
    if sized.ball.eps not in (eps, 0.0):  # it is no option of the attack; at 0 nothing is changed at any budget
        raise InputError(
            f"expected a ball whose size --eps {budget} sets, got {label}, whose ball stays at {sized.ball.eps:.4g}; "
            "make the ball a field of the attack, or leave out eps"
        )
    return sized


def _in_unit(label: str, budget: Budget | None) -> str:
    return f"{label} {budget}" if budget else label


def _label(spec: registry.Spec, ball: "Ball") -> str:
    """The attack as it was typed, less the fields that other columns show; a ball that is not plain Linf is named."""
    entry, (_, values) = registry.find(spec.name), registry.parse_call(spec)
    arguments = [
        str(node)
        if spec.name in AROUND and field == "attack"
        else f"{field}={node if 'attack' in field else registry.spec(values[field])}"
        for field, node in entry.place(spec).items()
        if field not in ("objective", "ball")
    ]
    kind, own_ball = _kind(ball), entry.takes("ball") and not entry.accepts_any_ball
    if kind != (_kind(entry.default("ball")) if own_ball else "linf"):
        arguments = [kind, *arguments]
    return f"{spec.name}({', '.join(arguments)})" if arguments else spec.name


def _kind(ball: "Ball") -> str:
    """A ball's spec less its size."""
    return str(registry.spec_of(registry.with_eps(ball, 0.0)).replace(eps=None))
