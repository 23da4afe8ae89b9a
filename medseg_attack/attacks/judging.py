"""The harm of a perturbed image on the classes that tables report, and the size of its change in its ball."""

import torch

from medseg_attack.attacks.counting import CountedModel
from medseg_attack.metrics.harm import harm
from medseg_attack.numerics.flows import moved
from medseg_attack.types import Adversarial, Ball, Flow, Image, Mask, Model


def judge(model: Model, ball: Ball, x: Image, image: Image, target: Mask) -> Adversarial:
    """The perturbed image `x` with its harm and the size of its change from `image`.

    One forward pass, or none where `x` is an image whose segmentation the model knows.
    """
    pred = model.known_segmentation(x) if isinstance(model, CountedModel) else None
    if pred is None:
        with torch.no_grad():
            pred = model.decide(model(x))
    return judge_prediction(model, ball, x, image, pred, target)


def judge_prediction(
    model: Model, ball: Ball, x: Image, image: Image, pred: Mask, target: Mask, flow: Flow | None = None
) -> Adversarial:
    """The perturbed image `x` with its harm and size, where its prediction `pred` is already known.

    Args:
        flow: how anatomy moved; `image` and `target` are then those after the flow.
    """
    classes, x = model.task.scored_channels, x.detach()
    return Adversarial(x, harm(pred[:, classes], target[:, classes]).to(x), ball.total_size(x, image, flow), flow)


def truth_after(result: Adversarial, target: Mask, exclusive: bool) -> Mask:
    """The truth on the images of a result: what an edit says, or the untouched truth where the anatomy went.

    Args:
        exclusive: whether a pixel has exactly one class.
    """
    return moved(target, result.flow, exclusive) if result.truth is None else result.truth
