"""Runs read again: their folders, and rows with the fields of their header."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.compute as pc

from medseg_attack.errors import InputError, nearest
from medseg_attack.escaping import whole_characters
from medseg_attack.runs.folder import RunFolder
from medseg_attack.runs.rows import HEADER
from medseg_attack.runs.stored_files import Header, read_header
from medseg_attack.runs.stored_specs import role_of, was_checked, without_budget
from medseg_attack.storage.json_files import digest
from medseg_attack.storage.kinds import instead, is_certificate
from medseg_attack.storage.paths import real_path

# organs whose columns would be those of the mean over organs, and of shares over all of them
SPREAD = ("low_of", "high_of", "sd_of")
RESERVED = {name: f"{name} (organ)" for name in ("mean", "success_of", "below_half", "missed", *SPREAD)}


NAMED = ("model", "attack")  # columns of names that a label may stand for

# values of fields that a header may lack
DEFAULTS = {
    name: field.default for name, field in Header.model_fields.items() if name in HEADER and not field.is_required()
}


def find_runs(paths: Iterable[Path]) -> Iterator[Path]:
    """Folders of runs at or below `paths`, finished or not, sorted.

    Raises:
        InputError: a path holds no run.
    """
    for path in paths:
        folders = sorted(file.parent for file in path.rglob("config.json") if (file.parent / "parts").is_dir())
        folders = [folder for folder in folders if not is_certificate(folder)]
        if not folders:
            got = instead(path, "none", "give a folder that 'medattack attack' wrote")
            raise InputError(f"expected a run in {path}, {got}")
        yield from folders


def ids_of(run: Path) -> dict[str, str]:
    """The ids of a run and of its model, which join the JSON of every command: the names of their folders.

    >>> ids_of(Path("runs/acdc-1a2b3c4d/unet-f8d0b2/01_fgsm"))
    {'model_id': 'unet-f8d0b2', 'run_id': 'unet-f8d0b2/01_fgsm'}
    """
    model = real_path(run).parent.name
    return {"model_id": model, "run_id": f"{model}/{real_path(run).name}"}


def read_runs(paths: Iterable[Path], *, allow_partial: bool = False) -> pd.DataFrame:
    """The rows of all runs at or below `paths`, their header's fields as further columns.

    Raises:
        InputError: a run did not finish, or a run of part of the cases was not allowed.
    """
    tables = [rows.assign(**fields) for rows, fields in each_run(paths, allow_partial=allow_partial)]
    return with_distinct_models(pd.concat(tables, ignore_index=True))


def each_run(
    paths: Iterable[Path], *, allow_partial: bool = False, needs: Callable[[str], bool] = lambda column: True
) -> Iterator[tuple[pd.DataFrame, dict[str, Any]]]:
    """The rows of each run at or below `paths`, and the fields of its header that tables show.

    Args:
        needs: whether a column of the rows is needed.

    Raises:
        InputError: a run did not finish, or a run of part of the cases was not allowed.
    """
    for folder in dict.fromkeys(find_runs(paths)):
        if str(folder) != whole_characters(str(folder)):
            raise InputError(f"expected the path of a run in UTF-8, got {folder}; rename its folders")
        header = read_header(folder)
        if header.get("partial") and not allow_partial:
            raise InputError(
                f"expected a run of all cases in {folder}, got one of {header.get('cases')} (--limit); "
                "run it without --limit, or add --allow-partial"
            )
        # a column that a field of the header is named like stands in its place
        table = RunFolder(folder).table(lambda column: column == "case" or needs(column) or column in header)  # noqa: B023
        n_cases = pc.count_distinct(table["case"]).as_py()
        if n_cases != header.get("cases", n_cases):
            raise InputError(
                f"expected the {header['cases']} cases of run.json in {folder}, got {n_cases}; "
                "run its attack again, it writes the parts that are missing"
            )
        fields = {
            key: whole_characters(value) if isinstance(value, str) else value
            for key, value in flat(header).items()
            if key not in table.column_names
        }
        # what older headers do not say
        derived: dict[str, Any] = {"role": role_of(header), "checks": was_checked(header)}
        derived |= {"eps_unit": fields.pop("unit", "")}
        fields = DEFAULTS | ids_of(folder) | derived | fields
        fields["eps"] = math.nan if fields["eps"] is None else fields["eps"]
        config = RunFolder(folder).config
        facts = {
            "run": str(folder),
            "verified": RunFolder(folder).verified,
            "cases_id": digest([config.get("data"), config.get("cases")])[:12],
        }
        rows = table.select([name for name in table.column_names if needs(name)]).to_pandas()
        is_reserved = not RESERVED.keys().isdisjoint(pc.unique(table["cls"]).to_pylist())
        yield rows.assign(cls=rows["cls"].replace(RESERVED)) if is_reserved else rows, fields | facts


def with_distinct_models(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows; models of one label that differ in their weights are called by their id, which says both.

    The column `label` keeps what their headers call them.
    """
    label = rows["label"] if "label" in rows else rows["model"]
    several = rows["model_id"].groupby(label).transform("nunique") > 1
    return rows.assign(label=label, model=label.where(~several, rows["model_id"]))


def with_labels(rows: pd.DataFrame, labels: Mapping[str, str]) -> pd.DataFrame:
    """The rows; models and attacks are called what `labels` has for their names.

    Raises:
        InputError: one of the names is that of no model and no attack.
    """
    known = dict.fromkeys(map(str, [*rows["model"], *rows["attack"]]))
    for name in labels:
        if name not in known:
            raise InputError(
                f"--label: expected the name of a model or an attack, got {name!r}; {nearest(name, known)}"
            )
    return rows.assign(**{column: rows[column].map(lambda name: labels.get(name, name)) for column in NAMED})


def flat(header: Mapping[str, Any]) -> dict[str, Any]:
    """The known fields of a header that are one value, which become columns; the attack's without its budget."""
    fields = {
        key: value for key, value in header.items() if key in Header.model_fields and not isinstance(value, dict | list)
    }
    if "attack" in fields:
        fields["attack"] = without_budget(fields["attack"], fields.get("ball") or "")
    return fields
