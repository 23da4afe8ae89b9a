"""The flags: their codes, verdicts and what to do. `docs/flags.md` explains each. No torch in here."""

from dataclasses import dataclass
from typing import Literal, TypeAlias

Verdict: TypeAlias = Literal["invalid", "upper bound on robustness", "note"]


@dataclass(frozen=True)
class Flag:
    """What a code stands for; codes are never given a second meaning."""

    title: str
    verdict: Verdict
    todo: str


@dataclass(frozen=True)
class Finding:
    """A flag that was raised.

    Attributes:
        about: the case, attack or input concerned.
        seen: the numbers that raised it.
        run: folder of the run concerned; "" where it concerns all runs of the model.
    """

    code: str
    about: str
    seen: str
    run: str = ""

    @property
    def flag(self) -> Flag:
        return FLAGS[self.code]

    def record(self) -> dict[str, str]:
        """As it is stored in run.json."""
        flag = self.flag
        return {
            "code": self.code,
            "verdict": flag.verdict,
            "title": flag.title,
            "about": self.about,
            "seen": self.seen,
            "todo": flag.todo,
        }


_UPPER: Verdict = "upper bound on robustness"


FLAGS = {
    "MA001": Flag(
        "input gradient is exactly 0 in organs",
        _UPPER,
        "make the step that blocks it differentiable (straight-through), or use an attack without gradients",
    ),
    "MA002": Flag(
        "no gradient path from the output to the image",
        "invalid",
        "remove detach() and no_grad() from the model, or use an attack without gradients",
    ),
    "MA003": Flag(
        "the same image gets different answers",
        _UPPER,
        "switch the randomness off, or average gradients and scores over it",
    ),
    "MA004": Flag(
        "a case alone differs from the case in a batch",
        "invalid",
        "put batch normalisation in eval mode and give it running statistics",
    ),
    "MA005": Flag("outputs look like probabilities", "invalid", "return the values before sigmoid or softmax"),
    "MA006": Flag(
        "the attack does not climb, or returns a worse image than it saw",
        _UPPER,
        "check the objective's sign, lower step_size, or set keep_worst=True",
    ),
    "MA007": Flag("more steps would do more", _UPPER, "raise steps until the numbers stand still"),
    "MA008": Flag(
        "noise of the same size did nearly as well as the attack",
        _UPPER,
        "distrust the attack: look for masked gradients, change objective or step size",
    ),
    "MA009": Flag(
        "a budget without limit does not break the model",
        _UPPER,
        "distrust the attack: at eps 128/255 every image can be made the same grey",
    ),
    "MA010": Flag(
        "a search without gradients beats the attack",
        _UPPER,
        "report the gradient-free attack, too, and look for masked gradients",
    ),
    "MA011": Flag(
        "images from elsewhere beat the white-box attack",
        _UPPER,
        "report the transferred images, too, and look for masked gradients",
    ),
    "MA012": Flag(
        "a larger budget does less", _UPPER, "raise steps, or take a smaller step_size; keep the worst over budgets"
    ),
    "MA013": Flag(
        "an image moved further than the stated budget",
        "invalid",
        "state the budget that was used: a blended step moves pixels by up to 2 eps",
    ),
    "MA014": Flag(
        "clean Dice is implausible", "invalid", "check preprocessing, channel order and weights before attacking"
    ),
    "MA015": Flag(
        "the budget is below one stored grey level",
        "invalid",
        "raise eps to one level at least: what is smaller cannot be stored",
    ),
    "MA016": Flag(
        "many organ pixels lie at the end of the intensity window",
        "note",
        "check the window; pixels at its end can be attacked in one direction only",
    ),
    "MA017": Flag(
        "the model answers in half precision",
        _UPPER,
        "run the attack in float32: small gradients vanish in half precision",
    ),
    "MA018": Flag(
        "one step does more than many", _UPPER, "give the iterative attack more steps, a smaller step_size or restarts"
    ),
    "MA019": Flag(
        "the loss is numerically 0 where the model is right",
        _UPPER,
        "attack with --loss margin, which does not saturate",
    ),
    "MA020": Flag(
        "the gradient does not predict how the loss changes",
        _UPPER,
        "look for a custom backward pass, or for steps that hide the true slope",
    ),
    "MA021": Flag(
        "a step along the gradient is no better than a random one",
        _UPPER,
        "look for masked gradients; use an attack without gradients",
    ),
    "MA022": Flag(
        "the output or its gradient is not finite",
        "invalid",
        "find the operation that overflows: log, sqrt or division at 0",
    ),
    "MA023": Flag(
        "another objective does more",
        _UPPER,
        "attack with several objectives, e.g. --loss bce --loss soft_dice, and report the worst",
    ),
    "MA024": Flag(
        "the attack improves the segmentation",
        "invalid",
        "check the sign of the objective and the order of its arguments",
    ),
    "MA025": Flag("image values outside [0, 1]", "invalid", "keep images in [0, 1] and normalise inside the model"),
    "MA026": Flag(
        "the image looks like a z-score cut to [0, 1]",
        "invalid",
        "give images in [0, 1] of their window and z-score inside the model",
    ),
    "MA027": Flag(
        "only single-step attacks were run", _UPPER, "add --attack 'pgd(steps=40)' before speaking of robustness"
    ),
    "MA028": Flag(
        "no attack by gradients moved the score",
        "note",
        "raise eps until something breaks: a flat line alone proves nothing",
    ),
    "MA029": Flag("too few patients", "note", "do not generalise: intervals from fewer than 6 patients are hints"),
    "MA030": Flag(
        "the rule for empty masks decides many scores",
        "note",
        "compare --empty one with --empty nan, or score volumes instead of slices",
    ),
    "MA031": Flag("part of the cases was left out", "note", "run without --limit before reporting"),
    "MA032": Flag("small organs fare much worse than large ones", "note", "report by size: the mean hides it"),
    "MA033": Flag(
        "noise beats the attack on some cases", _UPPER, "take the worse of the two per case, or add restarts"
    ),
    "MA034": Flag(
        "averaging over the model's randomness makes the attack stronger",
        _UPPER,
        "attack the average of several passes",
    ),
}


SEVERITY: dict[Verdict, int] = {"invalid": 0, "upper bound on robustness": 1, "note": 2}


def by_severity(findings: list[Finding]) -> list[Finding]:
    """Without repetitions; what makes numbers invalid first."""
    return sorted(dict.fromkeys(findings), key=lambda one: (SEVERITY[one.flag.verdict], one.code))
