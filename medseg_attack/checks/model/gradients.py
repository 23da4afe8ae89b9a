"""Checks of the gradient by the image: whether there is one, and whether it leads where it says."""

from collections.abc import Iterator

import torch

from medseg_attack.checks.flags import Evidence, invalid, upper_bound
from medseg_attack.checks.model.scene import Scene, organs, share_of, slope
from medseg_attack.checks.rows.strength import check_slope_on_every_case
from medseg_attack.checks.rows.validity import check_lost_gradients
from medseg_attack.numerics.samples import draw_signs
from medseg_attack.threat.objectives.losses import margin
from medseg_attack.types import Image

SUREST = 0.05  # of a case's organ pixels: a share that counts
RANDOM_STEPS = 8  # that a step along the gradient is compared with
VANISHED = 1e-12  # of a loss: what float32 no longer adds to a sum


@check_slope_on_every_case.flag
def check_blocked_gradient(scene: Scene) -> Iterator[Evidence]:
    """MA001: the gradient of the model's margins by the image is exactly 0 on over 5 % of a case's organ pixels."""
    organ = organs(scene)
    share = share_of((_gradient(scene) == 0).all(1) & organ, organ)
    if share.max() > 0.05:
        yield Evidence(scene.names(share > 0.05), f"0 on {share.max():.0%} of a case's organ pixels")


@invalid(
    "MA002",
    "no gradient path from the output to the image",
    "remove detach() and no_grad() from the model, or use an attack without gradients",
)
def check_gradient_path(scene: Scene) -> Iterator[Evidence]:
    """MA002: the output does not depend on the image as far as automatic differentiation knows.

    `detach()`, `no_grad()` or a detour through NumPy cuts the path. Attacks by gradients cannot run; `medattack
    attack` refuses them. A network in ONNX is a black box by its nature and is not flagged.

    What to do: Remove the cut, or use an attack without gradients.
    """
    if scene.gradient is None:
        yield Evidence("all cases", "the gradient of the output by the image does not exist")


@upper_bound(
    "MA019",
    "the loss is numerically 0 where the model is right",
    "attack with --loss margin, which does not saturate",
    needs="a gradient",
)
def check_saturated_loss(scene: Scene) -> Iterator[Evidence]:
    """MA019: on more than half of the organ pixels that are right the objective's pull is below 1e-12 of the margin's.

    The log-odds are so large that the loss is numerically 0. Scaling logits by a constant does this, changes no
    decision and defends nothing.

    What to do: Attack with `--loss margin`, which never saturates.
    """
    z = scene.log_odds.detach().requires_grad_()
    (pull,) = torch.autograd.grad(scene.objective(z, scene.batch.target, 0.0).sum(), z)
    right = scene.batch.target & (scene.log_odds > 0)
    if not right.any():
        return
    share = ((pull * z[0].numel()).abs() < VANISHED)[right].float().mean().item()
    if share > 0.5:
        yield Evidence("all cases", f"no pull on {share:.0%} of the organ pixels that are right")


@upper_bound(
    "MA020",
    "the gradient does not predict how the loss changes",
    "look for a custom backward pass, or for steps that hide the true slope",
    needs="a gradient, and the same answer twice",
)
def check_slope(scene: Scene) -> Iterator[Evidence]:
    """MA020: the slope along the gradient differs by more than 20 % (median over cases) from central differences at
    steps of 1e-4, 1e-3 and 1e-2.

    The backward pass is not the derivative of the forward pass: custom gradients, rounding, or hooks that change
    them.

    What to do: Find the operation whose backward pass was replaced.
    """
    gradient = _gradient(scene)
    direction, expected = gradient.sign(), gradient.double().abs().flatten(1).sum(1)
    errors = []
    for h in (1e-4, 1e-3, 1e-2):  # the best of which counts
        x, move = scene.image, h * direction if bool(expected.any()) else h * _signs(scene, 0)
        rise = (scene.loss(x + move, margin) - scene.loss(x - move, margin)) / (2 * h)
        errors.append((rise - expected).abs() / torch.maximum(rise.abs(), expected).clamp(min=1e-9))
    error = torch.stack(errors).amin(0)
    if error.median() > 0.2:
        yield Evidence(scene.names(error > 0.2), f"the slope is wrong by {error.median():.0%} (median)")


@upper_bound(
    "MA021",
    "a step along the gradient is no better than a random one",
    "look for masked gradients; use an attack without gradients",
    needs="a gradient, and the same answer twice",
)
def check_step_along_gradient(scene: Scene) -> Iterator[Evidence]:
    """MA021: a step of eps/8 along the gradient's signs raises the loss by less than twice what the best of 8 random
    steps does, on most cases.

    The gradient may be right at the point and useless a grey level away (shattered), or it is masked.

    What to do: Smooth the step that shatters it, average gradients over nearby images, or use an attack without
    gradients.
    """
    own = slope(scene, scene.objective)
    step = scene.eps / 8
    start = scene.loss(scene.image, scene.objective)
    along = scene.loss(scene.image + step * torch.as_tensor(own).sign(), scene.objective) - start
    tries = [scene.loss(scene.image + step * _signs(scene, i), scene.objective) - start for i in range(RANDOM_STEPS)]
    chance = torch.stack(tries).amax(0)
    weak = (along <= 0) | (along < 2 * chance)
    if weak.double().mean() > 0.5:
        rises = f"by {along.median():.2g}, by {chance.median():.2g} at random (best of {RANDOM_STEPS})"
        yield Evidence(scene.names(weak), f"the loss rises {rises}")


@check_lost_gradients.flag
def check_finite(scene: Scene) -> Iterator[Evidence]:
    """MA022: the output on an untouched image, or the gradient by the image, contains NaN or infinity."""
    values, numbers = scene.log_odds, "the output itself is NaN or infinite"
    if torch.isfinite(values).all() and scene.gradient is not None:
        values, numbers = scene.gradient, "NaN or infinity in the gradient by the image"
    wrong = ~torch.isfinite(values).flatten(1).all(1)
    if wrong.any():
        yield Evidence(scene.names(wrong), numbers)


@upper_bound(
    "MA036",
    "the gradient is exactly 0 where the model is surest",
    "remove the bound on the output (clamp, hard sigmoid), or use an attack without gradients",
    needs="a gradient",
)
def check_sure_pixels(scene: Scene) -> Iterator[Evidence]:
    """MA036: the gradient by the image of the log-odds of the surest 5 % of a case's right organ pixels is exactly 0 on
    the whole image.

    A bound cuts the output off: a clamp, a hard sigmoid, probabilities that float32 rounds to 1. Pixels beyond it do
    not pull, however an attack weighs them, so that it sees the edges of an organ only.

    What to do: Remove the bound from the model that is attacked; decisions do not need it. Else compare with an attack
    without gradients.
    """
    x = scene.image.detach().requires_grad_()
    log_odds = scene.model(x)
    right = (scene.batch.target & (log_odds > 0))[:, scene.model.task.scored_channels].flatten(1)
    sure = log_odds[:, scene.model.task.scored_channels].flatten(1).masked_fill(~right, -torch.inf)
    counts = (SUREST * right.sum(1)).ceil().long()
    ranks = sure.argsort(1, descending=True).argsort(1)
    chosen = (ranks < counts[:, None]) & right
    (gradient,) = torch.autograd.grad(torch.where(chosen, sure, 0.0).sum(), x)
    blocked = (gradient == 0).flatten(1).all(1) & (right.sum(1) >= 1 / SUREST)
    if blocked.any():
        bound = sure.amax(1)[blocked].max()
        yield Evidence(scene.names(blocked), f"their log-odds stand at {bound:.3g}")


def _gradient(scene: Scene) -> Image:
    return torch.as_tensor(scene.gradient)


def _signs(scene: Scene, number: int) -> Image:
    return draw_signs(scene.image, [1000 * number + i for i in range(len(scene.image))])
