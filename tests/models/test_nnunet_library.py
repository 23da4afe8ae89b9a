"""What surrounds the network, against nnU-Net's own classes on random scans: to the last digits of float32."""

import importlib.util
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.nnunet_folder import TASK, read, write, write_folder
from scipy import ndimage
from torch import Tensor

from medseg_attack.models.nnunet.predictor import normalised
from medseg_attack.models.nnunet.results_folder import Scheme
from medseg_attack.models.segmodel import SegModel
from medseg_attack.threat.binding import bind
from medseg_attack.types import Case, Setting, Storage, Task, Window, alike

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("nnunetv2") is None, reason="nnunetv2 is not installed"),
]
FLOAT = float(np.finfo(np.float32).eps)
CT = {"mean": 40.0, "std": 60.0, "percentile_00_5": -150.0, "percentile_99_5": 250.0}


def scan(shape: tuple[int, ...], low: int, high: int, seed: int) -> np.ndarray:
    """Random, with structure of several sizes; 0 around it, in a corner of what is left and in a hole inside."""
    rng = np.random.default_rng(seed)
    noise = sum(ndimage.gaussian_filter(rng.normal(size=shape), width) * (1 + width) ** 1.5 for width in (0, 1, 3))
    values = np.interp(noise, (noise.min(), noise.max()), (low, high)).round().astype(np.int16)
    values[values == 0] = 1
    values[:2], values[:, -1:], values[..., :3], values[:4, :5] = 0, 0, 0, 0
    values[tuple(slice(n // 2, n // 2 + 2) for n in shape)] = 0
    return values


@pytest.mark.parametrize(
    "name",
    ["ZScoreNormalization", "CTNormalization", "NoNormalization", "RescaleTo01Normalization", "RGBTo01Normalization"],
)
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(("low", "high"), [(0, 255), (-1000, 1500)])
def test_normalisation(name: str, masked: bool, low: int, high: int) -> None:
    from nnunetv2.preprocessing.cropping.cropping import create_nonzero_mask
    from nnunetv2.preprocessing.normalization import default_normalization_schemes as library

    if name == "RGBTo01Normalization" and low < 0:
        pytest.skip("it refuses other than bytes")
    x = scan((9, 14, 11), low, high, seed=3).astype(np.float32)
    foreground = create_nonzero_mask(x[None])
    assert 0 < foreground.mean() < 1
    expected = getattr(library, name)(masked, CT).run(x.copy(), np.where(foreground, 0, -1))
    scheme = Scheme(name, masked, *CT.values())
    result = normalised(torch.from_numpy(x), scheme, torch.from_numpy(foreground)).numpy()
    assert result.dtype == expected.dtype
    np.testing.assert_allclose(result, expected, rtol=0, atol=4 * FLOAT * np.abs(expected).max())
    if name == "ZScoreNormalization":  # and the mask matters
        other = normalised(torch.from_numpy(x), Scheme(name, not masked), torch.from_numpy(foreground)).numpy()
        assert np.abs(other - expected).max() > 0.01


CASES: dict[str, dict[str, Any]] = {
    "CT": {"schemes": ["CTNormalization"], "values": [(-1000, 1500)], "window": [(-200.0, 300.0)]},
    "CT, anisotropic": {
        "schemes": ["CTNormalization"],
        "values": [(-1000, 1500)],
        "window": [(-200.0, 300.0)],
        "spacing": (5.0, 0.8, 0.7),
        "target": (3.5, 1.0, 0.9),
    },
    "z-score of the mask": {"schemes": ["ZScoreNormalization"], "masked": [True]},
    "z-score of the mask, anisotropic": {
        "schemes": ["ZScoreNormalization"],
        "masked": [True],
        "spacing": (5.0, 0.8, 0.7),
        "target": (6.1, 0.6, 0.9),
    },
    "anisotropic target alone": {"schemes": ["ZScoreNormalization"], "target": (4.0, 1.2, 0.9)},
    "last axis coarse, transposed": {
        "schemes": ["ZScoreNormalization"],
        "spacing": (0.8, 0.7, 5.0),
        "target": (4.1, 1.0, 0.9),
        "transpose": (2, 0, 1),
    },
    "two channels": {
        "schemes": ["ZScoreNormalization", "RescaleTo01Normalization"],
        "masked": [True, False],
        "values": [(1, 900), (1, 4000)],
        "window": [(0.0, 900.0), (0.0, 4000.0)],
    },
}


def library_of(
    root: Path, schemes: list[str], masked: list[bool], target: tuple[float, ...], transpose: tuple[int, ...]
) -> tuple[Path, Any, Any]:
    """A results folder with random weights, and nnU-Net's own view of it: plans and configuration."""
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    folder = write_folder(root, channels=len(schemes))
    plans = json.loads((folder / "plans.json").read_text())
    described = plans["configurations"]["3d_fullres"]
    described |= {"spacing": list(target), "normalization_schemes": schemes, "use_mask_for_norm": masked}
    described |= {"resampling_fn_seg": described["resampling_fn_data"]}
    described |= {"resampling_fn_seg_kwargs": {"is_seg": True, "order": 1, "order_z": 0, "force_separate_z": None}}
    plans |= {
        "transpose_forward": list(transpose),
        "transpose_backward": np.argsort(transpose).tolist(),
        "foreground_intensity_properties_per_channel": {str(n): CT for n in range(len(schemes))},
        "label_manager": "LabelManager",
    }
    write(folder / "plans.json", plans)
    manager = PlansManager(str(folder / "plans.json"))
    return folder, manager, manager.get_configuration("3d_fullres")


def case_of(stored: np.ndarray, spacing: tuple[float, ...], window: list[tuple[float, float]]) -> Case:
    ends = np.array(window, np.float64).reshape(-1, 2, 1, 1, 1)
    image = ((stored - ends[:, 0]) / (ends[:, 1] - ends[:, 0])).clip(0, 1).astype(np.float32)
    target = torch.zeros(3, *stored.shape[1:], dtype=torch.bool)
    low, high = zip(*window, strict=True)
    return Case(
        "a",
        "a",
        "a",
        torch.from_numpy(image),
        target,
        spacing,
        Window(alike(low), alike(high)),
        None,
        Storage(torch.from_numpy(stored)),
        TASK.classes,
    )


@pytest.mark.parametrize("name", CASES)
def test_the_whole_chain(name: str, tmp_path: Path) -> None:
    from nnunetv2.inference.export_prediction import convert_predicted_logits_to_segmentation_with_correct_shape
    from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor

    example = {
        "masked": [False] * 2,
        "values": [(1, 900)],
        "window": [(0.0, 900.0)],
        "spacing": (2.0, 1.0, 1.0),
        "target": (1.5, 0.9, 1.2),
        "transpose": (0, 1, 2),
    } | CASES[name]
    n, spacing = len(example["schemes"]), example["spacing"]
    folder, plans, configuration = library_of(
        tmp_path, example["schemes"], example["masked"][:n], example["target"], example["transpose"]
    )
    stored = np.stack([scan((12, 22, 19), *values, seed) for seed, values in enumerate(example["values"])])
    dataset = json.loads((folder / "dataset.json").read_text())
    properties: dict[str, Any] = {"spacing": list(spacing)}
    expected, *_ = DefaultPreprocessor(verbose=False).run_case_npy(
        stored, None, properties, plans, configuration, dataset
    )

    model = read(folder, task=Task("toy", TASK.classes, exclusive=True, channels=n))
    case = case_of(stored, spacing, example["window"])
    log_odds, preprocessed, logits = answered(model, case)
    assert preprocessed.shape == expected.shape
    # what float32 loses of a native intensity, as it is normalised
    scale = max(
        np.ptp(part) / min(np.ptp(channel[channel != 0]), high - low)
        for part, channel, (low, high) in zip(expected, stored, example["window"], strict=True)
    )
    widest = max(high - low for low, high in example["window"])
    apart = np.abs(preprocessed - expected).max()
    bound = 4 * FLOAT * widest * scale
    print(f"\n{name}: preprocessed differ by {apart:.2g} (bound {bound:.2g}) of {np.ptp(expected):.3g}")
    assert apart <= bound

    def exported(logits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        segmentation: tuple[np.ndarray, np.ndarray] = convert_predicted_logits_to_segmentation_with_correct_shape(
            logits, plans, configuration, plans.get_label_manager(dataset), properties, True, 1
        )
        return segmentation

    assert (logits.astype(np.float16) == logits).all()  # sums of windows are kept in half precision
    segmentation, _ = exported(logits.astype(np.float16))
    assert len(np.unique(segmentation)) > 1
    assert (log_odds.argmax(0) == segmentation).all()
    log_odds, _, logits = answered(model.double(), replace(case, image=case.image.double()))  # rounds nothing
    assert logits.dtype == np.float64
    _, probabilities = exported(logits)
    apart = np.abs(1 / (1 + np.exp(-log_odds)) - probabilities).max()
    print(f"probabilities differ by {apart:.2g}")
    assert apart <= 4 * FLOAT


def answered(model: SegModel, case: Case) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Log-odds on the scan's grid; what goes into the windows, and what comes out of them."""
    recorded: list[Tensor] = []
    bound = bind(model, Setting(model.task, (case,)))
    bound.net.windows.register_forward_hook(lambda _, inputs, answer: recorded.extend((inputs[0][0], answer[0])))
    log_odds = bound(case.image[None])[0]
    return log_odds.numpy(), recorded[0].numpy(), recorded[1].numpy()
