"""The poison against use: noise that is so easily learned that nothing else is."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from medseg_attack.errors import InputError, require
from medseg_attack.metrics.overlap import dice
from medseg_attack.models.checkpoints import build_model, require_trainable
from medseg_attack.models.segmodel import SegModel, frozen
from medseg_attack.registry import register
from medseg_attack.threat.balls.norms import Linf
from medseg_attack.threat.objectives.losses import bce, soft_dice
from medseg_attack.threat.poisons.base import Poison
from medseg_attack.types import Batch, CaseRef, CaseSource, Image, Mask, PerSample, Task

LEARNT = 0.99  # training Dice at which the noise is easy enough
BATCH = 8
ASCENTS = 3  # steps of the adversarial training that noise is to outlast


@register("unlearnable", kind="poison", paper="Huang et al., Unlearnable examples, ICLR 2021, arXiv 2101.04898")
@dataclass(frozen=True)
class Unlearnable(Poison):
    """Noise that lowers the training loss until nothing is left to learn (Huang et al., ICLR 2021, arXiv 2101.04898).

    A network and the noise are trained in turns, both to a small loss. The masks stay true. It harms as far as all
    patients carry it: with `--rho 1` the data set is protected against use. A defence is adversarial training. With a
    radius, the noise is learned against it (robust error-minimising noise; Fu et al., ICLR 2022, arXiv 2203.14533): the
    loss is that of the worst image within the radius, and a mean over random flips. Adversarial training with the
    noise's own eps or more takes away all that it can give to a linear network.

    Attributes:
        eps: largest change of a pixel, a fraction of the window, from 0 to below 1; 0 is the control, the images
            as they are.
        rounds: turns at most; they end when the training Dice is above 0.99.
        updates: batches that the network learns in a turn.
        steps: signed steps of each image's noise in a turn, a tenth of eps each.
        model: the network that stands for that of the victim.
        radius: of the adversarial training that the noise is to outlast, from 0 for none to eps.
        draws: random flips that each step of the noise averages over; 0: the image as it is.

    Raises:
        InputError: a field is out of range, or the network does not take slices.
    """

    eps: float = 8 / 255
    rounds: int = 10
    updates: int = 10
    steps: int = 20
    model: str = "unet_small"
    radius: float = 0.0
    draws: int = 0
    changes: Mapping[str, Tensor] | None = field(default=None, compare=False, repr=False, kw_only=True)

    def __post_init__(self) -> None:
        require(self, rounds=1, updates=1, steps=1, draws=0)
        Linf(self.eps)
        if not 0 <= self.radius <= self.eps:
            raise InputError(
                f"expected a radius from 0 to eps {self.eps:.4g} for unlearnable, got {self.radius:.4g}; beyond it "
                "adversarial training takes all away"
            )

    def poisoned(self, image: Image, target: Mask, seeds: Sequence[int]) -> tuple[Image, Mask]:
        if self.changes is None or self.setting is None:
            raise InputError("unlearnable learns on the data that it is put on; run 'medattack poison'")
        change = torch.stack([self.changes[case.id] for case in self.setting.cases])
        return Linf(self.eps).project(image + change.to(image), image), target

    def learned(self, source: CaseSource, refs: Sequence[CaseRef], task: Task, seed: int) -> "Unlearnable":
        batches = [list(refs[n : n + BATCH]) for n in range(0, len(refs), BATCH)]
        batches = [part for group in batches for part in _by_shape(group)]
        changes = {ref.id: torch.zeros_like(source.read(ref).image) for ref in refs}
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = build_model(self.model, task, pretrained=False)
        self._require_network(model, source.read(refs[0]).image)
        optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3)
        rng, count = torch.Generator().manual_seed(seed), 0
        for _ in range(self.rounds if self.eps else 0):
            for _ in range(self.updates):
                if count % len(batches) == 0:
                    order = torch.randperm(len(batches), generator=rng).tolist()
                batch = Batch.of([source.read(ref) for ref in batches[order[count % len(batches)]]])
                self._learn(model, optimiser, batch, changes)
                count += 1
            scores = [
                self._soothe(model, Batch.of([source.read(ref) for ref in group]), changes, rng) for group in batches
            ]
            if float(torch.cat(scores).nanmean()) > LEARNT:
                break
        return replace(self, changes=changes)

    def _require_network(self, model: SegModel, image: Image) -> None:
        """Refuses a network that cannot be trained on slices."""
        if model.dims != 2:
            raise InputError(f"expected a network of slices to learn noise with, got {self.model}; write 'unet_small'")
        require_trainable(model, self.model, image[None])

    def _learn(
        self, model: SegModel, optimiser: torch.optim.Optimizer, batch: Batch, changes: Mapping[str, Tensor]
    ) -> None:
        """One update of the network on the images with their noise."""
        model.train()
        image = batch.image + torch.stack([changes[case.id] for case in batch.cases])
        loss = _loss(model(self._worst(model, image.clamp(0, 1), batch.target)), batch.target).mean()
        optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()

    def _worst(self, model: SegModel, image: Image, target: Mask) -> Image:
        """The images after signed steps up the loss within the radius, as adversarial training sees them."""
        if not self.radius:
            return image
        ball, x = Linf(self.radius), image
        with frozen(model):
            for _ in range(ASCENTS):
                x = x.detach().requires_grad_()
                (grad,) = torch.autograd.grad(_loss(model(x), target).sum(), x)
                x = ball.project(x.detach() + 2 * self.radius / ASCENTS * grad.sign(), image)
        return x

    def _slope(self, model: SegModel, x: Image, target: Mask, rng: torch.Generator | None) -> Image:
        """The gradient of the loss on the worst images around these, a mean over random flips."""
        total = torch.zeros_like(x)
        for _ in range(max(self.draws, 1)):
            axes = [axis for axis in range(2, x.ndim) if self.draws and torch.rand((), generator=rng) < 0.5]
            flipped, truth = x.flip(axes), target.flip(axes)
            worst = self._worst(model, flipped, truth).detach().requires_grad_()
            (grad,) = torch.autograd.grad(_loss(model(worst), truth).sum(), worst)
            total += grad.flip(axes)
        return total

    def _soothe(
        self, model: SegModel, batch: Batch, changes: dict[str, Tensor], rng: torch.Generator | None = None
    ) -> Tensor:
        """Signed steps of the images' noise down the loss; the Dice with it, per image and class."""
        ball, x0 = Linf(self.eps), batch.image
        x = x0 + torch.stack([changes[case.id] for case in batch.cases])
        with frozen(model):
            for _ in range(self.steps):
                grad = self._slope(model, x, batch.target, rng)
                x = ball.project(x - self.eps / 10 * grad.sign(), x0)
            with torch.no_grad():
                pred = model.decide(model(x))
        for case, change in zip(batch.cases, x - x0, strict=True):
            changes[case.id] = change
        scored = list(model.task.scored)
        return dice(pred[:, scored], batch.target[:, scored], empty=math.nan).flatten()


def _loss(log_odds: Tensor, target: Mask) -> PerSample:
    return bce(log_odds, target) + soft_dice(log_odds, target)


def _by_shape(refs: Sequence[CaseRef]) -> list[list[CaseRef]]:
    return [[ref for ref in refs if ref.shape == shape] for shape in dict.fromkeys(ref.shape for ref in refs)]
