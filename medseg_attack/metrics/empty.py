"""The value of each measure where a mask is empty. No torch in here.

Under attack an empty prediction is the main event. A measure that quietly left it out would improve with every organ
that the attack erases.

`RULES` states the rules of tables; these functions apply them: `stats.scores.scored` to Dice and IoU,
`metrics.surface` to distances of surfaces, and `stats.clinical.deltas` to volumes and centroids. A test holds them to
it, row by row. What steers a computation passes its own value to `metrics.overlap`: harm, criteria and the choice of
the worst scans count an absent class as right (1), validation, ASMA and the profile of a model leave it out (NaN).
"""

import math
from dataclasses import dataclass
from typing import Literal, TypeAlias

Empty: TypeAlias = Literal["one", "nan", "zero"]  # the values of --empty
EMPTY_RULES: dict[Empty, str] = {
    "one": "an organ absent from truth and prediction scores 1 (as UW-Madison scores)",
    "nan": "an organ absent from the truth is left out",
    "zero": "an organ absent from truth and prediction scores 0",
}
ABSENT_SCORE: dict[Empty, float] = {"one": 1.0, "nan": math.nan, "zero": 0.0}  # Dice and IoU where both masks are empty

LEFT_OUT = "left out"  # not a number: takes no part in averages
DIAGONAL = "the grid's diagonal in mm"
CLEAN_EMPTY = "left out if the clean prediction is empty"
BY_OPTION = "1, left out or 0, as --empty one, nan or zero says"


@dataclass(frozen=True)
class Rule:
    """The value of a measure where a mask is empty.

    Attributes:
        absent: neither truth nor prediction holds a pixel.
        hallucinated: the prediction does, the truth does not.
        missed: the truth does, the prediction does not.
    """

    absent: str
    hallucinated: str
    missed: str


RULES: dict[str, Rule] = {
    "dice": Rule(BY_OPTION, "0, left out under --empty nan", "0"),
    "iou": Rule(BY_OPTION, "0, left out under --empty nan", "0"),
    "hd95_mm": Rule(LEFT_OUT, DIAGONAL, DIAGONAL),
    "assd_mm": Rule(LEFT_OUT, DIAGONAL, DIAGONAL),
    "nsd": Rule(LEFT_OUT, "0", "0"),
    "volume_ml": Rule("0", "as counted", "0"),
    "volume_percent": Rule("-100, " + CLEAN_EMPTY, CLEAN_EMPTY, "-100, " + CLEAN_EMPTY),
    "centroid_shift_mm": Rule(LEFT_OUT, CLEAN_EMPTY, LEFT_OUT),
}
