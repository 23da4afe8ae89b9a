"""What follows from an opened study before anything runs: its cases, parts, folders and notes, counted by hand."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch

from medseg_attack.data.prepared.reading import Prepared
from medseg_attack.errors import InputError
from medseg_attack.evaluation.studies.opened import OpenedStudy, RunOptions
from medseg_attack.evaluation.studies.refusals import _check_budgets
from medseg_attack.models.model_ref import ModelRef
from medseg_attack.runs.grid import cells
from medseg_attack.runs.stored_files import HEADER_FILE
from medseg_attack.runs.study import read_study
from medseg_attack.types import CaseRef, Window

LENGTHS = (20, 30, 30)  # slices of the test scans: two chunks of 20 and 30, and one of 30


def refs(split: str, fold: int, dims: int) -> tuple[CaseRef, ...]:
    if dims == 3:
        return tuple(CaseRef(f"v{v}", f"v{v}", f"p{v}", (n, 8, 8)) for v, n in enumerate(LENGTHS))
    return tuple(CaseRef(f"v{v}_{i:02d}", f"v{v}", f"p{v}", (8, 8), i) for v, n in enumerate(LENGTHS) for i in range(n))


def model(label: str, **facts: Any) -> Any:
    known = {"blocks_gradient": False, "is_random": False, "known_by": (), "dims": 2, "weights_hash": label * 64}
    result = Mock(ModelRef, label=label, prompt="", encoder="", **known | facts)
    result.name = label
    return result


@pytest.fixture
def opened(tmp_path: Path) -> Callable[..., OpenedStudy]:
    def build(*models: Any, data: Any = None, **flags: Any) -> OpenedStudy:
        settings = {"attacks": ["fgsm", "pgd(steps=3)"], "eps": ["0.01"], "control": False} | flags
        study = read_study(None, {"models": [each.label for each in models], **settings})
        data = data or Mock(Prepared, refs=refs, fingerprint="f", root=tmp_path / "data")
        return OpenedStudy(study, tuple(cells(study)), data, models, tmp_path, torch.device("cpu"))

    return build


def test_shards_count_the_chunks_that_are_theirs(opened: Callable[..., OpenedStudy]) -> None:
    a, b = model("a"), model("b", dims=3)
    whole = opened(a, b)
    assert [whole.first_run(each) for each in (a, b)] == [0, 2]
    assert [whole.cases_of_runs(each) for each in (a, b)] == [[80, 80], [3, 3]]
    assert whole.total == 2 * 80 + 2 * 3
    parts = [replace(whole, options=RunOptions(shard=(k, 3))) for k in range(3)]
    assert [part.cases_of_runs(a) for part in parts] == [[20, 20], [30, 30], [30, 30]]
    many = [replace(whole, options=RunOptions(shard=(k, 6))) for k in range(6)]
    assert sum(part.total for part in many) == whole.total
    assert [part.cases_of_runs(a) for part in many] == [[20, 0], [30, 0], [30, 0], [0, 20], [0, 30], [0, 30]]


def test_folders_are_those_of_models_and_numbered_attacks(opened: Callable[..., OpenedStudy]) -> None:
    a, long = model("a"), model("b" * 90, dims=3)
    study = opened(a, long)
    assert study.folder(long) == study.out / f"{'b' * 80}-{'b' * 6}"
    folders = [folder for _, folder in study.runs(a)]
    assert [folder.parent for folder in folders] == [study.out / "a-aaaaaa"] * 2
    assert [folder.name[:3] for folder in folders] == ["00_", "01_"]
    assert study.run_folders == [*folders, *(folder for _, folder in study.runs(long))]
    counts = {folder.relative_to(study.out).as_posix(): 80 for folder in folders}
    assert study.cases_by_run == counts | {
        folder.relative_to(study.out).as_posix(): 3 for _, folder in study.runs(long)
    }
    for folder in study.run_folders:
        assert not study.is_finished
        folder.mkdir(parents=True)
        (folder / HEADER_FILE).write_text("{}")
    assert study.is_finished


def test_notes_say_what_a_reader_should_know(opened: Callable[..., OpenedStudy]) -> None:
    plain = model("plain")
    assert opened(plain).notes == []
    assert opened(plain, limit=30).notes == []
    assert opened(plain, metrics=["hd95_mm"]).notes == []
    (limited,) = opened(plain, limit=30, metrics=["hd95_mm"]).notes
    assert limited.startswith("--limit 30 takes ")
    assert limited.endswith(" slices), which --metric measures")
    whole = model("whole", dims=3)
    assert opened(whole, limit=2, metrics=["hd95_mm"]).notes == []
    assert opened(whole, plain, limit=30, metrics=["hd95_mm"]).notes == [limited]
    (random,) = opened(plain, model("dice", is_random=True)).notes
    assert random == "dice is random: attacks know it (averaged), unless --native"
    both = model("both", is_random=True, blocks_gradient=True)
    (native,) = opened(both, native=True).notes
    assert native == (
        "both is random and has layers without a useful gradient: with --native attacks do not know it, and their "
        "numbers are called non_adaptive"
    )
    assert opened(both, attacks=["noise"]).notes == []
    (units,) = opened(plain, attacks=["fgsm", "deformation"]).notes
    assert units == ("--eps 0.01 has several meanings: fraction of the intensity window for fgsm, mm for deformation")
    assert opened(plain, attacks=["fgsm", "pgd"]).notes == []


def test_a_fold_without_cases_for_one_model_is_refused(opened: Callable[..., OpenedStudy], tmp_path: Path) -> None:
    data = Mock(Prepared, refs=lambda split, fold, dims: refs(split, fold, dims) if dims == 2 else (), root=tmp_path)
    opened(model("a"), data=data).require_cases()
    with pytest.raises(InputError, match="expected cases in the test split"):
        opened(model("a"), model("b", dims=3), data=data).require_cases()


@pytest.mark.parametrize(
    ("eps", "level", "refused"),
    [
        ("0.01", (0.02, 0.03), True),
        ("0.02", (0.02, 0.03), False),  # one value of the finest scan
        ("0.02", (0.021, 0.02), False),
        ("0.01", (0.02, 0.0), False),  # a file of floats has no finest value
        ("2%window", (0.021, 0.03), True),
        ("2%window", (0.02, 0.03), False),
        ("1raw", (0.02, 0.03), False),
    ],
)
def test_less_than_one_stored_value_of_every_scan_is_refused(
    opened: Callable[..., OpenedStudy], tmp_path: Path, eps: str, level: tuple[float, float], refused: bool
) -> None:
    two = [CaseRef(name, name, name, (8, 8)) for name in ("first", "second")]
    levels = {ref.id: share for ref, share in zip(two, level, strict=True)}
    data = Mock(
        Prepared,
        refs=lambda *_: tuple(two),
        root=tmp_path,
        level=lambda ref: levels[ref.id],
        window=lambda ref: Window(0.0, 200.0),
        slope=lambda ref: -200.0 * levels[ref.id],
    )
    study = opened(model("a"), data=data, eps=[eps], attacks=["fgsm"])
    if refused:
        with pytest.raises(InputError, match=f"where one is {min(level):.3g} of the window in the finest scan"):
            _check_budgets(study, two)
    else:
        _check_budgets(study, two)
    other = opened(model("a"), data=data, attacks=["fgsm(l2(1e-6))"])
    _check_budgets(replace(other, grid=other.grid[:1]), two)  # lengths have no least value


def test_what_identifies_a_study_is_its_settings_data_weights_and_what_is_written(
    opened: Callable[..., OpenedStudy],
) -> None:
    study = opened(model("b"), model("a"), seed=3, limit=5)
    identity = study.identity
    assert identity == {
        name: value
        for name, value in study.study.model_dump().items()
        if name not in ("data", "models", "unit", "native")
    } | {"data": "f", "weights": ["a" * 64, "b" * 64], "save_adversarial": "none"}
    assert (identity["seed"], identity["limit"]) == (3, 5)
    assert replace(study, options=RunOptions(batch_size=3, shard=(1, 2), checks=True)).identity == identity
    kept = replace(study, options=RunOptions(save="all", keep_headers=True)).identity
    assert kept == identity | {"save_adversarial": "all", "keep_headers": True}
    assert opened(model("b"), model("a"), seed=3, limit=5, native=True).identity == identity | {"native": True}
    assert study.summary == f"data {study.data.root}; model b, model a; on cpu"


def test_a_limit_leaves_cases_out_of_some_model(opened: Callable[..., OpenedStudy]) -> None:
    slices, scans = model("a"), model("b", dims=3)
    study = opened(slices, scans, limit=3)
    assert [study.leaves_out(each) for each in (slices, scans)] == [True, False]
    assert study.is_partial
    assert not opened(scans, limit=3).is_partial
    assert len(study.refs(slices)) == 3
    assert study.donors(slices).refs == refs("test", 0, 2)
    fixed, learns = (opened(slices, attacks=[name]).grid[0] for name in ("fgsm", "uap"))
    assert study.training_refs(slices, fixed) == ()
    assert study.training_refs(slices, learns) == refs("train", 0, 2)
