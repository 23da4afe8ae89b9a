"""`medattack prepare`: scans in a known format -> a prepared data set."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from medseg_attack.cli.terminal import Home, Json, Seed, ShowProgress, command, next_step, out, print_json, say
from medseg_attack.cli.terminal import progress as progress_bar

if TYPE_CHECKING:
    from medseg_attack.data.datasets.source import Source
    from medseg_attack.data.prepared.reading import Prepared
    from medseg_attack.data.prepared.writing import Options

SourcePath = Annotated[
    Path, typer.Argument(metavar="SOURCE", help="Folder of the scans; only read. (phantom: made if absent.)")
]
Format = Annotated[
    str,
    typer.Option(
        "--format",
        help='phantom, uw_madison, acdc, decathlon, folder or dicom; options as in "dicom(exclusive=True)", '
        '"dicom(patients=\'folder\')", "folder(spacing_mm=(0.5, 0.5))"; all: medattack ls datasets.',
    ),
]
Out = Annotated[
    Path | None, typer.Option("--out", help="Where to. [default: <home>/data/<format>]", show_default=False)
]
Size = Annotated[str, typer.Option("--size", help="ROWS,COLUMNS to resample to. [default: each scan's own grid]")]
WindowText = Annotated[
    str,
    typer.Option(
        "--window",
        help="What is shown as 0 and 1: percentile, range, slice_max or LOW,HIGH. [default: percentile; pictures of 8 "
        "bits 0,255]",
    ),
]
Labels = Annotated[
    str,
    typer.Option(
        "--labels",
        help="Classes and what they are made of: of folder values, colours or files, 'disc=128|255' (each value once: "
        "a cup in its disc has a file of its own); of dicom segments, 'liver=Liver,kidney=Kidney*'.",
    ),
]
Threshold = Annotated[
    float,
    typer.Option(
        "--threshold",
        help="Of folder: masks' grey levels from here on are the class; of dicom: fractions of FRACTIONAL segments. "
        "[default: none; of dicom 0.5]",
    ),
]
Patient = Annotated[
    str, typer.Option("--patient", help="Of folder: regular expression that finds the patient in a file's name.")
]
SeriesUIDs = Annotated[
    list[str] | None,
    typer.Option(
        "--series",
        help="Of dicom: UID of a series to take; repeat it for each but those to leave out.",
        show_default=False,
    ),
]
Folds = Annotated[int, typer.Option("--folds", help="For cross-validation, by patient.")]
TestFraction = Annotated[
    float, typer.Option("--test", help="Fraction of the patients held out, at least one; 1: all of them.")
]


@command
def prepare(
    source: SourcePath,
    format: Format,
    out: Out = None,
    size: Size = "",
    window: WindowText = "",
    labels: Labels = "",
    series: SeriesUIDs = None,
    threshold: Threshold = 0,
    patient: Patient = "",
    folds: Folds = 5,
    test: TestFraction = 0.2,
    seed: Seed = 0,
    home: Home = None,
    json: Json = False,
    progress: ShowProgress = True,
) -> None:
    """Turn a folder of scans into a data set with splits by patient, and say what is in it.

    SOURCE is not changed. Interrupted or killed, the same command goes on where it was.

    Example: medattack prepare acdc/training --format acdc
    """
    from medseg_attack.data.datasets.source import open_source
    from medseg_attack.data.prepared.windows import window_rule
    from medseg_attack.data.prepared.writing import Options
    from medseg_attack.runs import workspace

    grid, rule = _grid(size), window_rule(window) if window else None
    asked = {"labels": labels, "series": tuple(series or ()), "threshold": threshold, "patient": patient}
    found = open_source(format, source, asked)
    options = Options(grid, rule or window_rule(found.window), folds, test, seed)
    where = out or workspace.home(home) / "data" / format.partition("(")[0].strip()
    for note in found.notes:
        say(f"note: {note}")
    prepared = _run(found, where, options, progress)
    for note in prepared.notes[len(found.notes) :]:
        say(f"note: {note}")
    if json:
        print_json({"data": str(where), "fingerprint": prepared.fingerprint, **prepared.summary})
    else:
        _show(prepared)
    own = "attack --data {} --model \"own('FILE.py:FACTORY', weights='FILE')\""
    next_step(f"medattack {(own if test == 1 else 'train --data {} --model unet_small').format(where)}")


def _run(found: "Source", where: Path, options: "Options", show: bool) -> "Prepared":
    from medseg_attack.data.prepared.reading import open_prepared
    from medseg_attack.data.prepared.writing import prepare as write

    was_finished = (where / "dataset.json").is_file()
    reused = 0
    with progress_bar("prepare", len(found.scans), show=show) as advance:
        for done in write(found, where, options):
            reused += done.reused
            advance(1, note=done.scan)
    if reused == len(found.scans) and was_finished:
        say(f"{where} is prepared already, and {found.root} has not changed")
    elif reused:
        say(f"{reused} of {len(found.scans)} scans were there already")
    return open_prepared(where)


def _grid(text: str) -> tuple[int, int] | None:
    from medseg_attack.errors import InputError

    if not text:
        return None
    try:
        rows, columns = (int(part) for part in text.split(","))
    except ValueError:
        rows = columns = 0
    if min(rows, columns) < 1:
        raise InputError(f"--size: expected ROWS,COLUMNS in pixels, got {text!r}; write for instance --size 224,224")
    return rows, columns


def _show(prepared: "Prepared") -> None:
    from rich import box
    from rich.table import Table

    facts = prepared.summary
    console = out()
    table = Table(
        "",
        "patients",
        "scans",
        "slices",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        title=f"{prepared.name} in {prepared.root}",
        title_justify="left",
    )
    for column in table.columns[1:]:
        column.justify = "right"
    table.add_row("all", *_sizes(facts))
    for part, sizes in facts["splits"].items():
        table.add_row(part if part == "test" else f"fold {part}", *_sizes(sizes))
    console.print(table)
    organs = Table("class", "labelled slices", "voxels", box=box.SIMPLE_HEAD, pad_edge=False)
    for column in organs.columns[1:]:
        column.justify = "right"
    for name in (prepared.task.classes[k] for k in prepared.task.scored):
        organ = facts["classes"][name]
        organs.add_row(name, f"{organ['slices']:,}", f"{organ['voxels']:,}")
    console.print(organs)
    spacing = facts["spacing_mm"]
    console.print(f"grid        {_range(facts['rows'])} rows x {_range(facts['columns'])} columns")
    console.print(f"scans of    {_range(facts['slices_per_scan'])} slices")
    apart = " x ".join(_range(spacing[axis]) for axis in ("row", "column"))
    through = f", {_range(spacing['through'])} mm between slices" if spacing["through"][1] else ""
    console.print(f"spacing     {apart} mm in plane{through}")
    console.print(f"intensity   {_range(facts['intensity'])} {facts['unit']}".rstrip())
    console.print(f"fingerprint {prepared.fingerprint[:12]}")


def _sizes(facts: dict[str, Any]) -> tuple[str, str, str]:
    return f"{facts['patients']:,}", f"{facts['scans']:,}", f"{facts['slices']:,}"


def _range(ends: list[float]) -> str:
    low, high = (f"{end:.5g}" if end % 1 else f"{end:.0f}" for end in ends)
    return low if low == high else f"{low} to {high}"
