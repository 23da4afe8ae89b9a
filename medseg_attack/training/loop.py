"""The training loop; all of it is on disk after every epoch, so that a killed one goes on to the same weights."""

import csv
import dataclasses
import json
import math
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from medseg_attack.errors import InputError
from medseg_attack.escaping import csv_cell
from medseg_attack.models import checkpoints
from medseg_attack.runtime import deterministic
from medseg_attack.storage.files import (
    is_checkpoint,
    is_part,
    open_tensors,
    read_json,
    require_outside,
    whole,
    write_json,
)
from medseg_attack.storage.locks import LOCK, locked
from medseg_attack.training.augment import TrainingData, TrainingSet, batches, crc
from medseg_attack.training.losses import finite, training_loss
from medseg_attack.training.options import Options, cases_of, label
from medseg_attack.training.validation import validated

_OWN = r"(?:options|card)\.json|history\.csv|(?:state|weights|best-\d+)\.safetensors"
STATE, OPTIONS, HISTORY = "state.safetensors", "options.json", "history.csv"


@dataclass(frozen=True)
class EpochRecord:
    """One finished epoch.

    Attributes:
        loss: mean over its batches.
        dice: by class, mean over patients, each pooled over its slices; None where no patient has it.
        mean_dice: over classes; None without patients to validate on.
        best: no epoch so far was better.
    """

    epoch: int
    epochs: int
    loss: float
    lr: float
    dice: dict[str, float | None]
    mean_dice: float | None
    best: bool
    seconds: float


def past(folder: Path) -> list[EpochRecord]:
    """The epochs that are finished."""
    if not (folder / STATE).is_file():
        return []
    with open_tensors(folder / STATE) as file:
        text = (file.metadata() or {}).get("history", "")
    try:
        return TypeAdapter(list[EpochRecord]).validate_json(text)
    except ValidationError as error:
        raise InputError(
            f"expected the history of a training in {folder / STATE}, got '{text[:20]}'; delete {folder} and "
            "train again"
        ) from error


def train(plan: Options, data: TrainingData, folder: Path, device: torch.device) -> Iterator[EpochRecord]:
    """Trains until `folder` is a checkpoint and yields the epochs that were still to do, none if it is one.

    Args:
        plan: options with nothing left open, from `training.options.resolve`.

    Raises:
        InputError: the folder holds a training with other options or data, or the loss is not finite.
    """
    asked = {**json.loads(json.dumps(dataclasses.asdict(plan))), "data": data.fingerprint}
    if plan.init:
        asked["init_weights"] = checkpoints.read_card(Path(plan.init))["weights_sha256"]
    if data.root is not None:
        require_outside(folder, Path(data.options.get("source", data.root)))
    with locked(folder):
        _check(folder, asked)
        if is_checkpoint(folder):
            return
        training = _Training(plan, data, folder, device)  # what cannot be trained leaves no folder behind
        write_json(folder / OPTIONS, asked)
        while len(training.history) < plan.epochs:
            yield training.epoch(len(training.history) + 1)
        training.finish()


def _check(folder: Path, wanted: dict[str, Any]) -> None:
    """Refuses a folder in which something else was trained."""
    if (folder / OPTIONS).is_file():
        begun = dataclasses.asdict(Options(model="")) | read_json(folder / OPTIONS)  # an older one lacks some
        if not begun["model"]:
            raise InputError(f"expected an empty folder or a training in {folder}, got data; use another --out")
        other = [f"{k} {begun.get(k)!r} instead of {wanted[k]!r}" for k in wanted if begun.get(k) != wanted[k]]
        if other:
            raise InputError(
                f"expected a training with these options in {folder}, got {', '.join(other)}; "
                "use another --out, or the same options to go on"
            )
    elif is_checkpoint(folder):
        raise InputError(f"expected an empty folder, got a checkpoint without {OPTIONS} in {folder}; use another --out")
    elif others := [path.name for path in folder.iterdir() if path.name != LOCK and not is_part(path.name, _OWN)]:
        raise InputError(f"expected an empty folder or a training in {folder}, got {others[0]}; use another --out")


class _Training:
    """A model, its optimiser and its history, as they are between two epochs."""

    def __init__(self, plan: Options, data: TrainingData, folder: Path, device: torch.device) -> None:
        self.plan, self.data, self.folder, self.device = plan, data, folder, device
        self.history = past(folder)
        with _drawing(crc(plan.seed, "weights"), device):
            self.model = checkpoints.build_model(plan.model, data.task, pretrained=not self.history).to(device)
            if plan.init and not self.history:
                checkpoints.begin_with(self.model, Path(plan.init))
        weights = list(self.model.parameters())
        if not weights:
            raise InputError(f"expected a model with weights, got {plan.model}, which has none; choose another --model")
        if device.type == "cuda" and self.model.dims == 2:
            self.model.to(memory_format=torch.channels_last)
        self.optimiser = torch.optim.AdamW(weights, lr=plan.lr)
        if self.history:
            self._restore()
        refs = cases_of(plan, data, self.model.dims)
        window = self.model.window
        grid = window or self.model.size or refs[0].shape
        self.cases = TrainingSet(data, refs, grid, plan.seed, patches=window is not None)
        self.validation = data.refs("val", plan.fold, self.model.dims)
        self.loss = training_loss(plan.loss, data.task)

    def epoch(self, number: int) -> EpochRecord:
        start = time.monotonic()
        with deterministic(self.device), _drawing(crc(self.plan.seed, number, "noise"), self.device):
            loss = finite(self._fit(number), number)
            dice = validated(self.model, self.data, self.validation, self.plan.batch_size, self.device)
        present = [value for value in dice.values() if value is not None]
        mean = sum(present) / len(present) if present else None
        best = all((r.mean_dice or 0) < mean for r in self.history) if mean is not None else True
        rate, seconds = self._rate(number - 1, 0.0), time.monotonic() - start
        record = EpochRecord(number, self.plan.epochs, loss, rate, dice, mean, best, seconds)
        self._store(record)
        return record

    def finish(self) -> None:
        """Turns the folder into a checkpoint of the best epoch and removes what only training needs."""
        best = self._best()
        self.model.load_state_dict(checkpoints.load_tensors(self._weights_of(best.epoch)))
        root = None if self.data.root is None else str(self.data.root)
        card = {
            "label": label(self.plan.model),
            "spec": self.plan.model,
            "dataset": {"name": self.data.name, "fingerprint": self.data.fingerprint, "path": root},
            "training": dataclasses.asdict(self.plan),
            "training_grid": list(self.cases.grid),
            "best_epoch": best.epoch,
            "val_dice": best.dice,
            "val_mean_dice": best.mean_dice,
            "seconds": sum(record.seconds for record in self.history),
            "val_patients": len({ref.group for ref in self.validation}),
            "window": self.data.options.get("window"),
        }
        checkpoints.save(self.folder, self.model, card)
        for path in (self.folder / STATE, *self._best_weights()):
            path.unlink()

    def _fit(self, number: int) -> float:
        """One pass over the training cases; the mean loss."""
        self.model.train()
        per_epoch = max(len(self.cases) // self.plan.batch_size, 1)
        workers = min(8, os.cpu_count() or 1) if self.device.type == "cuda" else 0
        half = self.device.type == "cuda" and torch.cuda.is_bf16_supported()
        losses = []
        epoch_batches = batches(self.cases, number, self.plan.batch_size, self.device, workers)
        for step, (image, target) in enumerate(epoch_batches):
            for group in self.optimiser.param_groups:
                group["lr"] = self._rate(number - 1, step / per_epoch)
            with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=half):
                log_odds = self.model(image)
            loss = self.loss(log_odds.float(), target)
            self.optimiser.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            self.optimiser.step()
            losses.append(loss.detach())
        return float(torch.stack(losses).mean())

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
        if record.best:
            checkpoints.save_tensors(self._weights_of(record.epoch), self.model.state_dict())
        moments = {
            f"optimiser/{index}/{name}": value
            for index, entry in self.optimiser.state_dict()["state"].items()
            for name, value in entry.items()
        }
        weights = {f"model/{name}": value for name, value in self.model.state_dict().items()}
        history = json.dumps([dataclasses.asdict(r) for r in self.history], allow_nan=False)
        checkpoints.save_tensors(self.folder / STATE, weights | moments, {"history": history})
        _write_history(self.folder / HISTORY, self.history)
        for path in self._best_weights():
            if path != self._weights_of(self._best().epoch):
                path.unlink()

    def _restore(self) -> None:
        stored = checkpoints.load_tensors(self.folder / STATE)
        self.model.load_state_dict({k.removeprefix("model/"): v for k, v in stored.items() if k.startswith("model/")})
        moments: dict[int, dict[str, Tensor]] = {}
        for key, value in stored.items():
            if key.startswith("optimiser/"):
                _, index, name = key.split("/")
                moments.setdefault(int(index), {})[name] = value
        groups = self.optimiser.state_dict()["param_groups"]
        self.optimiser.load_state_dict({"state": moments, "param_groups": groups})


@contextmanager
def _drawing(seed: int, device: torch.device) -> Iterator[None]:
    """A scope with its own random numbers (initial weights, dropout); outside, none were drawn."""
    gpus = [device.index or 0] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=gpus):
        torch.manual_seed(seed)
        yield


def _write_history(path: Path, history: list[EpochRecord]) -> None:
    with whole(path) as part, part.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        classes = list(history[0].dice)
        table.writerow(["epoch", "loss", "lr", *(csv_cell(f"dice_{name}") for name in classes), "mean_dice", "seconds"])
        for r in history:
            table.writerow([r.epoch, r.loss, r.lr, *r.dice.values(), r.mean_dice, round(r.seconds, 3)])
