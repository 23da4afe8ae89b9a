"""A model's profile, from outside: what it expects and does, ranges, logits, agreement of passes, Dice and memory."""

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from medseg_attack.checks.flags import Evidence, Finding, by_severity
from medseg_attack.checks.model.answers import check_case_alone, check_probabilities, check_repeated_passes
from medseg_attack.checks.model.asking import check_model
from medseg_attack.checks.model.scene import Scene
from medseg_attack.checks.rows.validity import IMPLAUSIBLE, WITHOUT_ORGANS, check_clean_dice
from medseg_attack.errors import plural
from medseg_attack.metrics.overlap import counts, dice_of
from medseg_attack.models.importers.axis_order import Reoriented
from medseg_attack.models.nnunet.predictor import Predictor
from medseg_attack.models.segmodel import SegModel
from medseg_attack.models.sliding_window import SlidingWindow, mirrored_copies
from medseg_attack.runtime import memory_mb
from medseg_attack.storage.stages import begin_stage
from medseg_attack.threat.objectives.losses import bce
from medseg_attack.types import Batch, Setting


def profile(model: SegModel, batch: Batch) -> tuple[dict[str, Any], list[Finding]]:
    """Facts by name, in the order of printing, and the findings of `check_model`.

    The model should be frozen. Costs about 30 passes over the batch.
    """
    begin_stage(f"asking the model about {plural(len(batch.cases), 'case')}")
    model = model.bind(Setting(model.task, batch.cases))
    before_net: list[Tensor] = []
    after_net: list[Tensor] = []
    net = model.net.windows if isinstance(model.net, Predictor) else model.net  # after nnU-Net's own preprocessing
    with (
        net.register_forward_pre_hook(lambda _, inputs: before_net.append(inputs[0].detach().flatten(2))),
        net.register_forward_hook(lambda *args: after_net.append(args[2].detach().flatten(2))),
        torch.no_grad(),
    ):
        log_odds = model(batch.image)
    into, out = torch.cat(before_net, 2), torch.cat(after_net, 2)
    scene = Scene(model, batch, (), log_odds)
    dice = _dice(model, batch, log_odds)
    differ = check_repeated_passes(scene)
    differ_alone = check_case_alone(scene)
    findings = check_model(model, batch)
    if "MA014" not in {finding.code for finding in findings}:  # else it says what would fit
        findings = [*findings, *check_dice_of_cases(dice, _has_organ(model, batch))]
    return {
        "expects": _expected(model, into) | ({"prompt": model.prompt} if model.prompt else {}),
        "input": {"scan": _range(batch.image), "after its preprocessing": _range(into)},
        "output": _answer(model, scene, out),
        **({"gradient": "none, a black box: use attacks without gradients"} if model.black_box else {}),
        "two passes agree": _agreement(differ),
        "alone as in a batch": "not asked" if differ else _agreement(differ_alone),
        "clean Dice": dice,
        "memory of one step": _memory(model, batch),
    }, by_severity(findings)


@check_clean_dice.flag
def check_dice_of_cases(dice: dict[str, float], has_organ: bool) -> Iterator[Evidence]:
    """MA014: in `medattack doctor`, the mean Dice of the few cases is below 0.3."""
    scores = [score for score in dice.values() if not math.isnan(score)]
    if scores and (mean := sum(scores) / len(scores)) < IMPLAUSIBLE:
        numbers, todo = ("", "") if has_organ else (", none has an organ", WITHOUT_ORGANS)
        yield Evidence("clean images", f"Dice {mean:.3f} on these cases{numbers}", todo=todo)


def _has_organ(model: SegModel, batch: Batch) -> bool:
    return bool(batch.target[:, list(model.task.scored)].any())


def _agreement(findings: list[Finding]) -> str:
    return findings[0].numbers if findings else "yes"


def _expected(model: SegModel, into: Tensor) -> dict[str, Any]:
    cases = {2: "slices", 3: "whole scans"}[model.dims]
    grid = f"padded to multiples of {model.stride}" if model.stride > 1 else "as they are"
    if isinstance(model.net, Predictor):
        grid = model.net.grid
    if model.size:
        grid = f"resized to {_sides(model.size)}"
    if isinstance(model.net, SlidingWindow):
        grid += f", in windows of {_sides(model.net.size)} that overlap by {model.net.overlap:.0%}"
        grid += mirrored_copies(model.net.flips)
    for part in model.net.modules():
        if isinstance(part, Reoriented) and not part.as_prepared:
            grid += f", axes {part.axes}"
    return {"cases": f"{cases}, {grid}", "channels": int(into.shape[1]), "classes": ", ".join(model.task.classes)}


def _answer(model: SegModel, scene: Scene, out: Tensor) -> dict[str, str]:
    within = bool((out >= 0).all() and (out <= 1).all())
    read = {
        "softmax": "logits of one class per pixel",
        "sigmoid": "logits of each class",
        "probabilities": "probabilities",
    }[model.head]
    if not torch.isfinite(out).all():
        wrong = (~torch.isfinite(out)).float().mean().item()
        return {"range": _range(out), "looks like": f"NaN or infinity in {wrong:.0%} of its values", "read as": read}
    looks = "probabilities" if within else "logits"
    verdict = ""
    if model.head != "probabilities" and check_probabilities(scene):
        verdict = "; give head='probabilities'"
    if model.head == "probabilities" and not within:
        verdict = "; leave out head='probabilities'"
    return {"range": _range(out), "looks like": looks + verdict, "read as": read}


def _dice(model: SegModel, batch: Batch, log_odds: Tensor) -> dict[str, float]:
    """Dice by class, over all pixels of the batch; NaN where neither truth nor prediction has it."""
    pixels = counts(model.decide(log_odds), batch.target).sum(0)
    scores = dice_of(pixels, empty=math.nan, dtype=torch.float64).tolist()
    return {model.task.classes[k]: scores[k] for k in model.task.scored}


def _memory(model: SegModel, batch: Batch) -> str:
    """Memory of a pass on one case, with its gradient where there is one."""
    image, target = batch.image[:1], batch.target[:1]
    model = model.bind(Setting(model.task, batch.cases[:1]))

    def step() -> None:
        x = image.clone().requires_grad_(not model.black_box)
        loss = bce(model(x), target).sum()
        if loss.requires_grad:
            torch.autograd.grad(loss, x, allow_unused=True)

    megabytes = memory_mb(step, image.device)
    shape = f"{_sides(tuple(image.shape[2:]))} {'voxels' if model.dims == 3 else 'pixels'}"
    return f"{megabytes:.0f} MB for one case of {shape}" if megabytes == megabytes else "not known on this system"


def _range(x: Tensor) -> str:
    return f"{x.min().item():.4g} to {x.max().item():.4g}"


def _sides(grid: tuple[int, ...]) -> str:
    return " x ".join(map(str, grid))
