"""Runs of a made-up model, written as a real one is: patients, scans and organs whose Dice is known."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from medseg_attack.runs.folder import RunFolder
from medseg_attack.runs.grid import safe
from medseg_attack.runs.rows import ROWS_VERSION, Row

ORGANS = ("large_bowel", "small_bowel", "stomach")
PIXELS = 4000


def dice_of(seed: int, patients: int, scans: int = 2) -> np.ndarray:
    """Adversarial Dice, (patients, scans, organs), as patients, organs and scans differ."""
    rng = np.random.default_rng((1, seed))
    base = rng.normal(0.72, 0.08, (patients, 1, 1)) + rng.normal(0, 0.03, (patients, 1, len(ORGANS)))
    return np.clip(base + rng.normal(0, 0.03, (patients, scans, len(ORGANS))), 0.05, 0.95)


def retrained(dice: np.ndarray, seed: int, worse_by: float) -> np.ndarray:
    """Another training: as much worse on average, more for some patients, organs and scans, less for others."""
    rng = np.random.default_rng((2, seed))
    changed = dice - worse_by + rng.normal(0, 0.010, (len(dice), 1, 1)) + rng.normal(0, 0.015, dice.shape)
    return np.clip(changed, 0.0, 1.0)


def worse(dice: np.ndarray, by: float) -> np.ndarray:
    """Lower by that much on average; each patient by another amount, so that none are tied."""
    place = np.arange(len(dice)) - (len(dice) - 1) / 2
    return dice - by - 5e-4 * place[:, None, None]


def rerun(dice: np.ndarray, seed: int) -> np.ndarray:
    """The same weights on another machine: kernels of another order move a few pixels."""
    return np.clip(dice + np.random.default_rng((3, seed)).normal(0, 0.001, dice.shape), 0, 1)


def write_run(
    folder: Path,
    dice: np.ndarray,
    *,
    model: str = "unet",
    weights: str = "a",
    eps: float = 0.01,
    loss: str = "bce",
    ball: str = "",
    config: dict[str, Any] | None = None,
    organs: Sequence[str] = ORGANS,
    slices: Sequence[int] = (),
    names: str = "{}",
    **facts: Any,
) -> Path:
    """A finished run with that adversarial Dice and a clean Dice of 0.9.

    Args:
        slices: how many slices each scan of a patient has, each with the scan's distances; none: scans are whole.
        names: what ids of patients, scans and slices look like.
        facts: further fields of the header.
    """
    settings = {
        "rows_version": ROWS_VERSION,
        "data": "d" * 64,
        "cases": "c" * 64,
        "weights": weights * 64,
        "attack": f"fgsm(linf({eps}), {loss})",
        "metrics": ["hd95_mm"],
        "seed": 0,
    } | (config or {})
    run = RunFolder.open(folder / f"{safe(model)}-{weights}" / f"fgsm_{safe(loss)}_{eps}", settings)
    rows = []
    for (patient, scan, organ), value in np.ndenumerate(dice):
        name, hit = names.format(f"p{patient:02d}_s{scan}"), round(value * PIXELS)
        far = {"hd95_mm_clean": 2.0, "hd95_mm_adv": 40 * (1 - value)}
        visible = {"ssim": 1 - eps, "ssim_body": 1 - 2 * eps, "ssim_min": 1 - 3 * eps, "noise_units": 100 * eps}
        rows += [
            Row(
                case=f"{name}_{i}" if slices else name,
                volume=name,
                group=names.format(f"p{patient:02d}"),
                cls=organs[organ],
                n_target=PIXELS,
                n_clean=PIXELS,
                hit_clean=round(0.9 * PIXELS),
                n_adv=PIXELS,
                hit_adv=hit,
                size=eps,
                linf=eps,
                forwards=2,
                backwards=1,
                n_target_adv=PIXELS,
                z_mm=5.0,
                y_mm=1.0,
                x_mm=1.0,
                extra=far | visible | ({"psnr": -20 * np.log10(eps)} if eps else {}),
            )
            for i in range(slices[scan] if slices else 1)
        ]
    run.write(0, rows, 1.0, batch_size=16)
    header = {
        "model": model,
        "attack": "fgsm",
        "role": "attack",
        "loss": loss,
        "eps": eps,
        "ball": ball or f"linf(eps={eps})",
        "data": "toy",
        "split": "test",
        "partial": False,
        "n_parameters": 1,
        "seconds": 1.0,
        "cases": len({row.case for row in rows}),
    }
    run.finish(header | facts)
    return run.path


def edit(file: Path, **changes: Any) -> None:
    """Changes fields of a JSON file."""
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
