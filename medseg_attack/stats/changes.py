"""What differs between models on the same cases, paired by patient. No torch in here."""

from collections import Counter
from collections.abc import Iterator
from typing import Any

import pandas as pd

from medseg_attack.stats.patients import difference, holm, paired, pairwise, rank_stability
from medseg_attack.stats.scores import Empty, Unit, by_organ, pooled, scored

HEADER = ["model", "attack", "loss", "eps"]


def changes(new: pd.DataFrame, old: pd.DataFrame, *, unit: Unit, empty: Empty) -> pd.DataFrame:
    """New runs against those of a reference (rows of one `pair`): Dice of both, per organ and on average.

    Columns: model, attack, loss, eps, organ ("mean": of all), clean_old, clean_new, adv_old, adv_new; mean, low, high
    and p of the adversarial difference, new minus old; p_holm over all rows of the same organ; n patients.
    """
    table = []
    for pair, of_new in new.groupby("pair", sort=False):
        after, before = (scored(pooled(rows, unit), empty) for rows in (of_new, old[old["pair"] == pair]))
        facts = of_new.iloc[0][HEADER].to_dict()
        levels = {
            f"{when}_{name}": by_organ(cases, f"dice_{when}").iloc[0]
            for name, cases in (("old", before), ("new", after))
            for when in ("clean", "adv")
        }
        for organ in ["mean", *dict.fromkeys(after["cls"])]:
            one, other = (cases if organ == "mean" else cases[cases["cls"] == organ] for cases in (after, before))
            level = {name: float(of_organs[organ]) for name, of_organs in levels.items()}
            table.append(facts | {"organ": organ} | level | vars(difference(paired(one, other, "dice_adv"))))
    frame = pd.DataFrame(table)
    return frame.assign(p_holm=frame.groupby("organ", sort=False)["p"].transform(lambda p: holm(p.tolist())))


def _of_models(
    rows: pd.DataFrame, unit: Unit, empty: Empty
) -> Iterator[tuple[dict[str, Any], dict[str, pd.DataFrame]]]:
    """Each attack's facts and its models' cases, where there are several."""
    keys = ["attack", "loss", "eps"]
    for key, same in rows.groupby(keys, sort=False, dropna=False):
        names = {str(run): str(of_run["model"].iloc[0]) for run, of_run in same.groupby("run", sort=False)}
        if len(names) < 2:
            continue
        uses = Counter(names.values())  # two sets of weights may bear one name
        labels = {run: name if uses[name] == 1 else f"{name} ({run})" for run, name in names.items()}
        cases = {labels[run]: scored(pooled(same[same["run"] == run], unit), empty) for run in names}
        yield dict(zip(keys, key, strict=True)), cases


def between_models(rows: pd.DataFrame, *, unit: Unit, empty: Empty) -> pd.DataFrame:
    """Every two models under the same attack: their paired difference in adversarial Dice, Holm over all."""
    tables = [pairwise(models, "dice_adv").assign(**facts) for facts, models in _of_models(rows, unit, empty)]
    if not tables:
        return pd.DataFrame(columns=["attack", "loss", "eps", "new", "old", "mean", "low", "high", "p", "n", "p_holm"])
    frame = pd.concat(tables, ignore_index=True)
    return frame.assign(p_holm=holm(frame["p"].tolist()))


def ranks(rows: pd.DataFrame, *, unit: Unit, empty: Empty) -> pd.DataFrame:
    """Per attack and model: its rank in adversarial Dice (`seen`) and the share of bootstrap draws with each rank."""
    tables = [
        rank_stability(models, "dice_adv").rename_axis("model").reset_index().assign(**facts)
        for facts, models in _of_models(rows, unit, empty)
    ]
    return (
        pd.concat(tables, ignore_index=True)
        if tables
        else pd.DataFrame(columns=["attack", "loss", "eps", "model", "seen"])
    )
