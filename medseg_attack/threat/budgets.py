"""Budgets with a unit, and the fraction of a case's intensity window that they are. Imports no torch."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import total_ordering

from medseg_attack.errors import InputError

UNITS: Mapping[str, str] = {
    "": "fraction of the intensity window",
    "%window": "per cent of the intensity window",
    "HU": "Hounsfield units",
    "raw": "stored values",
    "sigma": "the image's own noise",
}

_SHARED = ("HU", "raw", "sigma")  # units that would be another fraction in every channel
_FORM = re.compile(r"\s*(-?[0-9.]+(?:e-?[0-9]+)?)\s*(?:/\s*([0-9.]+))?\s*(%window|HU|hu|raw|sigma)?\s*")


@total_ordering
@dataclass(frozen=True)
class Budget:
    """The size of a change, in a unit.

    Attributes:
        value: number of units, 0 or more.
        unit: a key of `UNITS`; "" is a fraction of the intensity window.
        text: the budget as it was typed; budgets that are typed in two ways are equal.
    """

    value: float
    unit: str
    text: str = field(compare=False)

    def __str__(self) -> str:
        return self.text

    def __lt__(self, other: "Budget") -> bool:
        return (self.unit, self.value) < (other.unit, other.value)

    def fraction(self, *, width: float, slope: float, unit: str, noise: float, case: str) -> float:
        """The budget for one case as a fraction of its window.

        Args:
            width: width of the window, in the scan's unit; NaN where channels have windows of their own.
            slope: size of a stored value, in the scan's unit; NaN where channels have scales of their own.
            unit: unit of the scan's intensities.
            noise: standard deviation of the noise, as a fraction of the window.
            case: name of the case, for messages.

        Raises:
            InputError: the scan has no such unit, its channels do not share it, or the window is not wide enough for
                the budget.
        """
        if self.unit == "HU" and unit != "HU":
            raise InputError(
                f"expected intensities in HU for --eps {self.text}, got {unit or 'no unit'} in {case}; "
                "give eps as a fraction (4/255), in stored values (20raw) or in noise (1sigma)"
            )
        if self.unit in _SHARED and math.isnan(width if self.unit != "raw" else width * slope):
            raise InputError(
                f"expected one intensity window and one scale of all channels for --eps {self.text}, got several in "
                f"{case}; give eps as a fraction of each channel's own window (4/255)"
            )
        # one division each: the same budget in two units is the same float
        fraction = {
            "": self.value,
            "%window": self.value / 100,
            "HU": self.value / width,
            "raw": self.value * abs(slope) / width,
            "sigma": self.value * noise,
        }[self.unit]
        if fraction >= 1:
            raise InputError(
                f"expected eps below the intensity window of {case} ({width:g} {unit}), got {self.text}; lower it"
            )
        return fraction


def parse_budget(text: str) -> Budget:
    """A budget as it is typed: 0.01, 4/255, 0.5%window, 5HU, 20raw, 1sigma.

    Raises:
        InputError: not a number and a known unit, or negative. Whether 1 and more is too much is for the ball to say.

    >>> parse_budget("4/255").value == 4 / 255, parse_budget("5HU")
    (True, Budget(value=5.0, unit='HU', text='5HU'))
    """
    match = _FORM.fullmatch(text)
    try:
        value = float(match[1]) / float(match[2] or 1) if match else float("nan")
    except (ValueError, ZeroDivisionError):
        value = float("nan")
    if match is None or not math.isfinite(value):
        known = ", ".join(unit for unit in UNITS if unit)
        raise InputError(
            f"expected eps as 0.01, 4/255, or a number with a unit ({known}), got {text!r}; write one of these"
        )
    if value < 0:
        raise InputError(f"expected eps >= 0, got {text}; write it without the minus sign")
    unit = (match[3] or "").replace("hu", "HU")
    return Budget(value, unit, text.strip().replace(" ", ""))
