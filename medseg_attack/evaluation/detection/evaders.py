"""Attacks that know a detector, by their specs."""

from collections.abc import Sequence
from dataclasses import replace

from medseg_attack import registry
from medseg_attack.attacks.evading.evading import Evading
from medseg_attack.attacks.evading.watched import Evader
from medseg_attack.errors import InputError


def evaders(texts: Sequence[str], weights: Sequence[float] = ()) -> tuple[Evader, ...]:
    """The attacks that know a detector, by their specs: without an attack inside or a detector yet.

    Args:
        weights: of the score, for those that have weights and whose spec sets none; () for their own.

    Raises:
        InputError: a text names another attack, or there are weights and none takes them.
    """
    built = [_evader(text) for text in texts]
    weighed = [isinstance(each, Evading) and each.weight is None for each in built]
    if weights and not any(weighed):
        raise InputError(
            f"expected --weight beside a way of --knowing that it is for, got {', '.join(texts)}; add --knowing "
            "evading, or drop --weight"
        )
    return tuple(
        replace(each, weight=tuple(weights)) if weights and isinstance(each, Evading) and each.weight is None else each
        for each in built
    )


def _evader(text: str) -> Evader:
    built = registry.build(text, "attack")
    if not isinstance(built, Evader):
        names = [name for name in registry.names("attack") if registry.find(name, "attack").family == "evading"]
        raise InputError(
            f"expected an attack that knows a detector for --knowing, one of {', '.join(names)}, got {text}; write "
            "--knowing orthogonal, and name the attack itself by the run"
        )
    return built
