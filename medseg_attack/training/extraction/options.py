"""The means of a thief: the student, its queries, and what the owner lets answers give away."""

from dataclasses import dataclass
from typing import Literal, TypeAlias

from medseg_attack.errors import InputError, require

Answers: TypeAlias = Literal["probabilities", "masks", "volumes"]
Selection: TypeAlias = Literal["random", "k_centre"]
UNITS = {2: "slice", 3: "scan"}  # that are asked about, by their dimensions


@dataclass(frozen=True)
class Extraction:
    """The thief's means.

    Attributes:
        model: spec of the student, which takes slices or whole scans as the victim does.
        queries: slices that the victim is asked about, whole scans of a 3-D one, 1 or more.
        answers: probabilities of each pixel, hard masks, or the volume of each class in the slice or scan alone.
        digits: of the probabilities that the victim gives away; 0: all.
        selection: of the queries: at random, or each as far as can be from those before (`k_centre`).
        poisoning: strength of the reverse sigmoid that the victim's probabilities go through, from 0 to below 1.
        mad: L1 distance from a pixel's probabilities within which the victim turns the thief's gradient, from 0 to 2.
        hardened: whether the thief keeps nothing of probabilities but the decision that they stand for.
        steps: of the optimiser, 1 or more.
    """

    model: str = "unet_small"
    queries: int = 100
    answers: Answers = "probabilities"
    digits: int = 0
    steps: int = 1000
    lr: float = 1e-3
    batch_size: int = 8
    seed: int = 0
    selection: Selection = "random"
    poisoning: float = 0.0
    hardened: bool = False
    mad: float = 0.0

    def __post_init__(self) -> None:
        require(self, queries=1, digits=0, steps=1, lr=1e-12, batch_size=2)
        if self.digits and self.answers != "probabilities":
            raise InputError(f"expected probabilities for --digits, got --answers {self.answers}; drop one of them")
        needing = {"--poisoning": self.poisoning, "--mad": self.mad, "--hardened": self.hardened}
        if self.answers != "probabilities" and (option := next(filter(needing.get, needing), "")):
            raise InputError(f"expected probabilities for {option}, got --answers {self.answers}; drop one of them")
        if not 0 <= self.poisoning < 1:
            raise InputError(f"--poisoning: expected a strength from 0 to below 1, got {self.poisoning:g}; write 0.7")
        if not 0 <= self.mad <= 2:
            raise InputError(f"--mad: expected an L1 distance from 0 to 2, got {self.mad:g}; write 0.5")
        if self.mad and self.poisoning:
            raise InputError("expected one rule to poison answers by, got --poisoning and --mad; drop one of them")

    @property
    def knowledge(self) -> Literal["", "native", "adaptive"]:
        """Knowledge that the thief has of a defence: "native" takes answers as they are; "" where there is none."""
        if not (self.digits or self.poisoning or self.mad):
            return ""
        return "adaptive" if self.hardened else "native"
