"""Options that several commands share, and readers of options that are more than a word."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from medseg_attack.cli import terminal
from medseg_attack.errors import InputError
from medseg_attack.storage.ranks import joint_rank

Data = Annotated[
    Path | None,
    typer.Option("--data", "-d", help="Folder of a prepared data set.", show_default="the newest in the workspace"),
]
Split = Annotated[str, typer.Option("--split", help="Cases to score: the test, val or train split, or all.")]
Fold = Annotated[int, typer.Option("--fold", help="Cross-validation fold of the val and train splits.")]
Limit = Annotated[
    float | None,
    typer.Option(
        "--limit",
        help="Score only this many cases, or this share of them if below 1; where distances are measured, whole scans "
        "until there are so many.",
        show_default="all",
    ),
]
BatchSize = Annotated[int, typer.Option("--batch-size", min=1, help="Cases per batch.")]
BatchSizeOrAuto = Annotated[
    str,
    typer.Option(
        "--batch-size",
        help="Cases per batch; auto grows it while more cases per second are attacked, and halves it where memory "
        "does not suffice.",
    ),
]
Shard = Annotated[
    str,
    typer.Option(
        "--shard",
        help="k/N: run only the k-th of N parts, counted from 0.",
        show_default="the part of this task of a SLURM job array or of this process of torchrun, else 0/1",
    ),
]
Plan = Annotated[bool, typer.Option("--plan", help="Print the runs and what they would cost; write nothing.")]
Launcher = Annotated[
    Literal["slurm", "ray"] | None,
    typer.Option(
        "--launcher",
        help="Run the parts of the study elsewhere: as a job array of SLURM, or as tasks of a Ray cluster.",
        show_default="this process runs it",
    ),
]
Workers = Annotated[
    int,
    typer.Option(
        "--workers",
        min=0,
        help="Number of parts for --launcher: jobs of the array, or tasks for each model.",
        show_default="one for each chunk of cases, at most 16",
    ),
]
RunsFolder = Annotated[
    Path | None, typer.Option("--out", "-o", help="Folder of the results.", show_default="<home>/runs/<data>-<hash>")
]
SCORED = "Unit that is scored: a slice, a scan (volume) or all scans of a patient"
Unit = Annotated[Literal["slice", "volume", "patient"], typer.Option("--unit", help=f"{SCORED}.")]
EmptyRule = Annotated[
    Literal["one", "nan", "zero"],
    typer.Option(
        "--empty",
        help="Dice of an organ that is absent from truth and prediction: one or zero; nan leaves out every organ that "
        "is absent from the truth.",
    ),
]
AllowPartial = Annotated[bool, typer.Option("--allow-partial", help="Accept runs of part of the cases (--limit).")]
Home = Annotated[
    Path | None,
    typer.Option(
        "--home",
        envvar="MEDATTACK_HOME",
        help="Workspace: the folder of data sets, models and runs.",
        show_default="./medattack_runs",
    ),
]
Trust = Annotated[
    bool,
    typer.Option(
        "--trust", help="Run the code that a checkpoint, a study file or a run names; remember it until it changes."
    ),
]
Device = Annotated[
    str, typer.Option("--device", envvar="MEDATTACK_DEVICE", help="Device to run on: auto, cpu, cuda, cuda:1 or mps.")
]
Seed = Annotated[
    int, typer.Option("--seed", min=0, max=4294967295, envvar="MEDATTACK_SEED", help="Seed of every random choice.")
]
Json = Annotated[bool, typer.Option("--json", help="Print the results as JSON, and nothing else on stdout.")]
Tracker = Annotated[
    Literal["mlflow", "tensorboard", "wandb"] | None,
    typer.Option(
        "--log",
        help="Tracker of experiments that is told, too. It keeps its files in <home>/logs, unless its own environment "
        "variables name a server.",
        show_default="none",
    ),
]
ShowProgress = Annotated[
    bool, typer.Option("--progress/--no-progress", envvar="MEDATTACK_PROGRESS", help="Show progress on stderr.")
]


def file_option(*names: str, help: str) -> Any:
    """An option that names a file or folder of its own; nothing is done without it."""
    return typer.Option(*names, help=help, show_default=False)


def model_to(verb: str) -> str:
    """Help of the option `--model`: what is done to the model, and how it may be named."""
    return f"Model to {verb}: the name of a trained one, its folder, or a spec such as \"own('net.py:build')\"."


def repeated(*names: str, help: str, default: str | bool = False) -> Any:
    """An option that may be given several times; `default` is shown in its help."""
    return typer.Option(*names, help=help + " Repeat for several.", show_default=default)


LeaveOut = Annotated[
    list[str] | None,
    repeated(
        "--leave-out",
        help="Scan to leave out, such as one that cannot be read: its name, or a pattern such as 'liver_1*'. Of DICOM, "
        "the UID of a series, or a path below the folder.",
        default="none",
    ),
]


def unit_words(unit: str) -> list[str]:
    """The option of a next command that scores the same unit; none for the default."""
    return [] if unit == "volume" else ["--unit", unit]


def read_size(text: str) -> tuple[int, int] | None:
    """Rows and columns in pixels; None for an empty text.

    >>> read_size("160,128")
    (160, 128)
    """
    if not text:
        return None
    parts = text.replace("x", ",").split(",")
    sizes = [int(part) for part in parts if part.strip().isdecimal()]
    if len(parts) != 2 or len(sizes) != 2 or min(sizes) < 1:
        raise InputError(f"expected --size ROWS,COLUMNS in pixels, got {text!r}; write for instance --size 224,224")
    return sizes[0], sizes[1]


def read_batch_size(text: str) -> int | None:
    """Cases per batch; None for "auto".

    >>> read_batch_size("16"), read_batch_size("auto")
    (16, None)
    """
    if text == "auto":
        return None
    if not (text.isdecimal() and text.isascii() and 0 < int(text) < 10**9):
        raise InputError(f"expected --batch-size of at least 1, or auto, got {text!r}; write --batch-size 16")
    return int(text)


def read_shard(text: str) -> tuple[int, int]:
    """Index and number of shards; an empty text takes those of the environment and says so.

    >>> read_shard("0/4")
    (0, 4)
    """
    if not text:
        rank = joint_rank()
        if rank.source:
            terminal.say(f"--shard {rank.index}/{rank.count}, from {rank.source}; --shard 0/1 runs all parts here")
        return rank.index, rank.count
    k, _, n = text.partition("/")
    if not (k.isdecimal() and n.isdecimal() and int(k) < int(n)):
        raise InputError(f"expected --shard as k/N with 0 <= k < N, got {text!r}; write 0/4 for the first of four")
    return int(k), int(n)


def require_written(plan: bool, **files: object) -> None:
    """Refuses options that say what is to be written, by name and None where not given, beside --plan."""
    for name in (name for name, file in files.items() if plan and file is not None):
        raise InputError(f"expected --{name} without --plan, got both, of which one writes nothing; drop one of them")


def read_saved(text: str) -> str:
    """Which perturbed scans are to be written: all, worst:N or none."""
    if text in ("all", "none") or (text.startswith("worst:") and text[6:].isdecimal() and int(text[6:]) > 0):
        return text
    raise InputError(f"expected --save-adversarial all, worst:N or none, got {text!r}; write worst:20 for twenty files")
