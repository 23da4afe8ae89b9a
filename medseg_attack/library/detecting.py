"""Detectors on tensors, by the functions of the command line."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from medseg_attack import registry
from medseg_attack.detectors.base import Calibrated
from medseg_attack.detectors.files import load_detector
from medseg_attack.errors import InputError
from medseg_attack.evaluation.detection.fitting import fit
from medseg_attack.evaluation.detection.screening import scan_scores
from medseg_attack.library.arguments import checked
from medseg_attack.library.inputs import batch_of
from medseg_attack.models.checkpoints import fingerprint
from medseg_attack.models.segmodel import SegModel, frozen
from medseg_attack.runtime import deterministic
from medseg_attack.stats.alarms import require_rate
from medseg_attack.types import Batch, Case, Image


@checked
def detect(
    model: SegModel,
    images: Image,
    detector: str | Path = "entropy",
    *,
    training: Any = None,
    calibration: Any = None,
    false_alarms: float = 0.05,
    cases: Sequence[Case] | None = None,
) -> pd.DataFrame:
    """Suspicion of scans: what a detector says of images that may be under attack, as `medattack screen` does.

    Args:
        model: from `wrap` or `load`, in eval mode.
        images: float32 (b, c, rows, columns) or (b, c, slices, rows, columns), in [0, 1].
        detector: a file that `medattack detect` wrote; or a spec such as "entropy", which learns from `training` and
            gets its p-values from `calibration`. `names("detector")` lists them.
        training: clean images to learn from, with a spec alone: `open_data(...).batch(ids)`, or (images, masks), of
            which each image is of a patient of its own.
        calibration: the same of other patients, 19 or more for 5 % false alarms.
        false_alarms: share of clean patients that may raise an alarm.
        cases: what is known of the images beyond their pixels: slices of one volume are a scan. Without them each
            image is a scan of its own.

    Returns:
        A row per scan: scan, score (of its most suspicious image), case (that image), p, and alarm: p at most
        `false_alarms`. p is the share of clean patients, this one included, who are at least as suspicious.

    Raises:
        InputError: model, images and cases do not fit each other, there is no such detector, it was fitted on another
            model, or the calibration patients cannot promise so few false alarms.

    Examples:
        >>> import torch, medseg_attack as ma
        >>> net = torch.nn.Conv2d(1, 1, kernel_size=1).eval()
        >>> _ = torch.nn.init.constant_(net.weight, 8.0), torch.nn.init.constant_(net.bias, -4.0)
        >>> model = ma.wrap(net, classes=["lesion"], exclusive=False)  # all that is brighter than 1/2
        >>> masks = torch.zeros(20, 1, 16, 16, dtype=torch.bool)
        >>> masks[:, :, 4:12, 4:12] = True
        >>> clean = 0.1 + 0.7 * masks + 0.1 * torch.rand(20, 1, 16, 16), masks
        >>> table = ma.detect(model, 0.45 + 0.1 * masks[:2], "entropy", training=clean, calibration=clean)
        >>> table.alarm.tolist()
        [True, True]
    """
    batch = batch_of(model, images, _no_masks(model, images), cases)
    calibrated, source = _calibrated(model, detector, training, calibration)
    require_rate(false_alarms, len(calibrated.calibration), source)
    with frozen(model), deterministic(torch.device(images.device)), torch.no_grad():
        table = scan_scores(calibrated, model, [batch])
    return table.assign(alarm=table["p"] <= false_alarms * (1 + 1e-12))


def _calibrated(model: SegModel, detector: str | Path, training: Any, calibration: Any) -> tuple[Calibrated, str]:
    """The detector, and the name of what it was calibrated on."""
    if Path(detector).is_file() or isinstance(detector, Path):
        if training is not None or calibration is not None:
            raise InputError(
                f"expected a detector from {detector} alone, got images to learn from beside it; leave out training "
                "and calibration, or give a spec such as 'entropy'"
            )
        saved = load_detector(Path(detector))
        saved.require(Path(detector), fingerprint(model), model.task)
        return saved.calibrated, str(detector)
    built = registry.build(str(detector), "detector")
    if training is None or calibration is None:
        raise InputError(
            f"expected images to learn from for the detector {detector}, got none; give training=... and "
            "calibration=... of other patients, or a file of medattack detect"
        )
    known, others = _batch(model, training, "training"), _batch(model, calibration, "calibration")
    with frozen(model), deterministic(known.image.device):
        return fit(built, model, [known], [others]), "calibration"


def _batch(model: SegModel, part: Any, name: str) -> Batch:
    """The images of an argument as a batch.

    Raises:
        InputError: they are none, or do not fit the model.
    """
    if isinstance(part, Batch):
        return batch_of(model, part.image, part.target, part.cases)
    if isinstance(part, tuple) and len(part) == 2:
        return batch_of(model, *part, None)
    raise InputError(
        f"expected images and masks as {name}, got a {type(part).__name__}; write open_data(FOLDER).batch(ids), or "
        "(images, masks)"
    )


def _no_masks(model: Any, images: Any) -> Any:
    """Masks without an organ, of a shape that fits; what is wrong with model or images is said by who asks for them."""
    if not isinstance(model, SegModel) or not isinstance(images, torch.Tensor) or images.ndim < 3:
        return torch.zeros(0, dtype=torch.bool)
    task = model.task
    masks = torch.zeros((len(images), len(task.classes), *images.shape[2:]), dtype=torch.bool, device=images.device)
    if task.exclusive:
        masks[:, 0] = True
    return masks
