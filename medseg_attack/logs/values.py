"""Curves and numbers that are logged, by name."""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import pandas as pd

if TYPE_CHECKING:
    from medseg_attack.training.folder import EpochRecord

MEASURES = ("mean_clean", "mean_adv", "low", "high", "drop")


def epoch_values(record: "EpochRecord") -> dict[str, float]:
    """The numbers of one epoch; NaN where there is none, so that every epoch has the same names."""
    values: Mapping[str, float | None] = {
        "loss": record.loss,
        "lr": record.lr,
        "dice/mean": record.mean_dice,
        **{f"dice/{organ}": value for organ, value in record.dice.items()},
        "seconds": record.seconds,
    }
    if record.robust_dice:
        robust = {f"dice under attack/{organ}": value for organ, value in record.robust_dice.items()}
        values = {**values, "dice under attack/mean": record.mean_robust_dice, **robust}
    return {name: math.nan if value is None else value for name, value in values.items()}


def run_values(summary: pd.DataFrame) -> dict[str, float]:
    """Dice of each run, clean and under attack, with its interval: the numbers of `medattack compare`."""
    return {
        f"{run['model']} {run['attack']} {run['loss']} {run['eps']}/{name}": float(run[name])
        for _, run in summary.iterrows()
        for name in MEASURES
    }
