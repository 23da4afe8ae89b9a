"""Knowledge of a defence: attacks are made adaptive to models that are random or block gradients."""

from dataclasses import replace
from typing import Any

from medseg_attack.attacks.composed.adaptive import Averaged, ThroughStandIns
from medseg_attack.models.model_ref import ModelRef
from medseg_attack.registry import entry_of
from medseg_attack.registry.parts import walk
from medseg_attack.runs.grid import Cell
from medseg_attack.runs.stored_specs import split_label


def knowing(cell: Cell, model_ref: ModelRef, *, native: bool) -> Cell:
    """The cell with an attack that knows the model's defence, as far as the model says that it has one.

    Controls, and images that were made elsewhere, owe nothing to the model's gradient and stay as they are.

    Args:
        native: True leaves every attack as it is written, and says so.
    """
    lacking = _lacking(cell, model_ref)
    if lacking is None:
        return cell
    if not lacking:
        return replace(cell, knowledge="adaptive")
    if native:
        return replace(cell, knowledge="native")
    for name in lacking:
        around: Any = {"bpda": ThroughStandIns, "averaged": Averaged}[name]
        text, rest = split_label(cell.label)
        cell = replace(cell, label=f"{name}({text}){rest}", attack=around(cell.attack))
    return replace(cell, knowledge="adaptive")


def _lacking(cell: Cell, model_ref: ModelRef) -> list[str] | None:
    """The names of the attacks that must stand around the cell's; None where there is nothing to know."""
    entry = entry_of(cell.attack)
    is_foreign = entry is not None and entry.threat in ("surrogate", "no model")
    needed = {"bpda": model_ref.blocks_gradient, "averaged": model_ref.is_random}
    if cell.role != "attack" or is_foreign or not any(needed.values()):
        return None
    parts = list(walk(cell.attack))
    has = {
        "bpda": any(isinstance(part, ThroughStandIns) for part in parts) or _asks_alone(entry),
        "averaged": any(isinstance(part, Averaged) for part in parts),
    }
    return [name for name in needed if needed[name] and not has[name]]


def _asks_alone(entry: Any) -> bool:
    """Whether an attack never takes a gradient, so that no layer can block it."""
    return entry is not None and entry.threat.startswith("queries")
