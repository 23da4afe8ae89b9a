"""Scans of a run before and after its attack, with what the model predicts on both: what pictures are made of."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from medseg_attack import registry
from medseg_attack.data.datasets.folder import COLOURS
from medseg_attack.data.prepared.reading import Prepared
from medseg_attack.evaluation.crafting import craft
from medseg_attack.evaluation.fitting import Batches, fitted
from medseg_attack.evaluation.loop import in_batches
from medseg_attack.evaluation.opening import open_run
from medseg_attack.models.segmodel import SegModel, frozen
from medseg_attack.numerics.log_odds import without_nan
from medseg_attack.runs.folder import RunFolder
from medseg_attack.runs.replays import replay
from medseg_attack.runs.stored_files import read_config, read_header, read_stored_study
from medseg_attack.runs.stored_specs import attack_of
from medseg_attack.runtime import deterministic
from medseg_attack.threat.binding import bind
from medseg_attack.threat.budgets import Budget, parse_budget
from medseg_attack.types import Attack, Batch, Case, Donors, Flow, Image, Mask, Prompts, Setting, common

Pixels = NDArray[np.float32]
Masks = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class AttackedScan:
    """One scan of a run, all of its slices that the run attacked.

    Attributes:
        scan: its id.
        clean_channels, attacked_channels: (channels, slices, rows, columns) in [0, 1] of the window.
        before: the first channel of the untouched image after its anatomy moved; it is `clean` where nothing moves.
        flow: (2, slices, rows, columns), from each pixel to where its content came from, in pixels of its slice; None
            where nothing moves.
        truth, truth_attacked, prediction, prediction_attacked: (classes, slices, rows, columns), of the scored classes;
            the truth under attack goes where the anatomy went.
        indices: the number of each slice in the scan, from 0.
        n_slices: of the scan.
        pixel_mm: from row to row, and from column to column.
        width: of the window, in `unit`; NaN where channels differ in it.
        unit: of the scan's intensities, such as "HU"; "" where it is not known.
        is_stored: whether the attacked images are those of the run; otherwise its attack was run again.
        is_colour: whether the channels are red, green and blue.
    """

    scan: str
    clean_channels: Pixels
    attacked_channels: Pixels
    truth: Masks
    truth_attacked: Masks
    prediction: Masks
    prediction_attacked: Masks
    indices: tuple[int, ...]
    n_slices: int
    pixel_mm: tuple[float, float]
    width: float
    unit: str
    is_stored: bool
    before: Pixels
    flow: Pixels | None = None
    is_colour: bool = False

    @property
    def clean(self) -> Pixels:
        """The first channel, (slices, rows, columns)."""
        first: Pixels = self.clean_channels[0]
        return first

    @property
    def attacked(self) -> Pixels:
        """The first channel, (slices, rows, columns)."""
        first: Pixels = self.attacked_channels[0]
        return first


def attacked_scans(run: Path, scans: Sequence[str], device: torch.device) -> Iterator[AttackedScan]:
    """Some scans of a run, from its stored images; a run without them attacks these scans again, with its seeds.

    Raises:
        InputError: the run's data or model are gone or have changed, or its study names code that was not trusted.
    """
    data, model, _ = open_run(run, device)
    header = read_header(run)
    ids = {str(case) for case in RunFolder(run).rows()["case"]}
    refs = [ref for ref in data.refs("all", dims=header.get("dims", 2)) if ref.volume in scans and ref.id in ids]
    ordered = sorted(refs, key=lambda ref: (ref.volume, ref.index or 0))
    for _, group in groupby(ordered, key=lambda ref: ref.volume):
        cases = [data.read(ref) for ref in group]
        with frozen(model), deterministic(device):
            attack, budget = _attack(run, data, model, device)
            parts = [
                _outcome(model, Batch.of(part, device), attack, budget, _donors(run, data, header), read_config(run))
                for part in in_batches(cases, int(header.get("batch_size", 1)))
            ]
        is_colour = model.task.channel_names == COLOURS
        yield _scan(cases, parts, list(model.task.scored), is_stored=_has_images(run), is_colour=is_colour)


def _has_images(run: Path) -> bool:
    return (run / "images").is_dir()


def _attack(run: Path, data: Prepared, model: SegModel, device: torch.device) -> tuple[Attack, Budget | None]:
    """The attack that gives a run's images, with what it learned, and its budget if that has a unit."""
    if _has_images(run):
        return registry.build(replay(run), "attack"), None
    config = read_config(run)
    budget = parse_budget(config["budget"]) if config.get("budget") else None
    learnt = Batches.of(data, (), device)
    attack = registry.build(attack_of(config), "attack")
    return fitted(attack, model, learnt, RunFolder(run), int(config["seed"])), budget


def _donors(run: Path, data: Prepared, header: dict[str, Any]) -> Donors:
    """The cases whose masks a goal may take: those of the study's split."""
    study = read_stored_study(run.parent.parent)
    refs = data.refs(study.get("split", "test"), study.get("fold", 0), header.get("dims", 2))
    return Donors(data, tuple(refs))


@dataclass(frozen=True, eq=False)
class _Outcome:
    """A batch before and after an attack, (batch, ...); `before` and `flow` as in `AttackedScan`."""

    attacked: Image
    before: Image
    flow: Flow | None
    truth_attacked: Mask
    prediction: Mask
    prediction_attacked: Mask


def _outcome(
    model: SegModel, batch: Batch, attack: Attack, budget: Budget | None, donors: Donors, config: dict[str, Any]
) -> _Outcome:
    attacked, truth, before = batch.image.clone(), batch.target.clone(), batch.image[:, :1].clone()
    flow: Flow | None = None
    decided = _decided(model, batch.image, batch.cases)
    under_attack = decided.clone()
    for crafted in craft(model, batch, [attack], [budget], int(config["seed"]), donors):
        positions, cases = crafted.positions, [batch.cases[n] for n in crafted.positions]
        under_attack[positions] = _decided(model, crafted.image, cases, crafted.prompts)
        attacked[positions] = crafted.image[:, : attacked.shape[1]]
        truth[positions] = crafted.truth
        before[positions] = crafted.x0[:, :1]
        if crafted.flow is not None:
            flow = batch.image.new_zeros(len(attacked), *crafted.flow.shape[1:]) if flow is None else flow
            flow[positions] = crafted.flow
    return _Outcome(attacked, before, flow, truth, decided, under_attack)


def _decided(model: SegModel, image: Image, cases: Sequence[Case], prompts: Prompts | None = None) -> Mask:
    with torch.no_grad():
        return model.decide(without_nan(bind(model, Setting(model.task, tuple(cases), prompts=prompts))(image)))


def _scan(
    cases: Sequence[Case], parts: Sequence[_Outcome], scored: list[int], *, is_stored: bool, is_colour: bool
) -> AttackedScan:
    first = cases[0]
    is_whole = first.image.ndim == 4

    def images(tensors: Sequence[torch.Tensor]) -> Pixels:
        stacked = torch.cat([tensor.cpu() for tensor in tensors])
        array: Pixels = (stacked[0] if is_whole else stacked.transpose(0, 1)).numpy()
        return array

    def masks(tensors: Sequence[torch.Tensor]) -> Masks:
        stacked = torch.cat([tensor[:, scored].cpu() for tensor in tensors])
        array: Masks = (stacked[0] if is_whole else stacked.transpose(0, 1)).numpy()
        return array

    flows = [part.flow for part in parts if part.flow is not None]
    clean = images([case.image[None] for case in cases])
    stack = first.stack
    indices = range(clean.shape[1]) if is_whole or stack is None else [case.stack.index for case in cases if case.stack]
    return AttackedScan(
        scan=first.volume,
        clean_channels=clean,
        attacked_channels=images([part.attacked for part in parts]),
        truth=masks([case.target[None] for case in cases]),
        truth_attacked=masks([part.truth_attacked for part in parts]),
        prediction=masks([part.prediction for part in parts]),
        prediction_attacked=masks([part.prediction_attacked for part in parts]),
        indices=tuple(indices),
        n_slices=clean.shape[1] if stack is None else stack.slices,
        pixel_mm=(float(first.spacing_mm[-2]), float(first.spacing_mm[-1])),
        width=common(first.window.width),
        unit=first.window.unit,
        is_stored=is_stored,
        before=images([part.before for part in parts])[0],
        flow=images(flows)[-2:] if len(flows) == len(parts) else None,
        is_colour=is_colour,
    )
