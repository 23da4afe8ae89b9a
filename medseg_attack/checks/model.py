"""Before a run: is the model one whose robustness can be measured? Small questions to a model and a few cases."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from medseg_attack.checks.flags import Finding, by_severity
from medseg_attack.numerics.samples import draw, widen
from medseg_attack.registry.parts import told
from medseg_attack.threat.balls.norms import Linf
from medseg_attack.threat.objectives.losses import bce, margin
from medseg_attack.threat.objectives.per_task import for_task
from medseg_attack.types import Attack, Batch, Image, LogOdds, Model, Objective, PerSample, informed

REPEATS = 3  # passes of the same image


RANDOM_STEPS = 8  # that a step along the gradient is compared with


VANISHED = 1e-12  # of a loss: what float32 no longer adds to a sum


@dataclass(frozen=True, eq=False)
class Scene:
    """What is looked at.

    Attributes:
        attacks: of the run; the checks take their objectives and budgets.
        log_odds: of the untouched images.
    """

    model: Model
    batch: Batch
    attacks: tuple[Attack, ...]
    log_odds: LogOdds

    @property
    def image(self) -> Image:
        return self.batch.image

    @property
    def objective(self) -> Objective:
        """The first that an attack of the run climbs, on these cases."""
        found: Sequence[Objective] = [a.objective for a in self.attacks if hasattr(a, "objective")]
        task = self.model.task
        return for_task(told(told(found[0], "within", task), "on", self.batch.cases), task) if found else bce

    @property
    def eps(self) -> float:
        """The largest budget per pixel of the run, or 8/255 where it has none."""
        return max((a.ball.eps for a in self.attacks if isinstance(a.ball, Linf)), default=0.0) or 8 / 255

    def names(self, wrong: Tensor) -> str:
        """The first cases where `wrong` holds."""
        ids = [case.id for case, bad in zip(self.batch.cases, wrong.tolist(), strict=True) if bad]
        return ", ".join(ids[:3]) or "all cases"

    def loss(self, x: Image, objective: Objective) -> Tensor:
        """Per sample, in double, so that small differences survive."""
        with torch.no_grad():
            return objective(self.model(x).double(), self.batch.target, 0.0)


def check_model(model: Model, batch: Batch, attacks: Sequence[Attack] = ()) -> list[Finding]:
    """What is wrong with the model or the images; about 20 passes over the batch.

    The model should be as the run uses it (`frozen`). Cases with organs tell more than empty ones.
    """
    model = informed(model, batch.cases)
    with torch.no_grad():
        log_odds = model(batch.image)
    scene = Scene(model, batch, tuple(attacks), log_odds)
    if not torch.isfinite(log_odds).all():
        wrong = ~torch.isfinite(log_odds).flatten(1).all(1)
        findings = [image_range(scene), Finding("MA022", scene.names(wrong), "the output itself is NaN or infinite")]
    else:
        findings = [check(scene) for check in PLAIN]
        if not getattr(model, "black_box", False):  # which has no gradient, and refuses attacks that ask for one
            findings += _of_gradient(scene, any(found and found.code == "MA003" for found in findings))
    return by_severity([finding for finding in findings if finding is not None])


def _of_gradient(scene: Scene, random: bool) -> list[Finding | None]:
    gradient = slope(scene, margin)
    if gradient is None:
        return [Finding("MA002", "all cases", "the gradient of the output by the image does not exist")]
    if not torch.isfinite(gradient).all():
        wrong = ~torch.isfinite(gradient).flatten(1).all(1)
        return [Finding("MA022", scene.names(wrong), "NaN or infinity in the gradient by the image")]
    return [check(scene, gradient) for check in (SLOPES[:2] if random else SLOPES)]


def image_range(scene: Scene) -> Finding | None:
    """MA025."""
    low, high = scene.image.flatten(1).amin(1), scene.image.flatten(1).amax(1)
    wrong = ~((low >= 0) & (high <= 1))  # NaN is wrong, too
    if not wrong.any():
        return None
    return Finding("MA025", scene.names(wrong), f"values from {low.min():.3g} to {high.max():.3g}")


def window_edges(scene: Scene) -> Finding | None:
    """MA016: organ pixels at the window's ends. MA026: images that pile up at both, as a z-score that was cut."""
    at_zero, at_one = (scene.image <= 0).float().mean().item(), (scene.image >= 1).float().mean().item()
    if at_zero > 0.3 and at_one > 0.1:
        return Finding("MA026", "all cases", f"{at_zero:.0%} of the pixels are 0 and {at_one:.0%} are 1")
    organ = organs(scene)
    edge = ((scene.image <= 0) | (scene.image >= 1)) & organ[:, None]
    share = _share(edge, organ[:, None].expand_as(edge))
    if share.max() <= 0.1:
        return None
    return Finding("MA016", scene.names(share > 0.1), f"{share.max():.0%} of a case's organ pixels are 0 or 1")


def storage_level(scene: Scene) -> Finding | None:
    """MA015: the smallest budget per pixel against the distance of the grey levels, where one shows."""
    budgets = [a.ball.eps for a in scene.attacks if isinstance(a.ball, Linf) and a.ball.eps > 0]
    levels = torch.tensor([max(map(_level, image)) for image in scene.image])
    if not budgets or not (min(budgets) < levels * 0.999).any():
        return None
    wrong = min(budgets) < levels
    return Finding("MA015", scene.names(wrong), f"eps {min(budgets):.3g}, one grey level is {levels.max():.3g}")


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


def precision(scene: Scene) -> Finding | None:
    """MA017."""
    if scene.log_odds.dtype not in (torch.float16, torch.bfloat16):
        return None
    return Finding("MA017", "all cases", f"log-odds are {scene.log_odds.dtype}".replace("torch.", ""))


def probabilities(scene: Scene) -> Finding | None:
    """MA005: log-odds that lie where probabilities, or the log-odds of a softmax over probabilities, must lie."""
    k = scene.log_odds.shape[1]
    low, high = 0.0, 1.0
    if scene.model.task.exclusive:
        low = -float(torch.tensor(torch.e + k - 2).log())
        high = 1 - float(torch.tensor(float(k - 1)).log())
    least, most = scene.log_odds.min().item(), scene.log_odds.max().item()
    if not (low - 1e-3 <= least and most <= high + 1e-3):
        return None
    return Finding("MA005", "all cases", f"all outputs lie in [{least:.3g}, {most:.3g}]")


def repeatable(scene: Scene) -> Finding | None:
    """MA003."""
    with torch.no_grad():
        apart = torch.stack([_apart(scene.model(scene.image), scene.log_odds) for _ in range(REPEATS - 1)]).amax(0)
    if not (apart > 1e-4).any():
        return None
    seen = f"log-odds differ by {apart.max():.2g} of their length in {REPEATS} passes"
    return Finding("MA003", scene.names(apart > 1e-4), seen)


def alone(scene: Scene) -> Finding | None:
    """MA004: the first case by itself. A randomised model is not asked, since it differs from itself anyway."""
    if len(scene.image) < 2 or repeatable(scene):
        return None
    with torch.no_grad():
        first = informed(scene.model, scene.batch.cases[:1])
        apart = _apart(first(scene.image[:1]), scene.log_odds[:1])
    if not (apart > 1e-2).any():  # convolutions on a GPU differ by 1e-3 between batch sizes
        return None
    return Finding("MA004", scene.batch.cases[0].id, f"log-odds differ by {apart.max():.2g} of their length")


def blocked(scene: Scene, gradient: Image) -> Finding | None:
    """MA001, with the gradient of margins, which no loss saturates."""
    organ = organs(scene)
    share = _share((gradient == 0).all(1) & organ, organ)
    if share.max() <= 0.05:
        return None
    return Finding("MA001", scene.names(share > 0.05), f"0 on {share.max():.0%} of a case's organ pixels")


def saturated(scene: Scene, gradient: Image) -> Finding | None:
    """MA019: how much of the objective's pull is left where the model is right about an organ (1: that of margin)."""
    z = scene.log_odds.detach().requires_grad_()
    (pull,) = torch.autograd.grad(scene.objective(z, scene.batch.target, 0.0).sum(), z)
    right = scene.batch.target & (scene.log_odds > 0)
    if not right.any():
        return None
    gone = ((pull * z[0].numel()).abs() < VANISHED)[right].float().mean().item()
    if gone <= 0.5:
        return None
    return Finding("MA019", "all cases", f"no pull on {gone:.0%} of the organ pixels that are right")


def predicts(scene: Scene, gradient: Image) -> Finding | None:
    """MA020: the derivative along the gradient's signs against central differences, at the best of 3 steps."""
    direction, expected = gradient.sign(), gradient.double().abs().flatten(1).sum(1)
    errors = []
    for h in (1e-4, 1e-3, 1e-2):
        x, move = scene.image, h * direction if bool(expected.any()) else h * _signs(scene, 0)
        rise = (scene.loss(x + move, margin) - scene.loss(x - move, margin)) / (2 * h)
        errors.append((rise - expected).abs() / torch.maximum(rise.abs(), expected).clamp(min=1e-9))
    error = torch.stack(errors).amin(0)
    if error.median() <= 0.2:
        return None
    return Finding("MA020", scene.names(error > 0.2), f"the slope is wrong by {error.median():.0%} (median)")


def climbs(scene: Scene, gradient: Image) -> Finding | None:
    """MA021: a step of eps/8 along the objective's own gradient against the best of random ones."""
    own = slope(scene, scene.objective)
    step = scene.eps / 8
    start = scene.loss(scene.image, scene.objective)
    along = scene.loss(scene.image + step * torch.as_tensor(own).sign(), scene.objective) - start
    tries = [scene.loss(scene.image + step * _signs(scene, i), scene.objective) - start for i in range(RANDOM_STEPS)]
    chance = torch.stack(tries).amax(0)
    weak = (along <= 0) | (along < 2 * chance)
    if weak.double().mean() <= 0.5:
        return None
    seen = f"the loss rises by {along.median():.2g}, by {chance.median():.2g} at random (best of {RANDOM_STEPS})"
    return Finding("MA021", scene.names(weak), seen)


PLAIN: tuple[Callable[[Scene], Finding | None], ...] = (
    image_range,
    window_edges,
    storage_level,
    precision,
    probabilities,
    repeatable,
    alone,
)


# the last two compare passes with each other, which a randomised model does not stand
SLOPES: tuple[Callable[[Scene, Image], Finding | None], ...] = (blocked, saturated, predicts, climbs)


def slope(scene: Scene, objective: Objective) -> Image | None:
    """The gradient of the objective by the image; None where there is no path."""
    x = scene.image.detach().requires_grad_()
    log_odds = scene.model(x)
    if not log_odds.requires_grad:
        return None
    loss = objective(log_odds, scene.batch.target, 0.0).sum()
    gradient: Image | None = torch.autograd.grad(loss, x, allow_unused=True)[0]
    return gradient


def organs(scene: Scene) -> Tensor:
    """Where any scored class is; the whole image of a case that has none."""
    here = scene.batch.target[:, list(scene.model.task.scored)].any(1)
    empty = ~here.flatten(1).any(1)
    return here | widen(empty, here)


def _share(part: Tensor, whole: Tensor) -> PerSample:
    share: Tensor = part.flatten(1).sum(1) / whole.flatten(1).sum(1)
    return share


def _apart(a: LogOdds, b: LogOdds) -> PerSample:
    a, b = a.flatten(1).double(), b.flatten(1).double()
    return (a - b).square().sum(1).sqrt() / b.square().sum(1).sqrt().clamp(min=1e-12)


def _signs(scene: Scene, number: int) -> Image:
    seeds = [1000 * number + i for i in range(len(scene.image))]
    return (draw(torch.rand, scene.image, seeds) < 0.5).to(scene.image) * 2 - 1
