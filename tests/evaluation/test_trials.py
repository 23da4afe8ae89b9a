"""The folder of a trial says that it is one from its first rows on, and holds the parts of one trial alone."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from medseg_attack.errors import InputError
from medseg_attack.evaluation import trials
from medseg_attack.evaluation.studies.opened import OpenedStudy
from medseg_attack.report.defences import unfinished_trials
from medseg_attack.runs.stored_files import STUDY_FILE


def trial_in(folder: Path, *parts: str) -> trials.Trial:
    """A trial of studies of which the folders alone count."""
    studies = {name: Mock(OpenedStudy, out=folder / name) for name in parts}
    return trials.Trial("unet", ("voted",), studies)


@pytest.fixture
def begun(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The folders of the studies that ran, each for as long as it takes to write a study and some rows."""
    folders = []

    def run(study: Any) -> Iterator[int]:
        folders.append(study.out)
        study.out.mkdir(parents=True, exist_ok=True)
        (study.out / STUDY_FILE).write_text("models: [unet]\n")
        yield 1

    monkeypatch.setattr(trials, "run", run)
    return folders


def test_a_trial_that_is_killed_in_its_first_part_is_an_unfinished_one(tmp_path: Path, begun: list[Path]) -> None:
    next(trial_in(tmp_path / "trial", "native", "transfer", "queries").run())
    assert begun == [tmp_path / "trial/native"]
    assert unfinished_trials(tmp_path) == [tmp_path / "trial"]


def test_a_folder_with_a_part_that_the_trial_lacks_is_refused_before_anything_runs(
    tmp_path: Path, begun: list[Path]
) -> None:
    """As of models that declare nothing, whose suite ran twice before."""
    (tmp_path / "adaptive").mkdir()
    with pytest.raises(InputError, match="got one with the part adaptive; choose another --out"):
        list(trial_in(tmp_path, "native", "harder", "queries").run())
    assert begun == []
