"""The user's own network, whatever it is kept as, as a model that can be attacked, with or without training here."""

from pathlib import Path
from typing import Any

from torch import nn

from medseg_attack.errors import InputError, nearest
from medseg_attack.models.importers.axis_order import LETTERS, reorient
from medseg_attack.models.importers.monai_bundle import bundle
from medseg_attack.models.importers.onnx import onnx
from medseg_attack.models.importers.output import PickOutput
from medseg_attack.models.importers.python import from_python
from medseg_attack.models.importers.smp_folder import smp_folder
from medseg_attack.models.importers.torch_export import exported
from medseg_attack.models.importers.torchscript import torchscript
from medseg_attack.models.importers.weights import load_into
from medseg_attack.models.networks.monai import seen_through
from medseg_attack.models.segmodel import HEADS, IMAGENET_MEAN, IMAGENET_STD, Head, Normalise, SegModel, ZScore
from medseg_attack.registry import register
from medseg_attack.types import Task

NORMALISE = ("none", "zscore", "imagenet", "symmetric")


KINDS = "file.py:factory, package.module:factory, .ts/.pt (TorchScript), .pt2 (torch.export), .onnx, or a folder"


@register("own", kind="model", trained=True)
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
    trust: bool = False,
) -> SegModel:
    """One's own: 'file.py:factory', 'package.module:factory', .ts, .pt2, .onnx, an SMP folder or a MONAI bundle.

    It sees the scan's window as 0 to 1, and what `normalise` makes of it: "zscore" of the whole scan, "imagenet", or
    "symmetric" (-1 to 1). A factory may return a SegModel, which knows all of this itself.

    Args:
        weights: of a factory's network: safetensors, or a state dict of torch.save.
        axes: that it is shown: "zyx" are slices, rows, columns, as prepared (rows, columns: "yx"); "xyz" the order of
            NIfTI, the default of a MONAI bundle; "-x-yz" with columns and rows reversed. `window`, `mirror` and `size`
            are those of slices, rows, columns whatever it says.
        output: which part of its answer: "out", "0"; see `outputs.Output`.
        head: "softmax", "sigmoid" or "probabilities"; by default what the classes ask for, of logits.
        channels: of its input, for which a grey scan is repeated; by default those of the scan.
        trust: whether a .pt2 may be read, which runs whatever it holds.

    Raises:
        InputError: any of it is missing, broken, or does not fit the rest.
    """
    _check(net, dims, head, normalise)
    made, found = _read(net, task, weights, trust)
    if isinstance(made, SegModel):
        if made.dims != dims:
            raise InputError(f"expected dims={made.dims}, as the SegModel of own({net!r}) has, got {dims}; write it")
        return made
    seeing: dict[str, Any] = {"window": window, "overlap": overlap, "importance": importance}
    dims = found.get("dims", dims)
    inner = PickOutput(made, output, dims)
    usual = found.get("axes", LETTERS)
    turn = reorient(inner, axes or (usual if dims == 3 else usual.replace("z", "")), dims)
    if "window" in found and not window:
        seeing = found["window"] | {"window": turn.of_scan(found["window"]["window"])}
    channels = channels or task.channels
    layers: dict[str, nn.Module] = {
        "none": nn.Identity(),
        "zscore": ZScore(),
        "imagenet": Normalise(IMAGENET_MEAN[:channels], IMAGENET_STD[:channels]),
        "symmetric": Normalise((0.5,) * channels, (0.5,) * channels),
    }
    chosen: Head | None = next((one for one in HEADS if one == head), None)
    seen = seen_through(inner if turn.as_prepared else turn, dims, mirror=mirror, **seeing)
    return SegModel(
        seen,
        task,
        normalise=layers[normalise],
        head=chosen,
        in_channels=channels,
        size=size or None,
        stride=1 if seeing["window"] else stride,
        dims=dims,
    )


def _check(net: str, dims: int, head: str, normalise: str) -> None:
    if not net:
        raise InputError(f"expected own(NETWORK), got own(); name it: {KINDS}")
    if dims not in (2, 3):
        raise InputError(f"expected dims=2 or dims=3, got {dims} in own({net!r}); write one")
    for name, value, known in (("head", head or HEADS[0], HEADS), ("normalise", normalise, NORMALISE)):
        if value not in known:
            raise InputError(f"unknown {name}: expected one of these, got {value!r}; {nearest(value, known)}")


def _read(net: str, task: Task, weights: str, trust: bool) -> tuple[nn.Module, dict[str, Any]]:
    """The network, and how its folder says that it is to be run: `dims`, `axes` and `window` with its overlap."""
    path = Path(net)
    if path.is_dir() or path.suffix in (".ts", ".pt", ".pth", ".jit", ".pt2", ".onnx"):
        if weights:
            raise InputError(f"expected no weights= beside {net}, which has its own, got {weights!r}; leave it out")
        return _read_path(path, trust)
    if ":" not in net:
        got = "a Python file without :factory" if path.suffix == ".py" else "neither of these"
        raise InputError(f"expected {KINDS}, got {got} in own({net!r}); check the path")
    made = from_python(net, task)
    if not isinstance(made, nn.Module):
        raise InputError(f"expected a torch.nn.Module from own({net!r}), got {type(made).__name__}; return the network")
    if weights:
        load_into(made, Path(weights))
    return made, {}


def _read_path(path: Path, trust: bool) -> tuple[nn.Module, dict[str, Any]]:
    if path.is_dir():
        if (path / "config.json").is_file():
            return smp_folder(path), {}
        return bundle(path)
    if not path.is_file():
        raise InputError(f"expected a network in {path}, got no such file; check the path")
    if path.suffix == ".pt2":
        return exported(path, trust), {}
    return (onnx if path.suffix == ".onnx" else torchscript)(path), {}
