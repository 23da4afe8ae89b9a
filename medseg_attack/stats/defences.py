"""The worth of a defence: its model against its undefended twin, per organ and patient. No torch in here."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from medseg_attack.metrics.empty import Empty
from medseg_attack.stats.patients import TESTS_FROM, Difference, difference, interval, mean_score, paired
from medseg_attack.stats.scores import MEAN, Unit, pooled, scored

GAIN = 0.02  # of Dice: less than that is no help
HELPS = "helps"
NATIVE_ONLY = "helps only against attacks that do not know it"
USELESS = "does not help"
PARTS = ("native", "adaptive", "transfer", "queries")


def verdict(worst: Difference, native: Difference, hidden: Difference) -> str:
    """The effect of a defence, in words; an interval over patients decides, and few patients decide nothing.

    Args:
        worst: Dice of the defended model less that of its twin, each under its worst attack case by case.
        native: the same under the attacks that do not know the defence.
        hidden: Dice of the defended model under these less that under all.
    """
    if worst.n < TESTS_FROM:
        return f"not decided with {worst.n} patients"
    if worst.low > 0 and worst.mean > GAIN:
        return HELPS
    if native.low > 0 and native.mean > GAIN and hidden.low > 0:
        return NATIVE_ONLY
    if worst.high < GAIN:
        return USELESS
    return f"not decided with {worst.n} patients"


def worths(rows: pd.DataFrame, twin: str, non_adaptive: Mapping[str, str], *, unit: Unit, empty: Empty) -> pd.DataFrame:
    """A row per organ ("mean": over them) and model, the twin first, then the defended models by their worst Dice.

    A model that no attack knows comes last, and has no verdict but `non_adaptive`.

    Args:
        rows: of all runs, with a column `part`, one of `PARTS`.
        twin: name of the undefended model.
        non_adaptive: names of the models that no attack knows, and why.
    """
    cases = scored(pooled(rows, unit), empty).merge(
        rows.drop_duplicates("run")[["run", "model", "part", "role", "attack"]], on="run"
    )
    organs = [MEAN, *dict.fromkeys(cases["cls"])]
    table = []
    for organ in organs:
        of_organ = cases if organ == MEAN else cases[cases["cls"] == organ]
        of_models = {str(model): Scores(of_model) for model, of_model in of_organ.groupby("model", sort=False)}
        for name, scores in of_models.items():
            facts = {"organ": organ, "model": name, "is_twin": name == twin, "patients": scores.patients}
            table.append(facts | scores.levels() | _against(scores, of_models[twin], non_adaptive.get(name)))
    frame = pd.DataFrame(table)
    if "passes" in rows:
        passes = rows.drop_duplicates("model").set_index("model")["passes"]
        frame["passes"] = frame["model"].map(passes)
    if "partial" in rows:
        frame["partial"] = bool(rows["partial"].any())
    order = pd.DataFrame(
        {
            "organ": frame["organ"].map(organs.index),
            "twin": ~frame["is_twin"],
            "unknown": frame["model"].isin(list(non_adaptive)),
            "worst": -frame["worst"],
        }
    )
    return frame.loc[order.sort_values(["organ", "twin", "unknown", "worst"], kind="stable").index].reset_index(
        drop=True
    )


class Scores:
    """The Dice of one model by part; of several attacks the worst of each case and organ counts."""

    def __init__(self, cases: pd.DataFrame) -> None:
        self.cases = cases
        self.attacks = cases[cases["role"] == "attack"]

    @property
    def patients(self) -> int:
        return int(self.cases["group"].nunique())

    def worst(self, parts: Sequence[str] = PARTS) -> pd.DataFrame:
        """The lowest Dice of each case and organ under the attacks of these parts; empty without any."""
        chosen = self.attacks[self.attacks["part"].isin(list(parts))]
        return chosen.groupby(["group", "unit", "cls"], sort=False)["dice_adv"].min().reset_index()

    def clean(self) -> pd.DataFrame:
        """The clean Dice of each case and organ."""
        first = self.cases.drop_duplicates(["group", "unit", "cls"])
        return first[["group", "unit", "cls", "dice_clean"]].rename(columns={"dice_clean": "dice_adv"})

    def noise(self) -> pd.DataFrame:
        """The lowest Dice of each case and organ under the controls."""
        controls = self.cases[self.cases["role"] == "control"]
        return controls.groupby(["group", "unit", "cls"], sort=False)["dice_adv"].min().reset_index()

    def levels(self) -> dict[str, float]:
        """Mean Dice of each kind with its interval over patients; NaN where no run is of that kind."""
        kinds = {"clean": self.clean(), "noise": self.noise(), **{part: self.worst((part,)) for part in PARTS}}
        result = {}
        for kind, cases in (kinds | {"worst": self.worst()}).items():
            result[kind] = mean_score(cases, "dice_adv") if len(cases) else float("nan")
            low, high = interval(cases, "dice_adv") if len(cases) else (float("nan"), float("nan"))
            result |= {f"{kind}_low": low, f"{kind}_high": high}
        return result


def _against(scores: Scores, twin: Scores, unknown: str | None) -> dict[str, Any]:
    """The paired differences to the twin, and the verdict; empty for the twin."""
    if scores is twin:
        return {}
    parts = [part for part in PARTS if part != "transfer"]  # nothing is transferred to the twin
    worst = difference(paired(scores.worst(), twin.worst(parts), "dice_adv"))
    native = difference(paired(scores.worst(("native",)), twin.worst(("native",)), "dice_adv"))
    clean = difference(paired(scores.clean(), twin.clean(), "dice_adv"))
    hidden = difference(paired(scores.worst(("native",)), scores.worst(), "dice_adv"))
    named = {"to_twin": worst, "native_to_twin": native, "clean_to_twin": clean, "hidden": hidden}
    numbers = {
        f"{name}{end}": value
        for name, each in named.items()
        for end, value in (("", each.mean), ("_low", each.low), ("_high", each.high))
    }
    text = f"non_adaptive ({unknown})" if unknown else verdict(worst, native, hidden)
    return {**numbers, "p": worst.p, "verdict": text}
