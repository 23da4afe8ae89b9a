"""Is our least change as small as that of adv_lib and torchattacks (JSMA) at equal gradient evaluations?

    TORCHDYNAMO_DISABLE=1 python benchmarks/attack_strength_minimal.py

in an environment with the extra `references`. Segmentation attacks meet a network that finds discs, squares and bars,
trained here in seconds; C&W, DeepFool and JSMA, which the libraries have for classifiers alone, a classifier whose one
answer we see on every pixel. Success: 99 % of the pixels are background, or another class; of JSMA, the first class.
Both sides' finds are judged here: share of images, median size among the images that both sides broke, and the
gradients that the batch took.
"""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from medseg_attack.checks.other_libraries import CLASSES, Classifier, OneClass, scene
from medseg_attack.models.segmodel import SegModel
from medseg_attack.registry import build
from medseg_attack.types import Attack, Image, Mask, Task

TASK = Task("shapes", ("background", "disc", "square", "bar"), exclusive=True)
SIDE, IMAGES = 32, 16


class Counted(nn.Module):
    """A network that counts the gradients that are taken of it."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net, self.backwards = net, 0

    def forward(self, image: Tensor) -> Tensor:
        out: Tensor = self.net(image)
        if out.requires_grad:
            out.register_hook(self._count)  # type: ignore[no-untyped-call]
        return out

    def _count(self, grad: Tensor) -> None:
        self.backwards += 1


def shapes(n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Images with a disc, a square and a bar, and their labels."""
    rng = torch.Generator().manual_seed(seed)
    rows, columns = torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="ij")
    a, b, c, d = torch.randint(7, SIDE - 7, (4, n, 1, 1), generator=rng)
    disc = (rows - a) ** 2 + (columns - b) ** 2 <= 25
    square = ((rows - c).abs() <= 4) & ((columns - d).abs() <= 4)
    labels = torch.where(square, 2, torch.where(disc, 1, torch.where(rows == c, 3, 0)))
    image = 0.4 + 0.06 * labels + 0.02 * torch.randn(n, SIDE, SIDE, generator=rng)
    return image.clamp(0, 1)[:, None], labels


def trained() -> nn.Module:
    """Finds the shapes."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 12, 5, padding=2),
        nn.ReLU(),
        nn.Conv2d(12, 12, 5, padding=2),
        nn.ReLU(),
        nn.Conv2d(12, 4, 3, padding=1),
    )
    optimiser = torch.optim.Adam(net.parameters(), 5e-3)
    for step in range(200):
        image, labels = shapes(16, step)
        optimiser.zero_grad()
        functional.cross_entropy(net(image), labels).backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    return net.eval().requires_grad_(False)


@dataclass(frozen=True)
class Duel:
    """One attack on both sides.

    Attributes:
        ours: its spec; `theirs`: (library, network, images, labels) to images.
        towards: the label that all pixels are to get; None: any other.
        norm: in which finds are measured.
        why: where ours is meant to differ.
    """

    name: str
    ours: str
    theirs: Callable[[Any, nn.Module, Tensor, Tensor], Tensor]
    norm: float
    towards: int | None = None
    classifier: bool = False
    why: str = ""


STEPS = 120
GOAL = f"goal=all_background, steps={STEPS}"
DUELS = (
    Duel(
        "DAG",
        f"dag({GOAL}, step_size=0.002)",
        lambda lib, net, x, y: lib.dag(net, x, y, targeted=True, max_iter=STEPS, γ=0.002),
        torch.inf,
        0,
        why="cut to [0, 1] in every step; a failure says so",
    ),
    Duel(
        "ALMAProx",
        f"alma_prox({GOAL}, step_size=0.005)",
        lambda lib, net, x, y: lib.alma_prox(net, x, y, targeted=True, num_steps=STEPS, lr_init=0.005),
        torch.inf,
        0,
        why="the penalty's true slope",
    ),
    Duel(
        "PDPGD",
        f"pdpgd({GOAL})",
        lambda lib, net, x, y: lib.pdpgd(net, x, y, norm=float("inf"), targeted=True, num_steps=STEPS),
        torch.inf,
        0,
        why="the proximal point exactly instead of in five rounds",
    ),
    Duel(
        "PDGD",
        f"pdgd(l2(50), {GOAL})",
        lambda lib, net, x, y: lib.pdgd(net, x, y, targeted=True, num_steps=STEPS),
        2,
        0,
    ),
    Duel(
        "ASMA",
        f"asma(l2(50), {GOAL})",
        lambda lib, net, x, y: lib.asma(net, x, y, targeted=True, num_steps=STEPS),
        2,
        0,
        why="steps of a stated size; the library's are raw gradients times 1e-7 to 1e-6, overlaps of the whole batch",
    ),
    Duel(
        "C&W",
        "cw(l2(50), steps=50, searches=6, price=0.00001)",
        lambda lib, net, x, y: lib.cw(net, x, y, binary_search_steps=6, max_iterations=50, abort_early=False),
        2,
        classifier=True,
        why="a projection instead of tanh; the price is per pixel, of which there are 168",
    ),
    Duel(
        "DeepFool",
        "deepfool(l2(50))",
        lambda lib, net, x, y: lib.deepfool(net, x, y, steps=50, norm=2),
        2,
        classifier=True,
        why="a gradient per class that is another for some image of the batch",
    ),
    Duel(
        "JSMA",
        "jsma(goal=all_background, success=by_pixels, steps=84, share=0.0119)",
        lambda lib, net, x, y: lib.jsma(net, x, y),
        0,
        0,
        classifier=True,
        why="pixels go to black or white, whichever helps, and two single ones instead of the best pair",
    ),
)


class Library:
    """The attacks of adv_lib, and JSMA of torchattacks, under one roof."""

    def __init__(self) -> None:
        dense: Any = importlib.import_module("adv_lib.attacks.segmentation")
        self.dag, self.asma, self.alma_prox = dense.dag, dense.asma, dense.alma_prox
        self.pdpgd, self.pdgd = dense.pdpgd, dense.pdgd
        self.cw = importlib.import_module("adv_lib.attacks.carlini_wagner").carlini_wagner_l2
        self.deepfool = importlib.import_module("adv_lib.attacks.deepfool").df
        self._jsma: Any = importlib.import_module("torchattacks").JSMA

    def jsma(self, net: nn.Module, image: Tensor, labels: Tensor) -> Tensor:
        attack = self._jsma(net, theta=1.0, gamma=1.0)
        attack.set_mode_targeted_by_label(quiet=True)
        result: Tensor = attack(image, labels)
        return result


def sizes(x: Tensor, image: Tensor, norm: float) -> Tensor:
    length: Tensor = torch.linalg.vector_norm((x - image).flatten(1), norm, dim=1)
    return length


def fought(duel: Duel, library: Library, net: nn.Module) -> tuple[list[tuple[float, int]], list[Tensor]]:
    """Per side, ours first: share of successes and gradients; and the sizes of successes, infinite for a failure."""
    if duel.classifier:
        image, _ = scene()
        truth = Classifier()(image).argmax(1)
        if duel.towards is not None:
            image, truth = image[truth != duel.towards], truth[truth != duel.towards]
    else:
        image, _ = shapes(IMAGES, 999)
        truth = net(image).argmax(1)
    labels = truth if duel.towards is None else torch.full_like(truth, duel.towards)
    stated, measured = [], []
    for side in ("ours", "theirs"):
        counted = Counted(Classifier() if duel.classifier else net)
        result = _ours(duel, counted, image, truth) if side == "ours" else duel.theirs(library, counted, image, labels)
        with torch.no_grad():
            pred = counted(result.detach()).argmax(1)
        adversarial = (pred == labels) if duel.towards is not None else (pred != labels)
        success = adversarial.reshape(len(image), -1).double().mean(1) >= 0.99
        stated.append((success.double().mean().item(), counted.backwards))
        measured.append(sizes(result.detach(), image, duel.norm).masked_fill(~success, torch.inf))
    return stated, measured


def _ours(duel: Duel, net: Counted, image: Image, truth: Tensor) -> Image:
    if duel.classifier:
        target: Mask = functional.one_hot(truth, CLASSES).bool()[:, :, None, None].expand(-1, -1, *image.shape[2:])
        one_class: Attack = build(duel.ours, "attack")
        return one_class(OneClass(net), image, target, range(len(image))).image  # type: ignore[arg-type]
    target = functional.one_hot(truth, len(TASK.classes)).bool().movedim(-1, 1)
    attack: Attack = build(duel.ours, "attack")
    return attack(SegModel(net, TASK).eval(), image, target, range(len(image))).image


def main() -> None:
    library, net = Library(), trained()
    print("| attack | ours: success | least | gradients | theirs: success | least | gradients | where ours differs |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: | --- |")
    for duel in DUELS:
        outcomes, (own, other) = fought(duel, library, net)
        both = own.isfinite() & other.isfinite()
        cells = []
        for (share, gradients), size in zip(outcomes, (own, other), strict=True):
            least = f"{size[both].median():.4f}" if both.any() else "-"
            cells += [f"{share:.0%}", least, str(gradients)]
        print(f"| {duel.name} | {' | '.join(cells)} | {duel.why} |", flush=True)


if __name__ == "__main__":
    main()
