"""Whether a poison was made to evade an audit: only then does the result of the audit say anything of such poisons."""

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
    """Whether a poison evades an audit, "adaptive" or "native"; "" where there is nothing to evade, as on clean data.

    Decoys evade spectral signatures: they spread the direction that is looked for. A bias that most patients of all
    folds share evades the disagreement of folds. A trigger that covers the whole image evades the inversion of
    triggers, which looks for a small patch.

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
