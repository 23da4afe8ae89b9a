"""The table of scores of clean or stored images."""

from pathlib import Path

import pandas as pd

from medseg_attack.errors import plural
from medseg_attack.metrics.empty import EMPTY_RULES, Empty
from medseg_attack.registry.grammar import Literal
from medseg_attack.report.sheet import PARTIAL, Sheet, between, number
from medseg_attack.runs.reading import ids_of
from medseg_attack.runs.stored_specs import attack_spec
from medseg_attack.stats.scores import MEAN, Unit


def score_sheet(table: pd.DataFrame, *, unit: Unit, empty: Empty) -> Sheet:
    """Scores of clean or stored images: a row per run and organ, and one of the mean over the organs of a run."""
    facts = ["run", "cls", "cases", "touched", "model", "attack", "eps", "data", "split", "partial"]
    spread = ["low", "high", "sd"]
    known = {"dice", *facts, *spread, *(f"{name}_of_mean" for name in spread)}
    measures = [column for column in table.columns if column not in known]
    names = _run_names(table)
    several = len(names) > 1
    rows: list[list[str]] = []
    for run, of_run in table.groupby("run", sort=False):
        name = [names[str(run)]] if several else []
        means = of_run[["dice", *measures]].mean()
        for _, row in of_run.iterrows():
            dice = [number(row["dice"]), between(row["low"], row["high"]), number(row["sd"])]
            rows.append([*name, str(row["cls"]), *dice, *(number(row[measure]) for measure in measures)])
        low, high, sd = (of_run.iloc[0][f"{end}_of_mean"] for end in spread)
        dice = [number(means["dice"]), between(low, high), number(sd)]
        rows.append([*name, MEAN, *dice, *(number(means[measure]) for measure in measures)])
    first = table.iloc[0]
    text = (
        f"Dice and IoU per {unit}, {plural(first['cases'], unit)} ({first['split']} split). 95 % CI, SD: of Dice, "
        "over patients, the interval by Gaffke. "
        f"Empty masks: {EMPTY_RULES[empty]}; decided {int(table['touched'].sum())} scores. Other measures per scan, in "
        "3-D; an organ in neither mask is left out, one in one mask alone counts as the grid's diagonal (mm) or 0."
    )
    partial = f" {PARTIAL}" if table["partial"].any() else ""
    title = f"{first['model']} on {first['data']}: {'clean images' if first['attack'] == 'clean' else 'stored images'}"
    columns = [*(["run"] if several else []), "organ", "dice", "95 % CI", "SD", *measures]
    classes = list(map(str, table["cls"].unique()))
    return Sheet(title, columns, rows, text + partial, left=2 if several else 1, organs=classes)


def _run_names(table: pd.DataFrame) -> dict[str, str]:
    """The name of each run, or of the run whose images it scores: its folder's, after its model's where they repeat."""
    folders = {str(row["run"]): _scored_run(row) for _, row in table.drop_duplicates("run").iterrows()}
    names = {run: folder.name for run, folder in folders.items()}
    if len(set(names.values())) == len(names):
        return names
    return {run: ids_of(folder)["run_id"] for run, folder in folders.items()}


def _scored_run(row: "pd.Series[float]") -> Path:
    """The folder of the run whose images are scored: the run itself, or the one that it replays."""
    attack = attack_spec(str(row["attack"]))
    fields = {name: node.value for name, node in attack.keywords if isinstance(node, Literal)}
    return Path(str(fields["run"] if attack.name == "replay" else row["run"]))
