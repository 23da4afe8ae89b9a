"""Whether a poison knows the audit that looks for it: an audit says something of poisons that answer it alone."""

from collections.abc import Mapping
from typing import Any, Literal, TypeAlias

from medseg_attack.registry import build
from medseg_attack.runs.rows import Knowledge
from medseg_attack.threat.poisons.base import Backdoor

Audit: TypeAlias = Literal["spectral", "disagreement", "inversion"]
MARK = (
    "non_adaptive: the poison was made without regard to this audit, so that the table says nothing of one that "
    "answers it; see docs/poisoning.md."
)


def knowledge(audit: Audit, poison: str, facts: Mapping[str, Any], n_trained_on: int) -> Knowledge:
    """Whether a poison answers an audit; "" where there is nothing to know, as of clean data.

    Spectral signatures are answered by decoys, which spread the direction that is looked for; the disagreement of folds
    by a bias that most patients of all folds share; the inversion of triggers by a trigger that covers the whole image,
    since no small patch is to be had.

    Args:
        poison: its spec; "" of clean data.
        facts: of the poisoned data, as `medattack poison` wrote them; {} where they are not known.
        n_trained_on: patients that are not held out for testing.
    """
    if not poison:
        return ""
    rule = build(poison, "poison")
    if audit == "inversion":
        if not isinstance(rule, Backdoor):
            return ""
        return "adaptive" if rule.is_everywhere else "native"
    if audit == "spectral":
        return "adaptive" if facts.get("decoys") else "native"
    return "adaptive" if len(facts.get("patients", ())) > n_trained_on / 2 else "native"
