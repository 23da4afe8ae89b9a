"""A results folder as nnU-Net v2 writes it, with random weights."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from medseg_attack.models.segmodel import SegModel
from medseg_attack.registry import build
from medseg_attack.types import Task

TASK = Task("toy", ("background", "liver", "spleen"), exclusive=True)


def write_folder(root: Path, channels: int = 1, **init: Any) -> Path:
    """A results folder as nnU-Net 2.8 writes it, with random weights."""
    pytest.importorskip("dynamic_network_architectures")
    from dynamic_network_architectures.architectures.unet import PlainConvUNet

    kwargs: dict[str, Any] = {
        "n_stages": 2,
        "features_per_stage": [4, 8],
        "conv_op": "torch.nn.modules.conv.Conv3d",
        "kernel_sizes": [[3, 3, 3]] * 2,
        "strides": [[1, 1, 1], [2, 2, 2]],
        "n_conv_per_stage": [1, 1],
        "n_conv_per_stage_decoder": [1],
        "conv_bias": True,
        "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
        "norm_op_kwargs": {"eps": 1e-05, "affine": True},
        "dropout_op": None,
        "dropout_op_kwargs": None,
        "nonlin": "torch.nn.LeakyReLU",
        "nonlin_kwargs": {"inplace": True},
    }
    resampling = {"is_seg": False, "order_z": 0, "force_separate_z": None}
    fullres = {
        "patch_size": [4, 8, 8],
        "spacing": [2.0, 1.0, 1.0],
        "normalization_schemes": ["ZScoreNormalization"],
        "use_mask_for_norm": [False],
        "resampling_fn_data": "resample_data_or_seg_to_shape",
        "resampling_fn_probabilities": "resample_data_or_seg_to_shape",
        "resampling_fn_data_kwargs": resampling | {"order": 3},
        "resampling_fn_probabilities_kwargs": resampling | {"order": 1},
        "architecture": {
            "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
            "arch_kwargs": kwargs,
            "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
        },
    }
    plans = {
        "transpose_forward": [0, 1, 2],
        "image_reader_writer": "SimpleITKIO",
        "configurations": {"3d_fullres": fullres, "3d_small": {"inherits_from": "3d_fullres", "patch_size": [2, 4, 4]}},
        "foreground_intensity_properties_per_channel": {"0": {"mean": 1.0}},
    }
    folder = root / "Dataset999_Toy" / "nnUNetTrainer__nnUNetPlans__3d_fullres"
    (folder / "fold_0").mkdir(parents=True)
    labels = {"background": 0, "liver": 1, "spleen": 2}
    write(folder / "plans.json", plans)
    write(folder / "dataset.json", {"channel_names": {str(n): f"MRI {n}" for n in range(channels)}, "labels": labels})
    real = {"conv_op": nn.Conv3d, "norm_op": nn.InstanceNorm3d, "nonlin": nn.LeakyReLU}
    with torch.random.fork_rng():
        torch.manual_seed(7)
        net = PlainConvUNet(input_channels=channels, num_classes=3, deep_supervision=True, **(kwargs | real))
    saved = {
        "network_weights": net.state_dict(),
        "_best_ema": np.float64(0.5),
        "trainer_name": "nnUNetTrainer",
        "logging": {"ema_fg_dice": [np.float32(0.25), np.float64(0.5)], "lrs": [1e-3]},
        "init_args": {"configuration": "3d_fullres", "fold": 0} | init,
        "inference_allowed_mirroring_axes": (0, 1, 2),
    }
    torch.save(saved, folder / "fold_0" / "checkpoint_final.pth")
    return folder


def write(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content), encoding="utf-8")


def edited(folder: Path, name: str, **changes: Any) -> None:
    """Changes entries of plans.json or dataset.json, those of 3d_fullres among them."""
    content = json.loads((folder / name).read_text(encoding="utf-8"))
    inner = content.get("configurations", {}).get("3d_fullres", {})
    for key, value in changes.items():
        (inner if key in inner else content)[key] = value
    write(folder / name, content)


def read(folder: Path, options: str = "", task: Task = TASK) -> SegModel:
    model: SegModel = build(f"nnunet({str(folder)!r}{options})", "model")(task)
    return model.requires_grad_(False).eval()
