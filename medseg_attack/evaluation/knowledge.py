"""Knowledge of a defence: attacks are made adaptive to models that are random or block gradients."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Protocol, runtime_checkable

from medseg_attack.attacks.composed.adaptive import Averaged, ThroughStandIns
from medseg_attack.models.model_ref import ModelRef
from medseg_attack.registry import entry_of
from medseg_attack.registry.parts import walk
from medseg_attack.runs.grid import Cell
from medseg_attack.runs.stored_specs import split_label
from medseg_attack.types import Attack

AROUND: Mapping[str, Callable[[Attack], Attack]] = {"bpda": ThroughStandIns, "averaged": Averaged}


def knowing(cell: Cell, model_ref: ModelRef, *, native: bool) -> Cell:
    """The cell with an attack that knows the model's defence, as far as the model says that it has one.

    Controls, and images that were made elsewhere, owe nothing to the model's gradient and stay as they are.

    Args:
        native: True leaves every attack as it is written, and says so.
    """
    lacking = _lacking(cell.attack, model_ref) if cell.role == "attack" else None
    if lacking is None:
        return cell
    if not lacking:
        return replace(cell, knowledge="adaptive")
    if native:
        return replace(cell, knowledge="native")
    for name in lacking:
        text, rest = split_label(cell.label)
        cell = replace(cell, label=f"{name}({text}){rest}", attack=AROUND[name](cell.attack))
    return replace(cell, knowledge="adaptive")


def adaptive_to(model: "Declares", attack: Attack) -> Attack:
    """The attack as one that knows the model's defence; itself where there is nothing to know."""
    for name in _lacking(attack, model) or ():
        attack = AROUND[name](attack)
    return attack


@runtime_checkable
class Declares(Protocol):
    """A model that says which defence an attack must know: a `ModelRef` or a `SegModel`."""

    @property
    def is_random(self) -> bool: ...

    @property
    def blocks_gradient(self) -> bool: ...


def _lacking(attack: Attack, model: Declares) -> list[str] | None:
    """The names of the attacks that must stand around an attack; None where there is nothing to know."""
    entry = entry_of(attack)
    is_foreign = entry is not None and entry.threat in ("surrogate", "no model")
    needed = {"bpda": model.blocks_gradient, "averaged": model.is_random}
    if is_foreign or not any(needed.values()):
        return None
    parts = list(walk(attack))
    has = {
        "bpda": any(isinstance(part, ThroughStandIns) for part in parts) or _asks_alone(entry),
        "averaged": any(isinstance(part, Averaged) for part in parts),
    }
    return [name for name in needed if needed[name] and not has[name]]


def _asks_alone(entry: Any) -> bool:
    """Whether an attack never takes a gradient, so that no layer can block it."""
    return entry is not None and entry.threat.startswith("queries")
