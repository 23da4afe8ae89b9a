"""Rank correlations of factors with the Dice that an attack takes; their unit is the patient, or the model. No torch.

A correlation is no cause. Several are looked at together, so that p-values are Holm's over all of an organ.
"""

from collections.abc import Sequence
from itertools import product
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats as scipy_stats

from medseg_attack.metrics.empty import Empty
from medseg_attack.stats.patients import holm
from medseg_attack.stats.scores import Unit, pooled, scored

Array = NDArray[np.float64]
LEAST = 4  # points below which a rank correlation says nothing: 2 of 24 orders of 4 points are perfect
DRAWS = 2000
UNMEASURED = 0.25  # how often a bootstrap draws the patient who was not measured, for once that it draws another
MEAN = "mean"


def associations(rows: pd.DataFrame, factors: pd.DataFrame, *, unit: Unit, empty: Empty) -> pd.DataFrame:
    """Spearman's correlation of each factor with the Dice that each attack takes, per organ and over all of them.

    A factor that differs between the scans of a model is correlated over patients, whose scans and slices are averaged
    first. One that is the same for all scans of a model is correlated over models, by their mean loss of Dice.

    Args:
        rows: of the runs; controls are left out.
        factors: columns run, group, volume, cls, factor, value: see `evaluation.factors.measuring`.

    Returns:
        Columns: model ("" over models), attack, loss, eps, organ ("mean": of all), factor, over ("patients",
        "models"), n, rho, low, high (95 % by bootstrap of patients and of one who was not measured), p (permutations),
        p_holm over all rows of the organ. No row of a factor that is the same everywhere.
    """
    rows = rows[rows["role"] != "control"]
    cases = scored(pooled(rows, unit), empty)
    cases = cases.assign(loss_of_dice=cases["dice_clean"] - cases["dice_adv"])
    losses = _with_mean(cases.rename(columns={"loss_of_dice": "value"}), ["run"])
    values = _with_mean(factors[factors["run"].isin(rows["run"])], ["factor", "run"])
    header = rows.drop_duplicates("run").set_index("run")[["model", "attack", "loss", "eps", "ball"]]
    classes = [MEAN, *dict.fromkeys(rows["cls"])]
    table: list[dict[str, Any]] = []
    for factor, of_factor in values.groupby(level="factor", sort=False):
        of_factor = of_factor.droplevel("factor")
        varies = of_factor.groupby(level=["run", "cls"]).nunique()
        if (varies > 1).any():
            table += _over_patients(str(factor), of_factor, losses, header, classes)
        elif of_factor.nunique() > 1:
            table += _over_models(str(factor), of_factor, losses, header, classes)
    if not table:
        return pd.DataFrame()
    frame = pd.DataFrame(table)
    return frame.assign(p_holm=frame.groupby("organ", sort=False)["p"].transform(lambda p: holm(p.tolist())))


def _with_mean(cases: pd.DataFrame, keys: Sequence[str]) -> "pd.Series[float]":
    """The mean value of each patient by class, and as class "mean" over the classes."""
    by_class = cases.groupby([*keys, "cls", "group"], sort=False)["value"].mean()
    over = by_class.groupby(level=[*keys, "group"], sort=False).mean()
    over = pd.concat({MEAN: over}, names=["cls"]).reorder_levels([*keys, "cls", "group"])
    means: pd.Series[float] = pd.concat([over, by_class]).sort_index()
    return means


def _over_patients(
    factor: str, values: "pd.Series[float]", losses: "pd.Series[float]", header: pd.DataFrame, classes: Sequence[str]
) -> list[dict[str, Any]]:
    table = []
    for run, cls in product(header.index, classes):
        no_value = pd.Series(dtype=float)
        pairs = pd.DataFrame(
            {"value": values.get((run, cls), no_value), "loss": losses.get((run, cls), no_value)}
        ).dropna()
        x, y = pairs["value"].to_numpy(), pairs["loss"].to_numpy()
        low, high = correlation_interval(x, y) if _have_an_order(x, y) else (np.nan, np.nan)
        facts = header.loc[run].to_dict() | {"organ": cls, "factor": factor, "over": "patients"}
        table.append(facts | _correlation(x, y) | {"low": low, "high": high})
    return table


def _over_models(
    factor: str, values: "pd.Series[float]", losses: "pd.Series[float]", header: pd.DataFrame, classes: Sequence[str]
) -> list[dict[str, Any]]:
    """The interval draws patients that all models were attacked on, not models: it says nothing of other models.

    The patient who was not measured loses all Dice under the last model in the order of the factor and none under the
    first, or the other way round.
    """
    table = []
    for key, runs in header.groupby(["attack", "loss", "eps", "ball"], sort=False, dropna=False):
        for cls in classes:
            by_patient = pd.DataFrame(
                {run: losses.get((run, cls), pd.Series(dtype=float)) for run in runs.index}
            ).dropna()
            if not len(by_patient):
                continue  # a class that one of the models does not have
            x = np.array([values.xs((run, cls)).iloc[0] for run in runs.index])
            y = by_patient.to_numpy()  # (patients, models)
            low, high = np.nan, np.nan
            if _have_an_order(x, y.mean(0)) and len(y) > 1:
                order = (scipy_stats.rankdata(x) - 1) / (len(x) - 1)
                means = (np.vstack([y, unseen])[_draws(len(y))].mean(1) for unseen in (1 - order, order))
                ends = [_rank_correlation(np.broadcast_to(x, each.shape), each) for each in means]
                low, high = _ends(*ends)
            facts = dict(zip(("attack", "loss", "eps", "ball"), key, strict=True))
            facts |= {"model": "", "organ": cls, "factor": factor, "over": "models"}
            table.append(facts | _correlation(x, y.mean(0)) | {"low": low, "high": high})
    return table


def _have_an_order(x: Array, y: Array) -> bool:
    return len(x) >= LEAST and len(set(x)) > 1 and len(set(y)) > 1


def _correlation(x: Array, y: Array) -> dict[str, float]:
    """n, rho and the two-sided p of all orders, or of 9,999 random ones; NaN of fewer than `LEAST` points."""
    if not _have_an_order(x, y):
        return {"n": len(x), "rho": float("nan"), "p": float("nan")}
    ranks = scipy_stats.rankdata(x), scipy_stats.rankdata(y)
    result = scipy_stats.permutation_test(
        (ranks[0],),
        lambda order, axis: _rank_correlation(order, np.broadcast_to(ranks[1], order.shape)),
        permutation_type="pairings",
        vectorized=True,
        n_resamples=9999,
        rng=_rng(),
    )
    return {"n": len(x), "rho": float(result.statistic), "p": float(result.pvalue)}


def _rank_correlation(x: Array, y: Array) -> Array:
    """Spearman's rho along the last axis; NaN where one side has a single value."""
    x, y = (scipy_stats.rankdata(values, axis=-1) for values in (x, y))
    x, y = (values - values.mean(-1, keepdims=True) for values in (x, y))
    norm = np.sqrt((x**2).sum(-1) * (y**2).sum(-1))
    return np.asarray((x * y).sum(-1) / np.where(norm > 0, norm, np.nan))


def correlation_interval(x: Array, y: Array) -> tuple[float, float]:
    """The 95 % interval of Spearman's correlation over patients, of whom x and y have a number each.

    Patients who are all in one order have it in every bootstrap sample of them, however few they are. So one more is
    drawn with them, who was not measured: beyond all in x, and for the lower end below all in y, for the upper end
    above all. Drawn a quarter as often as the others, that patient is in one sample of five: the interval covers 95 %
    where one patient in ten is out of order, too (`benchmarks/results/coverage.md`).
    """
    draws, beyond = _draws(len(x)), np.append(x, x.max() + 1)
    unseen = (np.append(y, y.min() - 1), np.append(y, y.max() + 1))
    low, high = (_rank_correlation(beyond[draws], each[draws]) for each in unseen)
    return _ends(low, high)


def _draws(n: int) -> NDArray[np.int64]:
    """The places of n patients in each bootstrap sample, a row each; place n is the one who was not measured."""
    return np.minimum(_rng().uniform(0, n + UNMEASURED, (DRAWS, n)).astype(np.int64), n)


def _ends(low: Array, high: Array) -> tuple[float, float]:
    """The 2.5 % quantile of one correlation's draws and the 97.5 % quantile of another's, but for those without."""
    kept = [draws[~np.isnan(draws)] for draws in (low, high)]
    if not all(map(len, kept)):
        return float("nan"), float("nan")
    return float(np.quantile(kept[0], 0.025)), float(np.quantile(kept[1], 0.975))


def _rng() -> np.random.Generator:
    return np.random.default_rng(0)
