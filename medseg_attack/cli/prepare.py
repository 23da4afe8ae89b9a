"""`medattack prepare`: scans in a known format -> a prepared data set."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from medseg_attack.cli import consoles, terminal
from medseg_attack.cli.options import Home, Json, LeaveOut, Seed, ShowProgress, read_size, repeated
from medseg_attack.cli.progress import progress_bar

if TYPE_CHECKING:
    from medseg_attack.data.datasets.source import Source
    from medseg_attack.data.prepared.reading import Prepared
    from medseg_attack.data.prepared.writing import Options

SourcePath = Annotated[
    Path,
    typer.Argument(metavar="SOURCE", help="Folder of the scans, which is only read; a phantom is made where none is."),
]
Format = Annotated[
    str,
    typer.Option(
        "--format",
        help="Format of the scans: phantom, uw_madison, acdc, decathlon, folder or dicom, with options as in "
        '"dicom(exclusive=True)" or "folder(spacing_mm=(0.5, 0.5))". All of them: '
        "medattack ls datasets.",
    ),
]
Out = Annotated[
    Path | None, typer.Option("--out", help="Folder of the prepared data set.", show_default="<home>/data/<format>")
]
Size = Annotated[
    str, typer.Option("--size", help="ROWS,COLUMNS to resample slices to.", show_default="each scan's own grid")
]
WindowText = Annotated[
    str,
    typer.Option(
        "--window",
        help="Intensities that are shown as 0 and 1: percentile, range, slice_max or LOW,HIGH.",
        show_default="percentile; 0,255 for pictures of 8 bits",
    ),
]
Labels = Annotated[
    str,
    typer.Option(
        "--labels",
        help="Classes and what they consist of. Format folder: values, colours or files, as in 'disc=128|255'; a value "
        "belongs to one class only, so a cup inside its disc needs a file of its own. Format dicom: names of segments, "
        "as in 'liver=Liver,kidney=Kidney*' or 'GTV-1'. A name with signs is written in double quotes.",
        show_default=False,
    ),
]
Threshold = Annotated[
    float,
    typer.Option(
        "--threshold",
        help="Smallest value that belongs to the class. Format folder: a grey level of masks. Format dicom: a fraction "
        "in FRACTIONAL segments.",
        show_default="none; 0.5 for dicom",
    ),
]
Patient = Annotated[
    str,
    typer.Option(
        "--patient",
        help="Who is a patient: a regular expression that finds it in a case's name (with a slash: in the path below "
        "SOURCE), or 'folder' if each patient has a folder.",
        show_default="by the format's own rule, which the summary names",
    ),
]
Missing = Annotated[
    str,
    typer.Option(
        "--missing",
        help="Treatment of a label that a scan lacks: absent (the organ is not in it), drop (the scan is left "
        "out) or refuse.",
        show_default="absent; refuse for uw_madison, and for dicom without --labels",
    ),
]
SeriesUIDs = Annotated[
    list[str] | None,
    repeated("--series", help="UID of a series to take, all others being left out. Format dicom only.", default="all"),
]
Plane = Annotated[
    str,
    typer.Option(
        "--plane",
        help="Plane of the slices of volumes in NIfTI: axial, coronal, sagittal, or acquired for each scan's own.",
        show_default="that in which most scans were acquired",
    ),
]
SplitBy = Annotated[
    str,
    typer.Option(
        "--split-by",
        help="The split: 'folder' for the data set's own folders (ACDC's testing/, nnU-Net's imagesTs/ and labelsTs/, "
        "test/ of pictures), or a JSON file of cases such as nnU-Net's splits_final.json.",
        show_default="by chance, patient by patient",
    ),
]
Folds = Annotated[int, typer.Option("--folds", help="Number of cross-validation folds; patients are not split.")]
TestFraction = Annotated[
    float, typer.Option("--test", help="Fraction of the patients that is held out for testing, at least one; 1: all.")
]
MaxGB = Annotated[
    float | None,
    typer.Option(
        "--max-gb",
        envvar="MEDATTACK_MAX_GB",
        min=0.001,
        help="Memory that one scan may take; a file that claims more is refused before it is read.",
        show_default="6",
    ),
]
Jobs = Annotated[
    int | None,
    typer.Option(
        "--jobs",
        min=1,
        help="Processes that decode and write scans; what is written is the same with any number.",
        show_default="the cores there are",
    ),
]


@terminal.command
def prepare(
    source: SourcePath,
    format: Format,
    out: Out = None,
    size: Size = "",
    window: WindowText = "",
    labels: Labels = "",
    series: SeriesUIDs = None,
    leave_out: LeaveOut = None,
    threshold: Threshold = 0,
    patient: Patient = "",
    missing: Missing = "",
    plane: Plane = "",
    split_by: SplitBy = "",
    folds: Folds = 5,
    test: TestFraction = 0.2,
    seed: Seed = 0,
    max_gb: MaxGB = None,
    jobs: Jobs = None,
    home: Home = None,
    json: Json = False,
    progress: ShowProgress = True,
) -> None:
    """Turn scans into a data set that is split by patient. Prints what is in it.

    SOURCE is not changed. Interrupted or killed, the same command goes on where it was.

    Example: medattack prepare acdc/training --format acdc
    """
    from medseg_attack.data.datasets.source import open_source
    from medseg_attack.data.formats.leaving_out import leaving_out
    from medseg_attack.data.formats.memory import memory_limit
    from medseg_attack.data.prepared.windows import window_rule
    from medseg_attack.data.prepared.writing import Options
    from medseg_attack.runs import workspace

    grid, rule = read_size(size), window_rule(window) if window else None
    fields = {
        "labels": labels,
        "series": tuple(series or ()),
        "threshold": threshold,
        "patient": patient,
        "missing": missing,
        "plane": plane,
        "split_by": split_by if split_by == "folder" else "",
    }
    with memory_limit(max_gb), leaving_out(leave_out or ()):
        scans = open_source(format, source, fields)
    options = Options(
        grid,
        rule or window_rule(scans.window),
        folds,
        test,
        seed,
        Path(split_by) if split_by not in ("", "folder") else None,
    )
    folder = out or workspace.home(home) / "data" / format.partition("(")[0].strip()
    for note in scans.notes:
        terminal.say(f"note: {note}")
    with memory_limit(max_gb):
        prepared = _write(scans, folder, options, jobs, progress)
    for note in prepared.notes[len(scans.notes) :]:
        terminal.say(f"note: {note}")
    if grid is not None:
        terminal.say(
            "note: perturbed copies (attack --save-adversarial) of resampled scans are NIfTI files on the new grid, "
            "which has no place in the patient; leave out --size for copies in the source's format"
        )
    if json:
        terminal.print_json({"data": str(folder), "fingerprint": prepared.fingerprint, **prepared.summary})
    else:
        _show(prepared)
    own = ("attack", "own('FILE.py:FACTORY', weights='FILE')")
    command, model = own if test == 1 else ("train", "unet_small")
    terminal.next_step([command, "--data", str(folder), "--model", model])


def _write(source: "Source", folder: Path, options: "Options", jobs: int | None, show: bool) -> "Prepared":
    """Writes what is missing of the data set and opens it."""
    from medseg_attack.data.prepared.reading import open_prepared
    from medseg_attack.data.prepared.writing import prepare
    from medseg_attack.storage.workers import cores

    was_finished = (folder / "dataset.json").is_file()
    n_reused = 0
    with progress_bar("prepare", len(source.scans), show=show) as advance:
        for record in prepare(source, folder, options, jobs or cores()):
            n_reused += record.reused
            advance(1, note=record.scan)
    if n_reused == len(source.scans) and was_finished:
        terminal.say(f"{folder} is prepared already, and {source.root} has not changed")
    elif n_reused:
        terminal.say(f"{n_reused} of {len(source.scans)} scans were there already")
    return open_prepared(folder)


def _show(prepared: "Prepared") -> None:
    from rich import box
    from rich.table import Table

    facts = prepared.summary
    console = consoles.out()
    table = Table("", "patients", "scans", "slices", box=box.SIMPLE_HEAD, pad_edge=False)
    for column in table.columns[1:]:
        column.justify = "right"
    terminal.show(f"{prepared.name} in {prepared.root}")
    table.add_row("all", *_sizes(facts))
    for part, sizes in facts["splits"].items():
        table.add_row(part if part == "test" else f"fold {part}", *_sizes(sizes))
    console.print(table)
    organs = Table("class", "labelled slices", "voxels", box=box.SIMPLE_HEAD, pad_edge=False)
    organs.columns[0].overflow = "fold"  # names are shown whole
    for column in organs.columns[1:]:
        column.justify = "right"
    for name in (prepared.task.classes[k] for k in prepared.task.scored):
        organ = facts["classes"][name]
        organs.add_row(name, f"{organ['slices']:,}", f"{organ['voxels']:,}")
    console.print(organs)
    spacing = facts["spacing_mm"]
    console.print(f"patients    told apart {facts.get('patient_rule', 'by their names')}")
    if plane := facts.get("plane"):
        console.print(f"slices      {plane if plane != 'acquired' else 'as each scan was acquired'}")
    console.print(f"grid        {_range(facts['rows'])} rows x {_range(facts['columns'])} columns")
    slices = facts["slices_per_scan"]
    console.print(f"scans of    {_range(slices)} {'slice' if slices[1] == 1 else 'slices'}")
    in_plane = " x ".join(_range(spacing[axis]) for axis in ("row", "column"))
    through = f", {_range(spacing['through'])} mm between slices" if spacing["through"][1] else ""
    console.print(f"spacing     {in_plane} mm in plane{through}")
    console.print(f"intensity   {_range(facts['intensity'])} {facts['unit']}".rstrip())
    console.print(f"fingerprint {prepared.fingerprint[:12]}")


def _sizes(facts: dict[str, Any]) -> tuple[str, str, str]:
    return f"{facts['patients']:,}", f"{facts['scans']:,}", f"{facts['slices']:,}"


def _range(ends: list[float]) -> str:
    low, high = (f"{end:.5g}" if end % 1 else f"{end:.0f}" for end in ends)
    return low if low == high else f"{low} to {high}"
