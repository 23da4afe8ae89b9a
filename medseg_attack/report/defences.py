"""Tables of trials: one per organ, a column per model, what each kind of attack leaves, and a verdict. No torch."""

from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from medseg_attack.errors import InputError, plural
from medseg_attack.metrics.empty import EMPTY_RULES, Empty
from medseg_attack.report.sheet import PARTIAL, Sheet, between, each_caption_once, from_to_signed, number, signed
from medseg_attack.runs.reading import read_runs, with_distinct_models
from medseg_attack.runs.stored_files import STUDY_FILE, TRIAL_FILE, StoredTrial
from medseg_attack.stats.defences import NATIVE_ONLY, PARTS, worths
from medseg_attack.stats.patients import warning
from medseg_attack.stats.scores import Unit
from medseg_attack.storage.json_files import read_json

FOLDERS = {part: part for part in PARTS[:2]} | {"harder": "adaptive"} | {part: part for part in PARTS[2:]}
AGAIN = " again"  # after the name of a native run that counts as an adaptive one, too
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


def trials(folder: Path) -> list[Path]:
    """The folders of finished trials at or below a folder, sorted."""
    return sorted(file.parent.parent for file in folder.rglob(f"native/{TRIAL_FILE}"))


def unfinished_trials(folder: Path) -> list[Path]:
    """The folders at or below a folder whose trial did not finish, or is of a version that kept no facts, sorted."""
    begun = {file.parent.parent for file in folder.rglob(f"native/{STUDY_FILE}")}
    return sorted(trial for trial in begun if (trial / "queries").is_dir() and trial not in trials(folder))


def trial_rows(folder: Path) -> pd.DataFrame:
    """The rows of all runs of a trial, each with its part, and the passes of its model for one answer.

    Attacks of the native part that have nothing to know, because the model declares nothing, count as adaptive, too.

    Raises:
        InputError: a run of it did not finish or is damaged.
    """
    facts = read_json(folder / "native" / TRIAL_FILE, StoredTrial)
    folders = {name: part for name, part in FOLDERS.items() if (folder / name).is_dir()}
    tables = [read_runs([folder / name], allow_partial=True).assign(part=part) for name, part in folders.items()]
    native = tables[0]
    as_adaptive = native[(native["role"] == "attack") & (native["knowledge"] != "native")]
    tables.append(as_adaptive.assign(part="adaptive", run=as_adaptive["run"] + AGAIN))
    rows = with_distinct_models(pd.concat(tables, ignore_index=True))
    return rows.assign(passes=rows["label"].map(facts["passes"]).fillna(1))


def trial_table(folder: Path, rows: pd.DataFrame, *, unit: Unit, empty: Empty) -> pd.DataFrame:
    """The table of a trial, see `stats.defences.worths`.

    Args:
        rows: of `trial_rows`.
    """
    facts = read_json(folder / "native" / TRIAL_FILE, StoredTrial)
    names = dict(zip(rows["label"], rows["model"], strict=True))
    if facts["twin"] not in names:
        raise InputError(
            f"expected the runs of {facts['twin']}, the twin of the trial in {folder}, got none; run medattack defend "
            "again"
        )
    unknown = {names[label]: text for label, text in facts["non_adaptive"].items() if label in names}
    return worths(rows, names[facts["twin"]], unknown, unit=unit, empty=empty)


def trial_sheets(table: pd.DataFrame, *, unit: Unit, empty: Empty) -> Iterator[Sheet]:
    """One table per organ, the mean over organs first; several where there are many models. Their caption stands once.

    Args:
        table: of `stats.defences.worths`.
    """
    yield from each_caption_once(_organ_sheets(table, unit, empty))


def _organ_sheets(table: pd.DataFrame, unit: Unit, empty: Empty) -> Iterator[Sheet]:
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
    caption = " ".join(
        (
            *([PARTIAL] if "partial" in models and models["partial"].any() else []),
            f"Dice per {unit} with 95 % interval over {plural(n, 'patient')}; of several attacks the worst of each "
            f"case. Differences are paired by patient. Empty masks: {EMPTY_RULES[empty]}. "
            "non_adaptive: no attack of the trial knows the defence, which has no rank.",
            warning(n),
        )
    ).strip()
    rules = frozenset({n_levels - 2, n_levels - 1, n_levels + len(DIFFERENCES) - 1})
    return Sheet(title, heads, rows, caption, left=len(heads), rules=rules)


def _level(row: "pd.Series[float]", kind: str) -> str:
    low, high = row[f"{kind}_low"], row[f"{kind}_high"]
    text = number(row[kind])
    return text if low != low or kind == "noise" else f"{text} {between(low, high)}"


def _difference(row: "pd.Series[float]", name: str) -> str:
    if row["is_twin"] or row[name] != row[name]:
        return ""
    low, high = row[f"{name}_low"], row[f"{name}_high"]
    return signed(row[name]) + ("" if low != low else f" {from_to_signed(low, high)}")


def conclusion(table: pd.DataFrame) -> list[str]:
    """A sentence on each defended model, on the mean over organs; models that look too robust come first."""
    rows = [row for _, row in table[(table["organ"] == "mean") & ~table["is_twin"]].iterrows()]
    rows = sorted(rows, key=lambda row: row["verdict"] != NATIVE_ONLY)
    return [f"{row['model']}: {row['verdict']}" for row in rows]
