"""Hidden maps of a network, by which features are pooled, compared and attacked.

Layers are found by the shapes of their answers on the image at hand, not by their names, so that any network has them:
its deepest map is the one with the fewest pixels, its late map the last one before the answer.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from medseg_attack.errors import InputError, plural
from medseg_attack.models.segmodel import SegModel
from medseg_attack.models.sliding_window import MirrorAverage, SlidingWindow
from medseg_attack.types import AroundModel, Image, LogOdds, Model


@dataclass(frozen=True, eq=False)
class Layers:
    """Hidden maps, (b, channels, *s), in the order in which they were computed.

    Attributes:
        pyramid: the last map of each size on the way to the deepest one, the largest first.
        late: the last map that has other channels than the answer.
    """

    pyramid: list[Tensor]
    late: Tensor

    @property
    def deepest(self) -> Tensor:
        return self.pyramid[-1]


def hidden(model: Model, image: Image) -> tuple[LogOdds, Layers]:
    """The model's answer and its hidden maps.

    Of a network behind sliding windows the maps are means over windows, which takes a further pass of each.
    """
    network = network_of(model)
    net = network.net
    if not isinstance(net, SlidingWindow | MirrorAverage):
        with _recorded(net) as recorder:
            log_odds = model(image)
        return log_odds, recorder.layers(log_odds)
    log_odds = model(image)
    return log_odds, _of_windows(network, net, image, log_odds)


def maps_of(model: Model, image: Image) -> tuple[LogOdds, list[Tensor]]:
    """The model's answer and its hidden maps: one of each size on the way down, and the last one before the answer.

    The answer stands for the maps of a model of which no network is known.
    """
    inner = model
    while isinstance(inner, AroundModel):
        inner = inner.model
    if not isinstance(inner, SegModel):
        log_odds = model(image)
        return log_odds, [log_odds]
    log_odds, layers = hidden(model, image)
    return log_odds, [*layers.pyramid, layers.late]


def features_of(model: Model, image: Image) -> tuple[LogOdds, Tensor]:
    """The model's answer and the features of each image: what its encoder answers, by default its deepest map.

    An encoder may be called once for all images, or for each in turn.

    Raises:
        InputError: the network does not call its encoder, or that answers no tensor with a row for each image.
    """
    inner = model
    while isinstance(inner, AroundModel):
        inner = inner.model
    if not isinstance(inner, SegModel) or not inner.encoder:
        log_odds, maps = maps_of(model, image)
        return log_odds, maps[-2 if len(maps) > 1 else 0]
    answers: list[Any] = []
    with inner.net.get_submodule(inner.encoder).register_forward_hook(lambda *args: answers.append(args[2])):
        log_odds = model(image)
    tensors = [answer for answer in answers if isinstance(answer, Tensor)]
    if not answers or len(tensors) < len(answers):
        got = f"a {type(answers[0]).__name__}" if answers else "no call"
        raise InputError(
            f"expected a tensor from {inner.encoder}, the encoder of the network, got {got}; name another part of a "
            "network in Python with encoder="
        )
    rows = [len(tensor) if tensor.ndim else 0 for tensor in tensors]
    if rows[0] == len(image):
        return log_odds, tensors[0]
    if sum(rows) != len(image):
        raise InputError(
            f"expected a row for each of {plural(len(image), 'image')} from {inner.encoder}, the encoder of the "
            f"network, got {sum(rows)}; name another part with encoder="
        )
    return log_odds, torch.cat(tensors)


def network_of(model: Model) -> SegModel:
    """The model within those that count, round or repair its answers."""
    while not isinstance(model, SegModel):
        if not isinstance(model, AroundModel):
            raise InputError(f"expected a model with a network, got {type(model).__name__}; take another detector")
        model = model.model
    return model


def _of_windows(network: SegModel, net: SlidingWindow | MirrorAverage, image: Image, log_odds: LogOdds) -> Layers:
    """The means over windows of each map: windows are of one size, so these are of one shape."""
    x = network.normalise(network._channels(network._onto_net_grid(image)))
    places = [tuple(slice(0, n) for n in x.shape[2:])]
    if isinstance(net, SlidingWindow):
        x, _, places = net.laid_out(x)
    each = []
    for place in places:
        with _recorded(net.net) as recorder:
            answer = net.net(x[(slice(None), slice(None), *place)].clone())
        each.append(recorder.layers(answer))
    pyramid = [torch.stack(maps).mean(0) for maps in zip(*(layers.pyramid for layers in each), strict=True)]
    return Layers(pyramid, torch.stack([layers.late for layers in each]).mean(0))


@dataclass(eq=False)
class _Recorder:
    """The maps that the layers of a network return in one pass."""

    maps: list[Tensor] = field(default_factory=list)

    def note(self, layer: nn.Module, inputs: Any, output: Any) -> None:
        if isinstance(output, Tensor) and output.is_floating_point() and output.ndim in (4, 5):
            self.maps.append(output)

    def layers(self, answer: Tensor) -> Layers:
        """The maps that stand for the network; its answer, if it has no layers of maps."""
        maps = [each for each in self.maps if each.ndim == answer.ndim and len(each) == len(answer)] or [answer]
        sizes = [prod(each.shape[2:]) for each in maps]
        deepest = len(sizes) - 1 - sizes[::-1].index(min(sizes))
        last = {size: n for n, size in enumerate(sizes[: deepest + 1])}
        pyramid = [maps[last[size]] for size in sorted(last, reverse=True)]
        hidden_maps = [each for each in maps if each.shape[1] != answer.shape[1]] or maps
        return Layers(pyramid, hidden_maps[-1])


@contextmanager
def _recorded(net: nn.Module) -> Iterator[_Recorder]:
    """A scope in which the answers of the innermost layers of a network are kept."""
    recorder = _Recorder()
    with ExitStack() as hooks:
        for layer in net.modules():
            if not any(True for _ in layer.children()):
                hooks.enter_context(layer.register_forward_hook(recorder.note))
        yield recorder
