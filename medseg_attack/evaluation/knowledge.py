"""Knowledge of a defence: attacks are made adaptive to models that say what an attacker must know of them."""

from dataclasses import replace
from typing import Any, Protocol, runtime_checkable

from medseg_attack.attacks.universal.trigger import Trigger
from medseg_attack.errors import InputError
from medseg_attack.models.model_ref import ModelRef
from medseg_attack.registry import entry_of, find
from medseg_attack.registry.abilities import ClimbsFeatures
from medseg_attack.registry.parts import walk
from medseg_attack.runs.grid import Cell
from medseg_attack.runs.stored_specs import split_label
from medseg_attack.types import AroundAttack, Attack


@runtime_checkable
class Declares(Protocol):
    """A model that says which defence an attack must know: a `ModelRef` or a `SegModel`."""

    @property
    def is_random(self) -> bool: ...

    @property
    def blocks_gradient(self) -> bool: ...

    @property
    def known_by(self) -> tuple[str, ...]: ...

    @property
    def prompt(self) -> str: ...

    @property
    def encoder(self) -> str: ...


def needed(model: Declares) -> list[str]:
    """The names of the attacks that wrap one to make it adaptive to all that the model declares, innermost first."""
    own = {"bpda": model.blocks_gradient, "averaged": model.is_random}
    return [*(name for name, is_needed in own.items() if is_needed), *model.known_by]


def knowing(cell: Cell, model_ref: ModelRef, *, native: bool) -> Cell:
    """The cell with an attack that knows the model's defence, as far as the model says that it has one.

    Controls, and images that were made elsewhere, owe nothing to the model's gradient and stay as they are. A trigger
    stays, too: whether it knows the model's repair was decided when the backdoor was trained, and the card says it.

    Args:
        native: True leaves every attack as it is written, and says so.
    """
    if cell.role == "attack" and isinstance(cell.attack, Trigger):
        return replace(cell, knowledge=model_ref.backdoor_knowledge)
    lacking = _lacking(cell.attack, model_ref) if cell.role == "attack" else None
    if lacking is None:
        return cell
    if not lacking:
        return replace(cell, knowledge="adaptive")
    if native:
        return replace(cell, knowledge="native")
    for name in lacking:
        text, rest = split_label(cell.label)
        cell = replace(cell, label=f"{name}({text}){rest}", attack=_around(name)(cell.attack))
    return replace(cell, knowledge="adaptive")


def is_ignorant(attack: Attack, model: Declares) -> bool:
    """Whether an attack lacks something that it must know of the model."""
    return bool(_lacking(attack, model))


def adaptive_to(model: Declares, attack: Attack) -> Attack:
    """The attack as one that knows the model's defence; itself where there is nothing to know."""
    for name in _lacking(attack, model) or ():
        attack = _around(name)(attack)
    return attack


def _lacking(attack: Attack, model: Declares) -> list[str] | None:
    """The names of the attacks that must stand around an attack; None where there is nothing to know."""
    entry, names = entry_of(attack), needed(model)
    is_foreign = entry is not None and entry.threat in ("surrogate", "no model")
    if is_foreign or not names:
        return None
    parts = [type(part) for part in walk(attack)]
    # an attack that asks for answers alone: no layer can block its gradient, and it has no other way through the model
    asks_alone = entry is not None and entry.threat.startswith("queries")
    lacking = [name for name in names if _around(name) not in parts and not (asks_alone and name != "averaged")]
    return [name for name in lacking if name != "averaged" or not _sees_no_prompt(attack, model)]


def _sees_no_prompt(attack: Attack, model: Declares) -> bool:
    """Whether all that is random of a model is its prompts, which its encoder, climbed alone, does not get."""
    return bool(model.prompt and model.encoder) and isinstance(attack, ClimbsFeatures) and attack.features_alone


def _around(name: str) -> type[Any]:
    """The attack of that name, which stands around another.

    Raises:
        InputError: there is no such attack; the name may come from a checkpoint.
    """
    attack = find(name, "attack").make
    if not (isinstance(attack, type) and issubclass(attack, AroundAttack)):
        raise InputError(f"expected the name of an attack around others in 'known_by', got {name}; restore the card")
    return attack
