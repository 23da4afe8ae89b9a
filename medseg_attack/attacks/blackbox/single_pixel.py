"""One pixel at a time: the few pixels that harm most when they are black or white, by scores alone."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from medseg_attack.attacks.climbing import Climbing
from medseg_attack.attacks.controls.noise import Noise
from medseg_attack.attacks.judging import judge_prediction
from medseg_attack.attacks.physical.ascent import require_ball
from medseg_attack.errors import require
from medseg_attack.numerics.samples import draw, draw_signs
from medseg_attack.registry import register
from medseg_attack.threat.objectives.losses import soft_dice
from medseg_attack.types import Adversarial, Ball, Image, Mask, Model, Objective, PerSample


@register("pixels", kind="ball")
@dataclass(frozen=True)
class Pixels(Ball):
    """At most a share `eps` of the pixels may change, each to any intensity; a pixel counts once for all channels.

    Attributes:
        eps: from 0 to 1.
    """

    unit = "share of the pixels"
    budgets = "[0, 1]"

    eps: float = 0.01

    def count(self, image: Image) -> int:
        """The number of pixels of an image that may change."""
        return int(self.eps * image[0, 0].numel() * (1 + 1e-9))

    def step(self, grad: Image, image: Image) -> Image:
        """The move of the pixels with the largest slopes, to black or white."""
        return torch.where(self._largest(grad), grad.sign(), 0.0)

    def project(self, x: Image, x0: Image) -> Image:
        return torch.where(self._largest(x - x0), x, x0).clamp(0, 1)

    def sample(self, x0: Image, seeds: Sequence[int]) -> Image:
        """`x0` with black or white at random pixels."""
        order = draw(torch.rand, x0[:, :1], [seed ^ 1 for seed in seeds])
        ends = (draw_signs(x0, seeds) + 1) / 2
        return torch.where(self._largest(order), ends, x0)

    def size(self, x: Image, x0: Image) -> PerSample:
        return (x != x0).any(1).flatten(1).to(x0.dtype).mean(1)

    def _largest(self, change: Tensor) -> Bool[Tensor, "b 1 *s"]:
        """Marks the pixels that change most, as many as may, none of which changes by 0."""
        flat = change.abs().sum(1).flatten(1)
        top = flat.topk(self.count(change), 1)
        marks = torch.zeros_like(flat, dtype=torch.bool).scatter_(1, top.indices, top.values > 0)
        return marks.view(len(change), 1, *change.shape[2:])


@dataclass(frozen=True)
class PixelSearch(Climbing):
    """A search that sets pixels to black or white and asks for scores alone: the base of such attacks."""

    ball: Ball = Pixels()
    objective: Objective = soft_dice

    def __post_init__(self) -> None:
        require_ball(self.ball, Pixels, "a ball that counts pixels for an attack on pixels", "pixels(0.01)")

    @property
    def pixels(self) -> Pixels:
        """The ball without its region."""
        ball = self.ball.unrestricted
        assert isinstance(ball, Pixels)
        return ball

    def control(self) -> Noise:
        """Random pixels, as many, black or white."""
        return Noise(self.ball, "uniform")

    def ask(self, model: Model, x: Image, image: Image, target: Mask) -> tuple[Adversarial, PerSample]:
        """One query: the image judged, and its score."""
        x = self.ball.project(x, image)
        with torch.no_grad():
            log_odds = model(x)
            height = self.climbed(model)(log_odds, target, 1.0)
        return judge_prediction(model, self.ball, x, image, model.decide(log_odds), target), height


def with_pixels(x: Image, places: Int[Tensor, "b n"], values: Tensor) -> Image:
    """The images with new intensities at some pixels, the same in all channels.

    Args:
        places: numbers of the pixels, in the order of rows.
        values: intensities, (b, n).
    """
    flat = x.flatten(2)
    index = places[:, None].expand(-1, x.shape[1], -1)
    return flat.scatter(2, index, values[:, None].expand_as(index).to(x)).view_as(x)


@register(
    "single_pixel",
    kind="attack",
    cost="queries forward, 0 backward",
    threat="queries (scores)",
    norm="l0 of pixels",
    paper="Narodytska & Kasiviswanathan, arXiv 1612.06299 (its first attack); Taghanaki et al., MLCN 2018",
    reaches="its ball",
    shown_by="single_pixel(queries=90)",
)
@dataclass(frozen=True)
class SinglePixel(PixelSearch):
    """The pixels that harm most by themselves, set to black or white (Narodytska & Kasiviswanathan, arXiv 1612.06299).

    Each query changes one random pixel to one end of the window. The last query changes those that raised the score
    most, as many as the ball holds. The result is each sample's most harmful query. The papers stop at the first pixel
    that changes a label; a mask needs more than one.

    Attributes:
        ball: pixels(0.01), a share of the pixels.
        objective: score of a query.
        queries: number of times that the model is asked about each image, 3 or more.

    Raises:
        InputError: `queries` is below 3, or the ball does not count pixels.
    """

    queries: int = 1000

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, queries=3)

    def __call__(self, model: Model, image: Image, target: Mask, seeds: Sequence[int]) -> Adversarial:
        worst, start = self.ask(model, image, image, target)
        free = self.ball.free(image).any(1).flatten(1)
        order = [
            _moves(mask.nonzero().flatten().cpu(), self.queries - 2, seed)
            for mask, seed in zip(free, seeds, strict=True)
        ]
        places, ends = (torch.stack(parts).to(image.device) for parts in zip(*order, strict=True))
        gains = []
        for query in range(self.queries - 2):
            x = with_pixels(image, places[:, query : query + 1], ends[:, query : query + 1])
            judged, height = self.ask(model, x, image, target)
            worst |= judged
            gains.append(height - start)
        x = self._together(image, places, ends, torch.stack(gains, 1))
        return worst | self.ask(model, x, image, target)[0]

    def _together(self, image: Image, places: Tensor, ends: Tensor, gains: Tensor) -> Image:
        """The image with the pixels that raised the score most; each pixel at its better end."""
        rank = gains.sort(dim=1, stable=True)  # a later one is written over an earlier one
        best = torch.full_like(image[:, 0].flatten(1), -torch.inf)
        best = best.scatter_reduce(1, places, gains.to(best), "amax")
        take = best.topk(min(self.pixels.count(image), best.shape[1]), 1)
        chosen = torch.zeros_like(best, dtype=torch.bool).scatter_(1, take.indices, take.values > 0)
        painted = image
        for column in rank.indices.T:  # from the least gain to the largest
            painted = with_pixels(painted, places.gather(1, column[:, None]), ends.gather(1, column[:, None]))
        return torch.where(chosen.view(len(image), 1, *image.shape[2:]), painted, image)


def _moves(pixels: Int[Tensor, "n"], moves: int, seed: int) -> tuple[Int[Tensor, "m"], Tensor]:
    """Random pixels, each at one end first; where there are fewer moves than pixels, none comes twice."""
    rng = torch.Generator().manual_seed(seed)
    if len(pixels) == 0:  # a region of nothing: what is changed is taken back
        return torch.zeros(moves, dtype=torch.long), torch.zeros(moves, dtype=torch.float64)
    order = pixels[torch.randperm(len(pixels), generator=rng)]
    ends = torch.randint(0, 2, (len(pixels),), generator=rng).double()
    times = -(-moves // (2 * len(pixels)))
    return torch.cat([order, order] * times)[:moves], torch.cat([ends, 1 - ends] * times)[:moves]
