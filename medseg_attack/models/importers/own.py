"""The user's own network, in any of the formats below, as a model that can be attacked."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from medseg_attack.errors import InputError, nearest
from medseg_attack.models.importers.axis_order import LETTERS, reorient
from medseg_attack.models.importers.monai_bundle import bundle
from medseg_attack.models.importers.onnx import onnx
from medseg_attack.models.importers.output import OPTIONS, PickOutput
from medseg_attack.models.importers.python import from_python
from medseg_attack.models.importers.smp_folder import smp_folder
from medseg_attack.models.importers.source_code import source_of
from medseg_attack.models.importers.torch_export import Exported, exported
from medseg_attack.models.importers.torchscript import torchscript
from medseg_attack.models.importers.weights import load_into
from medseg_attack.models.networks.monai import with_windows
from medseg_attack.models.prompts import PROMPTS, Boxes, Points, Policy, Prompted
from medseg_attack.models.segmodel import HEADS, IMAGENET_MEAN, IMAGENET_STD, Head, Normalise, SegModel, ZScore
from medseg_attack.registry import Code, register
from medseg_attack.storage.paths import beside
from medseg_attack.types import Task

PROGRAMS = (".ts", ".pt", ".pth", ".jit")  # of TorchScript
NORMALISE = ("none", "zscore", "imagenet", "symmetric")
KINDS = "file.py:factory, package.module:factory, .ts/.pt (TorchScript), .pt2 (torch.export), .onnx, or a folder"


def _code(options: Mapping[str, Any]) -> Code | None:
    """The code of a network: a factory's modules, a TorchScript program, a torch.export file that is trusted."""
    net = str(options.get("net", ""))
    path = Path(net)
    if path.suffix.lower() in PROGRAMS or path.suffix.lower() == ".pt2":
        runs = path.suffix.lower() in PROGRAMS or options.get("trust", False)
        return Code("", (path,) if path.is_file() else ()) if runs else None
    if path.suffix.lower() == ".onnx" or path.is_dir() or ":" not in net:
        return None
    source = source_of(net)
    return Code(net.rpartition(":")[2], source.modules + source.files)


@register("own", kind="model", trained=True, code=_code, bounds={"overlap": "[0, 1)"})
def own(
    task: Task,
    net: str = "",
    *,
    weights: str = "",
    dims: int = 2,
    axes: str = "",
    output: str = "",
    head: str = "",
    normalise: str = "none",
    channels: int = 0,
    window: tuple[int, ...] = (),
    overlap: float = 0.5,
    importance: str = "gaussian",
    mirror: tuple[int, ...] = (),
    size: tuple[int, ...] = (),
    stride: int = 1,
    prompt: str = "",
    margin: float = 10.0,
    points: int = 3,
    encoder: str = "",
    trust: bool = False,
) -> SegModel:
    """One's own: 'file.py:factory', 'package.module:factory', .ts, .pt2, .onnx, an SMP folder or a MONAI bundle.

    A factory may return a SegModel; all options but `dims` are then its own.

    Args:
        net: the network: one of the above.
        weights: file with the weights of a factory's network: safetensors, or a state dict of torch.save.
        dims: 2 for slices, 3 for scans; a MONAI bundle has its own.
        axes: order of the axes that the network gets: "zyx" is slices, rows, columns, as prepared ("yx" in 2-D); "xyz"
            the order of NIfTI, the default of a MONAI bundle without an Orientationd; "-x-yz" with columns and rows
            reversed. `window`, `mirror` and `size` are those of slices, rows, columns in any case.
        output: part of the output that is taken: "out", "0"; "": all of it.
        head: activation of the network: "softmax" or "sigmoid" for logits, or "probabilities" if it applies one;
            by default softmax if the classes exclude each other, else sigmoid.
        normalise: layer on the scan's window as 0 to 1: "none", "zscore" of the whole scan, "imagenet", or
            "symmetric" (-1 to 1).
        channels: of the network's input, for which a grey scan is repeated; by default those of the scan.
        window: sides of the sliding windows, in voxels; (): the network gets the whole image.
        overlap: of neighbouring windows, as a fraction of their size in [0, 1).
        importance: weight of a window's voxels: "gaussian" or "constant".
        mirror: spatial axes, from 0, along which inputs are also mirrored; the mean of all copies is taken.
        size: grid that the image is resized to, in voxels; (): the scan's own grid.
        stride: number that sides of the input must be multiples of; the image is padded with 0.
        prompt: kind of prompts that a promptable network gets, drawn from the truth: "box" of
            `forward(images, boxes)`, "points" of `forward(images, points, labels)`; it answers a logit map per organ.
        margin: of boxes: the most that a side is moved outwards, in pixels of the scan; 0 is the box itself.
        points: of points: their largest number.
        encoder: name of the part of the network whose answer attacks on features take, such as "image_encoder"; by
            default they take the deepest map.
        trust: whether a .pt2 may be read, which runs whatever it holds.

    Raises:
        InputError: a file is missing or broken, or the options do not fit each other or the data.
    """
    if not net:
        raise InputError(f"expected own(NETWORK), got own(); name it: {KINDS}")
    _check(dims, head, normalise, f"own({net!r})")
    _check_prompt(prompt, margin, points, dims=dims, window=window, mirror=mirror, axes=axes, head=head)
    network, config = _read(net, task, weights, trust)
    is_program = ":" in net or Path(net).suffix.lower() in PROGRAMS
    if prompt and (isinstance(network, SegModel) or not is_program):
        got = "a SegModel" if isinstance(network, SegModel) else net
        raise InputError(
            f"expected a network of Python or TorchScript beside prompt={prompt!r}, got {got}; return the network that "
            "takes images and prompts"
        )
    if not isinstance(network, Exported):  # whose program is for one precision
        network.float()  # images are in single precision, and so are gradients
    if isinstance(network, SegModel):
        if network.dims != dims:
            own_dims = f"dims={network.dims}"
            raise InputError(f"expected {own_dims}, as the SegModel of own({net!r}) has, got {dims}; write {own_dims}")
        return network
    return wrapped(
        network,
        task,
        config,
        dims=dims,
        axes=axes,
        output=output,
        head=head,
        normalise=normalise,
        channels=channels,
        window=window,
        overlap=overlap,
        importance=importance,
        mirror=mirror,
        size=size,
        stride=stride,
        prompt=prompt,
        margin=margin,
        points=points,
        encoder=encoder,
    )


def wrapped(
    network: nn.Module,
    task: Task,
    config: Mapping[str, Any] | None = None,
    *,
    dims: int = 2,
    axes: str = "",
    output: str = "",
    head: str = "",
    normalise: str = "none",
    channels: int = 0,
    window: tuple[int, ...] = (),
    overlap: float = 0.5,
    importance: str = "gaussian",
    mirror: tuple[int, ...] = (),
    size: tuple[int, ...] = (),
    stride: int = 1,
    prompt: str = "",
    margin: float = 10.0,
    points: int = 3,
    encoder: str = "",
) -> SegModel:
    """A network with all that lies between the scan and the decision; the options are those of `own`.

    Args:
        config: what the network's folder says of it: `dims`, `axes`, and `window` with its overlap.

    Raises:
        InputError: the options do not fit each other or the task.
    """
    config = config or {}
    _check(dims, head, normalise, "the network")
    policy = _check_prompt(prompt, margin, points, dims=dims, window=window, mirror=mirror, axes=axes, head=head)
    windows: dict[str, Any] = {"window": window, "overlap": overlap, "importance": importance}
    dims = config.get("dims", dims)
    default_axes = config.get("axes", LETTERS)
    picked = PickOutput(network, output, dims, f"write {policy.signature}" if policy else OPTIONS)
    reoriented = reorient(picked, axes or (default_axes if dims == 3 else default_axes.replace("z", "")), dims)
    if "window" in config and not window:
        windows = config["window"] | {"window": reoriented.in_scan_order(config["window"]["window"])}
    channels = channels or task.channels
    layers: dict[str, nn.Module] = {
        "none": nn.Identity(),
        "zscore": ZScore(),
        "imagenet": Normalise(IMAGENET_MEAN[:channels], IMAGENET_STD[:channels]),
        "symmetric": Normalise((0.5,) * channels, (0.5,) * channels),
    }
    if encoder:
        _check_encoder(network, encoder, bool(windows["window"] or mirror))
    known_head: Head | None = next((known for known in HEADS if known == head), None)
    turned = picked if reoriented.as_prepared else reoriented
    on_scan = with_windows(turned, dims, mirror=mirror, from_end=reoriented.flips, **windows)
    model = SegModel(
        Prompted(picked, task, policy, size or None) if policy else on_scan,
        task,
        normalise=layers[normalise],
        head=known_head,
        in_channels=channels,
        size=size or None,
        stride=1 if windows["window"] else stride,
        dims=dims,
        black_box=bool(getattr(network, "black_box", False)),
    )
    if encoder:
        within = next(name for name, layer in model.net.named_modules() if layer is network)
        model.encoder = f"{within}.{encoder}"
    return model


def _check(dims: int, head: str, normalise: str, place: str) -> None:
    if dims not in (2, 3):
        raise InputError(f"expected dims=2 or dims=3, got {dims} in {place}; write dims=3 for scans")
    for name, value, known in (("head", head or HEADS[0], HEADS), ("normalise", normalise, NORMALISE)):
        if value not in known:
            raise InputError(f"unknown {name}: expected one of these, got {value!r}; {nearest(value, known)}")


def _check_prompt(prompt: str, margin: float, points: int, *, dims: int, **others: Any) -> Policy | None:
    """How prompts are drawn; None without any.

    Args:
        others: options that a promptable network cannot have, by name.
    """
    if prompt and prompt not in PROMPTS:
        raise InputError(f"unknown prompt: expected one of these, got {prompt!r}; {nearest(prompt, PROMPTS)}")
    for name, kind, value, default in (("margin", "box", margin, 10.0), ("points", "points", points, 3)):
        if value != default and prompt != kind:
            raise InputError(f"expected {name}= beside prompt={kind!r} alone, got prompt={prompt!r}; leave it out")
    if not prompt:
        return None
    if dims != 2:
        raise InputError(f"expected dims=2 beside prompt={prompt!r}, got {dims}; prompts are drawn on slices")
    for name, value in others.items():
        if value:
            raise InputError(
                f"expected no {name}= beside prompt={prompt!r}, got {value!r}; a promptable network gets a slice as a "
                "whole, rows first, and answers logits: leave it out"
            )
    return Boxes(margin) if prompt == PROMPTS[0] else Points(points)


def _check_encoder(network: nn.Module, encoder: str, in_parts: bool) -> None:
    """Refuses an encoder that is not there, or that sees an image in windows or mirrored copies."""
    if in_parts:
        raise InputError(
            f"expected no window= or mirror= beside encoder={encoder!r}, which sees an image at once; drop one"
        )
    names = [name for name, _ in network.named_modules() if name]
    if encoder not in names:
        raise InputError(f"unknown encoder: expected a part of the network, got {encoder!r}; {nearest(encoder, names)}")


def _read(net: str, task: Task, weights: str, trust: bool) -> tuple[nn.Module, dict[str, Any]]:
    """The network, and the options that its folder sets: `dims`, `axes` and `window` with its overlap."""
    path = Path(net)
    if path.is_dir() or path.suffix.lower() in (*PROGRAMS, ".pt2", ".onnx"):
        if weights:
            raise InputError(f"expected no weights= beside {net}, which has its own, got {weights!r}; leave it out")
        return _read_path(path, trust)
    if ":" not in net:
        got = "a Python file without :factory" if path.suffix.lower() == ".py" else "neither of these"
        raise InputError(f"expected {KINDS}, got {got} in own({net!r}); name one of them")
    network = from_python(net, task)
    if not isinstance(network, nn.Module):
        kind = type(network).__name__
        raise InputError(f"expected a torch.nn.Module from own({net!r}), got {kind}; return the network")
    if weights:
        load_into(network, Path(weights))
    return network, {}


def _read_path(path: Path, trust: bool) -> tuple[nn.Module, dict[str, Any]]:
    if path.is_dir():
        if (path / "config.json").is_file():
            return smp_folder(path), {}
        return bundle(path)
    if not path.is_file():
        raise InputError(
            f"expected a network in {path}, a file of TorchScript (.ts, .pt), torch.export (.pt2) or ONNX (.onnx), got "
            f"none; name another: {beside(path)}"
        )
    if path.suffix.lower() == ".pt2":
        return exported(path, trust), {}
    return (onnx if path.suffix.lower() == ".onnx" else torchscript)(path), {}
