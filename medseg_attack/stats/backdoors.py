"""Success of triggers, from the rows of the attack `trigger`: how many pixels and scans a backdoor turns. No torch."""

import pandas as pd
from scipy.stats import binom

from medseg_attack.metrics.empty import Empty
from medseg_attack.stats.patients import interval, mean_score
from medseg_attack.stats.scores import Unit, pooled, scored

COUNTED = ["n_taken", "hit_taken", "hit_taken_of_clean"]
INDEPENDENT = 20  # models that say how often a trigger succeeds by chance, at least
DIFFERS = ["n_goal", "hit_goal", "n_adv", "n_target_adv", "hit_adv"]


def has_triggers(rows: pd.DataFrame) -> bool:
    """Whether a run put the trigger of a poison on images."""
    return "n_taken" in rows and bool(rows["n_taken"].notna().any())


def backdoors(rows: pd.DataFrame, *, unit: Unit, empty: Empty) -> pd.DataFrame:
    """One row per run of `trigger`, with the measures of a backdoor.

    Returns:
        model, attack: of the run. knowledge: whether the trigger knows how the model's training removes backdoors:
        "adaptive", "native", or "" where it removes none. victims: the classes that the goal takes pixels from.
        clean: mean Dice over classes of images without the trigger. others: the same of images with it, over classes
        that the goal leaves alone.
        pixels: of the pixels that the goal takes away, the share that is predicted as it wants; pixels_of_clean: the
        same of images without the trigger. Pooled over a patient, then the mean over patients.
        scans: share of scans that the goal changes whose prediction differs from the goal in fewer pixels than from
        the truth, and whose Dice with the goal, pooled over classes, is 0.5 or more.
        pixels_low, pixels_high, scans_low, scans_high: their 95 % intervals over patients.
        share: mean share of values that the trigger changes, or the size of the change in the attack's ball.
        linf: mean of the largest change of a value.
    """
    with_trigger = rows[rows["n_taken"].notna()]
    result = []
    for (run, model, attack), of_run in with_trigger.groupby(["run", "model", "attack"], sort=False):
        cases = scored(pooled(of_run, unit), empty)
        taken = of_run.groupby("cls", sort=False)["n_taken"].sum()
        victims = [str(name) for name in taken.index[taken > 0]]
        others = cases[~cases["cls"].isin(victims)]
        pixels, scans = _pixels(of_run), _scans(of_run)
        row = {
            "run": run,
            "model": model,
            "attack": attack,
            "knowledge": _knowledge(of_run),
            "victims": ", ".join(victims),
        }
        row |= {"clean": mean_score(cases, "dice_clean"), "others": mean_score(others, "dice_adv")}
        for name, table, score in (
            ("pixels", pixels, "pixels"),
            ("pixels_of_clean", pixels, "pixels_of_clean"),
            ("scans", scans, "reached"),
        ):
            row[name] = float(table[score].mean())
            row[f"{name}_low"], row[f"{name}_high"] = interval(table, score)
        each = of_run.drop_duplicates("case")
        row |= {"share": float(each["size"].mean()), "linf": float(each["linf"].mean())}
        result.append(row | {"patients": pixels["group"].nunique()})
    return pd.DataFrame(result)


def ownership(rows: pd.DataFrame, suspect: str) -> pd.DataFrame:
    """One row per trigger that was put on the suspect: does it answer to a watermark more often than others do?

    The owner of a model plants a secret trigger in it. A copy may answer to it, too. Each patient of whom the trigger
    turns all scans counts once, since scans of a patient are alike.

    Args:
        rows: of runs of `trigger` on the suspect and on models that are independent of the owner's, all others.

    Returns:
        attack: the trigger. reached, patients: of the suspect. models: how many independent ones there are.
        chance: share of patients whom it reaches on these, (hits + 1) / (patients + 1), so that it is never 0.
        p: P(Bin(patients, chance) >= reached). as_many: independent models on which it reaches as large a share.
    """
    own = rows[rows["n_taken"].notna() & (rows["role"] == "attack")]
    result = []
    for attack, of_attack in own.groupby("attack", sort=False):
        models = {str(name): _patients_reached(of_model) for name, of_model in of_attack.groupby("model", sort=False)}
        if suspect not in models:
            continue
        reached, others = models.pop(suspect), pd.concat([*models.values(), pd.Series(dtype=float)])
        hits, n = int(reached.sum()), len(reached)
        chance = (others.sum() + 1) / (len(others) + 1)
        row = {"suspect": suspect, "attack": attack, "reached": hits, "patients": n, "models": len(models)}
        row |= {"chance": float(chance), "p": float(binom.sf(hits - 1, n, chance))}
        result.append(row | {"as_many": sum(bool(other.mean() >= reached.mean()) for other in models.values())})
    return pd.DataFrame(result)


def _patients_reached(rows: pd.DataFrame) -> "pd.Series[float]":
    """1 for each patient of whom the trigger turns all scans that it is to change, 0 for others."""
    reached: pd.Series[float] = _scans(rows).groupby("group", sort=False)["reached"].min()
    return reached


def _knowledge(rows: pd.DataFrame) -> str:
    """The knowledge of a run; "" of runs from before it was stored."""
    return str(rows["knowledge"].fillna("").iloc[0]) if "knowledge" in rows else ""


def _pixels(rows: pd.DataFrame) -> pd.DataFrame:
    """Per patient from whom the goal takes pixels, the shares of those that predictions give up as it wants."""
    counts = rows.groupby("group", sort=False)[COUNTED].sum().reset_index()
    counts = counts[counts["n_taken"] > 0]
    return counts.assign(
        unit=counts["group"],
        cls="all",
        pixels=counts["hit_taken"] / counts["n_taken"],
        pixels_of_clean=counts["hit_taken_of_clean"] / counts["n_taken"],
    )


def _scans(rows: pd.DataFrame) -> pd.DataFrame:
    """Per scan that the goal changes, whether the prediction came nearer to the goal than to the truth."""
    counts = rows.groupby(["group", "volume"], sort=False)[[*DIFFERS, "n_taken"]].sum().reset_index()
    counts = counts[counts["n_taken"] > 0]
    from_goal = counts["n_goal"] + counts["n_adv"] - 2 * counts["hit_goal"]
    from_truth = counts["n_target_adv"] + counts["n_adv"] - 2 * counts["hit_adv"]
    total = counts["n_goal"] + counts["n_adv"]
    dice = (2 * counts["hit_goal"] / total.where(total > 0)).fillna(1.0)
    reached = ((from_goal < from_truth) & (dice >= 0.5)).astype(float)
    return counts.assign(unit=counts["volume"], cls="all", reached=reached)
