"""An organ or a lesion that is painted over, and gone from the truth."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy import ndimage

from medseg_attack.attacks.edits.content import EditArea, in_doubles, judge_edit, texture_beside, with_background
from medseg_attack.attacks.physical.ascent import require_ball
from medseg_attack.numerics.harmonic import Hole, filled
from medseg_attack.registry import register
from medseg_attack.threat.organs import organ_classes
from medseg_attack.types import Adversarial, Ball, Image, Mask, Model

MARGIN = 2  # pixels around the organ that are painted over with it


@register(
    "remove",
    kind="attack",
    cost="1 forward, 0 backward",
    threat="no model",
    paper="Mirsky et al., CT-GAN, USENIX Security 2019, and Zhou et al. 2021 (the threat)",
    reaches="what is known in tests/attacks/test_edits.py, as remove changes what the image shows",
)
@dataclass(frozen=True)
class Remove:
    """An organ painted over, as CT-GAN and Zhou et al. 2021 do with tumours, without a learned network.

    The hole is filled with the harmonic function of its edge (Laplace's equation), and with fine texture from beside
    it, as strong as that of a ring around. The truth loses the organ: a good model does not draw it any more, and
    keeps a high Dice. So Dice measures belief here; `metrics.edits` has the measures of an edit.

    Attributes:
        ball: edit_area(0.25), a share of the pixels; a larger edit is not made.
        organ: name of a class; "" is all organs.
        elsewhere: True paints over the mirrored place instead, as far as no organ lies there, and leaves the truth as
            it is: the control, an edit without content.
    """

    ball: Ball = EditArea()  # noqa: RUF009 - a frozen value
    organ: str = ""
    elsewhere: bool = False

    def __post_init__(self) -> None:
        require_ball(self.ball, EditArea, "the ball edit_area for remove", "edit_area(0.25)")

    def control(self) -> "Remove":
        """An edit without content."""
        return replace(self, elsewhere=True)

    def __call__(self, model: Model, image: Image, target: Mask, seeds: Sequence[int]) -> Adversarial:
        classes = organ_classes(model.task, self.organ, "remove")
        place, truth = target[:, classes].any(1), target.clone()
        kept = torch.zeros_like(place)
        if self.elsewhere:
            place, kept = place.flip(-1), target[:, model.task.scored_channels].any(1)
        else:
            truth[:, classes] = False
        images = zip(in_doubles(image), place.cpu().numpy(), kept.cpu().numpy(), seeds, strict=True)
        edited = torch.stack([_painted(*each) for each in images]).to(image)
        return judge_edit(model, self.ball, edited, image, target, with_background(truth, model.task))


def _painted(image: torch.Tensor, organ: Hole, kept: Hole, seed: int) -> torch.Tensor:
    """One image without the organ, (c, *s) in [0, 1]; `kept` stays, and its surroundings."""
    if not organ.any():
        return image
    hole = ndimage.binary_dilation(organ, iterations=MARGIN) & ~ndimage.binary_dilation(kept, iterations=MARGIN)
    if not hole.any():
        return image
    smooth = np.stack([filled(channel, hole) for channel in image.numpy()])
    return torch.from_numpy(np.where(hole, np.clip(smooth + texture_beside(image, hole, seed), 0, 1), image.numpy()))
