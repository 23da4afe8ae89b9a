"""The answers of readers: CSV files that the page of a study saved, beside its key; and the table of their scores."""

import csv
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from medseg_attack.errors import InputError, listed, plural, refusing
from medseg_attack.report.readers.writing import SIDES, Key
from medseg_attack.report.sheet import Sheet, between, number, p_value
from medseg_attack.storage.paths import require_file

COLUMNS = ("study", "reader", "trial", "answer")
WORDS = {"attack": "attacked", "catch": "attacked, 8 times the change", "noise": "noise of equal size"}


def read_answers(files: Sequence[Path], key: Key, block: int | None = None) -> pd.DataFrame:
    """A row per reader and trial: reader, kind, patient, block, and correct, 0 or 1.

    Args:
        block: number of the only block that counts; None for all. Files are whole all the same.

    Raises:
        InputError: a file is not one of this study, lacks trials or holds other answers, or a reader stands in two;
            or the study has no such block.
    """
    blocks = max(trial.block for trial in key.trials)
    if block is not None and not 1 <= block <= blocks:
        raise InputError(f"expected a block from 1 to {blocks} of the study {key.study}, got {block}; change --block")
    tables = [_read(file, key) for file in files]
    readers = Counter(str(table["reader"].iloc[0]) for table in tables)
    if several := [name for name, n in readers.items() if n > 1]:
        raise InputError(f"expected one file of each reader, got several of {listed(several)}; give one of them")
    answers = pd.concat(tables, ignore_index=True)
    return answers if block is None else answers[answers["block"] == block]


def _read(file: Path, key: Key) -> pd.DataFrame:
    require_file(file, "the answers of a reader")
    again = "save it from the page again"
    with refusing(f"the answers of a reader in {file}", again), file.open(newline="", encoding="utf-8-sig") as lines:
        rows = list(csv.DictReader(lines, strict=True))
    absent = [name for name in COLUMNS if not rows or rows[0].get(name) is None]
    if absent:
        raise InputError(f"expected columns {', '.join(COLUMNS)} in {file}, got none of {', '.join(absent)}; {again}")
    if others := {str(row["study"]) for row in rows} - {key.study}:
        raise InputError(
            f"expected answers of the study {key.study} in {file}, got those of {listed(sorted(others))}; give others"
        )
    if len(names := sorted({str(row["reader"]) for row in rows})) > 1:
        raise InputError(f"expected one reader in {file}, got {listed(names)}; write a file for each")
    return pd.DataFrame(_judged(rows, key, file)).assign(reader=names[0])


def _judged(rows: "list[dict[str, str]]", key: Key, file: Path) -> list[dict[str, object]]:
    """Kind, patient and correctness of each answer, in the order of the key."""
    by_trial: dict[str, str] = {}
    for row in rows:
        if row["trial"] in by_trial:
            raise InputError(f"expected one answer to each trial in {file}, got two to {row['trial']}; delete one")
        if row["answer"] not in SIDES:
            raise InputError(
                f"expected left or right in {file}, got {row['answer']!r} for trial {row['trial']}; write left or right"
            )
        by_trial[row["trial"]] = row["answer"]
    known = {str(trial.trial): trial for trial in key.trials}
    if unknown := [name for name in by_trial if name not in known]:
        raise InputError(f"expected trials 1 to {len(known)} in {file}, got {listed(unknown)}; delete these lines")
    if missing := [name for name in known if name not in by_trial]:
        raise InputError(
            f"expected answers to all {plural(len(known), 'trial')} in {file}, got none to {listed(missing)}; "
            "let the reader go through the page to its end"
        )
    return [
        {
            "kind": trial.kind,
            "patient": trial.patient,
            "block": trial.block,
            "correct": int(by_trial[name] == trial.altered),
        }
        for name, trial in known.items()
    ]


def reading_sheet(table: pd.DataFrame) -> Sheet:
    """The scores of readers as a table.

    Args:
        table: of `report.readers.scores.readings`.
    """
    rows = [
        [
            WORDS[str(row["kind"])],
            str(row["reader"]),
            f"{row['correct']:.0f} of {row['trials']:.0f}",
            number(row["share"]),
            between(row["low"], row["high"]),
            number(row["d_prime"], 2),
            p_value(row["p"]),
            number(row["upper"]),
            str(row["verdict"]),
        ]
        for _, row in table.iterrows()
    ]
    columns = ["pairs", "reader", "right", "share", "95 % CI", "d'", "p", "bound", "verdict"]
    caption = (
        "share: of pairs in which the altered picture was named; a guesser has 0.5. CI: Clopper-Pearson; of all "
        "readers that or a bootstrap of readers and patients, whichever reaches further. d': sensitivity. p: "
        "one-sided, against guessing. bound: one-sided 95 % upper bound of the share. seen: p < 0.05; not visible: "
        "bound < 0.6; otherwise the answers decide nothing. Who misses the pairs with 8 times the change did not look."
    )
    return Sheet("Readers", columns, rows, caption, left=2)
