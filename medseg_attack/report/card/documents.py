"""The documents that a card is read beside, and what each asks for, in sentences of this project.

Regulation (EU) 2024/1689, Article 15; FDA, "Artificial Intelligence-Enabled Device Software Functions", draft guidance
of 7 January 2025; NIST AI 100-2 E2025; ISO/IEC 24029-2:2023. A card says what was measured, never that a document is
met: that is for whoever answers for the device.
"""

from typing import NamedTuple

ACT, FDA, NIST, ISO = "AI Act, Art. 15", "FDA's draft guidance of January 2025", "NIST AI 100-2", "ISO/IEC 24029-2"

LIMITS = (
    "This card reports measurements. It does not say that any document it names is met: that is for whoever answers "
    "for the device to show, and for a reviewer to judge.",
    f"The {FDA} may have been replaced by a final version since. {ISO} is about formal methods, which an "
    "attack is not.",
    "An attack gives an upper bound of robustness: it shows that so much harm is possible, never that more is not. "
    "Numbers hold for this model, these scans and these budgets.",
)

ASKED = {
    "use": f"{ACT} asks for robustness that is appropriate: to what, the intended use says. The {FDA} wants test "
    "evidence and mitigations in the submission of a device, which has one.",
    "data": f"{ACT} asks for accuracy and robustness throughout the lifetime: a number belongs to one version of a "
    f"model. In {ISO} it also belongs to a domain, here these scans and the changes of them below.",
    "clean": f"{ACT}: the instructions for use declare the metrics of accuracy and their levels.",
    "threats": f"{NIST} describes an attack by its stage, the attacker's goal and the attacker's knowledge. {ISO} "
    "calls the set of changed inputs a domain; an answer that stays the same in it is stable.",
    "strongest": f"{ACT} names adversarial examples and model evasion; {NIST} and the {FDA} call the same evasion.",
    "beside": f"The {FDA} asks for mitigations with their evidence. {ISO} is about formal methods: bounds by "
    "smoothing are statistical, those of Lipschitz networks sound and incomplete.",
    "untried": f"{ACT} names five kinds of threat, the {FDA} names seven, and {NIST} has three classes for predictive "
    "AI. The table has all of them.",
    "flags": f"{ACT} names model flaws. Some of them make a model look robust, and checks look for those.",
    "method": f"Evidence that nobody can repeat is none; {ACT} asks for robustness throughout the lifetime, so that "
    "the measurement is to be repeated with each version.",
}


class Threat(NamedTuple):
    """A threat that a document names.

    Attributes:
        documents: those that name it.
        status: what a card can say of it where no run was about it.
    """

    name: str
    documents: str
    status: str


# evasion comes first and is described by the runs
THREATS = (
    Threat("data poisoning", f"{ACT}; FDA; NIST", "not tried"),
    Threat("model poisoning", f"{ACT}; NIST", "not tried: where the weights came from was not looked at"),
    Threat(
        "confidentiality and privacy: inversion, stealing, leakage",
        f"{ACT}; FDA; NIST",
        "not tried: of these medattack measures the stealing of a model alone (medattack extract)",
    ),
    Threat("model flaws", ACT, "only as far as the checks look; see the flags"),
    Threat("overfitting", "FDA", "not tried: accuracy on training patients was not compared"),
    Threat("model bias", "FDA", "not tried: no groups of patients were compared"),
    Threat("performance drift", "FDA", "not tried: one version was measured once"),
)
