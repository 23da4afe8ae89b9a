"""The rules that a comparison fails by: `adv_dice<0.70@organ=stomach`, `dice_drop>0.02@sig`. No torch in here.

    rule    = metric comparator number filter* | flag=NAME filter*
    metric  = level, or level_drop (reference minus new), or level_rise (new minus reference);
              dice_drop is short for adv_dice_drop
    level   = clean_dice, adv_dice, clean_iou, adv_iou, missed, and clean_ and adv_ of what was measured (adv_hd95_mm)
    filter  = @organ=NAME, @model=NAME, @attack=NAME, @loss=NAME, @eps=4/255, or @sig

Without @organ a rule is about the mean over organs. Without @attack it looks at attacks, not at controls. A rule
`flag=NAME` fails a run that raised a flag of that code or verdict: flag=MA007, flag=invalid; it looks at controls, too,
and takes neither @organ nor @sig.

With @sig a rule fails only if two conditions hold: the 95 % interval over patients lies wholly beyond the number, and
the signed-rank test of patients' values against the number has p < 0.05, after Holm's correction over all that the
rule looks at.
"""

import math
import re
from dataclasses import dataclass, field

from medseg_attack.checks.flags import SEVERITY
from medseg_attack.errors import InputError
from medseg_attack.escaping import visible

FILTERS = ("organ", "model", "attack", "loss", "eps")
_COMPARATORS = ("<=", ">=", "<", ">")
NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?(/\d+\.?\d*)?")


@dataclass(frozen=True)
class Rule:
    """A condition that must not hold.

    Attributes:
        level: the score that is compared, such as adv_dice.
        change: "" for the new run's level, "drop" or "rise" for its change from the reference.
        where: values by filter.
        significant: whether chance must be ruled out.
    """

    text: str
    level: str
    change: str
    comparator: str
    number: float
    where: dict[str, str] = field(default_factory=dict)
    significant: bool = False

    def holds(self, value: float) -> bool:
        """Whether the value is beyond the number.

        >>> parse("adv_dice<0.7").holds(0.65)
        True
        """
        match self.comparator:
            case "<":
                return value < self.number
            case "<=":
                return value <= self.number
            case ">":
                return value > self.number
            case _:
                return value >= self.number


@dataclass(frozen=True)
class FlagRule:
    """A flag that no run may raise.

    Attributes:
        flag: a code such as MA007, or a verdict such as invalid.
        where: values by filter.
    """

    text: str
    flag: str
    where: dict[str, str] = field(default_factory=dict)


def parse(text: str) -> Rule | FlagRule:
    """The rule that a text states.

    Raises:
        InputError: it states none; a mark shows where it goes wrong.
    """
    metric = re.match(r"\s*(\w+)\s*", text)
    if metric is None:
        raise _at(text, 0, "a metric such as adv_dice or dice_drop")
    if metric[1] == "flag":
        return _flag_rule(text, metric.end())
    comparator = next((sign for sign in _COMPARATORS if text.startswith(sign, metric.end())), None)
    if comparator is None:
        raise _at(text, metric.end(), "<, <=, > or >=")
    start = metric.end() + len(comparator)
    start += len(text[start:]) - len(text[start:].lstrip())
    value = NUMBER.match(text, start)
    if value is None:
        raise _at(text, start, "a number such as 0.02 or 8/255")
    if not math.isfinite(number(value[0])):
        raise _at(text, start, "a finite number")
    where, significant = _filters(text, value.end())
    level, change = _level(metric[1])
    return Rule(text, level, change, comparator, number(value[0]), where, significant)


def _flag_rule(text: str, position: int) -> FlagRule:
    name = re.compile(rf"=\s*({'|'.join(SEVERITY)}|MA\d{{3}})\s*").match(text, position)
    if name is None:
        raise _at(text, position, f"=CODE such as =MA007, or ={', ='.join(SEVERITY)}")
    where, significant = _filters(text, name.end())
    if significant or "organ" in where:
        raise _at(text, name.end(), "neither @sig nor @organ in a rule on flags")
    return FlagRule(text, name[1], where)


def _filters(text: str, position: int) -> tuple[dict[str, str], bool]:
    where: dict[str, str] = {}
    significant = False
    while text[position:].strip():
        position += len(text[position:]) - len(text[position:].lstrip())
        part = re.compile(r"@(\w*)").match(text, position)
        if part is None:
            raise _at(text, position, "the end or @")
        value = re.compile(r"=\s*([^@]*[^@\s])\s*").match(text, part.end())
        if part[1] == "sig" and not text.startswith("=", part.end()):
            significant, position = True, part.end()
        elif part[1] not in FILTERS:
            raise _at(text, position + 1, f"sig, {', '.join(FILTERS)}")
        elif value is None:
            raise _at(text, part.end(), f"=NAME after @{part[1]}")
        elif part[1] in where:
            raise _at(text, position + 1, f"one @{part[1]}")
        else:
            where[part[1]], position = value[1], value.end()
    return where, significant


def _at(text: str, position: int, expected: str) -> InputError:
    got = text[position:].strip() or "the end"
    return InputError(
        f"expected {expected} at position {position + 1} of --fail-if, got {got!r}; write it like "
        "'adv_dice<0.70@organ=stomach' or 'dice_drop>0.02@sig'",
        f"  {text}",
        f"  {' ' * len(visible(text[:position]))}^",
    )


def _level(metric: str) -> tuple[str, str]:
    for change in ("drop", "rise"):
        if metric.endswith(f"_{change}"):
            level = metric.removesuffix(f"_{change}")
            return (level if level.startswith(("adv_", "clean_")) or level == "missed" else f"adv_{level}"), change
    return metric, ""


def number(text: str) -> float:
    """A number as rules write it; NaN where it is divided by 0.

    >>> number("1/4"), number("1/0")
    (0.25, nan)
    """
    above, _, below = text.partition("/")
    return float(above) / (float(below or 1) or math.nan)
