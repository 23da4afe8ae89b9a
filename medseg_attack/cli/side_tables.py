"""The tables that `medattack compare` adds to its first one."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medseg_attack.cli.options import EmptyRule, Unit
from medseg_attack.errors import InputError, listed, nearest

if TYPE_CHECKING:
    import pandas as pd

    from medseg_attack.report.sheet import Sheet
    from medseg_attack.stats.comparisons import Side


@dataclass(frozen=True, eq=False)
class SideTables:
    """Tables on the same runs. Each method computes one, for JSON and for the terminal.

    Attributes:
        rows: of all runs; where no table needs them, a row per run.
        table: the first table, a row per run.
        content: what `--json` prints, which a table is added to.
        sheets: what is shown, which a table is added to.
    """

    rows: "pd.DataFrame"
    table: "pd.DataFrame"
    unit: Unit
    empty: EmptyRule
    content: dict[str, Any]
    sheets: "list[Sheet]"

    @property
    def _header(self) -> "pd.DataFrame":
        """Names and budget of each run."""
        return self.rows.drop_duplicates("run").set_index("run")[["model", "attack", "loss", "eps", "ball"]]

    def _add(self, name: str, table: "pd.DataFrame", sheet: "Sheet") -> None:
        self.content[name] = table.to_dict("records")
        self.sheets.append(sheet)

    def deltas(self, by: Sequence[str]) -> "pd.DataFrame":
        """Changes per scan in mm and ml, which are returned."""
        from medseg_attack.report.clinical import delta_sheet
        from medseg_attack.stats.clinical import delta_summary, deltas

        table = deltas(self.rows, empty=self.empty)
        named = table.join(self._header, on="run")
        self._add("deltas", named, delta_sheet(delta_summary(table), self._header, by))
        return named

    def visibility(self) -> None:
        """How visible changes are."""
        from medseg_attack.report.side_tables.visibility import visibility_sheet
        from medseg_attack.stats.visible_changes import visible

        table = visible(self.rows)
        self._add("visibility", table, visibility_sheet(self.table.merge(table, on="run")))

    def corruptions(self) -> None:
        """The cost of natural corruptions, where a run is of one."""
        from medseg_attack.stats.ladders import has_corruptions, ladders

        if has_corruptions(self.table):
            from medseg_attack.report.side_tables.ladders import ladder_sheet

            table = ladders(self.table)
            self._add("corruptions", table, ladder_sheet(table))

    def backdoors(self, suspect: str | None = None) -> None:
        """The success of triggers, where a run used one, and the test of a suspect for one."""
        from medseg_attack.stats.backdoors import backdoors, has_triggers

        if has_triggers(self.rows):
            from medseg_attack.report.backdoors import backdoor_sheet

            table = backdoors(self.rows, unit=self.unit, empty=self.empty)
            self._add("backdoors", table, backdoor_sheet(table, unit=self.unit, empty=self.empty))
        if suspect is not None:
            self.ownership(suspect)

    def ownership(self, suspect: str) -> None:
        """The test of whether a model answers to its alleged owner's trigger.

        Raises:
            InputError: no trigger was put on the suspect, or on too few other models.
        """
        from medseg_attack.report.backdoors import ownership_sheet
        from medseg_attack.stats.backdoors import INDEPENDENT, has_triggers, ownership

        with_trigger = self.rows[self.rows["n_taken"].notna()] if has_triggers(self.rows) else self.rows.iloc[:0]
        table = ownership(with_trigger, model_of(suspect, with_trigger))
        if table.empty or table["models"].min() < INDEPENDENT:
            n = 0 if table.empty else int(table["models"].min())
            raise InputError(
                f"--suspect: expected {INDEPENDENT} independent models or more with the same trigger, got {n}; attack "
                "further models that were trained without it"
            )
        self._add("ownership", table, ownership_sheet(table))

    def paired(self, side: "Side") -> None:
        """Models or attacks two by two, and their ranks.

        Raises:
            InputError: there is one of them alone.
        """
        from medseg_attack.report.clinical import paired_sheet, rank_sheet
        from medseg_attack.stats.comparisons import between, ranks

        rules: dict[str, Any] = {"unit": self.unit, "empty": self.empty}
        pairs, places = between(self.rows, side, **rules), ranks(self.rows, side, **rules)
        if pairs.empty:
            same = "under the same attack" if side == "model" else "on the same model in the same ball"
            raise InputError(f"expected several {side}s {same} for --paired {side}, got one; give more runs")
        self._add("paired", pairs, paired_sheet(pairs, side))
        self._add("ranks", places, rank_sheet(places, side))

    def from_scans(self, ventricle: str | None, factors: Sequence[str]) -> None:
        """The tables that need the prepared data of the runs, or their model.

        Raises:
            InputError: these are not there any more, or do not have what is asked for.
        """
        if ventricle is not None:
            self._ejection_fractions(ventricle)
        if factors:
            self._factors(factors)

    def _ejection_fractions(self, ventricle: str) -> None:
        from medseg_attack.evaluation.opening import open_data_of
        from medseg_attack.report.clinical import ejection_sheet
        from medseg_attack.stats.clinical import deltas, ejection_summary, ejections

        organs = self.rows["cls"].unique().tolist()
        if ventricle not in organs:
            raise InputError(f"expected an organ of the runs, got {ventricle!r}; {nearest(ventricle, organs)}")
        phases = {
            (run, record.id): record.phase
            for run in self.rows["run"].unique()
            for record in open_data_of(Path(run)).records.values()
            if record.phase
        }
        fractions = ejections(deltas(self.rows, empty=self.empty), phases, ventricle)
        if fractions.empty:
            raise InputError(
                "expected scans of end diastole and of end systole of a patient among the runs, got none; prepare a "
                "data set that says the phase, such as ACDC with its Info.cfg, and attack whole scans"
            )
        table = ejection_summary(fractions)
        sheet = ejection_sheet(table, self._header, ventricle)
        self._add("ejection_fractions", table.join(self._header, on="run"), sheet)

    def _factors(self, factors: Sequence[str]) -> None:
        import torch

        from medseg_attack.evaluation.factors.measuring import measured
        from medseg_attack.report.clinical import factor_sheet
        from medseg_attack.stats.associations import associations

        attacks = self.rows.loc[self.rows["role"] != "control", "run"].unique().tolist()
        values = measured(attacks, factors, torch.device("cpu"))
        table = associations(self.rows, values, unit=self.unit, empty=self.empty)
        if table.empty:
            raise InputError(
                f"expected runs between whose scans or models {', '.join(factors)} differs, got one value; give more "
                "runs"
            )
        self._add("factors", table, factor_sheet(table, factors))


def model_of(suspect: str, rows: "pd.DataFrame") -> str:
    """The name in a table of the model that `--suspect` means.

    Args:
        suspect: that name, the folder of the model, or that of its runs.
        rows: of runs with triggers.

    Raises:
        InputError: it means none of the models, or several.
    """
    from medseg_attack.storage.files import CARD, is_checkpoint
    from medseg_attack.storage.json_files import read_json
    from medseg_attack.storage.paths import real_path

    models = rows["model"].unique().tolist()
    if suspect in models:
        return suspect
    folder = Path(suspect)
    if is_checkpoint(folder):
        weights = str(read_json(folder / CARD).get("weights_sha256"))[:6]
        meant = rows[rows["model_id"].str.endswith(f"-{weights}")]
    elif folder.is_dir():
        inside = {run: real_path(Path(run)).is_relative_to(real_path(folder)) for run in rows["run"].unique()}
        meant = rows[rows["run"].map(inside).astype(bool)]
    else:
        meant = rows.iloc[:0]
    if len(names := meant["model"].unique().tolist()) == 1:
        return str(names[0])
    got = f"{suspect!r}, which is of {listed(names)}" if names else repr(suspect)
    raise InputError(
        f"--suspect: expected one model with a trigger, by its name in the table, its folder or that of its runs, got "
        f"{got}; {nearest(suspect, models)}"
    )
