"""The folder of a training: its options, its finished epochs, and what may lie in it."""

import csv
import dataclasses
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from medseg_attack.errors import InputError
from medseg_attack.escaping import csv_cell
from medseg_attack.storage.files import is_checkpoint, is_part, open_tensors, whole
from medseg_attack.storage.json_files import read_json, require_same_options, write_json
from medseg_attack.storage.locks import LOCK
from medseg_attack.training.options import Options

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
        robust_dice: `dice` under the attack that chooses the best epoch; {} where clean Dice chooses.
        mean_robust_dice: over classes.
        mean_monitored_dice: under the attack that a defence monitors; None where none does.
        cost: passes as a multiple of those of plain training, for one optimiser step.
        stopped: why the training ends with this epoch before the last; "" where it does not.
    """

    epoch: int
    epochs: int
    loss: float
    lr: float
    dice: dict[str, float | None]
    mean_dice: float | None
    best: bool
    seconds: float
    robust_dice: dict[str, float | None] = field(default_factory=dict)
    mean_robust_dice: float | None = None
    mean_monitored_dice: float | None = None
    cost: float = 1.0
    stopped: str = ""

    @property
    def score(self) -> float | None:
        """The Dice that chooses the best epoch."""
        return self.mean_robust_dice if self.robust_dice else self.mean_dice


def finished_epochs(folder: Path) -> list[EpochRecord]:
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


@contextmanager
def begun(folder: Path, asked: dict[str, Any], kept: str) -> Iterator[None]:
    """A scope in which a training of these options is written to `folder`.

    Args:
        kept: the file that the same command goes on from; after an error without it, the folder is as it was.
    """
    is_new = not (folder / OPTIONS).exists()
    write_json(folder / OPTIONS, asked)
    try:
        yield
    except (Exception, SystemExit):
        if is_new and not (folder / kept).exists():
            for path in folder.iterdir():
                if re.fullmatch(_OWN, path.name):
                    path.unlink()
        raise


def require_same(folder: Path, options: dict[str, Any]) -> None:
    """Refuses a folder in which something else was trained."""
    if (folder / OPTIONS).is_file():
        older = json.loads(json.dumps(dataclasses.asdict(Options(model=""))))  # lacks some options
        stored = older | read_json(folder / OPTIONS)
        if not stored["model"]:
            raise InputError(f"expected an empty folder or a training in {folder}, got data; use another --out")
        require_same_options(folder, {k: v for k, v in stored.items() if k in options}, options)
    elif is_checkpoint(folder):
        raise InputError(f"expected an empty folder, got a checkpoint without {OPTIONS} in {folder}; use another --out")
    elif others := [path.name for path in folder.iterdir() if path.name != LOCK and not is_part(path.name, _OWN)]:
        raise InputError(f"expected an empty folder or a training in {folder}, got {others[0]}; use another --out")


def write_history(path: Path, history: list[EpochRecord]) -> None:
    """Writes a CSV file with a line for each epoch."""
    with whole(path) as part, part.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        names = [csv_cell(f"dice_{name}") for name in history[0].dice]
        robust = [csv_cell(f"robust_dice_{name}") for name in history[0].robust_dice]
        robust += ["mean_robust_dice", "cost"] if robust else []
        table.writerow(["epoch", "loss", "lr", *names, "mean_dice", *robust, "seconds"])
        for r in history:
            more = [*r.robust_dice.values(), r.mean_robust_dice, r.cost] if robust else []
            table.writerow([r.epoch, r.loss, r.lr, *r.dice.values(), r.mean_dice, *more, round(r.seconds, 3)])
