"""Checks of the images that a model is asked about: in the window, on their grey levels."""

from collections.abc import Iterator

import torch
from torch import Tensor

from medseg_attack.checks.flags import Evidence, invalid, note
from medseg_attack.checks.model.scene import Scene, organs, share_of
from medseg_attack.checks.rows.validity import check_stored_level
from medseg_attack.threat.balls.norms import Linf


@check_stored_level.flag
def check_grey_level(scene: Scene) -> Iterator[Evidence]:
    """MA015: the smallest eps is less than the distance between two grey levels of an image (seen where its values lie
    on a lattice).
    """
    budgets = [a.ball.eps for a in scene.attacks if isinstance(a.ball, Linf) and a.ball.eps > 0]
    levels = torch.tensor([max(map(_level, image)) for image in scene.image])
    if budgets and (min(budgets) < levels * 0.999).any():
        wrong = min(budgets) < levels
        yield Evidence(scene.names(wrong), f"eps {min(budgets):.3g}, one grey level is {levels.max():.3g}")


@note(
    "MA016",
    "many organ pixels lie at the end of the intensity window",
    "check the window; pixels at its end can be attacked in one direction only",
)
def check_window(scene: Scene) -> Iterator[Evidence]:
    """MA016: more than 10 % of a case's organ pixels are exactly 0 or 1.

    Such pixels were cut off by the window and can be moved in one direction only. In CT with a narrow window this may
    be meant.

    What to do: Check the window that `prepare` used.
    """
    if check_cut_z_score(scene):
        return
    organ = organs(scene)
    edge = ((scene.image <= 0) | (scene.image >= 1)) & organ[:, None]
    share = share_of(edge, organ[:, None].expand_as(edge))
    if share.max() > 0.1:
        yield Evidence(scene.names(share > 0.1), f"{share.max():.0%} of a case's organ pixels are 0 or 1")


@invalid("MA025", "image values outside [0, 1]", "keep images in [0, 1] and normalise inside the model")
def check_image_range(scene: Scene) -> Iterator[Evidence]:
    """MA025: an image has values outside [0, 1].

    Every attack cuts its result to [0, 1]; such an image changes by that alone, with no attack at all.

    What to do: Scale images to [0, 1] of their window; z-score inside the model.
    """
    low, high = scene.image.flatten(1).amin(1), scene.image.flatten(1).amax(1)
    wrong = ~((low >= 0) & (high <= 1))  # NaN is wrong, too
    if wrong.any():
        yield Evidence(scene.names(wrong), f"values from {low.min():.3g} to {high.max():.3g}")


@invalid(
    "MA026",
    "the image looks like a z-score cut to [0, 1]",
    "give images in [0, 1] of their window and z-score inside the model",
)
def check_cut_z_score(scene: Scene) -> Iterator[Evidence]:
    """MA026: more than 30 % of all pixels are 0 and more than 10 % are 1.

    A z-scored image that was cut to [0, 1] looks like this. Half of its contrast is gone before the attack.

    What to do: Give images in [0, 1] of their window; z-score inside the model.
    """
    at_zero, at_one = (scene.image <= 0).float().mean().item(), (scene.image >= 1).float().mean().item()
    if at_zero > 0.3 and at_one > 0.1:
        yield Evidence("all cases", f"{at_zero:.0%} of the pixels are 0 and {at_one:.0%} are 1")


def _level(image: Tensor) -> float:
    """The step of the lattice that a channel's values lie on, 0 where none can be seen."""
    values = torch.unique(image[(image > 0) & (image < 1)].double())
    if len(values) < 32:
        return 0.0
    gaps = values.diff()
    step = gaps.min()
    near = gaps[gaps < 8 * step] / step  # float32 blurs longer ones
    on_lattice = step > 1e-5 and bool(((near - near.round()).abs() < 0.05).all())
    return float(step) if on_lattice else 0.0
