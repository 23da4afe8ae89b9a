"""The training loop; all of it is on disk after every epoch, so that a killed one goes on to the same weights."""

import copy
import dataclasses
import json
import math
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from medseg_attack.defences.training.base import Step, TrainingDefence
from medseg_attack.models import checkpoints
from medseg_attack.models.segmodel import SegModel
from medseg_attack.registry import build, parse_call
from medseg_attack.registry.foreign import at_fault, part_name, words_of
from medseg_attack.runtime import deterministic, drawing
from medseg_attack.storage.files import is_checkpoint
from medseg_attack.storage.locks import locked
from medseg_attack.storage.paths import require_outside
from medseg_attack.storage.stages import begin_stage
from medseg_attack.storage.workers import cores
from medseg_attack.training.augment import TrainingData, TrainingSet, batches, crc
from medseg_attack.training.distributed import ALONE, ProcessGroup
from medseg_attack.training.folder import (
    HISTORY,
    STATE,
    EpochRecord,
    begun,
    finished_epochs,
    require_same,
    write_history,
)
from medseg_attack.training.losses import finite, finite_gradients, training_loss
from medseg_attack.training.moments import moments, restore_moments
from medseg_attack.training.options import Options, backdoor_knowledge, cases_of, label, poison_of
from medseg_attack.training.passes import counted
from medseg_attack.training.validation import mean_of, validated
from medseg_attack.types import Attack, Image


def train(
    plan: Options, data: TrainingData, folder: Path, device: torch.device, group: ProcessGroup = ALONE
) -> Iterator[EpochRecord]:
    """Trains until `folder` is a checkpoint and yields the epochs that were still to do, none if it is one.

    Args:
        plan: options with nothing left open, from `training.options.resolve`.
        group: processes that train together, each of which calls this; the first one writes.

    Raises:
        InputError: the folder holds a training with other options or data, several processes cannot train it, or the
            loss is not finite.
    """
    asked = {**json.loads(json.dumps(dataclasses.asdict(plan))), "data": data.fingerprint}
    if plan.init:
        asked["init_weights"] = checkpoints.read_card(Path(plan.init))["weights_sha256"]
    require_outside(folder, *data.sources)
    with locked(folder) if group.is_first else nullcontext():
        if group.is_first:
            require_same(folder, asked)
        if group.shared(is_checkpoint(folder)):  # the others wait until the first one has looked
            return
        begin_stage("reading training scans")
        training = _Training(plan, data, folder, device, group)  # what cannot be trained leaves no folder behind
        with begun(folder, asked, STATE) if group.is_first else nullcontext():
            while not training.is_over:
                yield training.epoch(len(training.history) + 1)
            if group.is_first:
                training.finish()


class _Training:
    """A model, its optimiser and its history, as they are between two epochs."""

    def __init__(
        self, plan: Options, data: TrainingData, folder: Path, device: torch.device, group: ProcessGroup
    ) -> None:
        self.plan, self.data, self.folder, self.device, self.group = plan, data, folder, device, group
        self.history = finished_epochs(folder)
        with drawing(crc(plan.seed, "weights"), device):
            self.model = checkpoints.build_model(plan.model, data.task, pretrained=not self.history).to(device)
            if plan.init and not self.history:
                checkpoints.begin_with(self.model, Path(plan.init))
        self.defences: list[TrainingDefence] = [build(text, "defence") for text in plan.defences]
        self.states: list[dict[str, Tensor]] = [{} for _ in self.defences]
        self.knowledge = backdoor_knowledge(plan, data)
        for defence in self.defences:
            defence.prepare(self.model)
        refs = cases_of(plan, data, self.model.dims)
        self.n_patients = len({ref.group for ref in refs})
        self.scans = data.digests(refs)  # that the weights know
        if plan.init:
            self.scans |= set(checkpoints.read_card(Path(plan.init)).get("training_scans", ()))
        window = self.model.window
        grid = window or self.model.size or refs[0].shape
        how = {"patches": window is not None, "augment": plan.augment}
        self.cases = TrainingSet(data, refs, grid, plan.seed, **how)
        checkpoints.require_trainable(self.model, plan.model, self.cases[0][0][None].to(device))
        self.optimiser = torch.optim.AdamW(self.model.parameters(), lr=plan.lr)
        if self.history:
            self._restore()
        parts = [defence.unlabelled for defence in self.defences if defence.unlabelled]
        self.unlabelled = None
        if parts:
            others = cases_of(replace(plan, patients=parts[0]), data, self.model.dims)
            self.unlabelled = TrainingSet(data, others, grid, plan.seed, **how)
            self.scans |= data.digests(others)
        self.validation = data.refs("val", plan.fold, self.model.dims)
        group.require(plan.batch_size, len(self.cases), self.defences)
        self.loss = group.over_batch(training_loss(plan.loss, data.task))
        self.robust_by: Attack | None = build(plan.robust_by, "attack") if plan.robust_by else None
        self.spec = self._architecture()
        if self.defences and not self.history:
            self._try()

    @property
    def is_over(self) -> bool:
        return bool(self.history) and (len(self.history) >= self.plan.epochs or bool(self.history[-1].stopped))

    def epoch(self, number: int) -> EpochRecord:
        start = time.monotonic()
        with deterministic(self.device), drawing(crc(self.plan.seed, number, "noise"), self.device):
            if not self.history:  # later ones stand beside the numbers of the epoch before
                begin_stage("training the first epoch")
            loss, cost = self._fit(number)
            if not self.history:
                begin_stage("validating the first epoch")
            dice = self._validated(None)
            robust = self._validated(self.robust_by) if self.robust_by is not None else {}
            monitors = [(defence, defence.monitor) for defence in self.defences if defence.monitor is not None]
            monitored = mean_of(self._validated(monitors[0][1])) if monitors else None
        rate, seconds = self._rate(number - 1, 0.0), time.monotonic() - start
        record = EpochRecord(number, self.plan.epochs, loss, rate, dice, mean_of(dice), True, seconds)
        record = replace(record, robust_dice=robust, mean_robust_dice=mean_of(robust), cost=cost)
        record = replace(record, mean_monitored_dice=monitored, best=self._is_best(record.score))
        if monitors and monitored is not None:
            epochs = [*self.history, record]
            robust_means, monitored_means = (
                [r.mean_robust_dice or 0.0 for r in epochs],
                [r.mean_monitored_dice or 0.0 for r in epochs],
            )
            record = replace(record, stopped=monitors[0][0].alarm(robust_means, monitored_means))
        record = self.group.shared(record)
        self._store(record)
        return record

    def _validated(self, attack: Attack | None) -> dict[str, float | None]:
        batch_size = self.plan.batch_size
        return validated(self.model, self.data, self.validation, batch_size, self.device, attack, self.group)

    def _is_best(self, score: float | None) -> bool:
        """Whether no epoch so far was better; the last one is the best without patients to validate on."""
        return score is None or all((r.score or 0) < score for r in self.history)

    def finish(self) -> None:
        """Turns the folder into a checkpoint of the best epoch and removes what only training needs."""
        best = self._best()
        self.model.load_state_dict(checkpoints.load_tensors(self._weights_of(best.epoch)))
        root = None if self.data.root is None else str(self.data.root)
        poison = poison_of(self.data)
        card = {
            "label": label(self.plan.model, self.plan.defences),
            "spec": self.spec,
            "dataset": {
                "name": self.data.name,
                "fingerprint": self.data.fingerprint,
                "path": root,
                **({"poison": poison} if poison else {}),
            },
            "training": dataclasses.asdict(self.plan),
            "training_grid": list(self.cases.grid),
            "best_epoch": best.epoch,
            "val_dice": best.dice,
            "val_mean_dice": best.mean_dice,
            "seconds": sum(record.seconds for record in self.history),
            "training_patients": self.n_patients,
            "training_scans": sorted(self.scans),
            "val_patients": len({ref.group for ref in self.validation}),
            "window": self.data.options.get("window"),
        }
        if self.model.blocks_gradient:
            card["blocks_gradient"] = True
        if self.model.known_by:
            card["known_by"] = list(self.model.known_by)
        if self.knowledge:
            card["backdoor_knowledge"] = self.knowledge
        if self.robust_by is not None:
            card |= {
                "robust_by": self.plan.robust_by,
                "val_robust_dice": best.robust_dice,
                "val_mean_robust_dice": best.mean_robust_dice,
            }
        if self.defences:
            card |= {"cost": self.history[-1].cost, "stopped": self.history[-1].stopped}
        checkpoints.save(self.folder, self.model, card)
        for path in (self.folder / STATE, *self._best_weights()):
            path.unlink()

    def _fit(self, number: int) -> tuple[float, float]:
        """One pass over the training cases; the mean loss, and the cost of a step as a multiple of a plain one."""
        self.model.train()
        per_epoch = max(len(self.cases) // self.plan.batch_size, 1)
        n_replays = math.prod(_replays(d, state) for d, state in zip(self.defences, self.states, strict=True))
        workers = min(8, cores()) if self.device.type == "cuda" else 0
        losses: list[Tensor] = []
        gradients: list[Tensor] = []
        epoch_batches = batches(self.cases, number, self.plan.batch_size, self.device, workers, self.group)
        with counted(self.model) as passes:
            for batch, (image, target, places) in enumerate(epoch_batches):
                for replay in range(n_replays):
                    share = (batch + replay / n_replays) / per_epoch
                    for group in self.optimiser.param_groups:
                        group["lr"] = self._rate(number - 1, share)
                    of_batch = range(len(image) * self.group.count)
                    seeds = [crc(self.plan.seed, number, batch, replay, i) for i in self.group.part(of_batch)]
                    progress = (number - 1 + share) / self.plan.epochs
                    with self.group.whole_batch():
                        loss = self._step(self.model, seeds, places, progress).loss(image, target)
                    self.optimiser.zero_grad(set_to_none=True)
                    loss.backward()  # type: ignore[no-untyped-call]
                    self.group.add_gradients(self.model)
                    gradients.append(finite_gradients(loss, self.model))
                    self.optimiser.step()
                    losses.append(loss.detach())
        loss_mean = finite(
            float(torch.stack(losses).mean()), number, gradients, [name for name, _ in self.model.named_parameters()]
        )
        for defence, state in zip(self.defences, self.states, strict=True):
            defence.end_epoch(number, state)
        return loss_mean, passes.multiple(len(losses))

    def _step(self, model: SegModel, seeds: Sequence[int], places: Sequence[int], progress: float) -> Step:
        half = self.device.type == "cuda" and torch.cuda.is_bf16_supported()
        chain = tuple(zip(self.defences, self.states, strict=True))
        unlabelled = partial(self._unlabelled, seeds) if self.unlabelled is not None else None
        return Step(model, self.loss, seeds, progress, half, chain, places=places, unlabelled=unlabelled)

    def _unlabelled(self, seeds: Sequence[int]) -> Image:
        """One scan for each seed of the patients whose masks are left aside."""
        assert self.unlabelled is not None
        self.unlabelled.epoch = seeds[0]  # so that a scan looks different each time
        images = [self.unlabelled[seed % len(self.unlabelled)][0] for seed in seeds]
        return torch.stack(images).to(self.device)

    def _try(self) -> None:
        """One step of a copy, so that a defence that does not fit is refused before anything is written."""
        model, states = copy.deepcopy(self.model).train(), self.states
        image, target = (part[None].to(self.device) for part in self.cases[0])
        image, target = (torch.cat([part] * 2) for part in (image, target))  # a batch norm needs two values
        self.states = [{} for _ in self.defences]
        modes = [layer.training for layer in model.modules()]
        with drawing(0, self.device):
            self._step(model, [0, 1], [0, 1], 0.0).loss(image, target).backward()  # type: ignore[no-untyped-call]
        names = " and ".join(map(part_name, self.defences))
        for defence, state in zip(self.defences, self.states, strict=True):
            _replays(defence, state)
            if odd := [value for value in state.values() if not isinstance(value, Tensor)]:
                raise at_fault(
                    defence,
                    f"expected tensors in the state that {part_name(defence)} keeps, got {words_of(odd[0])}; they are "
                    "stored with the training",
                )
            if defence.monitor is not None and not isinstance(defence.monitor, Attack):
                raise at_fault(
                    defence,
                    f"expected an attack as the monitor of {part_name(defence)}, got {words_of(defence.monitor)}; "
                    "give such as PGD()",
                )
        if modes != [layer.training for layer in model.modules()]:
            raise at_fault(
                tuple(self.defences),
                f"expected the model in the mode that it was in from {names}, got layers in another; write "
                "frozen(step.model) for a scope in which it is in eval mode",
            )
        if all(weight.grad is None for weight in model.parameters()):
            raise at_fault(
                tuple(self.defences),
                f"expected a loss of {names} by the model's weights, got one of other things; compute it from "
                "step.log_odds(image), or step.loss(image, target)",
            )
        self.states = states

    def _architecture(self) -> str:
        """The spec that the trained model is built from."""
        spec = self.plan.model
        for defence in self.defences:
            spec = defence.architecture(spec)
            if not isinstance(spec, str):
                raise at_fault(
                    defence,
                    f"expected the spec of a model from architecture() of {part_name(defence)}, got {words_of(spec)}; "
                    "return a text",
                )
            parse_call(spec, "model")
        return spec

    def _rate(self, epochs_done: int, share: float) -> float:
        return self.plan.lr * 0.5 * (1 + math.cos(math.pi * (epochs_done + share) / self.plan.epochs))

    def _best(self) -> EpochRecord:
        return [record for record in self.history if record.best][-1]

    def _weights_of(self, epoch: int) -> Path:
        return self.folder / f"best-{epoch}.safetensors"

    def _best_weights(self) -> list[Path]:
        return [path for path in self.folder.iterdir() if re.fullmatch(r"best-\d+\.safetensors", path.name)]

    def _store(self, record: EpochRecord) -> None:
        """Best weights, then the state that names them: a kill in between leaves the epoch before, whole."""
        self.history.append(record)
        if not self.group.is_first:
            return
        if record.best:
            checkpoints.save_tensors(self._weights_of(record.epoch), self.model.state_dict())
        weights = {f"model/{name}": value for name, value in self.model.state_dict().items()}
        kept = {
            f"defence/{index}/{name}": value for index, state in enumerate(self.states) for name, value in state.items()
        }
        history = json.dumps([dataclasses.asdict(r) for r in self.history], allow_nan=False)
        checkpoints.save_tensors(self.folder / STATE, weights | moments(self.optimiser) | kept, {"history": history})
        write_history(self.folder / HISTORY, self.history)
        for path in self._best_weights():
            if path != self._weights_of(self._best().epoch):
                path.unlink()

    def _restore(self) -> None:
        stored = checkpoints.load_tensors(self.folder / STATE)
        self.model.load_state_dict({k.removeprefix("model/"): v for k, v in stored.items() if k.startswith("model/")})
        for key, value in stored.items():
            if key.startswith("defence/"):
                _, index, name = key.split("/", 2)
                self.states[int(index)][name] = value.to(self.device)
        restore_moments(self.optimiser, stored)


def _replays(defence: TrainingDefence, state: dict[str, Tensor]) -> int:
    """The optimiser steps that each batch of the coming epoch is used for."""
    n = defence.replays_now(state)
    if type(n) is not int or n < 1:
        raise at_fault(
            defence, f"expected replays of 1 or more from {part_name(defence)}, got {n!r:.40}; return a number"
        )
    return n
