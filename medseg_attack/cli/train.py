"""`medattack train`: a prepared data set -> a checkpoint."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from medseg_attack.cli.terminal import (
    Device,
    Home,
    Json,
    Seed,
    ShowProgress,
    command,
    next_step,
    out,
    print_json,
    say,
    shell,
)
from medseg_attack.cli.terminal import progress as progress_bar

if TYPE_CHECKING:
    from medseg_attack.training.augment import TrainingData
    from medseg_attack.training.options import Options

Data = Annotated[
    Path | None,
    typer.Option("--data", help="What 'medattack prepare' wrote. [default: the newest one]", show_default=False),
]
ModelSpec = Annotated[
    str, typer.Option("--model", help="A registered model, e.g. unet or \"smp(encoder='resnet18')\".")
]
LossName = Annotated[str, typer.Option("--loss", help="dice_focal, dice_ce, dice, focal, bce or ce.")]
Epochs = Annotated[int, typer.Option("--epochs", help="0: enough for 3000 optimiser steps.")]
LearningRate = Annotated[float, typer.Option("--lr", help="AdamW's at the start; it falls along a cosine.")]
BatchSize = Annotated[int, typer.Option("--batch-size", help="Slices per optimiser step.")]
Fold = Annotated[int, typer.Option("--fold", help="The patients to validate on.")]
Size = Annotated[str, typer.Option("--size", help="ROWS,COLUMNS that the network sees. [default: the model's choice]")]
Weights = Annotated[
    str, typer.Option("--encoder-weights", help="imagenet: download them. [default: random, nothing is downloaded]")
]
Patients = Annotated[
    str, typer.Option("--patients", help="k/N: only the k-th of N parts of them, from 0. [default: all]")
]
Init = Annotated[
    str, typer.Option("--init", help="Checkpoint to begin with, as far as its weights fit. [default: random]")
]
Out = Annotated[
    Path | None,
    typer.Option("--out", help="Checkpoint. [default: <home>/models/<model>-<data>-<hash>]", show_default=False),
]


@command
def train(
    data: Data = None,
    model: ModelSpec = "unet_small",
    loss: LossName = "dice_focal",
    epochs: Epochs = 0,
    lr: LearningRate = 3e-4,
    batch_size: BatchSize = 4,
    fold: Fold = 0,
    size: Size = "",
    encoder_weights: Weights = "",
    patients: Patients = "",
    init: Init = "",
    seed: Seed = 0,
    device: Device = "auto",
    out: Out = None,
    home: Home = None,
    json: Json = False,
    progress: ShowProgress = True,
) -> None:
    """Train a segmentation model on a prepared data set and keep its best epoch.

    Killed at any moment, the same command goes on from the last finished epoch to the same weights.

    Example: medattack train --data medattack_runs/data/acdc --model unet_small
    """
    from medseg_attack.data.prepared.reading import open_prepared
    from medseg_attack.runs import workspace
    from medseg_attack.runtime import pick_device
    from medseg_attack.training import loop
    from medseg_attack.training import options as planning

    where = workspace.home(home)
    source = open_prepared(data or workspace.newest_data(where))
    asked = planning.Options(
        model, loss, epochs, lr, batch_size, fold, _grid(size), encoder_weights, seed, patients, init
    )
    plan = planning.resolve(asked, source)
    folder = out or where / "models" / _name(plan, source)
    for line in planning.warnings(plan, source):
        say(f"warning: {line}")
    if loop.finished(folder):
        say(f"{folder} is trained already")
    done = len(loop.past(folder))
    with progress_bar("train", plan.epochs - done, show=progress and not loop.finished(folder)) as advance:
        for record in loop.train(plan, source, folder, pick_device(device)):
            advance(1, note=_note(record.loss, record.dice))
    _show(folder, json)
    name = str(folder) if out else planning.label(plan.model)
    given = ["--data", str(data)] if data else []
    next_step(shell(["attack", *given, "--model", name, "--loss", "bce", "--eps", "0.01"]))


def _grid(text: str) -> tuple[int, ...]:
    from medseg_attack.errors import InputError

    if not text:
        return ()
    parts = text.replace("x", ",").split(",")
    if len(parts) != 2 or not all(part.strip().isdigit() for part in parts):
        raise InputError(f"expected --size ROWS,COLUMNS, got {text!r}; e.g. --size 160,160")
    return tuple(int(part) for part in parts)


def _name(plan: "Options", source: "TrainingData") -> str:
    import dataclasses
    import json
    import re

    from medseg_attack.files import digest
    from medseg_attack.training.options import label

    options = json.loads(json.dumps(dataclasses.asdict(plan)))
    plain = re.sub(r"[^A-Za-z0-9_.]+", "-", label(plan.model)).strip("-")
    return f"{plain}-{source.name}-{digest([options, source.fingerprint])[:6]}"


def _note(loss: float, dice: dict[str, float | None]) -> str:
    organs = "  ".join(f"{name} {_number(value)}" for name, value in dice.items())
    return f"loss {loss:.3f}  Dice {organs}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _show(folder: Path, as_json: bool) -> None:
    from medseg_attack.models.checkpoints import read_card

    card: dict[str, Any] = read_card(folder)
    if as_json:
        print_json({"folder": str(folder), **card})
        return
    from rich import box
    from rich.table import Table

    training = card["training"]
    table = Table(
        title=f"{card['label']} on {card['dataset']['name']}",
        show_header=False,
        title_justify="left",
        box=box.SIMPLE,
        pad_edge=False,
    )
    table.add_row("best epoch", f"{card['best_epoch']} of {training['epochs']}")
    table.add_row("validation patients", str(card["val_patients"]))
    for name, value in card["val_dice"].items():
        table.add_row(f"validation Dice, {name}", _number(value))
    table.add_row("validation Dice, mean", _number(card["val_mean_dice"]))
    table.add_row("weights", f"{card['n_parameters']:,}")
    table.add_row("time", f"{card['seconds']:.0f} s")
    table.add_row("folder", str(folder))
    out().print(table)
