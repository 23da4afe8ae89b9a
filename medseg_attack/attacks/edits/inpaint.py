"""An organ that a generator paints in or out, trained on the slices of other patients."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from medseg_attack.attacks.edits.boxes import HOLE, SIDE, Box, hole_of
from medseg_attack.attacks.edits.content import (
    EditArea,
    donors_of,
    in_doubles,
    judge_edit,
    texture_beside,
    with_background,
)
from medseg_attack.attacks.edits.remove import Remove
from medseg_attack.attacks.learning import Learning
from medseg_attack.attacks.physical.ascent import require_ball
from medseg_attack.attacks.universal.advgan import Generator, descend, patches
from medseg_attack.errors import InputError, require
from medseg_attack.numerics.harmonic import filled
from medseg_attack.numerics.samples import widen
from medseg_attack.registry import register
from medseg_attack.threat.organs import organ_classes
from medseg_attack.types import Adversarial, Attack, Ball, Batch, Bindable, Image, Mask, Model, Task

EDITS = ("remove", "insert", "keep")
LATENTS = 8  # numbers that say how a hole is painted, beyond what its mask and surroundings do
BOXES, JITTER = 4, 4  # of each slice in a step: around an organ by turns, and anywhere; cells that they are moved by
LIKENESS, SPREAD = 100.0, 0.01  # weights in the loss: of the absolute error, of the latents' distance from normal ones
BETAS = (0.5, 0.999)  # of Adam, as for pix2pix

Cells = Float[Tensor, "n c 32 32"]
Shown = Float[Tensor, "n organs 32 32"]


@register(
    "inpaint",
    kind="attack",
    cost="1 forward, 0 backward",
    threat="no model",
    paper="Mirsky et al., CT-GAN, USENIX Security 2019 (in its spirit)",
    reaches="what is known in tests/attacks/test_inpaint.py, as inpaint changes what the image shows",
    shown_by="inpaint(steps=4)",
)
@dataclass(frozen=True)
class Inpaint(Learning, Bindable):
    """An organ painted in or out by a generator that was trained on other patients, in the spirit of CT-GAN.

    The middle of a box around the organ is hidden, and a small U-Net paints it from the surroundings and from the masks
    that it shall show: without the organ, or with another patient's. The truth becomes these masks. CT-GAN trains one
    generator of 3-D cubes for each direction; here one of slices does both, and is a variational autoencoder with a
    discriminator (VAE-GAN), so that a hole has many fillings. This paints the one of latent 0. Boxes are of 32 x 32
    cells, whatever the organ's size, with a hole of 20 x 20 whose edge fades over 2 pixels. A generator that is trained
    by its mean error paints no noise: fine texture from beside the hole is added, as `remove` does.

    Attributes:
        ball: edit_area(0.25), a share of the pixels; a larger edit is not made.
        edit: "remove", "insert" another patient's (without donors the image's own, mirrored), or "keep", which paints
            what is there anew: an edit without content.
        organ: name of a class; "" is all organs.
        steps: batches that the generator is trained on, 1 or more.
        rate: learning rate, above 0.

    Raises:
        InputError: a field is out of range, the task has no organ of that name, or images are volumes.
    """

    name: ClassVar[str] = "inpaint"  # in messages

    ball: Ball = EditArea()  # noqa: RUF009 - a frozen value
    edit: str = "remove"
    organ: str = ""
    steps: int = 2000
    rate: float = 2e-4

    def __post_init__(self) -> None:
        require(self, edit=EDITS, steps=1, rate="(0, inf)")
        require_ball(self.ball, EditArea, f"the ball edit_area for {self.name}", "edit_area(0.25)")

    def control(self) -> Attack:
        """An edit without content: the mirrored place of the image's own organ painted over."""
        return Remove(self.ball, self.organ, elsewhere=True)

    def fit(self, model: Model, batches: Sequence[Batch], seed: int) -> dict[str, Tensor]:
        """The weights of the generator that `train` returns."""
        generator, _ = self.train(model, batches, seed)
        return {name: tensor.detach().contiguous() for name, tensor in generator.state_dict().items()}

    def train(self, model: Model, batches: Sequence[Batch], seed: int) -> tuple[Generator, nn.Sequential]:
        """The generator, and the discriminator that it was trained against.

        Args:
            seed: draws the weights at the start, and all that is drawn in training.

        Raises:
            InputError: there is no batch, or one of volumes, or the task has no organ of that name.
        """
        if not batches:
            raise InputError(f"expected images to fit {self.name} on, got none; prepare data with patients to train on")
        first, task = batches[0].image, model.task
        _refuse_volumes(first, self.name)
        organ_classes(task, self.organ, self.name)
        width = first.shape[1] + len(task.scored)
        with torch.random.fork_rng(devices=[]), torch.enable_grad():
            torch.manual_seed(seed)
            generator = Generator(width + 1 + LATENTS, 2, first.shape[1]).to(first)
            encoder, discriminator = patches(width, 2, 2 * LATENTS).to(first), patches(width, 2).to(first)
            both = [*generator.parameters(), *encoder.parameters()]
            painting = torch.optim.Adam(both, self.rate, BETAS)
            judging = torch.optim.Adam(discriminator.parameters(), self.rate, BETAS)
            for index in torch.randint(len(batches), (self.steps,)).tolist():
                real, shown = training_boxes(batches[index], task)
                mean, log_variance = encoder(torch.cat([real, shown], 1)).mean((2, 3)).chunk(2, 1)
                latent = mean + (log_variance / 2).exp() * torch.randn(mean.shape).to(mean)
                painted = paint(generator, real, shown, latent)
                error = (painted - real).abs().sum() / (hole_of(real).sum() * real[:, :, 0, 0].numel())
                apart = (mean.square() + log_variance.exp() - 1 - log_variance).sum(1).mean() / 2
                fooling = (discriminator(torch.cat([painted, shown], 1)) - 1).square().mean()
                descend(painting, fooling + LIKENESS * error + SPREAD * apart)
                genuine, false = (discriminator(torch.cat([x, shown], 1)) for x in (real, painted.detach()))
                descend(judging, (genuine - 1).square().mean() + false.square().mean())
        return generator, discriminator

    def with_learned(self, learned: Mapping[str, Tensor]) -> "Inpainted":
        """The attack that pastes what the trained generator paints."""
        return Inpainted(self.ball, self.edit, self.organ, learned)


def training_boxes(batch: Batch, task: Task) -> tuple[Cells, Shown]:
    """Boxes of the slices of a batch with the masks that they show; by turns around an organ, and anywhere."""
    real, shown = [], []
    for image, target in zip(batch.image, batch.target[:, task.scored_channels], strict=True):
        for n in range(BOXES):
            place = target[int(torch.randint(len(target), ()))]
            if n % 2 or not place.any():
                place = torch.zeros_like(place)
                place[tuple(int(torch.randint(side, ())) for side in place.shape)] = True
            box = Box.around(place)
            row, column = (int(torch.randint(-JITTER, JITTER + 1, ()) * box.side // SIDE) for _ in range(2))
            box = Box(box.row + row, box.column + column, box.side)
            real.append(box.cut(image))
            shown.append(box.cut(target.to(image)))
    return torch.stack(real), torch.stack(shown)


def cut(boxes: Sequence[Box], images: Float[Tensor, "n c h w"]) -> Cells:
    """The content of one box of each slice."""
    return torch.stack([box.cut(image) for box, image in zip(boxes, images, strict=True)])


def paint(generator: nn.Module, cells: Cells, shown: Shown, latent: Float[Tensor, "n m"]) -> Cells:
    """Boxes whose hole is painted, the rest as it is; a generator of zeros paints the mean of the rest.

    Args:
        cells: content of the boxes; that of the hole is not looked at.
        shown: masks that they shall show, 0 to 1.
        latent: which filling it is.
    """
    hole = hole_of(cells)
    around = cells * (1 - hole)
    mean = (around.sum((2, 3), keepdim=True) / (SIDE**2 - HOLE**2)).clamp(0.01, 0.99)
    everywhere = latent[:, :, None, None].expand(-1, -1, SIDE, SIDE)
    change = generator(torch.cat([around, hole.expand(len(cells), -1, -1, -1), shown, everywhere], 1))
    return torch.where(hole > 0, (mean.logit() + change).sigmoid(), cells)


@dataclass(frozen=True)
class Quality:
    """How well a generator paints holes whose content is known, a number for each box.

    Attributes:
        accuracy: share of two boxes, the untouched and the painted one, that the discriminator takes for what they are;
            1/2 is chance.
        error: mean absolute error in the hole.
        harmonic_error: that of the harmonic function of the hole's edge, which learned nothing.
    """

    accuracy: Float[Tensor, "n"]
    error: Float[Tensor, "n"]
    harmonic_error: Float[Tensor, "n"]


def quality_of(generator: nn.Module, discriminator: nn.Module, real: Cells, shown: Shown) -> Quality:
    """How well a generator paints boxes anew, with latent 0.

    Args:
        discriminator: near 1 on what is real and 0 on what is painted; 1/2 parts the two.
        shown: masks of the boxes.
    """
    with torch.no_grad():
        painted = paint(generator, real, shown, real.new_zeros(len(real), LATENTS))
        genuine, false = (discriminator(torch.cat([x, shown], 1)).flatten(1).mean(1) for x in (real, painted))
    hole = hole_of(real)[0, 0].bool()
    planes = [filled(plane, hole.cpu().numpy()) for plane in in_doubles(real.flatten(0, 1)).numpy()]
    harmonic = torch.from_numpy(np.stack(planes)).to(real).view_as(real)
    accuracy = ((genuine > 0.5).to(real) + (false <= 0.5)) / 2
    return Quality(accuracy, *((x - real).abs()[..., hole].flatten(1).mean(1) for x in (painted, harmonic)))


@dataclass(frozen=True, eq=False)
class Scene:
    """Slices that shall show other masks, and the boxes in which they shall.

    Attributes:
        truth: the masks of the whole slices.
        boxes: one of each slice; of no use where nothing is edited.
        place: the pixels that the edit is about; a slice without any has no edit.
        cells: content of the boxes.
        shown: masks that the boxes shall show.
        texture: fine detail from beside the holes, which no generator of means paints; it fades with them.
    """

    image: Image
    truth: Mask
    boxes: list[Box]
    place: Bool[Tensor, "n h w"]
    cells: Cells
    shown: Shown
    texture: Image

    def pasted(self, cells: Cells) -> Image:
        """The slices with these boxes in them; differentiable in their cells."""
        pasted = [box.paste(own, image) for box, own, image in zip(self.boxes, cells, self.image, strict=True)]
        textured = (torch.stack(pasted) + self.texture).clamp(0, 1)
        return torch.where(widen(self.place.flatten(1).any(1), self.image), textured, self.image)


@dataclass(frozen=True, eq=False)
class Inpainted(Bindable):
    """Organs that a trained generator paints in or out.

    Attributes:
        edit, organ: as of `Inpaint`.
        weights: of the generator.
    """

    name: ClassVar[str] = Inpaint.name

    ball: Ball
    edit: str
    organ: str
    weights: Mapping[str, Tensor]

    def __call__(self, model: Model, image: Image, target: Mask, seeds: Sequence[int]) -> Adversarial:
        scene, latent = self.scene(model.task, image, target, seeds), image.new_zeros(len(image), LATENTS)
        with torch.no_grad():
            x = scene.pasted(paint(self.generator(model.task, image), scene.cells, scene.shown, latent))
        return judge_edit(model, self.ball, x, image, target, scene.truth)

    def scene(self, task: Task, image: Image, target: Mask, seeds: Sequence[int]) -> Scene:
        """The masks that the slices shall show, and the boxes that are painted; seeds draw where texture is from."""
        _refuse_volumes(image, self.name)
        classes = organ_classes(task, self.organ, self.name)
        place, truth = target[:, classes].any(1), target.clone()
        if self.edit == "insert":
            inserted = torch.zeros_like(target)
            inserted[:, classes] = donors_of(self.setting, image, target)[1].to(target.device)[:, classes]
            place = inserted.any(1)
            truth = (target & ~place[:, None] if task.exclusive else target) | inserted
        elif self.edit == "remove":
            truth[:, classes] = False
        truth = with_background(truth, task)
        boxes = [Box.around(each) for each in place.cpu()]
        shown = cut(boxes, truth[:, task.scored_channels].to(image))
        texture = []
        for box, own, seed in zip(boxes, image, seeds, strict=True):
            weight = box.weight(own)
            fine = texture_beside(in_doubles(own), (weight > 0).cpu().numpy(), seed)
            texture.append(weight * torch.from_numpy(fine).to(image))
        return Scene(image, truth, boxes, place, cut(boxes, image), shown, torch.stack(texture))

    def generator(self, task: Task, image: Image) -> Generator:
        """The generator with its weights, which are no variables."""
        channels, width = self.weights["last.weight"].shape[0], self.weights["inward.weight"].shape[1] - 1 - LATENTS
        if (image.shape[1], len(task.scored)) != (channels, width - channels):
            raise InputError(
                f"expected images of {channels} channels and {width - channels} organs, as {self.name} was fitted on, "
                f"got {image.shape[1]} and {len(task.scored)}; fit again"
            )
        with torch.random.fork_rng(devices=[]):
            generator = Generator(width + 1 + LATENTS, 2, channels).to(image)
        generator.load_state_dict(dict(self.weights))
        return generator.requires_grad_(False)


def _refuse_volumes(image: Image, name: str) -> None:
    if image.ndim != 4:
        raise InputError(f"expected slices for {name}, got volumes; take a 2-D model, or remove and insert")
