"""Verdicts of rules on runs of a few patients whose Dice is known, without files."""

from collections.abc import Sequence

import pandas as pd

from helpers.runs import PIXELS
from medseg_attack.gate.rules import parse
from medseg_attack.gate.verdicts import Verdict, judge


def levels(dice: Sequence[float], **columns: object) -> pd.DataFrame:
    """Rows of a run: a patient, a scan and an organ for each Dice."""
    hits = [round(value * PIXELS) for value in dice]
    names = [f"p{n}" for n in range(len(dice))]
    head = {"run": "r", "pair": "r", "model": "m", "label": "m", "attack": "pgd", "loss": "bce", "eps": 0.01}
    head |= {"role": "attack", "ball": "linf(eps=0.01)", "checks": True, "cls": "organ", "eps_unit": ""}
    same = ("n_target", "n_target_adv", "n_clean", "hit_clean", "n_adv")
    rows = pd.DataFrame({"case": names, "volume": names, "group": names, "hit_adv": hits})
    return rows.assign(**dict.fromkeys(same, PIXELS), **head).assign(**columns)


def verdict(rule: str, new: pd.DataFrame, old: pd.DataFrame | None = None) -> Verdict:
    (only,) = judge([parse(rule)], new, old, {"r": ()}, unit="volume", empty="one")
    return only


def drops(*values: float) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Runs whose Dice is lower by these numbers than their reference's."""
    return levels([0.9 - value for value in values]), levels([0.9] * len(values))
