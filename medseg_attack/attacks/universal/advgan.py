"""A network that makes the perturbation of any image in one pass, trained on the images of other patients."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from medseg_attack.attacks.climbing import Climbing
from medseg_attack.attacks.judging import judge
from medseg_attack.attacks.learning import Learning
from medseg_attack.errors import InputError, require
from medseg_attack.numerics.fields import blurred, stretched
from medseg_attack.registry import register
from medseg_attack.threat.balls.base import shared_out
from medseg_attack.threat.balls.norms import Linf
from medseg_attack.threat.binding import bind
from medseg_attack.threat.objectives.losses import bce
from medseg_attack.types import Adversarial, Ball, Batch, Bindable, Image, Mask, Model, Objective, Setting

WIDTHS = (16, 32, 64)  # channels at each size, of the generator and the discriminator alike
RIM = 7  # width in pixels by which a predicted organ is dilated, and softened


@register(
    "advgan",
    kind="attack",
    cost="1 + attention forward, 0 backward",
    threat="white box, on other patients",
    paper="Xiao et al., IJCAI 2018, arXiv 1801.02610",
    reaches="its ball",
    shown_by="advgan(steps=4)",
)
@dataclass(frozen=True)
class AdvGan(Learning, Bindable, Climbing):
    """A generator of perturbations, trained on other patients with a discriminator (AdvGAN; Xiao et al., IJCAI 2018).

    `x' = x + eps tanh(g(x)) m(x)` (arXiv 1801.02610, eq. 4): g is a small U-Net that climbs the objective and fools a
    discriminator of patches. In a ball that bounds a length, such as l2, `tanh(g(x)) m(x)` is scaled to that length. It
    needs the model's gradient while it is trained; then one pass of g attacks an image, without the model. The ball
    takes the place of the paper's hinge on the length of the change. g has no normalisation, so that an image's change
    does not depend on its batch.

    Attributes:
        objective: function that g climbs, summed over the images of a step.
        steps: batches that g is trained on, 1 or more, each with a step of Adam for g and the discriminator.
        rate: learning rate of both, above 0.
        realism: weight of the discriminator in the loss of g, 0 or more; 0 trains none.
        attention: False lets all pixels change; True weighs them by the organs that the model predicts on the untouched
            image, dilated and soft.

    Raises:
        InputError: a field is out of range.
    """

    steps: int = 500
    rate: float = 1e-3
    realism: float = 0.01
    attention: bool = False

    def __post_init__(self) -> None:
        require(self, steps=1, rate="(0, inf)", realism=0)

    def fit(self, model: Model, batches: Sequence[Batch], seed: int) -> dict[str, Tensor]:
        """The weights of the generator; `seed` draws those at the start, and the order of the batches.

        Raises:
            InputError: there is no batch.
        """
        if not batches:
            raise InputError("expected images to fit advgan on, got none; prepare data with patients to train on")
        first = batches[0].image
        with torch.random.fork_rng(devices=[]), torch.enable_grad():
            torch.manual_seed(seed)
            generator = Generator(first.shape[1], first.ndim - 2).to(first)
            discriminator = patches(first.shape[1], first.ndim - 2).to(first)
            climbing = torch.optim.Adam(generator.parameters(), self.rate)
            judging = torch.optim.Adam(discriminator.parameters(), self.rate)
            order = torch.randint(len(batches), (self.steps,)).tolist()
            for step, index in enumerate(order):
                x, loss = self._loss(model, generator, batches[index], step / self.steps)
                if self.realism:
                    loss = loss + self.realism * (discriminator(x) - 1).square().mean()
                descend(climbing, loss)
                if self.realism:
                    real, false = discriminator(batches[index].image), discriminator(x.detach())
                    descend(judging, (real - 1).square().mean() + false.square().mean())
        return {name: tensor.detach().contiguous() for name, tensor in generator.state_dict().items()}

    def with_learned(self, learned: Mapping[str, Tensor]) -> "Generated":
        """The attack that adds what the trained generator makes."""
        return Generated(self.ball, self.attention, learned, self.objective)

    def _loss(self, model: Model, generator: nn.Module, batch: Batch, progress: float) -> tuple[Image, Tensor]:
        """The perturbed images of a batch, and minus their objective."""
        outer = self.setting or Setting(model.task)
        setting = Setting(model.task, batch.cases, outer.donors, f"fit {progress:.6f}", outer.backward)
        ball, objective, bound = bind(self.ball, setting), bind(self.climbed(model), setting), bind(model, setting)
        x = perturbed(generator, ball, bound, batch.image, self.attention)
        return x, -objective(bound(x), batch.target, progress).sum()


def descend(optimiser: torch.optim.Optimizer, loss: Tensor) -> None:
    """One step of an optimiser; other parameters get no gradient."""
    optimiser.zero_grad()
    parameters = [parameter for group in optimiser.param_groups for parameter in group["params"]]
    for parameter, grad in zip(parameters, torch.autograd.grad(loss, parameters, allow_unused=True), strict=True):
        parameter.grad = grad
    optimiser.step()


def perturbed(generator: nn.Module, ball: Ball, model: Model, image: Image, attention: bool) -> Image:
    """The image plus what the generator makes of it, in the ball; differentiable in the generator."""
    share = torch.tanh(generator(image))
    if attention:
        with torch.no_grad():
            probability = model(image)[:, model.task.scored_channels].sigmoid().amax(1, keepdim=True)
        share = share * attended(probability)
    x = image + shared_out(ball, share, image)
    return x + (ball.project(x.detach(), image) - x.detach())


def attended(probability: Float[Tensor, "b 1 *s"]) -> Float[Tensor, "b 1 *s"]:
    """Probabilities dilated by some pixels and softened, in [0, 1]."""
    pool = F.max_pool2d if probability.ndim == 4 else F.max_pool3d
    return blurred(pool(probability, RIM, 1, RIM // 2), RIM)


@dataclass(frozen=True, eq=False)
class Generated:
    """A trained generator's perturbation of every image, cut to the ball around it.

    Attributes:
        attention: whether pixels are weighed by predicted organs.
        weights: of the generator.
        objective: the objective that it was trained with; its goal, if any, decides what counts as success.
    """

    ball: Ball
    attention: bool
    weights: Mapping[str, Tensor]
    objective: Objective

    def __call__(self, model: Model, image: Image, target: Mask, seeds: Sequence[int]) -> Adversarial:
        first = self.weights["inward.weight"]  # a file has its tensors in another order
        axes = first.ndim - 2
        if image.ndim - 2 != axes or image.shape[1] != first.shape[1]:
            raise InputError(
                f"expected images of {axes} axes and {first.shape[1]} channels, as advgan was fitted on, got "
                f"{image.ndim - 2} and {image.shape[1]}; fit again"
            )
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            generator = Generator(image.shape[1], axes).to(image)
            generator.load_state_dict(dict(self.weights))
            x = perturbed(generator, self.ball, model, image, self.attention)
        return judge(model, self.ball, x, image, target)


class Generator(nn.Module):
    """A U-Net of three sizes for images of any grid, in 2-D or 3-D; with as many channels out as in, or `outputs`."""

    def __init__(self, channels: int, axes: int, outputs: int = 0) -> None:
        super().__init__()
        conv: Any = nn.Conv2d if axes == 2 else nn.Conv3d
        narrow, middle, wide = WIDTHS
        self.inward = conv(channels, narrow, 3, padding=1)
        self.down = conv(narrow, middle, 3, padding=1)
        self.deepest = conv(middle, wide, 3, padding=1)
        self.up = conv(wide + middle, middle, 3, padding=1)
        self.outward = conv(middle + narrow, narrow, 3, padding=1)
        self.last = conv(narrow, outputs or channels, 1)

    def forward(self, x: Image) -> Float[Tensor, "b outputs *s"]:
        fine = F.leaky_relu(self.inward(x - 0.5), 0.1)
        half = F.leaky_relu(self.down(_halved(fine)), 0.1)
        coarse = F.leaky_relu(self.deepest(_halved(half)), 0.1)
        half = F.leaky_relu(self.up(torch.cat([_onto(coarse, half), half], 1)), 0.1)
        fine = F.leaky_relu(self.outward(torch.cat([_onto(half, fine), fine], 1)), 0.1)
        change: Tensor = self.last(fine)
        return change


def patches(channels: int, axes: int, outputs: int = 1) -> nn.Sequential:
    """A discriminator of patches: near 1 where a patch looks untouched (PatchGAN, Isola et al., arXiv 1611.07004)."""
    conv: Any = nn.Conv2d if axes == 2 else nn.Conv3d
    layers: list[nn.Module] = []
    for before, after in zip((channels, *WIDTHS), WIDTHS, strict=False):
        layers += [conv(before, after, 3, stride=2, padding=1), nn.LeakyReLU(0.2)]
    return nn.Sequential(*layers, conv(WIDTHS[-1], outputs, 1))


def _halved(x: Tensor) -> Tensor:
    pool: Any = F.adaptive_avg_pool2d if x.ndim == 4 else F.adaptive_avg_pool3d
    half: Tensor = pool(x, [-(-n // 2) for n in x.shape[2:]])
    return half


def _onto(x: Tensor, like: Tensor) -> Tensor:
    return stretched(x, tuple(like.shape[2:]))


@register(
    "fsra",
    kind="attack",
    cost="2 forward, 0 backward",
    threat="white box, on other patients",
    paper="Wang Z. et al., IEEE Trans. Cybernetics 2022, doi 10.1109/TCYB.2022.3209175",
    reaches="its ball",
    shown_by="fsra(steps=4)",
)
def fsra(ball: Ball = Linf(), objective: Objective = bce, steps: int = 500) -> AdvGan:
    """`advgan` whose change lies on predicted organs, in the spirit of FSRA (Wang Z. et al. 2022).

    The feature space-restricted attention attack fools classifiers, with attention on a lesion and a bound in feature
    space. Attention is the organs that the model predicts, dilated and soft; the feature bound is left out, since its
    formula is in no source.
    """
    return AdvGan(ball, objective, steps, attention=True)
