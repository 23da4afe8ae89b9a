"""Attacks that know a detector, by their specs."""

from collections.abc import Sequence
from dataclasses import replace

from medseg_attack import registry
from medseg_attack.attacks.evading.evading import Evading
from medseg_attack.attacks.evading.watched import Evader
from medseg_attack.errors import InputError


def evader(text: str, weights: Sequence[float] = ()) -> Evader:
    """The attack that knows a detector, by its spec: without an attack inside or a detector yet.

    Args:
        weights: of the score, where it has weights and `text` sets none.

    Raises:
        InputError: the text names another attack.
    """
    built = registry.build(text, "attack")
    if not isinstance(built, Evader):
        names = [name for name in registry.names("attack") if registry.find(name, "attack").family == "evading"]
        raise InputError(
            f"expected an attack that knows a detector for --knowing, one of {', '.join(names)}, got {text}; write "
            "--knowing orthogonal, and name the attack itself by the run"
        )
    if isinstance(built, Evading) and weights and built.weight is None:
        return replace(built, weight=tuple(weights))
    return built
