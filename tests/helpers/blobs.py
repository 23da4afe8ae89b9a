"""A task that a U-Net learns in seconds, and models that are broken in one way each."""

import functools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medseg_attack.models.segmodel import SegModel
from medseg_attack.types import Batch, Case, Task, Window

TASK = Task("blobs", ("round", "square"))
SIDE = 32


def case(number: int) -> Case:
    """A disc and a square, bright on a textured ground, both of them in every image."""
    rng = torch.Generator().manual_seed(number)
    rows, columns = torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="ij")
    (a, b, c, d), (r, s) = torch.randint(8, 24, (4,), generator=rng), torch.randint(4, 7, (2,), generator=rng)
    disc = (rows - a) ** 2 + (columns - b) ** 2 <= r**2
    square = ((rows - c).abs() <= s) & ((columns - d).abs() <= s) & ~disc
    image = 0.3 + 0.1 * disc + 0.2 * square + 0.05 * torch.randn(SIDE, SIDE, generator=rng)
    name = f"p{number % 10}_{number}"
    return Case(
        name, name, name[:2], image.clamp(0.02, 0.98)[None], torch.stack([disc, square]), (1.0, 1.0), Window(0, 1)
    )


def batch(n: int = 4, start: int = 1000) -> Batch:
    """Cases that training did not see."""
    return Batch.of([case(start + i) for i in range(n)])


class SmallUNet(nn.Module):
    """Two levels, with batch normalisation."""

    def __init__(self) -> None:
        super().__init__()
        self.top, self.below = block(1, 12), block(12, 24)
        self.out = nn.Sequential(block(36, 12), nn.Conv2d(12, 2, 1))

    def forward(self, x: Tensor) -> Tensor:
        top = self.top(x)
        below = self.below(F.avg_pool2d(top, 2))
        logits: Tensor = self.out(torch.cat((top, F.interpolate(below, scale_factor=2.0)), 1))
        return logits


def block(inside: int, outside: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inside, outside, 3, padding=1),
        nn.BatchNorm2d(outside),
        nn.ReLU(),
        nn.Conv2d(outside, outside, 3, padding=1),
        nn.BatchNorm2d(outside),
        nn.ReLU(),
    )


@functools.cache
def healthy_net() -> SmallUNet:
    """Trained, in eval mode, without gradients of its weights; shared: leave it as it is."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = SmallUNet()
        optimiser = torch.optim.Adam(net.parameters(), 3e-3)
        for step in range(150):
            batch = Batch.of([case(8 * (step % 40) + i) for i in range(8)])
            optimiser.zero_grad()
            F.binary_cross_entropy_with_logits(net(batch.image), batch.target.float()).backward()
            optimiser.step()
        optimiser.zero_grad()
    return net.eval().requires_grad_(False)


def healthy() -> SegModel:
    return SegModel(healthy_net(), TASK).eval()


class Around(nn.Module):
    """The healthy network with something before and after it."""

    def __init__(self, before: nn.Module | None = None, after: nn.Module | None = None) -> None:
        super().__init__()
        self.before, self.net, self.after = before or nn.Identity(), healthy_net(), after or nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.after(self.net(self.before(x)))
        return result


class Apply(nn.Module):
    def __init__(self, function: object) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.function(x)  # type: ignore[operator]
        return result


def broken(*, before: object = None, after: object = None) -> SegModel:
    """The healthy model with a function before or after its network."""
    first, last = (Apply(f) if f else None for f in (before, after))
    return SegModel(Around(first, last), TASK).eval()


def quantiser(x: Tensor) -> Tensor:
    """To 3 bits: the gradient is 0 wherever there is one."""
    return (x * 7).round() / 7
