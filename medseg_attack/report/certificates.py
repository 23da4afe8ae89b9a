"""The table and the curve of a certificate. No torch in here."""

from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from medseg_attack.errors import plural
from medseg_attack.escaping import figure as figure_text
from medseg_attack.report.colours import organ_colours
from medseg_attack.report.figures import empty_figure, save
from medseg_attack.report.sheet import PARTIAL, Sheet, between, number, percent
from medseg_attack.stats.patients import interval, mean_score, warning

if TYPE_CHECKING:
    from medseg_attack.certificates.base import Certificate

BOUNDS = {  # in words, by what is bounded
    "Dice": "Least Dice",
    "ml": "Least and greatest volume in ml",
    "%": "Least and greatest ejection fraction in %",
}
SCORED = {"Dice": "volume", "ml": "volume", "%": "pair"}  # what a bound is of; a pair is of both phases of a heart
SHARES = ("abstained", "information")  # columns of the table where a certificate has them


def certificate_summary(rows: pd.DataFrame, quantity: str) -> pd.DataFrame:
    """One row per radius: the certified value of each class, mean over scans, and the mean over classes with interval.

    Args:
        quantity: "Dice", whose bound is from below, or "ml", which is bounded from both sides.
    """
    result = []
    for radius, of_radius in rows.groupby("radius", sort=True):
        row: dict[str, float] = {"radius": float(str(radius))}
        for cls, of_class in of_radius.groupby("cls", sort=False):
            row |= {f"{cls}_{column}": of_class[column].mean() for column in ("clean", "value", "low", "high")}
        row |= {f"mean_{column}": mean_score(of_radius, column) for column in ("clean", "value", "low", "high")}
        if quantity == "Dice":
            row["ci_low"], row["ci_high"] = interval(of_radius, "low")
        row |= {column: of_radius[column].mean() for column in SHARES}
        row["rms"] = (of_radius["radius"] / of_radius["pixels"] ** 0.5).mean()
        row["rms_native"] = (of_radius["radius"] / of_radius["pixels"] ** 0.5 * of_radius["width"]).mean()
        result.append(row)
    return pd.DataFrame(result)


def certificate_sheet(
    rows: pd.DataFrame, certificate: "Certificate", *, title: str, unit: str, prompt: str, partial: bool
) -> Sheet:
    """The table of what is certified at each radius, per class.

    Args:
        unit: of the window's intensities, such as "HU"; "" where it is not known.
        prompt: how a promptable model's prompts are drawn from the truth, in words; "" of any other.
        partial: whether part of the cases is certified.
    """
    quantity = certificate.quantity
    table = certificate_summary(rows, quantity)
    classes = list(dict.fromkeys(rows["cls"]))
    is_dice = quantity == "Dice"
    native = unit if unit and table["rms_native"].notna().all() else ""
    is_norm = "L2 norm" in certificate.measure
    columns = ["radius", *([f"rms {native or '1/255'}"] if is_norm else [])]
    columns += [*classes, *(["mean", "95 % CI"] if is_dice else [])]
    shares = [column for column in SHARES if table[column].notna().any()]
    columns += shares
    first = table.iloc[0]
    lines = []
    for name, column in (("plain", "clean"), ("certified", "value")):
        cells = [number(first[f"{cls}_{column}"], 3 if is_dice else 1) for cls in classes]
        cells += [number(first[f"mean_{column}"]), ""] if is_dice else []
        lines.append([name, *([""] if is_norm else []), *cells, *("" for _ in shares)])
    for _, row in table.iterrows():
        if is_dice:
            cells = [number(row[f"{cls}_low"]) for cls in classes]
            cells += [number(row["mean_low"]), between(row["ci_low"], row["ci_high"])]
        else:
            cells = [f"{row[f'{cls}_low']:.1f}-{row[f'{cls}_high']:.1f}" for cls in classes]
        size = row["rms_native"] if native else 255 * row["rms"]
        cells += [percent(row[column]) for column in shares]
        lines.append([f"{row['radius']:.4g}", *([f"{size:.2g}"] if is_norm else []), *cells])
    patients, scans = rows["group"].nunique(), rows["volume"].nunique()
    rms = "; rms: its root mean square per pixel" if is_norm else ""
    policy = f"All of it is of the model given a {prompt}, which no change of the scan moves. " if prompt else ""
    doubt = f"{PARTIAL} " if partial else ""
    return Sheet(
        title,
        columns,
        lines,
        f"{doubt}{BOUNDS[quantity]} per {SCORED[quantity]}, certified within each radius: {certificate.measure}{rms}. "
        f"{plural(scans, SCORED[quantity])} of {plural(patients, 'patient')}. {certificate.promise} {policy}"
        f"{warning(patients)}".strip(),
        left=1,
        rules=frozenset({1}),
    )


def certificate_curve(rows: pd.DataFrame, certificate: "Certificate", file: Path) -> None:
    """Draws what is certified over the radius, a line per class; for volumes the band between both bounds."""
    quantity = certificate.quantity
    table = certificate_summary(rows, quantity)
    figure = empty_figure(7, 4.5)
    axes = figure.subplots()
    for cls, colour in organ_colours(list(dict.fromkeys(map(str, rows["cls"])))).items():
        axes.plot(table["radius"], table[f"{cls}_low"], marker="o", ms=3, color=colour, label=figure_text(cls))
        if quantity != "Dice":
            axes.plot(table["radius"], table[f"{cls}_high"], marker="o", ms=3, color=colour)
            axes.fill_between(table["radius"], table[f"{cls}_low"], table[f"{cls}_high"], color=colour, alpha=0.12)
    name = "L2 radius, in [0, 1] of the window" if "L2 norm" in certificate.measure else "columns of the patch"
    axes.set(xlabel=name, ylabel=f"certified {quantity}")
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    figure.legend(fontsize=8, loc="outside lower left", ncols=4)
    save(figure, file)
