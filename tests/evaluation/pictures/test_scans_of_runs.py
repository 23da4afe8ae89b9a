"""Scans of finished runs, from stored images or with the attack made again: both are those that the rows count."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from helpers.bright import write_bright
from helpers.command import medattack
from helpers.older_runs import make_older

from medseg_attack.data.prepared.reading import Prepared, open_prepared
from medseg_attack.errors import InputError
from medseg_attack.evaluation.opening import open_study
from medseg_attack.evaluation.pictures import attacked_scans as module
from medseg_attack.evaluation.pictures.attacked_scans import AttackedScan, attacked_scans
from medseg_attack.evaluation.pictures.reader_trials import reader_trials
from medseg_attack.evaluation.studies.opened import RunOptions
from medseg_attack.evaluation.studies.running import run
from medseg_attack.models.trust import use_trust
from medseg_attack.runs.folder import RunFolder
from medseg_attack.runs.study import read_study

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("pictured")
    write_bright(home / "scans", patients=6, slices=3)
    medattack("prepare", home / "scans", "--format", "decathlon", "--home", home, "--test", "0.5", "--folds", "2")
    use_trust(home, True)
    return home


def ran(home: Path, out: Path, attack: str, eps: str, *, save: str = "none", net: str = "Net", **flags: Any) -> Path:
    facts = {"models": [f"own('{home}/scans/nets.py:{net}')"], "attacks": [attack], "eps": [eps], "control": False}
    opened = open_study(read_study(None, facts | flags), home, CPU, RunOptions(save=save, batch_size=2), out)
    list(run(opened))
    return opened.run_folders[0]


def require_as_in_rows(folder: Path, scans: Sequence[AttackedScan]) -> None:
    rows = RunFolder(folder).rows()
    for scan in scans:
        of_scan = rows[rows["volume"] == scan.scan].sort_values("case")
        counts = {
            "n_target": scan.truth,
            "n_target_adv": scan.truth_attacked,
            "n_clean": scan.prediction,
            "n_adv": scan.prediction_attacked,
            "hit_clean": scan.prediction & scan.truth,
            "hit_adv": scan.prediction_attacked & scan.truth_attacked,
        }
        for name, masks in counts.items():
            assert masks.shape == (1, 3, 40, 40)
            assert masks.sum((0, 2, 3)).tolist() == of_scan[name].tolist(), name
        change = np.abs(scan.attacked - scan.before).max((1, 2))
        np.testing.assert_allclose(change, of_scan["linf"], atol=1e-6)


@pytest.mark.parametrize("save", ["none", "all"])
@pytest.mark.parametrize("eps", ["0.25", "17raw"])
def test_scans_of_a_run_are_those_that_its_rows_count(home: Path, tmp_path: Path, save: str, eps: str) -> None:
    folder = ran(home, tmp_path / "out", "noise", eps, save=save, seed=5)
    data = open_prepared(next((home / "data").iterdir()))
    volumes = sorted({ref.volume for ref in data.refs("test")})
    assert len(volumes) == 3
    some = list(attacked_scans(folder, volumes[::-1][:2], CPU))
    assert [scan.scan for scan in some] == volumes[1:]
    for scan in some:
        assert scan.is_stored == (save == "all")
        assert scan.is_colour is False
        assert (scan.indices, scan.n_slices, scan.pixel_mm) == ((0, 1, 2), 3, (1.0, 1.0))
        assert scan.flow is None
        np.testing.assert_array_equal(scan.before, scan.clean)
        refs = sorted((ref for ref in data.refs("test") if ref.volume == scan.scan), key=lambda ref: ref.index or 0)
        for n, ref in enumerate(refs):
            np.testing.assert_array_equal(scan.clean[n], data.read(ref).image[0].numpy())
    require_as_in_rows(folder, some)
    assert list(attacked_scans(folder, ["none"], CPU)) == []


def test_scans_with_moved_anatomy_have_its_flow(home: Path, tmp_path: Path) -> None:
    folder = ran(home, tmp_path / "out", "deformation(steps=2)", "4", net="Sigmoid")
    scans = list(attacked_scans(folder, sorted(set(RunFolder(folder).rows()["volume"])), CPU))
    require_as_in_rows(folder, scans)
    flows = [scan.flow for scan in scans if scan.flow is not None]
    assert len(flows) == len(scans) == 3
    assert all(flow.shape == (2, 3, 40, 40) for flow in flows)
    assert any(np.abs(scan.before - scan.clean).max() > 0.1 for scan in scans)


def test_slices_that_the_run_left_out_are_in_no_scan(home: Path, tmp_path: Path) -> None:
    folder = ran(home, tmp_path / "out", "fgsm", "0.1", limit=4)
    rows = RunFolder(folder).rows()
    scans = {scan.scan: scan.indices for scan in attacked_scans(folder, sorted(set(rows["volume"])), CPU)}
    assert scans == {
        volume: tuple(sorted(int(case[-1]) for case in of_scan)) for volume, of_scan in rows.groupby("volume")["case"]
    }
    assert sum(map(len, scans.values())) == 4


def test_the_donors_of_a_run_are_the_cases_of_its_split(home: Path, tmp_path: Path) -> None:
    folder = ran(home, tmp_path / "out", "fgsm", "0.1", split="train", fold=1)
    data, _, _ = module.open_run(folder, CPU)
    donors = module._donors(folder, data, {})
    assert donors.refs == data.refs("train", 1, 2)


def test_a_study_that_says_no_split_took_donors_of_the_test_patients(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "read_stored_study", lambda folder: {})
    asked: list[Any] = []
    data = Mock(Prepared, refs=lambda *words: (asked.append(words), ())[1])
    module._donors(Path("study/model/run"), data, {"dims": 3})
    assert asked == [("test", 0, 3)]


def test_scans_of_an_older_run_are_made_with_what_its_files_do_not_say(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = ran(home, tmp_path / "out", "noise", "0.25")
    volumes = sorted(set(RunFolder(folder).rows()["volume"]))
    scans = list(attacked_scans(folder, volumes, CPU))
    make_older(folder)
    sizes: list[int] = []
    batches = module.in_batches
    monkeypatch.setattr(module, "in_batches", lambda cases, size: (sizes.append(size), batches(cases, size))[1])
    older = list(attacked_scans(folder, volumes, CPU))
    assert sizes == [1, 1, 1]
    refs = Prepared.refs
    monkeypatch.setattr(Prepared, "refs", lambda *words, **more: refs(*words, **more)[::-1])
    for scan, same, turned in zip(scans, older, attacked_scans(folder, volumes, CPU), strict=True):
        np.testing.assert_array_equal(scan.attacked, same.attacked)
        np.testing.assert_array_equal(scan.attacked, turned.attacked)  # in the order of its slices
    with pytest.raises(InputError, match="expected a run of an attack in"):
        reader_trials(folder, 3, 0, CPU)


def test_a_reader_is_shown_attacks_alone(home: Path, tmp_path: Path) -> None:
    folder = ran(home, tmp_path / "out", "noise", "0.1")
    with pytest.raises(InputError, match="expected a run of an attack in"):
        reader_trials(folder, 3, 0, CPU)
    assert len(reader_trials(ran(home, tmp_path / "other", "fgsm", "0.1"), 3, 0, CPU)) == 3
