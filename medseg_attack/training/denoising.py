"""The training of a small denoiser on clean slices, which needs no masks; killed, it goes on from its last epoch."""

import dataclasses
import json
import math
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import Field

from medseg_attack.errors import InputError, refusing
from medseg_attack.models.checkpoints import load_tensors, save_tensors
from medseg_attack.models.networks.denoiser import FILE, Denoiser, denoised
from medseg_attack.numerics.samples import draw, widen
from medseg_attack.runtime import deterministic, drawing, versions
from medseg_attack.storage.files import open_tensors
from medseg_attack.storage.forms import Form, check_form
from medseg_attack.storage.json_files import digest
from medseg_attack.storage.locks import locked
from medseg_attack.storage.paths import require_outside
from medseg_attack.training.augment import TrainingData, TrainingSet, batches, crc
from medseg_attack.training.distributed import ALONE
from medseg_attack.training.folder import STATE, begun, require_same
from medseg_attack.training.losses import finite
from medseg_attack.training.moments import moments, restore_moments
from medseg_attack.training.options import MANY_GRIDS, STEPS, Options, cases_of
from medseg_attack.types import Batch

LARGEST = 0.25  # standard deviation of the noise that is learned to be taken out; it is drawn from 0 on
SIZES = (0.05, 0.1, 0.25)  # of the noise that is validated on


@dataclass(frozen=True)
class DenoisedEpoch:
    """One finished epoch.

    Attributes:
        loss: mean squared error over its batches.
        seconds: of the epoch.
    """

    epoch: int
    loss: float
    seconds: float


def plan_denoiser(options: Options, data: TrainingData) -> Options:
    """The options with nothing left open: the grid, and the number of epochs.

    Raises:
        InputError: an option is out of range, or there is nothing to train on.
    """
    refs = cases_of(options, data, 2)
    if not refs:
        raise InputError(f"expected training cases in {data.name} without fold {options.fold}, got none; check --data")
    for name, low in (("epochs", 0), ("batch_size", 1), ("lr", 1e-12)):
        if not low <= getattr(options, name) < math.inf:
            option = f"--{name.replace('_', '-')}"
            raise InputError(f"expected {option} of at least {low}, got {getattr(options, name)}; change {option}")
    shapes = {ref.shape for ref in refs}
    size = options.size or (shapes.pop() if len(shapes) == 1 else MANY_GRIDS)
    per_epoch = max(len(refs) // options.batch_size, 1)
    return dataclasses.replace(options, size=size, epochs=options.epochs or math.ceil(STEPS / per_epoch))


def denoiser_folder(plan: Options, data: TrainingData) -> str:
    """The name of the denoiser's folder: data set and a hash of it and of every option."""
    data_name = re.sub(r"[^A-Za-z0-9_.]+", "-", data.name).strip("-")
    options = dataclasses.asdict(plan)
    if plan.augment:  # so that it has the name that it had before it was an option
        del options["augment"]
    return f"denoiser-{data_name}-{digest([options, data.fingerprint])[:6]}"


def train_denoiser(plan: Options, data: TrainingData, folder: Path, device: torch.device) -> Iterator[DenoisedEpoch]:
    """Trains until the denoiser is in `folder` and yields the epochs that were still to do, none if it is there.

    Args:
        plan: options with nothing left open, from `plan_denoiser`.

    Raises:
        InputError: the folder holds a training with other options or data, or the loss is not finite.
    """
    asked = {**json.loads(json.dumps(dataclasses.asdict(plan))), "data": data.fingerprint}
    require_outside(folder, *data.sources)
    with locked(folder):
        require_same(folder, asked)
        if (folder / FILE).is_file():
            return
        with begun(folder, asked, STATE):
            with drawing(crc(plan.seed, "weights"), device):
                network = Denoiser().to(device)
            optimiser = torch.optim.AdamW(network.parameters(), lr=plan.lr)
            done = _restore(folder / STATE, network, optimiser)
            cases = TrainingSet(data, cases_of(plan, data, 2), plan.size, plan.seed, augment=plan.augment)
            for number in range(done + 1, plan.epochs + 1):
                start = time.monotonic()
                with deterministic(device), drawing(crc(plan.seed, number, "noise"), device):
                    loss = _fit(network, optimiser, cases, plan, number, device)
                    finite(loss, number)
                state = {f"model/{name}": value for name, value in network.state_dict().items()}
                save_tensors(folder / STATE, state | moments(optimiser), {"epoch": str(number)})
                yield DenoisedEpoch(number, loss, time.monotonic() - start)
                if number == plan.epochs:
                    left = _noise_left(network, data, plan, device)
                    card = {"data": data.fingerprint, "noise_left": left, "versions": versions()}
                    save_tensors(folder / FILE, network.state_dict(), {"card": json.dumps(card)})
                    (folder / STATE).unlink()


class _Card(Form):
    """The facts in the file of a denoiser that are read again."""

    noise_left: dict[str, float] = Field(default_factory=dict)


def noise_left(folder: Path) -> dict[str, float]:
    """The share of the noise that a trained denoiser leaves on validation slices, by its standard deviation."""
    file = folder / FILE
    with open_tensors(file) as opened:
        text = (opened.metadata() or {}).get("card", "{}")
    with refusing(f"the card of a denoiser in {file}", "train it into another folder", (ValueError, RecursionError)):
        card = json.loads(text)
    return dict(check_form(card, _Card, file).get("noise_left", {}))


def _restore(file: Path, network: Denoiser, optimiser: torch.optim.Optimizer) -> int:
    """The number of epochs that are done, with the weights and moments that they left."""
    if not file.is_file():
        return 0
    with open_tensors(file) as opened:
        epoch = int((opened.metadata() or {})["epoch"])
    stored = load_tensors(file)
    network.load_state_dict({k.removeprefix("model/"): v for k, v in stored.items() if k.startswith("model/")})
    restore_moments(optimiser, stored)
    return epoch


def _fit(
    network: Denoiser,
    optimiser: torch.optim.Optimizer,
    cases: TrainingSet,
    plan: Options,
    number: int,
    device: torch.device,
) -> float:
    """One pass over the training slices, every channel of them; the mean loss."""
    per_epoch, losses = max(len(cases) // plan.batch_size, 1), []
    for batch, (image, _, _) in enumerate(batches(cases, number, plan.batch_size, device, 0, ALONE)):
        progress = (number - 1 + batch / per_epoch) / plan.epochs
        for group in optimiser.param_groups:
            group["lr"] = plan.lr * 0.5 * (1 + math.cos(math.pi * progress))
        clean = image.reshape(-1, 1, *image.shape[2:])
        seeds = [crc(plan.seed, number, batch, i) for i in range(len(clean))]
        sigma = LARGEST * widen(draw(torch.rand, clean[:, 0, 0, 0], seeds), clean)
        loss = (network(clean + sigma * draw(torch.randn, clean, seeds), sigma) - clean).square().mean()
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        losses.append(loss.detach())
    return float(torch.stack(losses).mean())


@torch.no_grad()
def _noise_left(network: Denoiser, data: TrainingData, plan: Options, device: torch.device) -> dict[str, float]:
    """Root mean squared error as a share of the noise, on validation slices on their own grids."""
    totals: dict[str, Any] = dict.fromkeys(map(str, SIZES), 0.0)
    refs = data.refs("val", plan.fold, 2)
    for ref in refs:
        image = Batch.of([data.read(ref)], device).image
        noise = draw(torch.randn, image, [crc("validation", ref.id)])
        for sigma in SIZES:
            error = denoised(network, image + sigma * noise, sigma) - image
            totals[str(sigma)] += float(error.square().mean()) / sigma**2 / len(refs)
    return {name: math.sqrt(total) for name, total in totals.items()} if refs else {}
