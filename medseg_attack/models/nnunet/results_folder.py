"""A results folder of nnU-Net v2, read without nnU-Net: plans.json, dataset.json and the checkpoint of a fold."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from pickle import UnpicklingError
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import nn

from medseg_attack.errors import InputError, first_line, package, raised, refusing
from medseg_attack.models.allowed_layers import allowed_layer, number_types
from medseg_attack.models.importers.weights import without_prefix
from medseg_attack.models.networks.blank import BlankParameters
from medseg_attack.models.nnunet.resampling import Resampling
from medseg_attack.specifications.nnunet import Labels, channel_names_of, labels_of
from medseg_attack.storage.archives import require_sound
from medseg_attack.storage.forms import Form, check_form
from medseg_attack.storage.json_files import read_json
from medseg_attack.types import Task

MOST_VOXELS = 100_000  # along a side of a patch
LIBRARY = "dynamic_network_architectures"

READERS = ("SimpleITKIO", "NibabelIO")  # these keep the file's order of voxels, as this package does

SCHEMES = (
    "ZScoreNormalization",
    "CTNormalization",
    "NoNormalization",
    "RescaleTo01Normalization",
    "RGBTo01Normalization",
)


@dataclass(frozen=True)
class Scheme:
    """nnU-Net's normalisation of a channel.

    Attributes:
        name: the name of its class in nnU-Net, one of `SCHEMES`.
        masked: whether only voxels that are not 0 in the scan count and change.
        mean, std: of the training data's foreground, in the scan's unit.
        low, high: 0.5 and 99.5 percentile of the same.
    """

    name: str
    masked: bool = False
    mean: float = 0.0
    std: float = 1.0
    low: float = 0.0
    high: float = 0.0


@dataclass(frozen=True)
class Plan:
    """nnU-Net's processing around the network.

    Attributes:
        transpose: the reader's axes, (z, y, x) of the file, in the order of the network's.
        spacing: spacing of the network's input, in mm; a 2-D network has two entries, and slices keep their distance.
        patch: sides of the network's input, in voxels; two of a 2-D network.
        schemes: normalisation of each channel.
        image, logits: resampling of the scan before the network, and of its output after it.
        mirror: axes of the patch along which copies may be mirrored.
        regions: labels that are regions, which become one map; None: each voxel has one class.
    """

    transpose: tuple[int, ...]
    spacing: tuple[float, ...]
    patch: tuple[int, ...]
    schemes: tuple[Scheme, ...]
    image: Resampling
    logits: Resampling
    mirror: tuple[int, ...] = ()
    regions: Labels | None = None


class _ResamplingForm(Form):
    """The options of a resampling."""

    order: int = Field(3, ge=0, le=5)
    order_z: int = Field(0, ge=0, le=5)
    force_separate_z: bool | None = False


class _Configuration(Form):
    """The fields of a configuration that are numbers, which a network or a resampling would stumble over later."""

    spacing: list[Annotated[float, Field(ge=1e-4, le=1e4)]] = Field(min_length=2, max_length=3)  # mm
    patch_size: list[Annotated[int, Field(gt=0, le=MOST_VOXELS)]] = Field(min_length=2, max_length=3)
    resampling_fn_data_kwargs: _ResamplingForm
    resampling_fn_probabilities_kwargs: _ResamplingForm


class _Statistics(Form):
    """The statistics of a channel's foreground, in the scan's unit."""

    mean: float
    std: float = Field(ge=0)
    percentile_00_5: float
    percentile_99_5: float


def read_folder(
    folder: Path, task: Task, fold: int | str | None, checkpoint: str, trust: bool
) -> tuple[Plan, nn.Module]:
    """The plan of a results folder, and its network with its weights.

    Args:
        fold: 0, 1, ... or "all"; None: the only fold.
        checkpoint: name of the file in the folder of the fold.
        trust: whether the checkpoint may be unpickled, which runs whatever it holds.

    Raises:
        InputError: a part is missing, broken or not supported, or has other channels or classes than `task`.
    """
    for name in ("plans.json", "dataset.json"):
        if not (folder / name).is_file():
            raise InputError(
                f"expected {name} in {folder}, got none; name nnU-Net's results folder "
                "DATASET/TRAINER__PLANS__CONFIGURATION"
            )
    plans, dataset = read_json(folder / "plans.json"), read_json(folder / "dataset.json")
    file = _fold(folder, fold) / checkpoint
    content = _load(file, trust)
    written = f"plans.json, dataset.json and {file.name} as nnU-Net v2 writes them in {folder}"
    with refusing(written, "copy the folder again", words=raised):  # fields of wrong kinds, the network's constructor
        labels = _check_task(dataset, task, folder)
        configuration = _configuration(plans, content["init_args"]["configuration"])
        check_form(configuration, _Configuration, folder / "plans.json")
        mirror = tuple(content.get("inference_allowed_mirroring_axes") or ())
        if not set(mirror) <= set(range(len(configuration["patch_size"]))):
            raise InputError(
                f"expected inference_allowed_mirroring_axes in {file} to be axes of the patch, got {mirror}; copy the "
                "file again"
            )
        plan = _plan(plans, configuration, mirror, folder)
        plan = replace(plan, regions=labels if labels.regions else None)
        with BlankParameters():
            net = _network(configuration, task, folder)
    weights = f"the weights of the network that {folder / 'plans.json'} describes in {file}"
    todo = "if a custom trainer built another network, give it as own('file.py:factory')"
    with refusing(weights, todo, (RuntimeError, KeyError, TypeError, AttributeError)):
        state = content["network_weights"]
        net.load_state_dict(without_prefix(state, net.state_dict()) if state else state)
    return plan, net


def _fold(folder: Path, fold: int | str | None) -> Path:
    folds = sorted(path.name.removeprefix("fold_") for path in folder.glob("fold_*") if path.is_dir())
    if not folds:
        raise InputError(f"expected fold_0 or another fold in {folder}, got none; name the folder that holds the folds")
    if fold is None and len(folds) == 1:
        return folder / f"fold_{folds[0]}"
    if fold is None or str(fold) not in folds:
        got = "none was named" if fold is None else f"got {fold!r}"
        raise InputError(f"expected one of the folds {', '.join(folds)} of {folder}, {got}; write fold={folds[0]}")
    return folder / f"fold_{fold}"


def _load(file: Path, trust: bool) -> dict[str, Any]:
    """The trainer's checkpoint: tensors, plain values, and numpy's numbers in its log."""
    if not file.is_file():
        others = sorted(path.name for path in file.parent.glob("*.pth"))
        todo = f"name it: checkpoint={others[0]!r}" if others else "copy the folder again, with its weights"
        raise InputError(f"expected {file}, got {', '.join(others) or 'no checkpoint'}; {todo}")
    try:
        require_sound(file)
        with torch.serialization.safe_globals(number_types()):
            content: Any = torch.load(file, map_location="cpu", weights_only=not trust)
    except UnpicklingError as error:
        raise InputError(
            f"expected tensors and numbers alone in {file}, got objects that would have to be unpickled, which may "
            "run anything; if you trust who made it, write trust=True"
        ) from error
    except Exception as error:  # a damaged file makes its reader raise anything
        raise InputError(
            f"expected a checkpoint of nnU-Net in {file}, got '{first_line(error)}'; copy the file again"
        ) from error
    if not isinstance(content, dict) or not {"network_weights", "init_args"} <= content.keys():
        raise InputError(f"expected network_weights and init_args in {file}, got neither; take nnU-Net v2's checkpoint")
    return content


def _check_task(dataset: Mapping[str, Any], task: Task, folder: Path) -> Labels:
    """The labels of the model, if they and its channels are those of the task."""
    file = folder / "dataset.json"
    labels = labels_of(dataset, file)
    if labels.classes != task.classes or labels.regions == task.exclusive:
        kind = "" if task.exclusive else ", which may overlap,"
        network_kind = "regions, which may overlap," if labels.regions else "classes"
        raise InputError(
            f"expected data with the {network_kind} {', '.join(labels.classes)} of {file}, got "
            f"{', '.join(task.classes)}{kind} in {task.name}; give the data that it was trained for"
        )
    channels = channel_names_of(dataset, file)
    if len(channels) != task.channels or [*map(str.casefold, task.channel_names or channels)] != [
        *map(str.casefold, channels)
    ]:
        got = ", ".join(task.channel_names) or f"{task.channels} without names"
        raise InputError(
            f"expected data with the channels {', '.join(channels)} of {file}, got {got} in {task.name}; "
            "prepare them in that order"
        )
    return labels


def _configuration(plans: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The configuration of that name, with the fields that it inherits."""
    own: dict[str, Any] = plans["configurations"][name]
    parent = own.get("inherits_from")
    return {**(_configuration(plans, parent) if parent else {}), **own}


def _plan(plans: Mapping[str, Any], configuration: Mapping[str, Any], mirror: tuple[int, ...], folder: Path) -> Plan:
    reader = plans.get("image_reader_writer", READERS[0])
    if reader not in READERS:
        raise InputError(
            f"expected {' or '.join(READERS)} to have read the scans of {folder}, got {reader}; "
            "plan and train with one of these"
        )
    defaults = {"label_manager": "LabelManager", "preprocessor_name": "DefaultPreprocessor"}
    for field, default in defaults.items():
        name = configuration.get(field, plans.get(field)) or default
        if name != default:
            raise InputError(
                f"{field}: expected {default} in {folder / 'plans.json'}, got {name}; plan with nnU-Net's own"
            )
    forward = plans["transpose_forward"]
    backward = plans.get("transpose_backward", [forward.index(axis) for axis in range(3)])
    if [forward[axis] for axis in backward] != [0, 1, 2]:
        raise InputError(
            f"transpose_backward: expected the inverse of {forward} in {folder / 'plans.json'}, got {backward}; plan "
            "again"
        )
    if configuration.get("previous_stage"):
        raise InputError(f"expected one stage in {folder}, got a cascade; take 3d_fullres, 3d_lowres or 2d")
    statistics = plans.get("foreground_intensity_properties_per_channel")
    statistics = plans["foreground_intensity_properties_by_modality"] if statistics is None else statistics
    schemes = [
        _scheme(name, bool(masked), statistics[str(n)], folder)
        for n, (name, masked) in enumerate(
            zip(configuration["normalization_schemes"], configuration["use_mask_for_norm"], strict=True)
        )
    ]
    return Plan(
        tuple(forward),
        tuple(configuration["spacing"]),
        tuple(configuration["patch_size"]),
        tuple(schemes),
        _resampling(configuration, "resampling_fn_data", folder),
        _resampling(configuration, "resampling_fn_probabilities", folder),
        mirror,
    )


def _scheme(name: str, masked: bool, statistics: Mapping[str, float], folder: Path) -> Scheme:
    if name not in SCHEMES:
        raise InputError(
            f"expected a normalisation of nnU-Net's own in {folder}, got {name}; plan and train with one of "
            f"{', '.join(SCHEMES)}"
        )
    if name != "CTNormalization":
        return Scheme(name, masked)
    check_form(dict(statistics), _Statistics, folder / "plans.json")
    return Scheme(name, masked, *(statistics[key] for key in ("mean", "std", "percentile_00_5", "percentile_99_5")))


def _resampling(configuration: Mapping[str, Any], name: str, folder: Path) -> Resampling:
    if configuration[name] != "resample_data_or_seg_to_shape":
        raise InputError(
            f"expected resample_data_or_seg_to_shape as {name} in {folder}, got {configuration[name]}; plan and train "
            "with nnU-Net's default"
        )
    options = configuration[f"{name}_kwargs"]
    return Resampling(options.get("order", 3), options.get("order_z", 0), options.get("force_separate_z", False))


def _network(configuration: Mapping[str, Any], task: Task, folder: Path) -> nn.Module:
    package(LIBRARY, f"build the network of {folder}", "nnunet")
    architecture = configuration.get("architecture") or _architecture(configuration)
    options = dict(architecture["arch_kwargs"])
    for name in architecture["_kw_requires_import"]:
        options[name] = options[name] and _layer(options[name], "torch.nn", folder)
    net: nn.Module = _layer(architecture["network_class_name"], LIBRARY, folder)(
        input_channels=task.channels, num_classes=len(task.classes), **(options | {"deep_supervision": False})
    )
    return net


def _architecture(configuration: Mapping[str, Any]) -> dict[str, Any]:
    """The architecture of a plan from before nnU-Net 2.5, which had two kinds of U-Net, in the form of later plans."""
    kind, stages = configuration["UNet_class_name"], len(configuration["n_conv_per_stage_encoder"])
    dims, width = len(configuration["patch_size"]), configuration["UNet_base_num_features"]
    widest = configuration["unet_max_num_features"]
    per_stage = "n_conv_per_stage" if kind == "PlainConvUNet" else "n_blocks_per_stage"
    options = {
        "n_stages": stages,
        "features_per_stage": [min(width * 2**n, widest) for n in range(stages)],
        "conv_op": f"torch.nn.Conv{dims}d",
        "kernel_sizes": configuration["conv_kernel_sizes"],
        "strides": configuration["pool_op_kernel_sizes"],
        per_stage: configuration["n_conv_per_stage_encoder"],
        "n_conv_per_stage_decoder": configuration["n_conv_per_stage_decoder"],
        "conv_bias": True,
        "norm_op": f"torch.nn.InstanceNorm{dims}d",
        "norm_op_kwargs": {"eps": 1e-5, "affine": True},
        "dropout_op": None,
        "dropout_op_kwargs": None,
        "nonlin": "torch.nn.LeakyReLU",
        "nonlin_kwargs": {"inplace": True},
    }
    return {
        "network_class_name": f"{LIBRARY}.architectures.unet.{kind}",
        "arch_kwargs": options,
        "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
    }


def _layer(path: str, package: str, folder: Path) -> type[nn.Module]:
    layer = allowed_layer(path, package)
    if layer is None:
        raise InputError(
            f"expected a network or layer of {package} in {folder / 'plans.json'}, got {path}; build it in a function "
            "of your own: own('file.py:factory')"
        )
    return layer


def distinguished_range(scheme: Scheme, low: float, high: float) -> tuple[float, float]:
    """The part of a channel's range from `low` to `high` in which its normalisation distinguishes values."""
    if scheme.name != "CTNormalization":
        return low, high
    return min(max(low, scheme.low), scheme.high), max(min(high, scheme.high), scheme.low)


def spacings(plan: Plan, spacing: Sequence[float]) -> tuple[float, ...]:
    """The spacing that a scan is resampled to, in mm: a 2-D network keeps the distance of its slices."""
    return (*spacing[: len(spacing) - len(plan.spacing)], *plan.spacing)
