"""Extraction from the first query to a checkpoint; answers are on disk, so that nothing is asked twice."""

import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from medseg_attack.errors import InputError, plural
from medseg_attack.models import checkpoints
from medseg_attack.models.segmodel import SegModel
from medseg_attack.models.sliding_window import padded_to
from medseg_attack.runtime import deterministic, drawing
from medseg_attack.storage.files import is_checkpoint
from medseg_attack.storage.forms import Form
from medseg_attack.storage.json_files import read_json, write_json
from medseg_attack.storage.locks import locked
from medseg_attack.storage.paths import require_outside
from medseg_attack.storage.stages import begin_stage
from medseg_attack.training.augment import TrainingData, crc
from medseg_attack.training.extraction.answers import Exchange, answered, hard
from medseg_attack.training.extraction.options import UNITS, Extraction
from medseg_attack.training.extraction.selection import refs_of
from medseg_attack.training.extraction.student import fit, part_shape
from medseg_attack.training.folder import begun, require_same
from medseg_attack.training.losses import finite
from medseg_attack.training.options import Options, label, resolve
from medseg_attack.types import CaseRef, Image

QUERIES = "queries.json"
ANSWERS = "answers.safetensors"  # those that were given so far, so that nothing is asked twice after a kill
KEPT = 25  # answers, after which they are written


def _exchanges(
    ask: Callable[[Image], Tensor], data: TrainingData, refs: Sequence[CaseRef], file: Path
) -> list[Exchange]:
    """The answers to all queries; those that an earlier start wrote into the file are not asked for again."""
    known = checkpoints.load_tensors(file) if file.is_file() else {}
    for number, ref in enumerate(refs):
        if str(number) in known:
            continue
        known[str(number)] = ask(data.read(ref).image[None])[0]
        if (number + 1) % KEPT == 0 or number + 1 == len(refs):
            checkpoints.save_tensors(file, known)
    return [Exchange(data.read(ref).image, known[str(number)]) for number, ref in enumerate(refs)]


class _Queries(Form):
    """The cases that a victim was asked about, in their order."""

    cases: list[str]


def read_queries(folder: Path) -> list[str]:
    """The ids of the cases that the victim of a finished copy was asked about, in their order.

    Raises:
        InputError: the list is absent or damaged.
    """
    cases: list[str] = read_json(folder / QUERIES, _Queries)["cases"]
    return cases


def extract(
    plan: Extraction, victim: SegModel, victim_hash: str, data: TrainingData, folder: Path, device: torch.device
) -> Iterator[float]:
    """Asks the victim, trains the student until `folder` is a checkpoint, and yields the loss of each tenth.

    Args:
        victim_hash: of the victim's weights.

    Raises:
        InputError: victim and student do not both take slices or both whole scans, the victim gets prompts, the folder
            holds something else, or the loss is not finite.
    """
    if victim.prompt:
        raise InputError(
            f"expected a victim without prompts, got one with a {victim.prompt}, which a thief does not have; name "
            "another --victim"
        )
    network = resolve(Options(plan.model, epochs=1, lr=plan.lr, batch_size=plan.batch_size, seed=plan.seed), data)
    plan = dataclasses.replace(plan, model=network.model)
    asked: dict[str, Any] = {**dataclasses.asdict(plan), "victim": victim_hash, "data": data.fingerprint}
    require_outside(folder, *data.sources)
    for name in ("selection", "poisoning", "hardened", "mad"):  # as in folders from before there were others
        if asked[name] == getattr(Extraction, name):
            del asked[name]
    with locked(folder):
        require_same(folder, asked)
        if is_checkpoint(folder):
            (folder / ANSWERS).unlink(missing_ok=True)  # of a process that was killed at its end
            return
        start = time.monotonic()
        with drawing(crc(plan.seed, "weights"), device):
            student = checkpoints.build_model(plan.model, data.task).to(device)
        if student.dims != victim.dims:
            example = "unet_small" if victim.dims == 2 else "'monai(UNet, window=(32, 64, 64))'"
            raise InputError(
                f"expected a copy of {UNITS[victim.dims]}s, which the victim takes, got {plan.model} of "
                f"{UNITS[student.dims]}s; write --model {example}"
            )
        first = data.refs("train", 0, student.dims)[0]  # `resolve` has refused data without one
        part = (slice(None), *(slice(n) for n in part_shape(student.window, first.shape)))
        image, _ = padded_to(data.read(first).image[part][None].to(device), student.window or first.shape)
        checkpoints.require_trainable(student, plan.model, image)
        refs = refs_of(plan, data, student)
        with begun(folder, asked, ANSWERS):
            guess = None
            if plan.mad:
                with drawing(crc(plan.seed, "guess"), device):  # the owner does not know the thief's weights
                    guess = checkpoints.build_model(plan.model, data.task).to(device)

            def ask(image: Image) -> Tensor:
                answer = answered(plan, victim, image.to(device), guess)
                return (hard(answer, victim.task.exclusive) if plan.hardened else answer).cpu()

            begin_stage(f"asking the victim about {plural(len(refs), 'case')}")
            exchanges = _exchanges(ask, data, refs, folder / ANSWERS)
            write_json(
                folder / QUERIES, {"answers": plan.answers, "count": len(refs), "cases": [ref.id for ref in refs]}
            )
            begin_stage("training the copy")
            with deterministic(device), drawing(crc(plan.seed, "noise"), device):
                for number, loss in enumerate(fit(plan, student, exchanges, device), start=1):
                    finite(loss, number)
                    yield loss
            root = None if data.root is None else str(data.root)
            card = {
                "label": label(plan.model),
                "spec": plan.model,
                "dataset": {"name": data.name, "fingerprint": data.fingerprint, "path": root},
                "training": dataclasses.asdict(network),
                "extraction": asked,
                "seconds": time.monotonic() - start,
                "window": data.options.get("window"),
            }
            checkpoints.save(folder, student, card)
            (folder / ANSWERS).unlink(missing_ok=True)
