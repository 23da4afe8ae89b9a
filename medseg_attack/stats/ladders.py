"""The cost of natural corruptions: means over kinds and severities, beside clean images and another model. No torch."""

import pandas as pd

from medseg_attack.registry.grammar import Literal
from medseg_attack.runs.stored_specs import attack_spec

NAME = "corruption"
ALL = "all"  # the mean over kinds
ROW = ["model", "data", "kind"]


def has_corruptions(summary: pd.DataFrame) -> bool:
    """Whether a run is of natural corruptions, by the table of `stats.scores.summary`."""
    return bool(summary["attack"].map(_is_corruption).any())


def ladders(summary: pd.DataFrame) -> pd.DataFrame:
    """A row per model, data set and kind of corruption, and one of the means over kinds.

    Args:
        summary: of `stats.scores.summary`.

    Returns:
        severities: their number. clean: mean Dice over classes of clean images. dice: the same under the corruption,
        mean over severities; of all kinds it is mDice_C. least: at the severity, or the kind, that leaves least.
        degradation: 1 - dice / clean. error: 1 - Dice, summed over severities, as a share of that of the first model of
        the table; relative_error: the same of what the corruption adds to the error on clean images (Di Salvo et al.,
        arXiv 2406.17536). NaN where that model was not run on the same severities.
    """
    runs = summary[summary["attack"].map(_is_corruption)]
    runs = runs.assign(kind=runs["attack"].map(_kind)).drop_duplicates([*ROW, "eps"])
    runs = runs.assign(error=1 - runs["mean_adv"], lost=runs["mean_clean"] - runs["mean_adv"])
    same = ["data", "kind", "eps"]
    first = runs.loc[runs["model"] == runs["model"].iloc[0], [*same, "error", "lost"]]
    runs = runs.merge(first, on=same, how="left", suffixes=("", "_first"))
    of_kinds = runs.groupby(ROW, sort=False)
    sums = of_kinds[["error", "lost", "error_first", "lost_first"]].agg(_sum)
    table = of_kinds.agg(
        severities=("eps", "nunique"),
        clean=("mean_clean", "mean"),
        dice=("mean_adv", "mean"),
        least=("mean_adv", "min"),
    ).assign(
        error=sums["error"] / sums["error_first"].where(sums["error_first"] != 0),
        relative_error=sums["lost"] / sums["lost_first"].where(sums["lost_first"] != 0),
    )
    table = table.assign(degradation=1 - table["dice"] / table["clean"]).reset_index()
    of_models = table.groupby(["model", "data"], sort=False)
    means = of_models[["clean", "dice", "degradation", "error", "relative_error"]].agg(_mean)
    totals = means.assign(least=of_models["least"].min(), severities=of_models["severities"].max(), kind=ALL)
    return pd.concat([table, totals.reset_index()], ignore_index=True)


def _sum(values: "pd.Series[float]") -> float:
    """The sum; NaN where a value is."""
    return float(values.sum(skipna=False))


def _mean(values: "pd.Series[float]") -> float:
    """The mean; NaN where a value is."""
    return float(values.mean(skipna=False))


def _is_corruption(attack: str) -> bool:
    return attack_spec(attack).name == NAME


def _kind(attack: str) -> str:
    """The modality and kind that a label names."""
    fields = {name: node.value for name, node in attack_spec(attack).keywords if isinstance(node, Literal)}
    return f"{fields.get('modality', 'mri')} {fields.get('kind', 'each')}"
