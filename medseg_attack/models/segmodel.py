"""The wrapper around every network: an image in [0, 1] on the scan's grid in, log-odds on that grid out."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from operator import ge
from typing import Literal, Protocol, TypeAlias, TypeVar, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from medseg_attack.errors import InputError
from medseg_attack.models.prompts import Prompted
from medseg_attack.models.saturation import Saturated, backward_through
from medseg_attack.models.sliding_window import SlidingWindow, cropped
from medseg_attack.numerics.log_odds import softmax_log_odds
from medseg_attack.runtime import stdout_on_stderr
from medseg_attack.types import Backward, Binds, Image, LogOdds, Mask, Setting, Task

Head: TypeAlias = Literal["sigmoid", "softmax", "probabilities", "log-odds"]
HEADS: tuple[Head, ...] = ("sigmoid", "softmax", "probabilities")  # of networks; a model in a model has log-odds
M = TypeVar("M", bound=nn.Module)
TINY = 1e-8  # least standard deviation, so that a constant image has a z-score
CERTAIN = 2.0**-24  # least distance of a probability from 0 and 1: float32 has no number between 1 - CERTAIN and 1
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@runtime_checkable
class Defended(Protocol):
    """A network with a defence in it or around it, as far as an attacker must know it.

    Attributes:
        is_random: whether two passes of one image may differ.
        blocks_gradient: whether its own gradient is of no use somewhere where a stand-in is known; see
            `Setting.backward`.
        passes: passes of the network within for one image.
    """

    @property
    def is_random(self) -> bool: ...

    @property
    def blocks_gradient(self) -> bool: ...

    @property
    def passes(self) -> int: ...


@runtime_checkable
class KnownByAttack(Protocol):
    """A layer that an attack of its own knows.

    Attributes:
        knowing_attack: name of that attack, which stands around others, such as "both_norms".
    """

    knowing_attack: str


@runtime_checkable
class Contains(Protocol):
    """A layer in place of another one, which it contains, so that the weights of a plain network fit.

    Attributes:
        contained: names of its parts of which each has the weights of the layer that was there.
    """

    contained: tuple[str, ...]


class Normalise(nn.Module):
    """The layer `(x - mean) / std` per channel; it is part of the architecture and not of the stored weights."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: tuple[float, ...] = IMAGENET_MEAN, std: tuple[float, ...] = IMAGENET_STD) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean), persistent=False)
        self.register_buffer("std", torch.tensor(std), persistent=False)

    def forward(self, image: Image) -> Image:
        shape = (1, -1, *(1 for _ in image.shape[2:]))
        return (image - self.mean.view(shape)) / self.std.view(shape)


class ZScore(nn.Module):
    """The layer `(x - mean) / std` with the statistics of each channel of each whole image, before any window."""

    def forward(self, image: Image) -> Image:
        axes = tuple(range(2, image.ndim))
        centred = image - image.mean(axes, keepdim=True)
        return centred / centred.square().mean(axes, keepdim=True).sqrt().clamp(min=TINY)


class SegModel(nn.Module):
    """A segmentation model that can be attacked: a network with all that lies between the stored scan and the decision.

    All of it is differentiable, unless the network is a black box.

    Attributes:
        task: its classes are the output's channels.
        net: (b, in_channels, *s) -> (b, k, *s), one logit per class.
        normalise: layer on the network's input; the identity by default.
        head: activation that the logits of `net` are meant for, "softmax" or "sigmoid"; by default softmax if the
            task is exclusive, else sigmoid. "probabilities": `net` applies it itself. A sigmoid of two exclusive
            classes may have one channel. "log-odds": `net` is made of models, and answers as they do.
        in_channels: channels of the network's input, for which a grey scan is repeated. An image that has them
            already is taken as it is: a published attack perturbs the copies one by one.
        size: grid that the image is resized to for `net`, in pixels. None: the scan's own grid.
        stride: `net` gets that grid padded at the end to a multiple of `stride`, with 0, the scan's darkest value.
        dims: number of spatial axes of a case: 2 for slices, 3 for scans.
        black_box: whether `net` runs outside of torch and has no gradient by the image.
        backward: gradient of the activations of `net` that saturate: see `Setting`.
        encoder: name of the part of `net` whose answer stands for the features of an image; "": the deepest map does.
    """

    def __init__(  # noqa: PLR0913 - keyword-only options
        self,
        net: nn.Module,
        task: Task,
        *,
        normalise: nn.Module | None = None,
        head: Head | None = None,
        in_channels: int | None = None,
        size: tuple[int, ...] | None = None,
        stride: int = 1,
        dims: int = 2,
        black_box: bool = False,
    ) -> None:
        super().__init__()
        if size and len(size) != dims:
            raise InputError(f"expected size of {dims} sides for dims={dims}, got {size}; change one of them")
        self.net = net
        self.task = task
        self.normalise = normalise or nn.Identity()
        self.head: Head = head or ("softmax" if task.exclusive else "sigmoid")
        self.in_channels = in_channels or task.channels
        self.size = size or None
        self.stride = stride
        self.dims = dims
        self.black_box = black_box
        self.backward: Backward = "own"
        self.encoder = ""

    @property
    def window(self) -> tuple[int, ...] | None:
        """Sides of the part of an image that `net` gets at a time; None: the whole image."""
        return self.net.size if isinstance(self.net, SlidingWindow) else None

    def sees_windows_alone(self, image: Image) -> bool:
        """Whether the network gets windows of this very image, and nothing is computed of the whole of it before."""
        is_plain = isinstance(self.normalise, nn.Identity) and image.shape[1] == self.in_channels
        grid, window = image.shape[2:], self.window
        on_grid = self.size is None and not any(n % self.stride for n in grid)
        fits = window is not None and not self.net.training and all(map(ge, grid, window))
        return is_plain and on_grid and fits

    @property
    def prompt(self) -> str:
        """How a promptable model's prompts are drawn from the truth, in words; "" of any other."""
        return str(self.net.policy) if isinstance(self.net, Prompted) else ""

    @property
    def is_random(self) -> bool:
        """Whether two passes of one image may differ, as far as the model says."""
        return isinstance(self.net, Defended) and self.net.is_random

    @property
    def blocks_gradient(self) -> bool:
        """Whether its own gradient is of no use somewhere, where it has a stand-in: see `Setting.backward`."""
        return (isinstance(self.net, Defended) and self.net.blocks_gradient) or self._saturates

    @property
    def _saturates(self) -> bool:
        return any(isinstance(layer, Saturated) for layer in self.net.modules())

    @property
    def known_by(self) -> tuple[str, ...]:
        """The names of the attacks that know one of its layers, sorted: see `KnownByAttack`."""
        return tuple(sorted({layer.knowing_attack for layer in self.net.modules() if isinstance(layer, KnownByAttack)}))

    @property
    def passes(self) -> int:
        """Passes of the network within for one image."""
        return self.net.passes if isinstance(self.net, Defended) else 1

    def bind(self, setting: Setting) -> "SegModel":
        """A model with the same weights and a network bound to the setting; itself if its network needs none."""
        if not isinstance(self.net, Binds) and not self._saturates:
            return self
        bound = copy.copy(self)
        bound.backward = setting.backward
        if isinstance(self.net, Binds):
            bound._modules = {**self._modules, "net": self.net.bind(setting)}  # a table of its own, of the same layers
        return bound

    def forward(self, image: Image) -> LogOdds:
        """Log-odds on the image's grid, (b, k, *s): `sigmoid` of them is the probability, for every head.

        Raises:
            InputError: the image has neither the scan's nor the network's number of channels, or the network's
                answer is not one map of real numbers per class on its input's grid.
        """
        grid = tuple(image.shape[2:])
        net_input = self.normalise(self._channels(self._onto_net_grid(image)))
        # a network that prints must not print between results
        with backward_through(self.backward), stdout_on_stderr():
            # a network may change its input in place, but windows are copies of their own
            output = self.net(net_input if self.window and not self.net.training else net_input.clone())
        logits = self._onto_scan_grid(self._checked(output, tuple(net_input.shape[2:]), net_input.device), grid)
        return self._log_odds(logits)

    def decide(self, log_odds: LogOdds) -> Mask:
        """The segmentation: log-odds >= 0, or the one-hot argmax of an exclusive task."""
        if not self.task.exclusive:
            return log_odds >= 0
        winner = log_odds.max(1, keepdim=True).indices  # as argmax, which is much slower here on a CPU
        return torch.zeros_like(log_odds, dtype=torch.bool).scatter_(1, winner, True)

    def _checked(self, logits: Tensor, grid: tuple[int, ...], device: torch.device) -> Tensor:
        """The network's output as floats, if its channels, grid and device fit the task and the input."""
        classes = self.task.classes
        channels = {len(classes)} | ({1} if self._foreground_alone else set())
        if logits.ndim != len(grid) + 2 or logits.shape[1] not in channels:
            got = f"{logits.shape[1]} channels" if logits.ndim == len(grid) + 2 else f"shape {tuple(logits.shape)}"
            raise InputError(
                f"expected {len(classes)} channels from the network, one for each of {', '.join(classes)}, got {got}; "
                f"{self._remedy(logits.shape[1])}"
            )
        if tuple(logits.shape[2:]) != grid:
            raise InputError(
                f"expected the network's answer on the grid {grid} of its input, got {tuple(logits.shape[2:])}; "
                "let the network resize it, or give a stride that divides its grid"
            )
        if logits.is_complex():
            raise InputError(f"expected real numbers from the network, got {logits.dtype}; let it return its logits")
        if logits.device != device:
            raise InputError(
                f"expected the network's answer on {device}, where its input is, got {logits.device}; leave it there"
            )
        return logits if logits.is_floating_point() else logits.float()  # whole numbers, such as masks

    def _remedy(self, channels: int) -> str:
        """An action for a network with another number of channels than the task has classes."""
        n_classes = len(self.task.classes)
        if self.task.exclusive and n_classes == 2 and channels == 1:
            return "write head='sigmoid' if its answer is a logit, or head='probabilities' if it ends in a sigmoid"
        if not self.task.exclusive and channels == n_classes + 1:
            return "if its first channel is the background, prepare the data so that classes exclude each other"
        return "give the data that it was trained for, or name another part with output="

    @property
    def _foreground_alone(self) -> bool:
        """Whether one channel is enough, because the other class is its complement."""
        return self.task.exclusive and len(self.task.classes) == 2 and self.head != "softmax"

    def _log_odds(self, logits: Tensor) -> LogOdds:
        if self.head == "log-odds":
            return logits
        if self.head == "softmax":
            return softmax_log_odds(logits)
        if self.head == "probabilities":
            logits = logits.clamp(min=CERTAIN).log() - (1 - logits).clamp(min=CERTAIN).log()
        return torch.cat((-logits, logits), 1) if logits.shape[1] < len(self.task.classes) else logits

    def _channels(self, image: Image) -> Float[Tensor, "b n *s"]:
        if image.shape[1] == self.in_channels:
            return image
        if image.shape[1] != 1 or self.task.channels > 1:
            known = "1 channel" if self.in_channels == 1 else f"{self.in_channels} channels"
            known = f"1 or {known}" if self.in_channels > self.task.channels == 1 else known
            raise InputError(
                f"expected an image of {known} for this network, got {image.shape[1]}; "
                f"if it is fgsm_wang2024 that copies the channel, write fgsm_wang2024(channels={self.in_channels})"
            )
        return image.expand(-1, self.in_channels, *image.shape[2:])

    def _onto_net_grid(self, image: Image) -> Float[Tensor, "b c *t"]:
        if self.size is not None:
            image = resized(image, self.size)
        missing = [-n % self.stride for n in image.shape[2:]]
        if not any(missing):
            return image
        return functional.pad(image, [n for m in reversed(missing) for n in (0, m)])

    def _onto_scan_grid(self, logits: Tensor, grid: tuple[int, ...]) -> Tensor:
        logits = cropped(logits, [0] * len(grid), self.size or grid)
        return logits if self.size is None else resized(logits, grid)


def resized(x: Float[Tensor, "b c *s"], grid: tuple[int, ...]) -> Float[Tensor, "b c *t"]:
    """`x` on another grid by linear interpolation; where a 2-D image shrinks it is averaged (torch cannot in 3-D)."""
    if tuple(x.shape[2:]) == tuple(grid):
        return x
    if len(grid) == 2:
        return functional.interpolate(x, grid, mode="bilinear", align_corners=False, antialias=True)
    return functional.interpolate(x, grid, mode="trilinear", align_corners=False)


@contextmanager
def frozen(model: M) -> Iterator[M]:
    """A scope with the model in eval mode and without parameter gradients; afterwards every flag is as before."""
    training = [(module, module.training) for module in model.modules()]
    gradients = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    model.eval().requires_grad_(False)
    try:
        yield model
    finally:
        for module, flag in training:
            module.training = flag
        for parameter, flag in gradients:
            parameter.requires_grad_(flag)
