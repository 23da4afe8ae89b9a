"""Promptable networks, such as SAM: their prompts are drawn from the truth of each case, by a stated policy.

A network gets the prompts of all organs at once. It answers one map of logits per organ.
"""

import copy
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from medseg_attack.errors import InputError, require
from medseg_attack.models.draws import Draws
from medseg_attack.types import Image, Prompts, Setting, Task

ABSENT = -20.0  # logit of an organ without a prompt: a probability of 2e-9
PROMPTS = ("box", "points")
T = TypeVar("T", bound="Prompted")


class Policy(ABC):
    """A rule by which prompts are drawn from the truth, in pixels of the scan: `x` is a column, `y` a row, from 0.

    Attributes:
        signature: how the `forward` of a network must be written.
    """

    signature: str

    @property
    @abstractmethod
    def is_random(self) -> bool:
        """Whether two draws for one organ may differ."""

    @abstractmethod
    def drawn(self, truth: Bool[Tensor, "k h w"], rng: torch.Generator) -> Float[Tensor, "k n 2"]:
        """A prompt for each organ; NaN for one that is nowhere on the slice."""

    @abstractmethod
    def inputs(self, prompts: Prompts, grid: Sequence[int]) -> tuple[Tensor, ...]:
        """The inputs of a network beside the images, without NaN."""

    def held(self, prompts: Float[Tensor, "*k n 2"], grid: Sequence[int]) -> Float[Tensor, "*k n 2"]:
        """Prompts whose coordinates were moved, as prompts of this kind: each coordinate is held to the slice."""
        return held(prompts, grid)


@dataclass(frozen=True)
class Boxes(Policy):
    """The box of the organ, each side moved outwards by U(0, margin) and held to the slice.

    Its corners are the first column and row of the organ, and the last ones, as those of SAM. A network gets a tensor
    (b, k, 4) of x0, y0, x1, y1.

    Attributes:
        margin: in pixels, 0 or more.

    Raises:
        InputError: `margin` is below 0.
    """

    margin: float = 10.0
    signature = "forward(images, boxes)"

    def __post_init__(self) -> None:
        require(self, margin=0)

    def __str__(self) -> str:
        moved = f", each side moved out by U(0, {self.margin:g} px)" if self.margin else ""
        return f"prompt of the box of the truth{moved}"

    @property
    def is_random(self) -> bool:
        return self.margin > 0

    def drawn(self, truth: Bool[Tensor, "k h w"], rng: torch.Generator) -> Float[Tensor, "k 2 2"]:
        outwards = self.margin * torch.rand(len(truth), 2, 2, generator=rng)
        boxes = torch.stack((_ends(truth.any(1)), _ends(truth.any(2))), 2)
        return held(boxes + outwards * torch.tensor([[-1.0], [1.0]]), truth.shape[1:])

    def inputs(self, prompts: Prompts, grid: Sequence[int]) -> tuple[Tensor, ...]:
        whole = prompts.new_tensor([[0.0, 0.0], [grid[1] - 1.0, grid[0] - 1.0]])  # of an organ that is not there
        return (torch.where(prompts.isnan(), whole, prompts).flatten(2),)

    def held(self, prompts: Float[Tensor, "*k 2 2"], grid: Sequence[int]) -> Float[Tensor, "*k 2 2"]:
        """Boxes on the slice; sides that passed each other change places, since no box has its end before its start."""
        return super().held(prompts, grid).sort(-2).values


@dataclass(frozen=True)
class Points(Policy):
    """From 1 to `most` pixels of the organ, each as likely as any other; NaN beyond their number.

    A network gets x and y of `most` points, (b, k, most, 2), and their labels, (b, k, most): 1 for one in the organ,
    -1 for one that is not there, as SAM pads.

    Attributes:
        most: 1 or more.

    Raises:
        InputError: `most` is below 1.
    """

    most: int = 3
    is_random = True
    signature = "forward(images, points, labels)"

    def __post_init__(self) -> None:
        if self.most < 1:
            raise InputError(f"expected points >= 1, got {self.most}; write points=1 or more")

    def __str__(self) -> str:
        return f"prompt of {'1 point' if self.most == 1 else f'1 to {self.most} points'} in the truth"

    def drawn(self, truth: Bool[Tensor, "k h w"], rng: torch.Generator) -> Float[Tensor, "k n 2"]:
        shares = torch.rand(len(truth), 1 + self.most, generator=rng, dtype=torch.float64)
        points = torch.full((len(truth), self.most, 2), torch.nan)
        for organ, (share, *places) in enumerate(shares.tolist()):
            pixels = truth[organ].nonzero()  # rows, columns
            for number in range(1 + int(share * self.most) if len(pixels) else 0):
                points[organ, number] = pixels[int(places[number] * len(pixels))].flip(0).to(points)
        return points

    def inputs(self, prompts: Prompts, grid: Sequence[int]) -> tuple[Tensor, ...]:
        is_absent = prompts.isnan()
        return prompts.masked_fill(is_absent, 0.0), 1 - 2 * is_absent.any(-1).to(prompts)


class Prompted(nn.Module):
    """A promptable network with the prompts of its cases: as a network of images alone.

    It draws a prompt for each organ in each pass, by the case and the number of the pass. An organ that the truth does
    not have on a slice has no prompt: its logit is `ABSENT` there, whatever the image.

    Attributes:
        net: (b, c, h, w) and what `Policy.inputs` gives -> (b, k, h, w), one logit for each organ of the task's
            `scored`; an exclusive task's background has the logit 0.
        policy: how prompts are drawn.
        size: grid that images are resized to in front of it; None: that of the scan.
    """

    blocks_gradient = False
    passes = 1

    def __init__(self, net: nn.Module, task: Task, policy: Policy, size: tuple[int, ...] | None = None) -> None:
        super().__init__()
        self.net, self.task, self.policy, self.size = net, task, policy, size
        self.setting: Setting | None = None
        self.draws = Draws()

    @property
    def is_random(self) -> bool:
        return self.policy.is_random

    def bind(self: T, setting: Setting) -> T:
        """A copy in that setting, whose cases have the truth; prompts that the setting has are not drawn."""
        bound = copy.copy(self)
        bound.setting, bound.draws = setting, self.draws.bound(setting)
        return bound

    def forward(self, image: Image) -> Float[Tensor, "b k h w"]:
        """The logits.

        Raises:
            InputError: the cases of the images are not known, or the network has another number of maps.
        """
        prompts = self.prompts(len(image)).to(image)
        is_present = ~prompts.flatten(2).isnan().all(2)
        answer: Tensor = self.net(image, *self.policy.inputs(self._on_net_grid(prompts), image.shape[2:]))
        if tuple(answer.shape[:2]) != tuple(is_present.shape):
            names = ", ".join(self.task.classes[k] for k in self.task.scored)
            raise InputError(
                f"expected maps of shape {(*is_present.shape, *image.shape[2:])} from the promptable network, one for "
                f"each of {names}, got {tuple(answer.shape)}; let it answer one map per prompt"
            )
        logits = torch.where(is_present[..., None, None], answer, ABSENT)
        return torch.cat((torch.zeros_like(logits[:, :1]), logits), 1) if self.task.exclusive else logits

    def prompts(self, n: int) -> Prompts:
        """The prompts of one more pass of `n` cases, in pixels of the scan.

        Raises:
            InputError: it is not bound to as many cases.
        """
        setting = self.setting or Setting(self.task)
        if not setting.cases or len(setting.cases) != n:
            got = f"{n} images of {len(setting.cases)} cases" if setting.cases else "images alone"
            raise InputError(
                f"expected a case with its truth for each image, of which a promptable network draws its prompts, got "
                f"{got}; take a model without prompts here"
            )
        if setting.prompts is not None:
            return setting.prompts
        organs = self.task.scored_channels
        rngs = [torch.Generator().manual_seed(seed) for seed in self.draws.seeds(n)]
        drawn = [self.policy.drawn(case.target[organs], rng) for case, rng in zip(setting.cases, rngs, strict=True)]
        return torch.stack(drawn)

    def _on_net_grid(self, prompts: Prompts) -> Prompts:
        """Prompts on the network's grid, where centres of pixels lie at whole numbers, too."""
        assert self.setting is not None
        grid = tuple(self.setting.cases[0].target.shape[1:])
        if self.size is None or tuple(self.size) == grid:
            return prompts
        scale = prompts.new_tensor([new / old for new, old in zip(self.size, grid, strict=True)]).flip(0)
        return (prompts + 0.5) * scale - 0.5


def held(prompts: Float[Tensor, "*k 2"], grid: Sequence[int]) -> Float[Tensor, "*k 2"]:
    """Prompts with each coordinate held to the slice."""
    return torch.minimum(prompts.clamp(min=0), prompts.new_tensor([grid[1] - 1.0, grid[0] - 1.0]))


def _ends(has: Bool[Tensor, "k n"]) -> Float[Tensor, "k 2"]:
    """The first and the last place of each row that holds; NaN in a row where none does."""
    number = has.int()
    ends = torch.stack((number.argmax(1), has.shape[1] - 1 - number.flip(1).argmax(1)), 1).float()
    return ends.masked_fill(~has.any(1, keepdim=True), torch.nan)
