"""Attacks and scores on tensors, by the loop of the command line."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from medseg_attack import registry
from medseg_attack.checks.prompts import check_prompts
from medseg_attack.errors import InputError
from medseg_attack.evaluation.fitting import must_fit
from medseg_attack.evaluation.knowledge import adaptive_to
from medseg_attack.evaluation.loop import attack_chunk
from medseg_attack.evaluation.outcomes import Outcome, attack_batch, decide, mark_faults
from medseg_attack.library.arguments import checked
from medseg_attack.library.inputs import batch_of
from medseg_attack.metrics.empty import Empty
from medseg_attack.metrics.harm import harm
from medseg_attack.metrics.scans import packed
from medseg_attack.models.segmodel import SegModel, frozen
from medseg_attack.registry.parts import walk
from medseg_attack.registry.specs import NoNameError
from medseg_attack.registry.table import entry_of
from medseg_attack.runs.grid import at_budget
from medseg_attack.runs.rows import table_of
from medseg_attack.runtime import deterministic
from medseg_attack.stats.scores import case_scores
from medseg_attack.threat.budgets import parse_budget
from medseg_attack.threat.objectives.per_task import for_task
from medseg_attack.types import Attack, Batch, Case, Flow, Image, Mask, PerSample

RUN = "run"  # column that tells runs apart in tables


@dataclass(frozen=True, eq=False)
class Attacked:
    """The result of an attack on b images, on the device of the images.

    Attributes:
        images: perturbed images in [0, 1], as a file can hold them where the cases know their files.
        masks: the model's segmentation of them.
        harm: 1 - mean Dice of each image over the classes that are scored, in [0, 1]; larger = worse for the model.
        size: size of each change in the norm of the attack's ball; one in a budget with a unit as a fraction, too.
        passes: forward and backward passes that each image took.
        truth: the true segmentation of the perturbed images: `masks` of the call unless anatomy moved.
        rows: a row per image and class with pixel counts, as `medattack attack` writes them; `summary` reads them.
        batch: the untouched images, their truth and their cases.
        clean: the model's segmentation of the untouched images.
        before: the untouched images after their anatomy moved; `batch.image` unless it did.
        flow: how anatomy moved, in pixels; None where nothing did.
        attack: the attack as it was written, and its budget.
        scored: indices of the classes that are scored: all but the background of exclusive ones.
    """

    images: Image
    masks: Mask
    harm: PerSample
    size: PerSample
    passes: Int[Tensor, "b 2"]
    truth: Mask
    rows: pd.DataFrame
    batch: Batch
    clean: Mask
    before: Float[Tensor, "b c *s"]
    flow: Flow | None
    attack: str
    scored: tuple[int, ...]


@checked
def attack(
    model: SegModel,
    images: Image,
    masks: Mask,
    attack: str | Attack = "strongest",
    *,
    eps: float | str | None = None,
    cases: Sequence[Case] | None = None,
    seed: int = 0,
) -> Attacked:
    """Perturbs images so that the model's segmentation of them is as wrong as the attack can make it.

    It is the loop of `medattack attack`: an attack on a defended model knows the defence, the perturbed images are
    rounded to what their files can hold, budget and [0, 1] are checked, and a fresh pass of the model is scored.

    Args:
        model: from `wrap` or `load`, in eval mode.
        images: float32 (b, c, rows, columns) or (b, c, slices, rows, columns), in [0, 1].
        masks: the truth, bool (b, k, *s), one channel per class of the model.
        attack: a spec such as "pgd(steps=40)", or what `build` made of one; `names()` lists them.
        eps: budget as a fraction of [0, 1], or a text such as "4/255" or "5HU", whose unit needs `cases`; by default
            the attack's own.
        cases: what is known of the images beyond their pixels: `batch.cases` of `open_data(...).batch(...)`. With
            them, the numbers are those of the command line.
        seed: of every random choice, as `medattack attack --seed`.

    Raises:
        InputError: model, images, masks and cases do not fit each other, or there is no such attack.

    Examples:
        >>> import torch, medseg_attack as ma
        >>> net = torch.nn.Conv2d(1, 1, kernel_size=1).eval()
        >>> _ = torch.nn.init.constant_(net.weight, 8.0), torch.nn.init.constant_(net.bias, -4.0)
        >>> model = ma.wrap(net, classes=["lesion"], exclusive=False)  # all that is brighter than 1/2
        >>> masks = torch.zeros(2, 1, 16, 16, dtype=torch.bool)
        >>> masks[:, :, 4:12, 4:12] = True
        >>> result = ma.attack(model, 0.49 + 0.02 * masks, masks, "fgsm", eps=4 / 255)
        >>> result.images.shape, result.harm.tolist()
        (torch.Size([2, 1, 16, 16]), [1.0, 1.0])
    """
    batch = batch_of(model, images, masks, cases)
    built = _built(attack)
    check_prompts(built, registry.spec(built), model.prompt)
    _check_objectives(built, model, batch)
    eps = eps if eps is None or isinstance(eps, str | bool) else float(eps)  # also of numpy
    at_eps, budget = at_budget(built, None if eps is None else parse_budget(str(eps)), registry.spec(built))
    with torch.inference_mode(False), torch.enable_grad(), frozen(model), deterministic(batch.image.device):
        clean = decide(model, batch)
        outcomes = list(attack_batch(model, batch, packed(clean), [adaptive_to(model, at_eps)], [budget], seed=seed))
    name = attack if isinstance(attack, str) else registry.spec(attack)
    label = name if eps is None else f"{name} eps={eps if isinstance(eps, str) else registry.spec(eps)}"
    return _attacked(batch, clean, outcomes, label, list(model.task.scored))


@checked
def score(
    model: SegModel,
    images: Image,
    masks: Mask,
    *,
    metrics: Sequence[str] = (),
    empty: Empty = "one",
    cases: Sequence[Case] | None = None,
) -> pd.DataFrame:
    """Scores of the model's segmentation, a row per image and class: the table of `medattack evaluate --csv`.

    Args:
        model: from `wrap` or `load`, in eval mode.
        images: float32 (b, c, rows, columns) or (b, c, slices, rows, columns), in [0, 1].
        masks: the truth, bool (b, k, *s), one channel per class of the model.
        metrics: further measures, such as "hd95_mm" or "nsd(tolerance_mm=1)"; of whole scans where `cases` say which
            slices make one.
        empty: Dice of a class that is absent from truth and prediction: "one" or "zero"; "nan" leaves out each class
            that is absent from the truth.
        cases: what is known of the images beyond their pixels, such as the size of a pixel in mm; it is 1 otherwise.

    Returns:
        Columns case, volume, group, cls, n_target, n_pred and hit (pixels of truth, prediction and both), dice, iou,
        and one for each metric, called as the command line calls it: without options that are as by default.

    Raises:
        InputError: model, images, masks and cases do not fit each other, or there is no such metric.

    Examples:
        >>> import torch, medseg_attack as ma
        >>> net = torch.nn.Conv2d(1, 1, kernel_size=1).eval()
        >>> _ = torch.nn.init.constant_(net.weight, 8.0), torch.nn.init.constant_(net.bias, -4.0)
        >>> model = ma.wrap(net, classes=["lesion"], exclusive=False)  # all that is brighter than 1/2
        >>> masks = torch.zeros(1, 1, 16, 16, dtype=torch.bool)
        >>> masks[:, :, 4:12, 4:12] = True
        >>> float(ma.score(model, 0.4 + 0.2 * masks, masks).dice.iloc[0])
        1.0
    """
    batch = batch_of(model, images, masks, cases)
    texts = [metrics] if isinstance(metrics, str) else metrics
    measures = {registry.canonical(text, "metric"): registry.build(text, "metric") for text in texts}
    with frozen(model), deterministic(batch.image.device):
        (result,) = attack_chunk(model, [batch], [registry.build("clean", "attack")], metrics=measures)
    rows = table_of(result.rows).to_pandas().assign(**{RUN: "clean"})
    return case_scores(rows, empty).drop(columns=[RUN, "touched"])


def _built(attack: Any) -> Attack:
    """The attack of a spec.

    Raises:
        InputError: there is none, a part of it has no name, or it learns from other patients first.
    """
    if isinstance(attack, type) or not isinstance(attack, str | Attack):
        got = f"the class {attack.__name__}" if isinstance(attack, type) else f"a {type(attack).__name__}"
        raise InputError(f"expected an attack, got {got}; write a spec such as 'pgd(steps=40)', or an object")
    built: Attack = registry.build(attack, "attack") if isinstance(attack, str) else attack
    try:
        registry.spec(built)
    except NoNameError as error:  # such a part has no options either: a budget would not reach it
        raise InputError(
            f'expected an attack whose parts have names, got {error.what} in it; write @register("my_attack", '
            'kind="attack") above it, or the kind that it is, and make a class a frozen dataclass'
        ) from error
    if must_fit(built):
        raise InputError(
            f"expected an attack that needs these images alone, got {registry.spec(built)}, which learns from others "
            "first; run it with 'medattack attack'"
        )
    return built


def _check_objectives(attack: Attack, model: SegModel, batch: Batch) -> None:
    """Refuses an objective of one's own by which an attack would climb something else, or nothing, without a word.

    Raises:
        InputError: it is not one number per sample, or changes what it gets.
    """
    for part in walk(attack):
        entry = entry_of(part)
        if entry is None or entry.kind != "objective" or entry.package.partition(".")[0] == "medseg_attack":
            continue
        target = batch.target.clone()
        log_odds = torch.where(target, 1.0, -1.0).requires_grad_() * 1.0  # not a leaf, as a network's answer
        height = for_task(part, model.task)(log_odds, target, 0.0)
        if not isinstance(height, Tensor) or tuple(height.shape) != (len(target),) or height.isnan().any():
            got = f"the shape {tuple(height.shape)}" if isinstance(height, Tensor) else f"a {type(height).__name__}"
            got = "nan" if isinstance(height, Tensor) and height.isnan().any() else got
            raise InputError(
                f"expected one number per sample from the objective {entry.name}, the shape ({len(target)},), got "
                f"{got}; average over the axes of each sample alone, such as .flatten(1).mean(1)"
            )
        if not torch.equal(target, batch.target) or not torch.equal(log_odds, torch.where(target, 1.0, -1.0)):
            raise InputError(
                f"expected log-odds and masks as they were from the objective {entry.name}, got some that were changed "
                "in place; let it change clones"
            )


def _attacked(batch: Batch, clean: Mask, outcomes: Sequence[Outcome], label: str, scored: list[int]) -> Attacked:
    """The outcomes of one attack, which come by budget, in the order of the batch."""
    positions = [n for outcome in outcomes for n in outcome.crafted.positions]
    order = torch.tensor(positions, device=batch.image.device).argsort()

    def ordered(parts: Sequence[Any]) -> Tensor:
        return torch.cat(list(parts))[order]

    masks, truth = ordered([each.masks for each in outcomes]), ordered([each.truth for each in outcomes])
    unordered = [rows for outcome in outcomes for rows in outcome.rows]
    rows = [row for n in order.tolist() for row in unordered[n]]
    for outcome in outcomes:
        mark_faults(rows, outcome.faults)
    passes = torch.tensor([cost for outcome in outcomes for cost in outcome.crafted.cost], device=order.device)
    flows = [each.crafted.flow for each in outcomes]
    return Attacked(
        images=ordered([each.crafted.image for each in outcomes]),
        masks=masks,
        harm=harm(masks[:, scored], truth[:, scored]),
        size=ordered([each.size for each in outcomes]),
        passes=passes[order],
        truth=truth,
        rows=table_of(rows).to_pandas().assign(**{RUN: label}),
        batch=batch,
        clean=clean,
        before=ordered([each.crafted.x0 for each in outcomes]),
        flow=None if any(flow is None for flow in flows) else ordered(flows),
        attack=label,
        scored=tuple(scored),
    )
