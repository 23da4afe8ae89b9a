"""The meaning of a table's numbers, in sentences below it."""

import pandas as pd

from medseg_attack.errors import listed, plural
from medseg_attack.metrics.empty import EMPTY_RULES, Empty
from medseg_attack.report.sheet import PARTIAL
from medseg_attack.report.tables.columns import aims, shares
from medseg_attack.report.tables.summaries import by_text, has_goals, has_unlike_cases, several
from medseg_attack.stats.patients import FEW, warning
from medseg_attack.stats.scores import Unit


def caption(
    summary: pd.DataFrame, *, unit: Unit, empty: Empty, hidden: int = 0, costs: bool = False, dice_only: bool = False
) -> str:
    """The meaning of a table's numbers, in sentences.

    Args:
        hidden: organs that the table leaves out.
        costs: it shows passes and seconds in place of shares.
        dice_only: it shows neither.
    """
    parts = [
        *_doubts(summary),
        f"Dice per {unit}, {several(summary['cases'], unit)} of {several(summary['patients'], 'patient')} "
        f"({', '.join(dict.fromkeys(summary['split']))} split); 95 % CI: of the mean, Gaffke over "
        "patients.",
        f"Empty masks: {EMPTY_RULES[empty]}; decided {int(summary['touched'].max())} of "
        f"{int(summary['entries'].max())} scores.",
        *_prompts(summary),
    ]
    if costs:
        parts.append("Passes: per case, without a fit's; s: of the whole run, with its fit.")
    elif shares(summary) and not dice_only:
        parts.append(
            "rel. drop: of the mean; < half: share of scores below half their clean Dice; missed: share of organs "
            "found on the clean image and lost under attack."
        )
    n_least = int(summary["patients"].min())
    if n_least < FEW:
        parts.append(warning(n_least))
    if summary["verified"].any():
        parts.append(f"Verified from disk: {int(summary['verified'].sum())} of {len(summary)} runs.")
    if aims(summary) and not dice_only:
        parts.append(
            "success: share of images that met the attack's goal or criterion (in brackets: of untouched images); "
            "least: median size of the change, in its ball's norm, where untouched images did not."
        )
        if has_goals(summary):
            parts.append("on truth: share that misses the truth by that criterion; goal Dice: Dice with the goal.")
    if "knowledge" in summary and (summary["knowledge"] == "native").any():
        parts.append("non_adaptive: the attack does not know the model's defence; no such number ranks.")
    if units := _units(summary):
        parts.append(f"eps: {units}.")
    if hidden:
        parts.append(f"Not shown: {plural(hidden, 'organ')} with smaller drops; --csv and --json have all.")
    return " ".join(parts)


def _prompts(summary: pd.DataFrame) -> list[str]:
    """A sentence on each kind of prompts that promptable models get."""
    if "prompt" not in summary:
        return []
    prompted = summary[summary["prompt"].fillna("") != ""]
    owner = {policy: listed(list(dict.fromkeys(of["model"]))) for policy, of in by_text(prompted, "prompt")}
    is_of_several = summary["model"].nunique() > 1
    return [f"Dice{f' of {models}' if is_of_several else ''} given a {policy}." for policy, models in owner.items()]


def _doubts(summary: pd.DataFrame) -> list[str]:
    """Sentences on runs whose numbers say less than they seem to."""
    sentences = []
    if summary["partial"].any():
        sentences.append(PARTIAL)
    if has_unlike_cases(summary):
        sentences.append("UNLIKE: the runs are of different cases, which moves Dice, too.")
    if "checks" in summary and not summary["checks"].all():
        n = int((~summary["checks"].astype(bool)).sum())
        sentences.append(f"NOT CHECKED: {n} of {plural(len(summary), 'run')} made with --no-checks.")
    return sentences


def _units(summary: pd.DataFrame) -> str:
    """The units of `eps` of attacks whose ball has one of its own; "" if there is none."""
    if "eps_unit" not in summary:
        return ""
    own = summary[summary["eps_unit"].fillna("") != ""]
    return "; ".join(
        f"of {listed(list(dict.fromkeys(of_unit['attack'])))} in {unit}" for unit, of_unit in by_text(own, "eps_unit")
    )


def queries(summary: pd.DataFrame) -> str:
    """The queries per case of attacks that know no gradient, in a sentence; "" if there is no such attack."""
    if "queries" not in summary:
        return ""
    by_queries = summary[summary["queries"].eq(True)]
    each = {f"{row['attack']} {row['forwards']:.0f}": None for _, row in by_queries.iterrows()}
    return f" Queries per case, no gradients: {', '.join(each)}." if each else ""
