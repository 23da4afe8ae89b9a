"""Trials of readers: as many of each kind and patient as there are to be, and pictures changed as their kind says."""

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from helpers.runs import dice_of, write_run

from medseg_attack.errors import InputError
from medseg_attack.evaluation.pictures import reader_trials as module
from medseg_attack.evaluation.pictures.attacked_scans import AttackedScan
from medseg_attack.evaluation.pictures.reader_trials import Kind, _kinds, _pictures, _scans, reader_trials

SIDE = 4


@pytest.mark.parametrize(("n", "controls"), [(3, 1), (14, 1), (16, 2), (40, 4)])
def test_a_tenth_of_the_trials_is_of_either_control(n: int, controls: int) -> None:
    kinds = _kinds(n, np.random.default_rng(0))
    assert Counter(kinds) == {"catch": controls, "noise": controls, "attack": n - 2 * controls}


@pytest.mark.parametrize(("channels", "shape"), [(1, (SIDE, SIDE)), (3, (SIDE, SIDE, 3))])
def test_the_altered_picture_has_the_change_8_times_it_or_its_pixels_in_other_places(
    channels: int, shape: tuple[int, ...]
) -> None:
    """Steps of the change are whole grey values; channels of a pixel go together."""
    steps = np.arange(channels * SIDE * SIDE).reshape(channels, SIDE, SIDE) % 7 - 3
    clean = np.full(steps.shape, 120 / 255, np.float32)
    clean[:, 0, 0] = 1.5  # beyond white
    attacked = clean + np.float32(1 / 255) * steps.astype(np.float32)

    def change(kind: Kind) -> np.ndarray[Any, Any]:
        before, after = _pictures(kind, clean, attacked, np.random.default_rng(1))
        assert before.shape == after.shape == shape
        assert before.dtype == np.uint8
        assert (before.reshape(SIDE, SIDE, -1)[0, 0] == 255).all()
        before = np.delete(before.reshape(SIDE * SIDE, channels), 0, 0).astype(int)
        assert (before == 120).all()
        return np.delete(after.reshape(SIDE * SIDE, channels), 0, 0) - before

    expected = np.delete(steps.reshape(channels, -1).T, 0, 0)
    assert (change("attack") == expected).all()
    assert (change("catch") == 8 * expected).all()
    elsewhere = change("noise")
    assert (elsewhere != expected).any()
    lost = Counter(map(tuple, steps.reshape(channels, -1).T.tolist())) - Counter(map(tuple, elsewhere.tolist()))
    assert lost.total() == 1  # the one that lies on the pixel beyond white


def test_scans_are_of_as_many_patients_as_possible_those_of_few_slices_first(tmp_path: Path) -> None:
    run = write_run(tmp_path, dice_of(0, 4, 3), slices=(3, 1, 2))
    for n in (1, 3, 4):
        patients = _scans(run, n, np.random.default_rng(n))
        assert len(patients) == len(set(patients.values())) == n
    two = _scans(run, 8, np.random.default_rng(0))
    assert set(Counter(two.values()).values()) == {2}
    every = _scans(run, 99, np.random.default_rng(0))
    assert every == {f"p{p:02d}_s{s}": f"p{p:02d}" for p in range(4) for s in range(3)}
    for scans in (two, every):
        lengths = [(3, 1, 2)[int(name[-1])] for name in scans]
        assert lengths == sorted(lengths)


class Scans:
    """Scans of an image that is all of one value on each slice, with so many slices of organ."""

    def __init__(self, slices: Sequence[int]) -> None:
        self.slices = slices

    def __call__(self, run: Path, names: Sequence[str], device: torch.device) -> Iterator[AttackedScan]:
        (name,) = names
        n = self.slices[int(name[1:3])]
        value = (10 * int(name[1:3]) + np.arange(n + 1)) / 255
        clean = np.broadcast_to(value[None, :, None, None], (1, n + 1, SIDE, SIDE)).astype(np.float32)
        mask = np.zeros((2, n + 1, SIDE, SIDE), bool)
        truth, pred = mask.copy(), mask.copy()
        truth[0, 0 : n - 1, 1, 2] = (
            True  # the last slice of organ is one of the prediction alone; the very last has none
        )
        pred[1, n - 1, 3, 0] = True
        images = clean, clean + np.float32(100 / 255)
        masks = truth, truth, mask, pred
        return iter(
            [AttackedScan(name, *images, *masks, tuple(range(n)), n, (1.0, 1.0), 1.0, "", True, before=clean[0])]
        )


def test_scans_have_as_many_trials_as_each_other_as_far_as_they_have_slices(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = write_run(tmp_path, dice_of(0, 3, 1))
    monkeypatch.setattr(module, "attacked_scans", Scans((1, 2, 9)))
    order = {f"p{p:02d}_s0": f"p{p:02d}" for p in range(3)}
    monkeypatch.setattr(module, "_scans", lambda *_: order)
    trials = reader_trials(run, 7, 0, torch.device("cpu"))
    assert Counter(int(trial.untouched[0, 0]) // 10 for trial in trials) == {0: 1, 1: 2, 2: 4}
    values = [int(trial.untouched[0, 0]) for trial in trials]
    assert len(set(values)) == 7
    assert {value % 10 for value in values if value < 20} == {0, 1}
    assert all(value % 10 < 9 for value in values)  # the slice without anything is in none
    assert len({(int(trial.untouched[0, 0]) // 10, trial.patient) for trial in trials}) == 3
    assert {trial.patient for trial in trials} == {1, 2, 3}
    assert Counter(trial.kind for trial in trials) == {"attack": 5, "catch": 1, "noise": 1}
    for trial in trials:
        step = {"attack": 100, "noise": 100, "catch": 800}[trial.kind]
        assert trial.altered[0, 0] == min(255, int(trial.untouched[0, 0]) + step)
    monkeypatch.setattr(module, "attacked_scans", Scans((4, 4, 4)))
    trials = reader_trials(run, 7, 0, torch.device("cpu"))
    assert Counter(int(trial.untouched[0, 0]) // 10 for trial in trials) == {0: 3, 1: 2, 2: 2}
    with pytest.raises(InputError, match=r"expected 13 slices with a segmentation.*, got 12; give --trials 12"):
        reader_trials(run, 13, 0, torch.device("cpu"))
    assert len(reader_trials(run, 12, 0, torch.device("cpu"))) == 12


def test_slices_with_a_truth_or_a_prediction_count_once_however_many_classes_they_have(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Scans of 1 to 4 such slices: of either kind, of both, and beside slices of neither."""
    slices = {"d": "tptp", "a": "b--", "c": "bpt", "b": "tp-"}
    pixels = {"t": (1, 0), "p": (0, 1), "b": (1, 1), "-": (0, 0)}
    rows = pd.DataFrame(
        {
            "case": f"{scan}{n}",
            "volume": scan,
            "group": scan,
            "cls": cls,
            "n_target": pixels[kind][0],
            "n_adv": pixels[kind][1],
        }
        for scan, kinds in slices.items()
        for n, kind in enumerate(kinds)
        for cls in ("liver", "spleen")
    )
    monkeypatch.setattr(module, "RunFolder", lambda run: SimpleNamespace(rows=lambda: rows))
    for seed in range(3):
        assert list(_scans(tmp_path, 4, np.random.default_rng(seed))) == ["a", "b", "c", "d"]
