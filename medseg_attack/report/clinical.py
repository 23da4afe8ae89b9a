"""Tables in the clinic's units, of models or attacks paired by patient, and of what goes with a loss. No torch."""

from collections.abc import Sequence

import pandas as pd

from medseg_attack.errors import plural
from medseg_attack.report.sheet import Sheet, from_to_signed, number, p_value, percent, signed
from medseg_attack.report.tables.summaries import budget, rank, several
from medseg_attack.stats.clinical import THRESHOLDS
from medseg_attack.stats.comparisons import Side
from medseg_attack.stats.patients import warning

_MEASURED = {"hd95_mm": "HD95 mm", "assd_mm": "ASSD mm"}


def delta_sheet(summary: pd.DataFrame, header: pd.DataFrame, by: Sequence[str] = ("model",)) -> Sheet:
    """The effect of every attack on every organ: per organ the clean prediction, then each run, means over scans.

    Args:
        summary: the table of `stats.clinical.delta_summary`.
        header: model, attack, loss and eps by run.
        by: columns of the header that order the runs of an organ; each model's runs stand together where it is first.
    """
    keys = [key for key in by if key != "organ"] or ["model"]
    places = {run: place for place, run in enumerate(header.sort_values(keys, key=rank, kind="stable").index)}
    summary = summary.sort_values("run", key=lambda runs: runs.map(places), kind="stable")
    measured = [n for n in summary.columns if n.endswith("_adv") and not n.startswith(("dice_", "iou_", "volume_"))]
    names = ["dice", *(column.removesuffix("_adv") for column in measured)]
    models = header["model"].nunique() > 1
    rows: list[list[str]] = []
    ends = set()
    for cls, of_organ in summary.groupby("cls", sort=False):
        organ = str(cls).replace("_", " ")  # so that it can wrap
        model = of_organ["run"].map(header["model"])
        for _, of_group in of_organ.groupby(model if keys[0] == "model" else "cls", sort=False):
            for name, of_model in of_group.groupby(model, sort=False):
                clean = _levels(of_model.iloc[0], names, "clean")
                rows.append([organ, f"{name} clean" if models else "clean", *clean, *[""] * 4])
            for _, row in of_group.iterrows():
                rows.append([organ, _run(header.loc[row["run"]], models), *_levels(row, names, "adv"), *_moved(row)])
        ends.add(len(rows) - 1)
    heads = [_MEASURED.get(name, name.partition("(")[0].upper()) for name in names[1:]]
    columns = ["organ", "run", "Dice", *heads, "ml", "change %", "shift mm", "missed", "halluc."]
    caption, organs = _delta_caption(summary), [str(cls) for cls in summary["cls"].unique()]
    return Sheet("Clinical deltas", columns, rows, caption, left=2, rules=frozenset(ends), organs=organs)


def _delta_caption(summary: pd.DataFrame) -> str:
    n = int(summary["patients"].min())
    return (
        f"Means over {several(summary['scans'], 'scan')} of {several(summary['patients'], 'patient')}; ml: volume, its "
        "change in % of the clean prediction's, and the shift of its centroid from there. missed: scans "
        "whose organ is found clean and lost under attack; halluc.: "
        "predicted only under attack, where there is none. Distances: in neither mask: left out; in one alone: the "
        "grid's diagonal (NSD: 0). Change and shift are left out where a mask that they need is empty. "
        f"{warning(n)}"
    ).strip()


def _run(facts: "pd.Series[float]", models: bool) -> str:
    words = [str(facts["model"]) if models else "", str(facts["attack"]), str(facts["loss"]), budget(facts)]
    return " ".join(filter(None, words))


def _levels(row: "pd.Series[float]", names: Sequence[str], when: str) -> list[str]:
    scores = [number(row[f"{name}_{when}"], 1 if name.endswith("_mm") else 3) for name in names]
    return [*scores, number(row[f"volume_ml_{when}"], 1)]


def _moved(row: "pd.Series[float]") -> list[str]:
    change, shift = signed(row["volume_percent"], 1), number(row["centroid_shift_mm"], 1)
    return [change, shift, str(int(row["missed"])), str(int(row["hallucinated"]))]


def ejection_sheet(table: pd.DataFrame, header: pd.DataFrame, organ: str) -> Sheet:
    """The ejection fraction of a ventricle, clean and under each attack.

    Args:
        table: of `stats.clinical.ejection_summary`.
        header: model, attack, loss and eps by run.
    """
    models = header["model"].nunique() > 1
    rows = [
        [
            _run(header.loc[row["run"]], models),
            *(number(row[name], 1) for name in ("target", "clean", "adv")),
            signed(row["change"], 1),
            from_to_signed(row["low"], row["high"], 1),
            from_to_signed(row["agreement_low"], row["agreement_high"], 1),
            *(percent(row[f"crossed_{limit}"]) for limit in THRESHOLDS),
        ]
        for _, row in table.iterrows()
    ]
    text = (
        f"Ejection fraction of {organ} in %, from volumes at end diastole and end systole, mean over "
        f"{several(table['patients'], 'patient')}: of the truth, of the clean prediction, under attack. change: from "
        "clean to attacked, in points, with its 95 % interval; agreement: Bland and Altman's limits of single "
        "patients. Last columns: the share of patients that a change carries across the threshold. An empty mask at "
        f"end diastole has the fraction 0. {warning(int(table['patients'].min()))}"
    ).strip()
    columns = ["run", "truth", "clean", "adv", "change", "95 % CI", "agreement", *(f"{t} %" for t in THRESHOLDS)]
    return Sheet("Ejection fractions", columns, rows, text)


def paired_sheet(table: pd.DataFrame, side: Side) -> Sheet:
    """Models two by two under the same attack, or attacks on the same model."""
    common = _common(table, side)
    rows = [
        [
            str(row["new"]),
            str(row["old"]),
            *(str(row[name]) for name in common),
            budget(row),
            signed(row["mean"]),
            from_to_signed(row["low"], row["high"]),
            p_value(row["p_holm"]),
        ]
        for _, row in table.iterrows()
    ]
    n, n_tests = int(table["n"].min()), int(table["p_holm"].notna().sum())
    text = (
        f"Adversarial Dice {'of' if side == 'model' else 'under'} the first {side} minus that "
        f"{'of' if side == 'model' else 'under'} the second, mean over organs, paired over "
        f"{plural(n, 'patient')}; 95 % interval: allows for patients not measured; p: signed-rank on patients' means, "
        f"Holm over the {n_tests} rows{' under an attack' if n_tests < len(table) else ''}. "
        f"{warning(n, n_tests)}"
    ).strip()
    columns = [side, "against", *common, "eps", "difference", "95 % CI", "p"]
    return Sheet(f"{side.capitalize()}s, paired by patient", columns, rows, text, left=2 + len(common))


def _common(table: pd.DataFrame, side: Side) -> list[str]:
    """Columns that both sides have in common; balls are named where several have the same eps."""
    balls = table.groupby("eps")["ball"].nunique().max() > 1
    return (["attack", "loss"] if side == "model" else ["model"]) + (["ball"] if balls else [])


def rank_sheet(table: pd.DataFrame, side: Side) -> Sheet:
    """The shares of draws of patients in which each model, or attack, has each rank."""
    common = _common(table, side)
    places = sorted(set(table.columns) & set(range(1, len(table) + 1)))
    rows = [
        [
            *(str(row[name]) for name in common),
            budget(row),
            str(row[side]),
            f"{row['seen']:.0f}"
            if row["best"] == row["worst"]
            else f"{row['seen']:.0f} ({row['best']}-{row['worst']})",
            *("" if pd.isna(row[place]) else percent(row[place]) for place in places),
        ]
        for _, row in table.iterrows()
    ]
    first = "most" if side == "model" else "least"
    text = (
        f"Rank in adversarial Dice, the {first} first, and the share of random weights of patients in which "
        f"{'a model' if side == 'model' else 'an attack'} has each rank. "
        "In brackets: the 95 % range of a rank, from the intervals of the differences."
    )
    columns = [*common, "eps", side, "rank", *(f"as {place}." for place in places)]
    return Sheet(f"Ranks of {side}s", columns, rows, text, left=2 + len(common))


def factor_sheet(table: pd.DataFrame, factors: Sequence[str]) -> Sheet:
    """Correlations of factors with the Dice that attacks take: a row per attack, organ and factor.

    Args:
        factors: those that were asked for; the table lacks those that are the same everywhere.
    """
    rows = [
        [
            str(row["model"]) or "all",
            " ".join(filter(None, [str(row["attack"]), str(row["loss"] or "")])),
            budget(row),
            str(row["organ"]).replace("_", " "),
            str(row["factor"]).replace("_", " "),
            plural(int(row["n"]), str(row["over"]).removesuffix("s")),
            signed(row["rho"], 2),
            from_to_signed(row["low"], row["high"], 2),
            "-" if pd.isna(row["p_holm"]) else p_value(row["p_holm"]),
        ]
        for _, row in table.iterrows()
    ]
    constant = [name for name in factors if name not in set(table["factor"])]
    n_rows = int(table.groupby("organ")["p_holm"].count().max())
    text = (
        "rho: Spearman's rank correlation of a factor with the Dice that the attack takes, over patients of a model or "
        f"over models; 95 % interval: bootstrap of patients and of one not measured; p: permutations, Holm over "
        f"the {plural(n_rows, 'row')} of an organ. A correlation is no cause."
        + (f" The same in all runs, and left out: {', '.join(constant)}." if constant else "")
    )
    columns = ["model", "attack", "eps", "organ", "factor", "over", "rho", "95 % CI", "p"]
    return Sheet("Factors", columns, rows, text, left=5)
