"""2-D networks: those of segmentation-models-pytorch, and a small U-Net of MONAI's for CPUs.

Both libraries are imported inside the functions: they cost seconds, and every look-up in the registry imports
this file. Nothing is downloaded unless `encoder_weights` asks for it.
"""

import functools
import urllib.request
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from medseg_attack.errors import InputError, nearest, refusing
from medseg_attack.models.segmodel import Normalise, SegModel
from medseg_attack.registry import brings_weights, build, register
from medseg_attack.types import Task

PAPER_SIZE = (224, 224)  # arXiv 2401.11224, section 3
_STRIDE = 32  # the stride of every encoder of the library


@register("unet", kind="model")
def unet(task: Task, *, size: tuple[int, ...] = PAPER_SIZE, encoder_weights: str = "") -> SegModel:
    """U-Net with a VGG-13 encoder (arXiv 2401.11224).

    Args:
        size: rows and columns that the slice is resized to, at least 8 each; (): the scan's own grid.
        encoder_weights: name of pretrained weights of the encoder, such as "imagenet", which are downloaded if they
            are not in the cache; "": random weights.
    """
    return smp(task, arch="Unet", encoder="vgg13", size=size, encoder_weights=encoder_weights)


@register("unet_resnext101", kind="model")
def unet_resnext101(task: Task, *, size: tuple[int, ...] = PAPER_SIZE, encoder_weights: str = "") -> SegModel:
    """U-Net with a ResNeXt-101 32x8d encoder (arXiv 2401.11224).

    Args:
        size: rows and columns that the slice is resized to, at least 8 each; (): the scan's own grid.
        encoder_weights: name of pretrained weights of the encoder, such as "imagenet", which are downloaded if they
            are not in the cache; "": random weights.
    """
    return smp(task, arch="Unet", encoder="resnext101_32x8d", size=size, encoder_weights=encoder_weights)


@register("unet_efficientnet_b7", kind="model")
def unet_efficientnet_b7(task: Task, *, size: tuple[int, ...] = PAPER_SIZE, encoder_weights: str = "") -> SegModel:
    """U-Net with an EfficientNet-B7 encoder (arXiv 2401.11224).

    Args:
        size: rows and columns that the slice is resized to, at least 8 each; (): the scan's own grid.
        encoder_weights: name of pretrained weights of the encoder, such as "imagenet", which are downloaded if they
            are not in the cache; "": random weights.
    """
    return smp(task, arch="Unet", encoder="efficientnet-b7", size=size, encoder_weights=encoder_weights)


@register("unetplusplus_efficientnet_b7", kind="model")
def unetplusplus_efficientnet_b7(
    task: Task, *, size: tuple[int, ...] = PAPER_SIZE, encoder_weights: str = ""
) -> SegModel:
    """U-Net++ with an EfficientNet-B7 encoder (arXiv 2401.11224).

    Args:
        size: rows and columns that the slice is resized to, at least 8 each; (): the scan's own grid.
        encoder_weights: name of pretrained weights of the encoder, such as "imagenet", which are downloaded if they
            are not in the cache; "": random weights.
    """
    return smp(task, arch="UnetPlusPlus", encoder="efficientnet-b7", size=size, encoder_weights=encoder_weights)


@register("smp", kind="model")
def smp(
    task: Task, *, arch: str = "Unet", encoder: str = "resnet34", size: tuple[int, ...] = (), encoder_weights: str = ""
) -> SegModel:
    """Any architecture and encoder of segmentation-models-pytorch.

    Inputs are normalised as ImageNet's with or without its weights, so the architecture does not depend on how training
    began, and a checkpoint loads without a download.

    Args:
        arch: name of the architecture, such as "Unet", "FPN" or "DeepLabV3Plus".
        encoder: name of the encoder, such as "resnet34"; "tu-" before a name of timm's.
        size: rows and columns that the slice is resized to, at least 8 each; (): the scan's own grid.
        encoder_weights: name of pretrained weights of the encoder, such as "imagenet", which are downloaded if they
            are not in the cache; "": random weights.

    Raises:
        InputError: there is no such architecture.
    """
    import segmentation_models_pytorch as library

    archs = {make.__name__: make for make in library.MODEL_ARCHITECTURES_MAPPING.values()}
    if arch not in archs:
        raise InputError(f"unknown architecture: expected one of the library's, got {arch!r}; {nearest(arch, archs)}")
    check_encoder(encoder)
    channels = 3 if task.channels == 1 else task.channels  # a grey scan is repeated
    options: dict[str, Any] = {"encoder_name": encoder, "in_channels": channels, "classes": len(task.classes)}
    if encoder_weights:
        _check_weights(encoder, encoder_weights)
    net: nn.Module = archs[arch](encoder_weights=encoder_weights or None, **options)
    normalise = Normalise() if channels == 3 else None  # ImageNet's colours say nothing of other channels
    net.to(memory_format=torch.channels_last)  # a sixth of an attack's time on a CPU, more on a GPU
    return SegModel(net, task, normalise=normalise, in_channels=channels, size=_grid(size), stride=_STRIDE)


@register("unet_small", kind="model")
def unet_small(task: Task, *, channels: tuple[int, ...] = (16, 32, 64, 128), size: tuple[int, ...] = ()) -> SegModel:
    """A residual U-Net of 0.4 M parameters for CPUs (MONAI's UNet), on the scan's own grid.

    Args:
        channels: channels of each level, from the top; 2 levels or more.
        size: rows and columns that the slice is resized to, at least 8 each; (): the scan's own grid.

    Raises:
        InputError: `channels` are not two or more whole numbers from 1.
    """
    from monai.networks.nets.unet import UNet

    if len(channels) < 2 or any(type(n) is not int or n < 1 for n in channels):
        raise InputError(
            f"expected channels=(top, ..., bottom), 2 or more whole numbers from 1, got {channels}; "
            "e.g. channels=(16, 32, 64, 128)"
        )
    down = (2,) * (len(channels) - 1)
    # the library's last convolution is between as many channels as there are classes, after a norm: a single class
    # would be a bottleneck of one channel, which does not learn a small organ in thousands of steps
    features = len(task.classes) if len(task.classes) > 1 else channels[0]
    net: nn.Module = UNet(2, task.channels, features, channels, down, num_res_units=2, norm="batch")
    if features != len(task.classes):
        net = nn.Sequential(net, nn.Conv2d(features, 1, 1))
    net.to(memory_format=torch.channels_last)
    return SegModel(net, task, size=_grid(size), stride=2 ** len(down))


def count_parameters(name: str) -> int | None:
    """The number of weights of a registered model for three overlapping classes; nothing is allocated.

    None for a model that has its own weights, or needs a package that is not installed.
    """
    if brings_weights(name):
        return None
    try:
        with torch.device("meta"):
            model: SegModel = build(name, "model")(Task("abdomen", ("large_bowel", "small_bowel", "stomach")))
    except InputError:  # a package is not installed
        return None
    return sum(parameter.numel() for parameter in model.parameters())


def _grid(size: tuple[int, ...]) -> tuple[int, ...] | None:
    if size and (len(size) != 2 or any(not isinstance(n, int) or n < 8 for n in size)):
        raise InputError(f"expected size=(rows, columns) of at least 8 pixels, got {size}; e.g. size=(224, 224)")
    return size or None


def check_encoder(encoder: str) -> None:
    """Raises InputError unless the library, or timm after "tu-", has an encoder of that name."""
    from segmentation_models_pytorch.encoders import get_encoder_names

    known = list(get_encoder_names())
    if encoder.startswith("tu-"):
        import timm

        known = [f"tu-{name}" for name in timm.list_models()]
        if encoder.removeprefix("tu-").partition(".")[0] in timm.list_models():
            return
        known = [name for name in known if name[:6] == encoder[:6]]
    if encoder not in known:
        raise InputError(f"unknown encoder: expected one of the library's, got {encoder!r}; {nearest(encoder, known)}")


def _check_weights(encoder: str, weights: str) -> None:
    """Fetches the weights into the cache, so that a download that fails is refused in a sentence."""
    from huggingface_hub import constants, hf_hub_download
    from segmentation_models_pytorch.encoders import encoders

    settings = encoders.get(encoder, {}).get("pretrained_settings") or {}
    if weights not in settings:
        raise InputError(f"expected weights that {encoder} has, got {weights!r}; {nearest(weights, settings)}")
    source = settings[weights]
    files = ("config.json", "model.safetensors")
    get = functools.partial(hf_hub_download, source["repo_id"], revision=source["revision"])
    expected = f"to download the {weights} weights of {encoder} ({source['repo_id']})"
    todo = "connect this machine, copy them into the Hugging Face cache, or leave --encoder-weights out to train from "
    with refusing(expected, f"{todo}random weights"):
        if not all(_cached(get, file) for file in files):
            urllib.request.urlopen(constants.ENDPOINT, timeout=5).close()  # the library would try for 20 s
            for file in files:
                get(filename=file)


def _cached(get: Callable[..., str], file: str) -> bool:
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        get(filename=file, local_files_only=True)
    except LocalEntryNotFoundError:
        return False
    return True
