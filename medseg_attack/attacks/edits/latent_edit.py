"""An organ that a generator paints as the network likes it least: a search in the generator's latent."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from medseg_attack.attacks.edits.boxes import hole_of
from medseg_attack.attacks.edits.content import judge_edit
from medseg_attack.attacks.edits.inpaint import LATENTS, Cells, Inpaint, Inpainted, cut, paint
from medseg_attack.attacks.physical.ascent import random_numbers
from medseg_attack.errors import require
from medseg_attack.numerics.noise import second_differences
from medseg_attack.numerics.samples import TINY, widen
from medseg_attack.registry import register
from medseg_attack.threat.objectives.losses import bce
from medseg_attack.threat.objectives.per_task import for_task
from medseg_attack.threat.organs import organ_classes
from medseg_attack.types import Adversarial, Attack, Image, Mask, Model, Objective, PerSample, Task

AIMS = {"missed": 1, "believed": -1}  # the sign of the objective that is climbed


@register(
    "latent_edit",
    kind="attack",
    cost="search + (search >= 1) + 1 forward, search backward",
    threat="white box",
    paper="Chen et al., SASHIMI 2019 (in its spirit)",
    reaches="what is known in tests/attacks/test_latent_edit.py, as latent_edit changes what the image shows",
    shown_by="latent_edit(steps=4)",
)
@dataclass(frozen=True)
class LatentEdit(Inpaint):
    """The filling of `inpaint` that the network gets wrong most, searched in the latent of its VAE-GAN (Chen 2019).

    Chen et al. (SASHIMI 2019) search a conditional VAE-GAN of deformations and intensities for the clinical variation
    that harms most; their formulas are in no source. Here the VAE-GAN paints a box around an organ, by default with
    the masks that it has ("keep"), so that the truth stays. Signed ascent on the 8 latents starts at 0, the control
    draws them at random.

    The size of a change is that of its ball, the share of the pixels that may be edited: it says nothing of how
    plausible they are. What bounds that is the generator: it paints what it learned as long as its latents, which are
    normal numbers, stay within `max_latent`. `metrics.edits` has the measures of what that is worth.

    Attributes:
        edit, organ, steps, rate: as of `inpaint`.
        objective: function that is climbed, on the truth that the edit shows.
        search: steps in the latent, 0 or more; 0 draws it at random.
        step_size: change of every latent in a step as a share of `max_latent`, 0 or more.
        max_latent: largest latent, in its standard deviations, above 0.
        aim: "missed" climbs the objective; "believed" descends it on the organs that are edited alone, for anatomy that
            is to be taken for real. What becomes of the others is no part of belief.
        quiet: weight, 0 or more, of what gives the edit away: how much the noise of the hole differs from that of the
            rest of its box, as |log| of the ratio. It is taken off the objective, of which a mean over the slice counts
            per pixel that the edit is about.

    Raises:
        InputError: a field is out of range, the task has no organ of that name, or images are volumes.
    """

    name: ClassVar[str] = "latent_edit"

    edit: str = "keep"
    objective: Objective = bce
    search: int = 20
    step_size: float = 0.25
    max_latent: float = 2.0
    aim: str = "missed"
    quiet: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, search=0, step_size=0, max_latent="(0, inf)", aim=tuple(AIMS), quiet=0)

    def control(self) -> Attack:
        """The same edit with a latent that is drawn at random."""
        return replace(self, search=0)

    def with_learned(self, learned: Mapping[str, Tensor]) -> "SearchedEdit":
        """The attack that searches the latent of the trained generator."""
        search = self.objective, self.search, self.step_size, self.max_latent, self.aim, self.quiet
        return SearchedEdit(self.ball, self.edit, self.organ, learned, *search)


@dataclass(frozen=True, eq=False)
class SearchedEdit(Inpainted):
    """The filling of a trained generator that the network gets wrong most.

    Attributes:
        objective, search, step_size, max_latent, aim, quiet: as of `LatentEdit`.
    """

    name: ClassVar[str] = LatentEdit.name

    objective: Objective
    search: int
    step_size: float
    max_latent: float
    aim: str
    quiet: float

    def __call__(self, model: Model, image: Image, target: Mask, seeds: Sequence[int]) -> Adversarial:
        scene, generator = self.scene(model.task, image, target, seeds), self.generator(model.task, image)
        latent = image.new_zeros(len(image), LATENTS)
        loss = self.loss(model.task)
        if self.search == 0:
            with torch.no_grad():
                drawn = self.max_latent * random_numbers(image, LATENTS, seeds)
                x = scene.pasted(paint(generator, scene.cells, scene.shown, drawn))
            return judge_edit(model, self.ball, x, image, target, scene.truth)
        share = scene.place.flatten(1).to(image).mean(1).clamp(min=TINY)  # of the pixels that the edit is about
        best, most = image, image.new_full((len(image),), -torch.inf)
        for step in range(self.search + 1):
            last = step == self.search
            with torch.set_grad_enabled(not last):
                latent = latent.detach().requires_grad_(not last)
                x = scene.pasted(paint(generator, scene.cells, scene.shown, latent))
                height = AIMS[self.aim] * loss(model(x), scene.truth, step / self.search) / share
                if self.quiet:
                    height = height - self.quiet * noise_apart(cut(scene.boxes, x))
            higher = height.detach() > most
            best, most = torch.where(widen(higher, x), x.detach(), best), torch.where(higher, height.detach(), most)
            if not last:
                (grad,) = torch.autograd.grad(height.sum(), latent)
                latent = latent + self.step_size * self.max_latent * grad.sign()
                latent = latent.clamp(-self.max_latent, self.max_latent)
        return judge_edit(model, self.ball, best, image, target, scene.truth)

    def loss(self, task: Task) -> Objective:
        """The objective on all classes; or for belief on the edited organs alone, each a question of its own.

        Without the others the classes of a softmax do not exclude each other any more.
        """
        if self.aim == "missed":
            return for_task(self.objective, task)
        classes = organ_classes(task, self.organ, self.name)
        objective = for_task(self.objective, Task("an edit to believe", tuple(task.classes[k] for k in classes)))
        return lambda log_odds, truth, progress=1.0: objective(log_odds[:, classes], truth[:, classes], progress)


def noise_apart(cells: Cells) -> PerSample:
    """|log| of the ratio of the noise of a hole to that of the rest of its box, by second differences.

    Windows that lie on both sides of the border count for neither.
    """
    response = second_differences(cells.flatten(0, 1)[:, None]).abs()
    response = response.view(len(cells), -1, *response.shape[2:])
    hole = hole_of(cells)
    inside, outside = (
        (torch.nn.functional.avg_pool2d(part, 3, stride=1) > 1 - 1e-6).to(cells) for part in (hole, 1 - hole)
    )
    own, around = ((response * part).sum((1, 2, 3)) / part.sum() / cells.shape[1] for part in (inside, outside))
    apart: Tensor = ((own + TINY) / (around + TINY)).log().abs()
    return apart
