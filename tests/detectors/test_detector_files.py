"""Files of detectors, and files that are none."""

from pathlib import Path

import pytest
import torch

from medseg_attack.detectors import files
from medseg_attack.detectors.base import Calibrated
from medseg_attack.detectors.combined.saved import Saved
from medseg_attack.detectors.density.mgm import MGM
from medseg_attack.detectors.files import load_detector, save_detector
from medseg_attack.errors import InputError
from medseg_attack.types import Task

FACTS = {"model": "m", "weights": "0" * 40, "data": "d", "dims": 2, "options": {}, "task": Task("t", ("a",)).to_json()}


@pytest.mark.parametrize("content", [b"", b"a person's own notes\n"])
def test_a_file_that_was_named_by_mistake_is_not_to_be_deleted(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "notes").write_bytes(content)
    with pytest.raises(InputError, match=r"got .*; name a file of medattack detect$"):
        load_detector(tmp_path / "notes")


def test_a_file_that_is_not_there_is_said_to_be_a_detector_s(tmp_path: Path) -> None:
    for path, got in (
        (tmp_path / "d.safetensors", "got none; name a file of medattack detect"),
        (tmp_path, "a folder"),
    ):
        with pytest.raises(InputError, match=rf"^expected the file of a detector at .*{got}"):
            load_detector(path)


def written(path: Path, **facts: object) -> Path:
    learned = {"mean": torch.ones(3, dtype=torch.float64), "scale": torch.ones(3), "factor": torch.eye(3)}
    save_detector(path, Calibrated(MGM("late").with_learned(learned), (0.5, 2.0), 0.2), FACTS | facts)
    return path


def test_what_was_written_is_read_again(tmp_path: Path) -> None:
    saved = load_detector(written(tmp_path / "d.safetensors"))
    assert saved.calibrated.detector == MGM("late")
    assert saved.calibrated.detector.learned is not None
    assert {name: tensor.tolist() for name, tensor in saved.calibrated.detector.learned.items()} == {
        "mean": [1.0] * 3,
        "scale": [1.0] * 3,
        "factor": torch.eye(3).tolist(),
    }
    assert (saved.calibrated.calibration, saved.calibrated.level) == ((0.5, 2.0), 0.2)
    other = load_detector(written(tmp_path / "other.safetensors", data="another"))
    assert saved.fingerprint != other.fingerprint


def test_a_spec_names_the_detector_of_its_file_and_no_other(tmp_path: Path) -> None:
    path = written(tmp_path / "d.safetensors")
    own = load_detector(path).fingerprint[:12]
    assert Saved(str(path)) == Saved(str(path), own)
    assert (Saved().fingerprint, Saved(str(tmp_path / "gone"), "abc").fingerprint) == ("", "abc"), "refused when used"
    with pytest.raises(InputError, match=f"expected the detector abc in .*, got {own}; restore the file"):
        Saved(str(path), "abc")


def test_a_file_with_a_level_that_is_no_rate_is_refused(tmp_path: Path) -> None:
    save_detector(tmp_path / "d.safetensors", Calibrated(MGM(), (0.5, 2.0), 1.0), FACTS)
    with pytest.raises(InputError, match=r"^expected a detector in .*, got something else"):
        load_detector(tmp_path / "d.safetensors")


def test_a_file_of_another_version_is_to_be_fitted_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "VERSION", files.VERSION + 1)
    path = written(tmp_path / "d.safetensors")
    monkeypatch.undo()
    with pytest.raises(InputError, match=rf"^expected a detector of version {files.VERSION} .*fit it again$"):
        load_detector(path)


@pytest.mark.parametrize(
    ("classes", "exclusive", "weights", "sentence"),
    [
        (("a",), False, "0" * 40, ""),
        (("b",), False, "0" * 40, "expected a detector of the classes b, got"),
        (("a",), True, "0" * 40, "expected a detector of the classes a that exclude each other, got"),
        (("a",), False, "1" * 40, "expected a detector of the model at hand"),
    ],
)
def test_it_is_of_one_model_and_its_classes(
    classes: tuple[str, ...], exclusive: bool, weights: str, sentence: str, tmp_path: Path
) -> None:
    path = written(tmp_path / "d.safetensors")
    saved, task = load_detector(path), Task("other", classes, exclusive)
    if not sentence:
        saved.require(path, weights, task)
        return
    with pytest.raises(InputError, match=f"^{sentence}"):
        saved.require(path, weights, task)
