"""A greedy search for pixels near those that harmed before, by scores alone."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Int
from torch import Tensor

from medseg_attack.attacks.blackbox.single_pixel import PixelSearch, with_pixels
from medseg_attack.errors import InputError, require
from medseg_attack.numerics.samples import draw, draw_signs, reseeded, widen
from medseg_attack.registry import register
from medseg_attack.types import Adversarial, Image, Mask, Model

HALF_WIDTH = 2  # neighbours in a square of 5 x 5 pixels, as in the paper


@register(
    "local_search",
    kind="attack",
    cost="(queries - 1) // (candidates + 1) * (candidates + 1) + 1 forward, 0 backward",
    threat="queries (scores)",
    norm="l0 of pixels",
    paper="Narodytska & Kasiviswanathan, arXiv 1612.06299 (its second attack); Taghanaki et al., MLCN 2018",
    reaches="its ball",
    shown_by="local_search(queries=90)",
)
@dataclass(frozen=True)
class LocalSearch(PixelSearch):
    """Pixels set to black or white, searched near those that harmed (Narodytska & Kasiviswanathan, arXiv 1612.06299).

    A round asks about some candidates, each alone; those that raise the score most are kept together if that raises it
    further. The next candidates are drawn in squares of 5 x 5 pixels around those that are kept, or anywhere if the
    round brought nothing. The paper multiplies a pixel by a constant and wraps it around the range; here it goes to an
    end of the window. Its rounds are kept whether they raise the score or not.

    Attributes:
        ball: pixels(0.01), a share of the pixels.
        objective: score of a query.
        queries: number of times that the model is asked about each image; enough for one round.
        candidates: pixels that a round asks about, 1 or more.
        together: pixels that a round keeps at most, 1 or more.

    Raises:
        InputError: a field is out of range, the queries do not suffice, or the ball does not count pixels.
    """

    queries: int = 1000
    candidates: int = 10
    together: int = 5

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, candidates=1, together=1)
        if self.queries < self.candidates + 2:
            raise InputError(
                f"expected queries of {self.candidates + 2} or more for a round of {self.candidates} candidates, got "
                f"{self.queries}; ask more often or draw fewer"
            )

    def __call__(self, model: Model, image: Image, target: Mask, seeds: Sequence[int]) -> Adversarial:
        worst, height = self.ask(model, image, image, target)
        x, near = image, torch.zeros_like(image[:, :1], dtype=torch.bool)
        free = self.ball.free(image).any(1, keepdim=True)
        for number in range((self.queries - 1) // (self.candidates + 1)):
            rng = reseeded(seeds, number)
            places, ends = self._drawn(free & (x == image).all(1, keepdim=True), near, rng)
            gains = []
            for place, end in zip(places.T, ends.T, strict=True):
                judged, trial = self.ask(model, with_pixels(x, place[:, None], end[:, None]), image, target)
                worst |= judged
                gains.append(trial - height)
            trial_x, kept = self._kept(x, image, places, ends, torch.stack(gains, 1))
            judged, trial = self.ask(model, trial_x, image, target)
            worst |= judged
            higher = trial > height
            x = torch.where(widen(higher, x), self.ball.project(trial_x, image), x)
            near = torch.where(widen(higher, near), _around(kept), False)
            height = torch.where(higher, trial, height)
        return worst

    def _drawn(
        self, free: Bool[Tensor, "b 1 *s"], near: Bool[Tensor, "b 1 *s"], seeds: Sequence[int]
    ) -> tuple[Int[Tensor, "b n"], Tensor]:
        """Pixels that may still change, first those near the last ones, in random order, and ends for them."""
        chance = draw(torch.rand, free[:, :1].double(), seeds) + near.double()
        n = min(self.candidates, free[0].numel())
        places = torch.where(free, chance, -1.0).flatten(1).topk(n, 1).indices
        places = places[:, torch.arange(self.candidates, device=places.device) % n]
        return places, (draw_signs(places.double(), reseeded(seeds, "ends")) + 1) / 2

    def _kept(
        self, x: Image, image: Image, places: Int[Tensor, "b n"], ends: Tensor, gains: Tensor
    ) -> tuple[Image, Bool[Tensor, "b 1 *s"]]:
        """The images with the best candidates, as many as the ball still holds, and a mark on these."""
        left = self.pixels.count(image) - (x != image).any(1).flatten(1).sum(1)
        order = gains.argsort(dim=1, descending=True, stable=True)
        rank = torch.zeros_like(order).scatter_(1, order, torch.arange(order.shape[1]).to(order).expand_as(order))
        take = (gains > 0) & (rank < left.clamp(0, self.together)[:, None])
        flat, marks = x, torch.zeros_like(x[:, :1], dtype=torch.bool)
        for n in range(places.shape[1]):
            now = widen(take[:, n], x)
            flat = torch.where(now, with_pixels(flat, places[:, n : n + 1], ends[:, n : n + 1]), flat)
            one = torch.zeros_like(marks.flatten(2)).scatter_(2, places[:, None, n : n + 1], True).view_as(marks)
            marks = marks | (one & now)
        return flat, marks


def _around(marks: Bool[Tensor, "b 1 *s"]) -> Bool[Tensor, "b 1 *s"]:
    """The pixels in squares around the marked ones."""
    pool = F.max_pool2d if marks.ndim == 4 else F.max_pool3d
    return pool(marks.to(torch.float32), 2 * HALF_WIDTH + 1, 1, HALF_WIDTH) > 0
