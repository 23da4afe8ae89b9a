"""Tables of trials: one per organ, a column per model, what each kind of attack leaves, and a verdict. No torch."""

from collections.abc import Iterator

import pandas as pd

from medseg_attack.errors import plural
from medseg_attack.metrics.empty import EMPTY_RULES, Empty
from medseg_attack.report.sheet import Sheet, number
from medseg_attack.stats.defences import NATIVE_ONLY
from medseg_attack.stats.patients import warning
from medseg_attack.stats.scores import Unit

MOST_MODELS = 3  # defended ones beside the twin: what 100 columns hold
LEVELS = {
    "clean": "clean",
    "noise": "noise of that size",
    "native": "attacks that do not know it",
    "adaptive": "attacks that know it, and try harder",
    "transfer": "images from the twin",
    "queries": "search without gradients",
    "worst": "worst of all, case by case",
}
DIFFERENCES = {
    "native_to_twin": "to the twin, not known",
    "to_twin": "to the twin, worst of all",
    "clean_to_twin": "to the twin, clean",
}


def trial_sheets(table: pd.DataFrame, *, unit: Unit, empty: Empty) -> Iterator[Sheet]:
    """One table per organ, the mean over organs first; several where there are many models.

    Args:
        table: of `stats.defences.worths`.
    """
    for organ, of_organ in table.groupby("organ", sort=False):
        twin, defended = of_organ[of_organ["is_twin"]], of_organ[~of_organ["is_twin"]]
        for start in range(0, len(defended), MOST_MODELS):
            yield _sheet(str(organ), pd.concat([twin, defended.iloc[start : start + MOST_MODELS]]), unit, empty)


def _sheet(organ: str, models: pd.DataFrame, unit: Unit, empty: Empty) -> Sheet:
    each = [row for _, row in models.iterrows()]
    rows = [[text, *(_level(row, kind) for row in each)] for kind, text in LEVELS.items()]
    n_levels = len(rows)
    rows += [[text, *(_difference(row, name) for row in each)] for name, text in DIFFERENCES.items()]
    if "passes" in models:
        rows.append(["passes for an answer", *(f"{row['passes']:.0f}" for row in each)])
    rows.append(["verdict", *("" if row["is_twin"] else str(row["verdict"]) for row in each)])
    n = int(models["patients"].min())
    title = "Mean over organs" if organ == "mean" else organ
    heads = ["Dice", *(f"{row['model']}{', undefended' if row['is_twin'] else ''}" for row in each)]
    caption = (
        f"Dice per {unit} with 95 % interval over {plural(n, 'patient')}; of several attacks the worst of each case. "
        f"Differences are paired by patient. Empty masks: {EMPTY_RULES[empty]}. "
        "non_adaptive: no attack of the trial knows the defence, which has no rank. "
        f"{warning(n)}"
    ).strip()
    rules = frozenset({n_levels - 2, n_levels - 1, n_levels + len(DIFFERENCES) - 1})
    return Sheet(title, heads, rows, caption, left=len(heads), rules=rules)


def _level(row: "pd.Series[float]", kind: str) -> str:
    low, high = row[f"{kind}_low"], row[f"{kind}_high"]
    text = number(row[kind])
    return text if low != low or kind == "noise" else f"{text} {low:.2f}-{high:.2f}"


def _difference(row: "pd.Series[float]", name: str) -> str:
    if row["is_twin"] or row[name] != row[name]:
        return ""
    low, high = row[f"{name}_low"], row[f"{name}_high"]
    return f"{row[name]:+.3f}" + ("" if low != low else f" {low:+.2f} to {high:+.2f}")


def conclusion(table: pd.DataFrame) -> list[str]:
    """A sentence on each defended model, on the mean over organs; what looks better than it is comes first."""
    rows = [row for _, row in table[(table["organ"] == "mean") & ~table["is_twin"]].iterrows()]
    rows = sorted(rows, key=lambda row: row["verdict"] != NATIVE_ONLY)
    return [f"{row['model']}: {row['verdict']}" for row in rows]
