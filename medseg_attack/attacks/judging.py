"""An image judged: its harm on the classes that tables report, and its size in its ball."""

import torch

from medseg_attack.threat.objectives.harm import harm
from medseg_attack.types import Adversarial, Ball, Image, Mask, Model


def judge(model: Model, ball: Ball, x: Image, image: Image, target: Mask) -> Adversarial:
    """`x` with its harm on the classes that tables report, and its size."""
    with torch.no_grad():
        pred = model.decide(model(x))
    return judge_prediction(model, ball, x, image, pred, target)


def judge_prediction(model: Model, ball: Ball, x: Image, image: Image, pred: Mask, target: Mask) -> Adversarial:
    """`x` with its harm, where the prediction on it is already known."""
    classes = list(model.task.scored)
    return Adversarial(x.detach(), harm(pred[:, classes], target[:, classes]).to(x), ball.size(x.detach(), image))
