"""`medattack train`: a prepared data set -> a checkpoint."""

from collections import deque
from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from medseg_attack.cli import consoles, terminal
from medseg_attack.cli.options import Data, Device, Home, Json, Seed, ShowProgress, Tracker, Trust, read_size
from medseg_attack.cli.progress import progress_bar
from medseg_attack.errors import InputError, duration

if TYPE_CHECKING:
    from medseg_attack.data.prepared.reading import Prepared
    from medseg_attack.training.options import Options

ModelSpec = Annotated[
    str, typer.Option("--model", help="Network to train, such as unet or \"smp(encoder='resnet18')\".")
]
LossName = Annotated[str, typer.Option("--loss", help="Loss: dice_focal, dice_ce, dice, focal, bce or ce.")]
Epochs = Annotated[int, typer.Option("--epochs", help="Number of epochs; 0: enough for 3000 optimiser steps.")]
LearningRate = Annotated[
    float, typer.Option("--lr", help="Learning rate of AdamW at the start; it falls to 0 along a cosine.")
]
BatchSize = Annotated[int, typer.Option("--batch-size", help="Cases per optimiser step.")]
Fold = Annotated[int, typer.Option("--fold", help="Cross-validation fold whose patients are validated on.")]
Size = Annotated[
    str,
    typer.Option("--size", help="ROWS,COLUMNS that the network sees images in.", show_default="the model's own choice"),
]
Weights = Annotated[
    str,
    typer.Option(
        "--encoder-weights",
        help="Initial weights of the encoder; imagenet downloads them.",
        show_default="random, nothing is downloaded",
    ),
]
Patients = Annotated[
    str,
    typer.Option(
        "--patients", help="k/N: train on the k-th of N parts of the patients only, counted from 0.", show_default="all"
    ),
]
Init = Annotated[
    str,
    typer.Option(
        "--init",
        help="Checkpoint whose weights training starts from, as far as they fit.",
        show_default="random weights",
    ),
]
Defences = Annotated[
    list[str] | None,
    typer.Option(
        "--defence",
        help="Training defence, such as \"trades(beta=6)\"; repeat it to combine several. See 'medattack ls defences'.",
        show_default="none",
    ),
]
RobustBy = Annotated[
    str,
    typer.Option(
        "--robust-by",
        help="Attack on the validation patients whose Dice chooses the best epoch.",
        show_default="pgd of 10 steps with a defence, else none: clean Dice chooses",
    ),
]
Augment = Annotated[
    bool, typer.Option("--augment/--no-augment", help="Flip, turn, move and brighten training cases at random.")
]
AsDenoiser = Annotated[
    bool,
    typer.Option(
        "--denoiser",
        help="Train a small network that takes noise out of slices, for the options file of denoiser and denoised.",
    ),
]
Out = Annotated[
    Path | None,
    typer.Option("--out", help="Folder of the checkpoint.", show_default="<home>/models/<model>-<data>-<hash>"),
]


@terminal.command
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
    defence: Defences = None,
    robust_by: RobustBy = "",
    augment: Augment = True,
    denoiser: AsDenoiser = False,
    seed: Seed = 0,
    device: Device = "auto",
    out: Out = None,
    home: Home = None,
    trust: Trust = False,
    log: Tracker = None,
    json: Json = False,
    progress: ShowProgress = True,
) -> None:
    """Train a segmentation model and keep its best epoch.

    Killed at any moment, the same command goes on from the last finished epoch to the same weights. Several processes
    train together with torchrun --nproc-per-node N -m medseg_attack train; --batch-size is that of all of them.

    Example: medattack train --data medattack_runs/data/acdc --model unet_small
    """
    from medseg_attack import registry
    from medseg_attack.data.prepared.reading import open_prepared
    from medseg_attack.evaluation.opening import surrogate_folder
    from medseg_attack.models.surrogates import with_folders
    from medseg_attack.models.trust import use_trust
    from medseg_attack.runs import workspace
    from medseg_attack.runtime import pick_device
    from medseg_attack.storage.files import is_checkpoint
    from medseg_attack.storage.ranks import process_rank
    from medseg_attack.training import loop
    from medseg_attack.training import options as planning
    from medseg_attack.training.distributed import process_group
    from medseg_attack.training.folder import finished_epochs

    home = workspace.home(home)
    prepared = open_prepared(data or workspace.newest_data(home))
    use_trust(home, trust)
    rank = process_rank()
    if denoiser:
        network = {"--model": model != "unet_small", "--loss": loss != "dice_focal", "--init": bool(init)}
        network |= {
            "--encoder-weights": bool(encoder_weights),
            "--defence": bool(defence),
            "--robust-by": bool(robust_by),
            "--log": bool(log),
        }
        _require_plain(network, rank.count)
        more: dict[str, Any] = {"seed": seed, "patients": patients, "augment": augment}
        options = planning.Options("denoiser", "mse", epochs, lr, batch_size, fold, read_size(size) or (), **more)
        _train_denoiser(options, prepared, out, home, device, json, progress)
        return
    teachers = [
        with_folders(registry.build(text, "defence"), partial(surrogate_folder, home)) for text in defence or ()
    ]
    options = planning.Options(
        model,
        loss,
        epochs,
        lr,
        batch_size,
        fold,
        read_size(size) or (),
        encoder_weights,
        seed,
        patients,
        init,
        tuple(map(registry.spec, teachers)),
        robust_by,
        augment,
    )
    plan = planning.resolve(options, prepared)
    folder = out or home / "models" / planning.folder_name(plan, prepared)
    where = pick_device(device)
    if rank.index > 0:  # of torchrun's processes the first one alone writes and prints
        with process_group(where) as group:
            deque(loop.train(plan, prepared, folder, where, group), maxlen=0)
        return
    for line in planning.warnings(plan, prepared):
        terminal.say(f"warning: {line}")
    was_trained = is_checkpoint(folder)
    n_left = plan.epochs - len(finished_epochs(folder))
    show = progress and not was_trained
    from medseg_attack.logs.base import open_log
    from medseg_attack.logs.values import epoch_values

    asked = {name: str(value) for name, value in asdict(plan).items()} | {"data": prepared.name}
    with open_log(log, home, folder.name, asked) as tracker:
        for record in finished_epochs(folder):  # what an interrupted command trained
            tracker.points(epoch_values(record), record.epoch)
        with progress_bar("train", n_left, show=show, line_per_piece=True) as advance, process_group(where) as group:
            for record in loop.train(plan, prepared, folder, where, group):
                advance(1, note=_note(record.loss, record.dice, record.mean_robust_dice))
                tracker.points(epoch_values(record), record.epoch)
                if record.stopped:
                    terminal.say(f"warning: training stopped after epoch {record.epoch}: {record.stopped}")
    if was_trained:
        terminal.say(f"{folder} is trained already")  # after all that may be refused
    _show(folder, json)
    if log is not None:
        terminal.say(f"logged: {tracker.place}")
    words = ["--data", str(data)] if data else []
    name = str(folder) if out else planning.label(plan.model, plan.defences)
    terminal.next_step(["attack", *words, "--model", name, "--loss", "bce", "--eps", "0.01"])


def _require_plain(network: Mapping[str, bool], n_processes: int) -> None:
    """Refuses what a denoiser is not trained with: options of networks that are used, and several processes."""
    if extra := [option for option, is_used in network.items() if is_used]:
        raise InputError(f"expected a denoiser without {extra[0]}, got both; drop one of them")
    if n_processes > 1:
        raise InputError(f"expected one process for --denoiser, got {n_processes}; train it without torchrun")


def _train_denoiser(
    options: "Options", data: "Prepared", out: Path | None, home: Path, device: str, as_json: bool, progress: bool
) -> None:
    """Trains a denoiser and says how much of the noise it leaves."""
    from medseg_attack.models.networks.denoiser import FILE
    from medseg_attack.runtime import pick_device
    from medseg_attack.training.denoising import denoiser_folder, noise_left, plan_denoiser, train_denoiser

    plan = plan_denoiser(options, data)
    folder = out or home / "models" / denoiser_folder(plan, data)
    was_trained = (folder / FILE).is_file()
    with progress_bar("train", plan.epochs, show=progress, line_per_piece=True) as advance:
        for record in train_denoiser(plan, data, folder, pick_device(device)):
            advance(1, note=f"loss {record.loss:.5f}")
    if was_trained:
        terminal.say(f"{folder} is trained already")
    left = noise_left(folder)
    if as_json:
        terminal.print_json({"folder": str(folder), "noise_left": left})
        return
    for sigma, share in left.items():
        terminal.show(f"of noise of {sigma}, {share:.0%} are left on validation slices")
    terminal.show(f"folder    {folder}")


def _note(loss: float, dice: dict[str, float | None], robust: float | None) -> str:
    organs = "  ".join(f"{name} {_number(value)}" for name, value in dice.items())
    under_attack = "" if robust is None else f"  under attack {robust:.3f}"
    return f"loss {loss:.3f}  Dice {organs}{under_attack}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _show(folder: Path, as_json: bool) -> None:
    from medseg_attack.models.checkpoints import TrainedCard, read_card

    card: dict[str, Any] = read_card(folder, TrainedCard)
    if as_json:
        terminal.print_json({"folder": str(folder), **card})
        return
    from rich import box
    from rich.table import Table

    training = card["training"]
    classes = card["task"]["classes"]  # in the order of the data; a card is in that of the alphabet
    table = Table(
        title=f"{card['label']} on {card.get('dataset', {}).get('name', '')}",
        show_header=False,
        title_justify="left",
        box=box.SIMPLE,
        pad_edge=False,
    )
    for _ in range(2):
        table.add_column(overflow="fold")  # names are shown whole
    table.add_row("best epoch", f"{card['best_epoch']} of {training.get('epochs', '?')}")
    table.add_row("validation patients", str(card["val_patients"]))
    for name in (name for name in classes if name in card["val_dice"]):
        table.add_row(f"validation Dice, {name}", _number(card["val_dice"][name]))
    table.add_row("validation Dice, mean", _number(card["val_mean_dice"]))
    if "robust_by" in card:
        table.add_row("best epoch chosen by", f"Dice under {card['robust_by']}")
        robust = card.get("val_robust_dice", {})
        for name in (name for name in classes if name in robust):
            table.add_row(f"validation Dice under attack, {name}", _number(robust[name]))
        table.add_row("validation Dice under attack, mean", _number(card.get("val_mean_robust_dice")))
    if "cost" in card:
        table.add_row("cost of a step", f"{card['cost']:.1f} x plain training")
    if card.get("stopped"):
        table.add_row("stopped early", card["stopped"])
    table.add_row("weights", f"{card.get('n_parameters', 0):,}")
    table.add_row("time", duration(card["seconds"]))
    consoles.out().print(table)
    terminal.show(f"folder    {folder}")
