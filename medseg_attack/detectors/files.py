"""Calibrated detectors in files: tensors and their facts, no code. Safetensors hold no objects that could run any."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import Field

from medseg_attack import registry
from medseg_attack.data.prepared.reading import Preparation
from medseg_attack.detectors.base import Calibrated
from medseg_attack.errors import InputError
from medseg_attack.models.checkpoints import fingerprint_of, load_tensors, save_tensors
from medseg_attack.storage.files import open_tensors
from medseg_attack.storage.forms import Form, TaskForm, check_form
from medseg_attack.storage.json_files import digest
from medseg_attack.storage.kinds import instead
from medseg_attack.types import Task

VERSION = 1
CALIBRATION = "calibration"  # the tensor of the patients' scores; what was learned stands beside it


class _Facts(Form):
    """The facts that stand in the file of a detector."""

    version: int
    detector: str
    level: float = Field(gt=0, lt=1)
    model: str
    weights: str
    data: str
    task: TaskForm
    dims: int
    options: Preparation


@dataclass(frozen=True, eq=False)
class SavedDetector:
    """A calibrated detector with what it was fitted on.

    Attributes:
        facts: the model's label and weights, the data's fingerprint, task, dims and options; see `save_detector`.
        fingerprint: of the facts and the tensors, in hex.
    """

    calibrated: Calibrated
    facts: dict[str, Any]
    fingerprint: str

    def require(self, path: Path, weights: str, task: Task) -> None:
        """Refuses a model that the detector was not fitted on.

        Raises:
            InputError: it has other classes or other weights.
        """
        own = Task.from_json(self.facts["task"])
        if (own.classes, own.exclusive) != (task.classes, task.exclusive):
            raise InputError(
                f"expected a detector of the classes {_classes(task)}, got {path}, which was fitted on "
                f"{_classes(own)}; fit one with medattack detect"
            )
        if self.facts["weights"] != weights:
            raise InputError(
                f"expected a detector of the model at hand ({weights[:12]}), got {path}, which was fitted on another "
                f"({self.facts['model']}, {self.facts['weights'][:12]}); fit one with medattack detect"
            )


def _classes(task: Task) -> str:
    return ", ".join(task.classes) + (" that exclude each other" if task.exclusive else "")


def save_detector(path: Path, calibrated: Calibrated, facts: dict[str, Any]) -> str:
    """Writes a detector, and returns its fingerprint.

    Args:
        facts: model (its label), weights (its hash), data (the fingerprint), task, dims, and options: the window, size
            and plane that scans are prepared with.
    """
    tensors = {f"learned.{name}": tensor for name, tensor in (calibrated.detector.learned or {}).items()}
    tensors[CALIBRATION] = torch.tensor(calibrated.calibration, dtype=torch.float64)
    spec = registry.spec(calibrated.detector)
    content = {"version": VERSION, "detector": spec, "level": calibrated.level, **facts}
    fingerprint = _fingerprint(content, tensors)
    save_tensors(path, tensors, {"facts": json.dumps(content, sort_keys=True), "fingerprint": fingerprint})
    return fingerprint


def load_detector(path: Path) -> SavedDetector:
    """The detector of a file.

    Raises:
        InputError: the file is absent, damaged, or none of a detector.
    """
    if not path.is_file():
        got = instead(path, "a folder" if path.is_dir() else "none", "name a file of medattack detect")
        raise InputError(f"expected the file of a detector at {path}, {got}")
    with open_tensors(path, todo="name a file of medattack detect") as file:
        metadata = file.metadata() or {}
    tensors = load_tensors(path)
    try:
        content = json.loads(metadata["facts"])
        facts = check_form(content, _Facts, path)
    except (KeyError, ValueError, RecursionError, TypeError) as error:
        raise InputError(
            f"expected a detector in {path}, got something else; name a file of medattack detect"
        ) from error
    if facts["version"] != VERSION:
        raise InputError(f"expected a detector of version {VERSION} in {path}, got {facts['version']}; fit it again")
    if metadata.get("fingerprint") != _fingerprint(content, tensors):
        raise InputError(f"expected the detector that was written to {path}, got a changed one; fit it again")
    detector = registry.build(facts["detector"], "detector")
    calibration = tensors.pop(CALIBRATION, torch.empty(0))
    if not len(calibration):
        raise InputError(f"expected scores of calibration patients in {path}, got none; fit it again")
    learned = {name.removeprefix("learned."): tensor for name, tensor in tensors.items()}
    calibrated = Calibrated(detector.with_learned(learned), tuple(calibration.tolist()), facts["level"])
    return SavedDetector(calibrated, facts, str(metadata["fingerprint"]))


def _fingerprint(content: dict[str, Any], tensors: dict[str, torch.Tensor]) -> str:
    return digest([content, fingerprint_of(tensors)])
