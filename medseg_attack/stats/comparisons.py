"""Differences between models, or attacks, on the same cases, paired by patient. No torch in here.

Which runs may be compared with a reference is decided in `runs.pairs`.
"""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from medseg_attack.metrics.empty import Empty
from medseg_attack.runs.rows import NAMES
from medseg_attack.stats.patients import change, holm, paired, pairwise, rank_stability
from medseg_attack.stats.scores import Unit, by_organ, pooled, scored

Side = Literal["model", "attack"]


def by_pair(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows with their pair as their run: a run of the reference may be the like of several new ones."""
    return rows.assign(run=rows["pair"])


def changes(new: pd.DataFrame, old: pd.DataFrame, *, unit: Unit, empty: Empty) -> pd.DataFrame:
    """New runs against those of a reference (rows of one `pair`): Dice of both, per organ and on average.

    Columns: model, attack, loss, eps, organ ("mean": of all), clean_old, clean_new, adv_old, adv_new; mean, low, high
    and p of the adversarial difference, new minus old; p_holm over all attacks' rows of the same organ; n patients.
    """
    after, before = (scored(pooled(by_pair(rows), unit), empty) for rows in (new, old))
    levels = {
        f"{when}_{name}": by_organ(cases, f"dice_{when}").to_dict("index")
        for name, cases in (("old", before), ("new", after))
        for when in ("clean", "adv")
    }
    differences = dict(iter(paired(after, before, "dice_adv", within=["run"]).groupby("run")))
    headers = new.drop_duplicates("pair").set_index("pair")[[*NAMES, "role", "ball"]].to_dict("index")
    table = []
    for pair, of_pair in after.groupby("run", sort=False):
        for organ in ["mean", *dict.fromkeys(of_pair["cls"])]:
            cases = differences[pair]
            level = {name: of_pairs[pair][organ] for name, of_pairs in levels.items()}
            result = change(cases if organ == "mean" else cases[cases["cls"] == organ])
            table.append(headers[pair] | {"organ": organ} | level | vars(result))
    frame = pd.DataFrame(table)
    counted = frame["p"].where(frame["role"] != "control")
    return frame.assign(p_holm=counted.groupby(frame["organ"], sort=False).transform(lambda p: holm(p.tolist())))


def _sides(
    rows: pd.DataFrame, side: Side, unit: Unit, empty: Empty
) -> Iterator[tuple[dict[str, Any], dict[str, pd.DataFrame]]]:
    """The settings that several sides share, and the cases of each side.

    Attacks have one set of weights in common: the folder that their runs lie in.
    """
    weights = {run: Path(run).parent.name for run in rows["run"].unique()}
    rows = rows.assign(weights=rows["run"].map(weights), loss=rows["loss"].fillna(""))
    keys = {"model": ["attack", "loss", "role"], "attack": ["model", "weights"]}[side] + ["eps", "ball"]
    for key, same in rows.groupby(keys, sort=False, dropna=False):
        first = same.drop_duplicates("run").set_index("run")
        names = dict(first["model"] if side == "model" else (first["attack"] + " " + first["loss"]).str.strip())
        if len(names) < 2:
            continue
        uses = Counter(names.values())  # the same attack in two studies, or two seeds of it
        folders = {run: "/".join(Path(run).parts[-2:]) for run in names}
        folders = folders if len(set(folders.values())) == len(folders) else {run: run for run in names}
        labels = {run: name if uses[name] == 1 else f"{name} ({folders[run]})" for run, name in names.items()}
        rows_of = dict(iter(same.groupby("run", sort=False)))  # not looked for once per run: n runs would take n²
        cases = {labels[run]: scored(pooled(rows_of[run], unit), empty) for run in names}
        yield dict(zip(keys, key, strict=True)), cases


def between(rows: pd.DataFrame, side: Side, *, unit: Unit, empty: Empty) -> pd.DataFrame:
    """Every two models under the same attack, or attacks on the same model, in the same ball.

    Columns: those that both have in common, and those of `pairwise` on adversarial Dice; Holm over all rows, but for
    models under a control, which is no claim.
    """
    tables = [
        pairwise(cases, "dice_adv", bounds=(0.0, 1.0)).assign(**facts)
        for facts, cases in _sides(rows, side, unit, empty)
    ]
    if not tables:
        return pd.DataFrame()
    frame = pd.concat(tables, ignore_index=True)
    counted = frame["p"].where(frame["role"] != "control") if side == "model" else frame["p"]
    return frame.assign(p_holm=holm(counted.tolist()))


def ranks(rows: pd.DataFrame, side: Side, *, unit: Unit, empty: Empty) -> pd.DataFrame:
    """The rank of each model, or attack, in adversarial Dice (`seen`), and the share of bootstrap draws with each rank.

    The first model is the one with most Dice left; the first attack the one that leaves least. No model ranks by an
    attack that does not know its defence.
    """
    if side == "model" and "knowledge" in rows:
        rows = rows[rows["knowledge"] != "native"]
    tables = [
        rank_stability(cases, "dice_adv", lower_is_better=side == "attack", bounds=(0.0, 1.0))
        .rename_axis(side)
        .reset_index()
        .assign(**facts)
        for facts, cases in _sides(rows, side, unit, empty)
    ]
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()
