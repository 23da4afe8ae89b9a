"""Facts that a reader asks for before trusting an attack's number: its authors, what it must know, what it costs.

Imports no torch: they are declared where an attack is registered.
"""

from collections.abc import Mapping
from typing import Any

from medseg_attack import registry
from medseg_attack.registry.declared import Declaration
from medseg_attack.registry.grammar import Spec
from medseg_attack.registry.parts import walk
from medseg_attack.registry.passes import passes_of

_UNKNOWN = "-"


def uses_queries(attack: Any) -> bool:
    """Whether the attack, or a part of it, asks the model without its gradient."""
    return any(
        entry.threat.startswith("queries") for entry in map(registry.entry_of, walk(attack)) if entry is not None
    )


def asks_model(attack: Any) -> bool:
    """Whether the attack, or a part of it, depends on the model; clean, stored and random images do not."""
    entries = [entry for entry in map(registry.entry_of, walk(attack)) if entry is not None and entry.kind == "attack"]
    return any(entry.threat != "no model" for entry in entries)


def profile(name: str, attacks: Mapping[str, Declaration]) -> dict[str, str]:
    """Paper, threat model, norm, passes for an image and defaults of an attack.

    What its declaration leaves open is read off it: the paper that its docstring cites in brackets, the norm of its
    default ball, the access that its passes need.

    Args:
        attacks: declarations of attacks, by name.
    """
    declaration = attacks[name]
    passes = passes_of(Spec(name), attacks)
    threat = _UNKNOWN
    if passes is not None:
        # gradients need the weights, several passes need answers; a single pass only judges the result
        threat = "white box" if passes.backwards else "queries" if passes.forwards > 1 else "no model"
    ball = declaration.options.get("ball")
    norm = ball.name if isinstance(ball, Spec) else _UNKNOWN
    return {
        "name": name,
        "paper": declaration.paper,
        "threat": declaration.facts.get("threat") or threat,
        "norm": declaration.facts.get("norm") or ("linf or l2" if norm in ("linf", "l2") else norm),
        "passes": _UNKNOWN if passes is None else str(passes),
        "defaults": declaration.options_line,
        "what": declaration.summary,
    }
