"""Models to attack: one's own network wrapped, or a trained one by its name."""

from collections.abc import Sequence
from pathlib import Path

from torch import nn

from medseg_attack.errors import InputError
from medseg_attack.library.arguments import checked
from medseg_attack.models.importers.own import wrapped
from medseg_attack.models.segmodel import SegModel
from medseg_attack.types import NO_CLASS, Task


@checked
def wrap(
    net: nn.Module,
    classes: Sequence[str],
    exclusive: bool,
    *,
    image_channels: int = 1,
    channels: int = 0,
    dims: int = 2,
    head: str = "",
    normalise: str = "none",
    window: Sequence[int] = (),
    overlap: float = 0.5,
    mirror: Sequence[int] = (),
    size: Sequence[int] = (),
    stride: int = 1,
    axes: str = "",
    output: str = "",
    prompt: str = "",
    margin: float = 10.0,
    points: int = 3,
    encoder: str = "",
) -> SegModel:
    """A network as a model that can be attacked, with all that lies between the image and the decision.

    The model takes images, float32 (b, c, *s) in [0, 1], and returns log-odds (b, k, *s). `model.decide(log_odds)` is
    the segmentation, bool (b, k, *s). The network itself is not copied, and stays as it is.

    Args:
        net: (b, c, *s) -> (b, k, *s), one logit per class, in eval mode.
        classes: names of the k channels of its output, in order; "background" is the first of exclusive ones.
        exclusive: True: one class per pixel (softmax); False: classes may overlap (sigmoid).
        image_channels: c: 1 for CT and MRI; otherwise modalities, or red, green and blue.
        channels: of the network's input, for which a grey image is repeated; by default those of the image.
        dims: 2 for slices (b, c, rows, columns), 3 for scans (b, c, slices, rows, columns).
        head: activation of the network: "softmax" or "sigmoid" for logits, "probabilities" if it applies one; by
            default softmax if the classes exclude each other, else sigmoid.
        normalise: layer in front of the network: "none", "zscore" of the whole image, "imagenet", or "symmetric"
            (-1 to 1).
        window: sides of the sliding windows, in pixels; (): the network gets the whole image.
        overlap: of neighbouring windows, as a fraction of their size in [0, 1).
        mirror: spatial axes, from 0, along which inputs are also mirrored; the mean of all copies is taken.
        size: grid that the image is resized to, in pixels; (): the image's own grid.
        stride: number that sides of the input must be multiples of; the image is padded with 0.
        axes: order of the axes that the network gets, such as "xyz"; by default that of the image.
        output: part of the network's output that is taken: "out", "0"; "": all of it.
        prompt: kind of prompts that a promptable network gets, drawn from the masks: "box" of
            `forward(images, boxes)`, "points" of `forward(images, points, labels)`; it answers a logit map per organ.
        margin: of boxes: the most that a side is moved outwards, in pixels; 0 is the box itself.
        points: of points: their largest number.
        encoder: name of the part of the network whose answer attacks on features take; by default the deepest map.

    Raises:
        InputError: the network is in train mode, or the options do not fit each other.

    Examples:
        >>> import torch, medseg_attack as ma
        >>> net = torch.nn.Conv2d(1, 2, kernel_size=3, padding=1).eval()
        >>> model = ma.wrap(net, classes=("background", "lesion"), exclusive=True)
        >>> model(torch.rand(4, 1, 32, 32)).shape
        torch.Size([4, 2, 32, 32])
    """
    if not isinstance(net, nn.Module) or isinstance(net, SegModel):
        raise InputError(
            f"expected a torch.nn.Module to wrap, got a {type(net).__name__}; "
            + ("use it as it is, it is wrapped already" if isinstance(net, SegModel) else "give the network itself")
        )
    names = (classes,) if isinstance(classes, str) else tuple(classes)
    if not names or len(set(names)) < len(names) or not all(isinstance(name, str) for name in names):
        raise InputError(f"expected a name of its own for each class, got {names}; name the network's output channels")
    if NO_CLASS in names:
        raise InputError(
            f"expected names of classes other than {NO_CLASS!r}, as tables call the average over them, got {names}; "
            "call it something else"
        )
    if exclusive and (names[0] != "background" or len(names) < 2):
        raise InputError(
            f"expected 'background' as the first of two or more exclusive classes, got {', '.join(names)}; name the "
            "network's output channels in order, or write exclusive=False"
        )
    require_eval(net, "net")
    task = Task("tensors", names, exclusive, image_channels)
    model = wrapped(
        net,
        task,
        dims=dims,
        axes=axes,
        output=output,
        head=head,
        normalise=normalise,
        channels=channels,
        window=tuple(window),
        overlap=overlap,
        mirror=tuple(mirror),
        size=tuple(size),
        stride=stride,
        prompt=prompt,
        margin=margin,
        points=points,
        encoder=encoder,
    )
    return model.eval()


@checked
def load(
    model: str | Path, data: str | Path | None = None, *, device: str = "cpu", home: str | Path | None = None
) -> SegModel:
    """A model as the command line names it, for the classes of a prepared data set, in eval mode.

    Args:
        model: the name of a trained model in the workspace, its folder, or a spec that brings its weights.
        data: folder of a prepared data set; by default the newest in the workspace.
        device: "cpu", "cuda", "cuda:1", "mps", or "auto" for the first GPU if there is one.
        home: the workspace; by default MEDATTACK_HOME, else ./medattack_runs.

    Raises:
        InputError: there is no such model or data set, they do not fit each other, or code that the model names was
            not trusted: `medattack doctor --model MODEL --trust` remembers that it is.
    """
    from medseg_attack.evaluation.opening import open_model
    from medseg_attack.models.trust import use_trust
    from medseg_attack.runs.workspace import home as workspace_of
    from medseg_attack.runtime import pick_device

    workspace = workspace_of(None if home is None else Path(home))
    use_trust(workspace, False)
    ref, prepared = open_model(str(model), workspace, None if data is None else Path(data))
    return ref.load(prepared.task, pick_device(device))


def require_eval(net: nn.Module, name: str) -> None:
    """Refuses a network with a layer in train mode: its answers would depend on the batch, and on chance.

    Raises:
        InputError: a layer is in train mode.
    """
    training = [layer for layer in net.modules() if layer.training]
    if training:
        innermost = [layer for layer in training if not any(True for _ in layer.children())]
        kind = type((innermost or training)[0]).__name__
        raise InputError(f"expected {name} in eval mode, got a {kind} in train mode; call {name}.eval() first")
