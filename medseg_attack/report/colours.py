"""The colour of each organ, the same in figures, on pages and in pictures: Okabe and Ito's, for every kind of sight."""

from collections.abc import Sequence
from itertools import cycle

# Okabe & Ito 2008, "Color Universal Design", without black, which is that of the mean over organs
COLOURS = ("#E69F00", "#56B4E9", "#009E73", "#CC79A7", "#D55E00", "#0072B2", "#F0E442")
NEUTRAL = "#7a7a7a"  # of the mean over organs, and of what is not an organ; seen on white and on black


def organ_colours(organs: Sequence[str]) -> dict[str, str]:
    """The colour of each organ by its place in the task; an eighth organ has the first one's again.

    >>> organ_colours(["liver", "spleen"])
    {'liver': '#E69F00', 'spleen': '#56B4E9'}
    """
    return dict(zip(organs, cycle(COLOURS), strict=False))
