"""Our attacks against those of other libraries, iterate by iterate, where they are installed.

Those libraries attack classifiers. A model that gives all pixels of an image the same logits is a classifier and a
segmentation at once: here a small network whose logits are averaged over the image. Our attacks get the logits at
every pixel, theirs get them once per image. Both sides climb the cross-entropy from the image itself, without random
start, in double precision. Every image that an attack shows to the network is recorded, and the records are compared.
"""

import importlib
import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from medseg_attack.checks.installation import same
from medseg_attack.errors import InputError, nearest
from medseg_attack.numerics.log_odds import softmax_log_odds
from medseg_attack.registry import build
from medseg_attack.types import Image, LogOdds, Mask, Task

EPS, LENGTH, STEPS, SIZE = 0.03, 0.4, 5, 0.25  # radius in linf, in l2; steps; a step per radius
TOLERANCE = 1e-9  # of a pixel; lengths are kept from 0 by different small numbers, which leaves 1.4e-10
CLASSES = 3
Iterates = list[Tensor]
_STEPS = f"steps={STEPS}, step_size={SIZE}"
_PLAIN = "random_start=False, keep_worst=False"
FGSM = f"fgsm(linf({EPS}), ce)"
BIM = f"bim(linf({EPS}), ce, {_STEPS})"
PGD = f"pgd(linf({EPS}), ce, {_STEPS}, {_PLAIN})"
MI_FGSM = f"mi_fgsm(linf({EPS}), ce, steps={STEPS})"
FGSM_L2 = f"fgsm(l2({LENGTH}), ce)"
PGD_L2 = f"pgd(l2({LENGTH}), ce, {_STEPS}, {_PLAIN})"
PIP = {"torchattacks": "torchattacks", "adv_lib": "adv-lib", "foolbox": "foolbox"}


class Classifier(nn.Module):
    """Two convolutions and a mean over the image; it keeps the images at which a gradient is taken."""

    def __init__(self) -> None:
        super().__init__()
        rng = torch.Generator().manual_seed(3)
        self.first = nn.Parameter(torch.randn(6, 1, 3, 3, generator=rng, dtype=torch.float64))
        self.last = nn.Parameter(torch.randn(CLASSES, 6, 3, 3, generator=rng, dtype=torch.float64))
        self.images: Iterates = []

    def forward(self, image: Tensor) -> Tensor:
        if image.requires_grad:
            self.images.append(image.detach().clone())
        hidden = torch.tanh(nn.functional.conv2d(image - 0.5, self.first, padding=1))
        return nn.functional.conv2d(hidden, self.last, padding=1).mean((2, 3))


@dataclass(frozen=True)
class OneClass:
    """The classifier as our attacks see it: the same class on every pixel."""

    task = Task("one class", ("a", "b", "c"), exclusive=True)

    net: Classifier

    def __call__(self, image: Image) -> LogOdds:
        return softmax_log_odds(self.net(image))[:, :, None, None].expand(-1, -1, *image.shape[2:])

    def decide(self, log_odds: LogOdds) -> Mask:
        return torch.zeros_like(log_odds, dtype=torch.bool).scatter_(1, log_odds.argmax(1, keepdim=True), True)


def scene() -> tuple[Tensor, Tensor]:
    """Four images whose pixels reach 0 and 1, and labels."""
    rng = torch.Generator().manual_seed(4)
    image = (1.2 * torch.rand(4, 1, 14, 12, generator=rng, dtype=torch.float64) - 0.1).clamp(0, 1)
    return image, torch.tensor([0, 1, 2, 0])


def our_iterates(text: str) -> Iterates:
    """The images that a registered attack goes through, the last one included."""
    image, labels = scene()
    net = Classifier()
    target = nn.functional.one_hot(labels, CLASSES).bool()[:, :, None, None].expand(-1, -1, *image.shape[2:])
    result = build(text, "attack")(OneClass(net), image, target, (1, 2, 3, 4))
    return [*net.images, result.image]


Theirs = Callable[[Classifier, Tensor, Tensor], Tensor | None]


def their_iterates(attack: Theirs) -> Iterates:
    """The images that another library's attack goes through; one that returns no last image is given a step more."""
    image, labels = scene()
    net = Classifier()
    last = attack(net, image, labels)
    return net.images if last is None else [*net.images, last.detach()]


def _torchattacks() -> dict[str, Theirs]:
    library: Any = importlib.import_module("torchattacks")
    return {
        FGSM: lambda net, x, y: library.FGSM(net, eps=EPS)(x, y),
        BIM: lambda net, x, y: library.BIM(net, eps=EPS, alpha=SIZE * EPS, steps=STEPS)(x, y),
        PGD: lambda net, x, y: library.PGD(net, eps=EPS, alpha=SIZE * EPS, steps=STEPS, random_start=False)(x, y),
        MI_FGSM: lambda net, x, y: library.MIFGSM(net, eps=EPS, alpha=EPS / STEPS, steps=STEPS, decay=1.0)(x, y),
        FGSM_L2: lambda net, x, y: library.PGDL2(net, eps=LENGTH, alpha=LENGTH, steps=1, random_start=False)(x, y),
        PGD_L2: lambda net, x, y: library.PGDL2(net, eps=LENGTH, alpha=SIZE * LENGTH, steps=STEPS, random_start=False)(
            x, y
        ),
    }


def _adv_lib() -> dict[str, Theirs]:
    library: Any = importlib.import_module("adv_lib.attacks")

    def attack(steps: int, size: float) -> Theirs:
        def without_last(net: Classifier, x: Tensor, y: Tensor) -> None:  # it returns the best image, not the last
            library.pgd_linf(net, x, y, EPS, steps=steps + 1, random_init=False, relative_step_size=size)

        return without_last

    return {FGSM: attack(1, 1.0), BIM: attack(STEPS, SIZE), PGD: attack(STEPS, SIZE)}


def _foolbox() -> dict[str, Theirs]:
    library: Any = importlib.import_module("foolbox")
    plain = {"random_start": False}

    def attack(make: Any, eps: float) -> Theirs:
        def with_last(net: Classifier, x: Tensor, y: Tensor) -> Tensor:
            model = library.PyTorchModel(net.eval(), bounds=(0, 1))
            moved: Tensor = make.run(model, x, library.criteria.Misclassification(y), epsilon=eps)
            return moved

        return with_last

    attacks = library.attacks
    small, small_l2 = {"abs_stepsize": SIZE * EPS, "steps": STEPS}, {"abs_stepsize": SIZE * LENGTH, "steps": STEPS}
    return {
        FGSM: attack(attacks.LinfFastGradientAttack(**plain), EPS),
        BIM: attack(attacks.LinfBasicIterativeAttack(**small, **plain), EPS),
        PGD: attack(attacks.LinfPGD(**small, **plain), EPS),
        FGSM_L2: attack(attacks.L2FastGradientAttack(**plain), LENGTH),
        PGD_L2: attack(attacks.L2PGD(**small_l2, **plain), LENGTH),
    }


LIBRARIES: dict[str, Callable[[], dict[str, Theirs]]] = {
    "torchattacks": _torchattacks,
    "adv_lib": _adv_lib,
    "foolbox": _foolbox,
}


def comparisons(names: Sequence[str]) -> list[Callable[[], None]]:
    """One check per library and attack that both sides have, for `installation.run`.

    Raises:
        InputError: a name is not known, or that library is not installed.
    """
    for name in names:
        if name not in LIBRARIES:
            raise InputError(f"expected a library to compare with, got {name!r}; {nearest(name, LIBRARIES)}")
        if importlib.util.find_spec(name) is None:
            raise InputError(
                f"expected {name} to be installed for --against, got none; run 'pip install {PIP[name]}' in an "
                "environment of its own, since these libraries pin old packages"
            )
    return [_check(name, text, attack) for name in names for text, attack in LIBRARIES[name]().items()]


def _check(name: str, text: str, attack: Theirs) -> Callable[[], None]:
    def compare() -> None:
        iterates, expected = our_iterates(text), their_iterates(attack)
        if len(iterates) != len(expected):
            raise AssertionError(f"{len(iterates)} iterates of ours, {len(expected)} of {name}")
        for step, (x, other) in enumerate(zip(iterates, expected, strict=True)):
            same(x, other, f"iterate {step}", TOLERANCE)

    compare.__name__ = f"{name}_{text.partition('(')[0]}_{'l2' if 'l2(' in text else 'linf'}"
    compare.__doc__ = f"Iterates of {text}: those of {name}."
    return compare
