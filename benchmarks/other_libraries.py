"""Are our attacks as strong as those of other libraries at equal gradient evaluations on the same small model?

    python benchmarks/other_libraries.py --seeds 5  # in an environment with the extra `references`

The libraries attack classifiers, so the model is one: stripes of four directions under noise, trained here in seconds.
We see its logits on every pixel, they once per image; both sides get the same images, budgets and cross-entropy.
Printed is the share of images that end in another class at three budgets, a mean over seeds of the attacks' own draws,
and the gradients (for Square: the queries) that an image took. Both sides' passes are counted, not declared.
"""

import argparse
import importlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from statistics import fmean
from typing import Any

import torch
from torch import Tensor, nn

from medseg_attack.attacks.blackbox.square import Square
from medseg_attack.attacks.gradient.apgd import APGD
from medseg_attack.attacks.gradient.pgd import PGD, bim, di2_fgsm, fgsm, mi_fgsm, ni_fgsm, ti_fgsm
from medseg_attack.errors import plural
from medseg_attack.numerics.log_odds import softmax_log_odds
from medseg_attack.threat.balls.norms import L2, Linf
from medseg_attack.threat.objectives.losses import ce
from medseg_attack.threat.objectives.softmax import dlr, margin_softmax
from medseg_attack.types import Attack, Ball, Image, LogOdds, Mask, Task

CLASSES, SIZE, IMAGES = 4, 28, 100
STEPS, QUERIES = 10, 100


class Stripes(nn.Module):
    """Three convolutions and a mean; it counts its passes over a batch."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 12, 5, padding=2),
            nn.ReLU(),
            nn.Conv2d(12, 24, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(24, CLASSES, 3, padding=1),
        )
        self.forwards = self.backwards = 0

    def forward(self, image: Tensor) -> Tensor:
        self.forwards += 1
        logits: Tensor = self.layers(image).mean((2, 3))
        if logits.requires_grad:
            logits.register_hook(self._count)  # type: ignore[no-untyped-call]
        return logits

    def _count(self, grad: Tensor) -> None:
        self.backwards += 1


@dataclass(frozen=True)
class OneClass:
    """The classifier as our attacks see it: the same class on every pixel."""

    net: Stripes

    @property
    def task(self) -> Task:
        return Task("stripes", tuple("abcd"), exclusive=True, channels=3)

    def __call__(self, image: Image) -> LogOdds:
        return softmax_log_odds(self.net(image))[:, :, None, None].expand(-1, -1, *image.shape[2:])

    def decide(self, log_odds: LogOdds) -> Mask:
        return torch.zeros_like(log_odds, dtype=torch.bool).scatter_(1, log_odds.argmax(1, keepdim=True), True)


def stripes(n: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Images in [0, 1] and their direction, 0 to 3."""
    labels = torch.randint(CLASSES, (n,), generator=rng)
    angle = labels * math.pi / CLASSES
    y, x = torch.meshgrid(torch.arange(SIZE), torch.arange(SIZE), indexing="ij")
    along = x * angle.cos().view(-1, 1, 1) + y * angle.sin().view(-1, 1, 1)
    phase = 2 * math.pi * torch.rand(n, 1, 1, generator=rng)
    wave = 0.5 + 0.12 * torch.sin(along * 2 * math.pi / 6 + phase)
    return (wave[:, None] + 0.12 * torch.randn(n, 3, SIZE, SIZE, generator=rng)).clamp(0, 1), labels


def trained(rng: torch.Generator) -> Stripes:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = Stripes()
    optimiser = torch.optim.Adam(net.parameters(), 3e-3)
    for _ in range(250):
        image, labels = stripes(64, rng)
        optimiser.zero_grad()
        nn.functional.cross_entropy(net(image), labels).backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    return net.eval().requires_grad_(False)


Theirs = Callable[[nn.Module, Tensor, Tensor, float], Tensor]


@dataclass(frozen=True)
class Pair:
    """One attack of ours and of another library; `ours` is given as many gradients as theirs took."""

    name: str
    library: str
    ours: Callable[[Ball, int], Attack]
    theirs: Theirs
    budgets: tuple[float, ...] = (0.03, 0.05, 0.07)
    ball: type[Linf] | type[L2] = Linf
    why: str = ""


def pairs() -> list[Pair]:
    ta: Any = importlib.import_module("torchattacks")
    adv: Any = importlib.import_module("adv_lib.attacks")
    long = (1.2, 2.0, 2.8)

    def made(make: Any, **options: Any) -> Theirs:
        return lambda net, x, y, eps: make(net, eps=eps, **options)(x, y)

    def square(**options: Any) -> Theirs:
        """torchattacks' Square seeds itself."""
        return lambda net, x, y, eps: ta.Square(net, eps=eps, n_queries=QUERIES, seed=torch.initial_seed(), **options)(
            x, y
        )

    def stepped(make: Any, share: float, **options: Any) -> Theirs:
        return lambda net, x, y, eps: make(net, eps=eps, alpha=share * eps, steps=STEPS, **options)(x, y)

    def adv_apgd(loss: str) -> Theirs:
        return lambda net, x, y, eps: adv.apgd(net, x, y, eps, math.inf, n_iter=20, loss_function=loss)

    return [
        Pair("fgsm", "torchattacks", lambda ball, n: fgsm(ball, ce), made(ta.FGSM)),
        Pair("bim", "torchattacks", lambda ball, n: bim(ball, ce, n, 0.25), stepped(ta.BIM, 0.25)),
        Pair("pgd", "torchattacks", lambda ball, n: PGD(ball, ce, n, 0.25), stepped(ta.PGD, 0.25)),
        Pair(
            "pgd l2",
            "torchattacks",
            lambda ball, n: PGD(ball, ce, n, 0.25),
            stepped(ta.PGDL2, 0.25),
            long,
            L2,
            why="our start is uniform in the ball, hence near its edge; theirs crowds the centre",
        ),
        Pair("mi_fgsm", "torchattacks", lambda ball, n: mi_fgsm(ball, ce, n), stepped(ta.MIFGSM, 1 / STEPS)),
        Pair(
            "ni_fgsm",
            "torchattacks",
            lambda ball, n: ni_fgsm(ball, ce, n),
            stepped(ta.NIFGSM, 1 / STEPS),
            why="our look-ahead stays in [0, 1]",
        ),
        Pair(
            "di2_fgsm",
            "torchattacks",
            lambda ball, n: di2_fgsm(ball, ce, n),
            stepped(ta.DIFGSM, 1 / STEPS, decay=1.0),
            why="each image draws its own size and place, theirs one for the batch; log-odds are carried back",
        ),
        Pair(
            "ti_fgsm",
            "torchattacks",
            lambda ball, n: ti_fgsm(ball, ce, n),
            stepped(ta.TIFGSM, 1 / STEPS, decay=1.0, diversity_prob=0.0),
        ),
        Pair(
            "apgd ce",
            "torchattacks",
            lambda ball, n: APGD(ball, ce, n),
            made(ta.APGD, steps=20, loss="ce"),
            why="our start is uniform in the ball, theirs has a pixel on its edge",
        ),
        Pair("apgd ce", "adv_lib", lambda ball, n: APGD(ball, ce, n), adv_apgd("ce")),
        Pair("apgd dlr", "adv_lib", lambda ball, n: APGD(ball, dlr, n), adv_apgd("dlr")),
        Pair(
            "square",
            "torchattacks",
            lambda ball, n: Square(ball, margin_softmax, QUERIES, 0.8),
            square(),
            (0.05, 0.1, 0.2),
            why="every image draws its own squares, theirs share a draw per batch",
        ),
        Pair(
            "square l2",
            "torchattacks",
            lambda ball, n: Square(ball, margin_softmax, QUERIES, 0.8),
            square(norm="L2"),
            (3.0, 5.0, 7.0),
            L2,
        ),
    ]


@dataclass(frozen=True)
class Scene:
    net: Stripes
    image: Tensor
    labels: Tensor

    def lost(self, run: Callable[[], Tensor]) -> tuple[float, int, int]:
        """The share of images that end in another class, and the passes that a batch took."""
        self.net.forwards = self.net.backwards = 0
        result = run()
        passes = self.net.forwards, self.net.backwards
        with torch.no_grad():
            return (self.net(result).argmax(1) != self.labels).float().mean().item(), *passes


def image_of(attack: Attack, scene: Scene, target: Mask, seed: int) -> Image:
    seeds = range(seed * len(scene.image), (seed + 1) * len(scene.image))
    return attack(OneClass(scene.net), scene.image, target, list(seeds)).image


def compared(pair: Pair, scene: Scene, n_seeds: int) -> tuple[list[float], list[float], list[str]]:
    ours, theirs, passes = [], [], []
    target = nn.functional.one_hot(scene.labels, CLASSES).bool()[:, :, None, None].expand(-1, -1, SIZE, SIZE)
    for eps in pair.budgets:
        lost = []
        for seed in range(n_seeds):
            torch.manual_seed(seed)  # theirs draw from the global generator
            of_theirs, forwards, backwards = scene.lost(partial(pair.theirs, scene.net, scene.image, scene.labels, eps))
            attack = pair.ours(pair.ball(eps), max(backwards, 1))
            of_ours, our_forwards, our_backwards = scene.lost(partial(image_of, attack, scene, target, seed))
            lost.append((of_ours, of_theirs))
        ours.append(fmean(mine for mine, _ in lost))
        theirs.append(fmean(other for _, other in lost))
        passes.append(f"{our_backwards}/{backwards}" if backwards else f"{our_forwards}/{forwards}")
    return ours, theirs, passes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=1, help="of the attacks' own draws")
    n_seeds: int = parser.parse_args().seeds
    rng = torch.Generator().manual_seed(1)
    net = trained(rng)
    image, labels = stripes(IMAGES, rng)
    right = net(image).argmax(1) == labels
    scene = Scene(net, image[right], labels[right])
    print(
        f"{int(right.sum())} of {IMAGES} images are classified right and attacked; shares are means over "
        f"{plural(n_seeds, 'seed')}.\n"
    )
    print("| attack | library | budgets | lost, ours | lost, theirs | passes, ours/theirs | differs |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for pair in pairs():
        ours, theirs, passes = compared(pair, scene, n_seeds)
        shown = [", ".join(f"{value:.2f}" for value in values) for values in (ours, theirs)]
        budgets = ", ".join(f"{eps:g}" for eps in pair.budgets)
        print(
            f"| {pair.name} | {pair.library} | {budgets} | {shown[0]} | {shown[1]} | {', '.join(passes)} | {pair.why} |"
        )


if __name__ == "__main__":
    main()
