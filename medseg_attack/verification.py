"""What a run wrote, read again as a third party would: hash, geometry, budget, and Dice to the last pixel."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from medseg_attack import registry
from medseg_attack.data.prepared import CaseRef, Prepared
from medseg_attack.data.source import Array
from medseg_attack.data.twins import Twin, read_stored, sha256, twins_of, write_twin
from medseg_attack.errors import InputError, plural
from medseg_attack.evaluate import chunks
from medseg_attack.files import read_json, write_json
from medseg_attack.levels import Levels
from medseg_attack.metrics.overlap import counts
from medseg_attack.results import SEAL, TWINS, RunFolder
from medseg_attack.types import Ball, Batch, Case, Model

FOLDER, MANIFEST = TWINS, "manifest.json"
LIMIT = 1e-9  # of a ball's limit: stored values are compared in float64


@dataclass(frozen=True)
class Mismatch:
    """What does not hold of a case or file."""

    what: str
    said: str


def export(run: Path, data: Prepared, refs: Sequence[CaseRef], which: str) -> None:
    """Writes twins of the run's scans from the stored values it kept, then the list of them.

    Args:
        which: "all", or "worst:N" for the N files with the lowest Dice.

    Raises:
        InputError: the scans cannot be written back, or the attack's images are in no file's type.
    """
    rows, config, header = RunFolder(run).rows(), read_json(run / "config.json"), read_json(run / "run.json")
    files = [(scan, twin) for scan in sorted({ref.volume for ref in refs}) for twin in twins_of(data.records[scan])]
    if which != "all":
        dice = {twin.path: _dice(rows, _ids(data, scan, twin)) for scan, twin in files}
        worst = sorted({(dice[twin.path], scan, twin.slices) for scan, twin in files})[: int(which.partition(":")[2])]
        # channels that have files of their own are stored together
        files = [(scan, twin) for scan, twin in files if (dice[twin.path], scan, twin.slices) in worst]
    saved = []
    for scan, twin in files:
        record, ids = data.records[scan], _ids(data, scan, twin)
        mine = rows[rows["case"].isin(ids)].drop_duplicates("case").set_index("case")
        here = [n for n, case in zip(twin.slices, ids, strict=True) if case in mine.index]
        if not here:
            continue
        stored = np.array(data.stored(scan))
        for n, image in zip(here, RunFolder(run).images([record["case_ids"][n] for n in here]), strict=True):
            if image.dtype != stored.dtype or len(image) != len(stored):
                raise InputError(
                    f"expected {plural(len(stored), 'channel')} of {stored.dtype}, got {len(image)} of {image.dtype} "
                    f"in {run}; this attack cannot be stored: --save-adversarial none"
                )
            stored[:, n] = image
        facts = {"attack": config["attack"], "eps": header["eps"], "weights": config["weights"],
                 "cases": {case: {"budget": _number(row["budget"]), "linf": row["linf"], "width": _number(row["width"])}
                           for case, row in mine.iterrows()}}  # fmt: skip
        write_twin(run / FOLDER, twin, Path(data.options["source"]), record, stored, facts)
        saved.append(
            {"scan": scan, "path": twin.written, "source": twin.path, "slices": here, "channels": list(twin.channels)}
        )
    write_json(run / FOLDER / MANIFEST, {"files": saved})


def _ids(data: Prepared, scan: str, twin: Twin) -> list[str]:
    return [data.records[scan]["case_ids"][n] for n in twin.slices]


def _dice(rows: pd.DataFrame, ids: Sequence[str]) -> float:
    total = rows[rows["case"].isin(ids)][["n_target", "n_adv", "hit_adv"]].sum()
    both = total["n_target"] + total["n_adv"]
    return float(2 * total["hit_adv"] / both) if both else 1.0


def _number(value: float) -> float | None:
    return None if value != value else float(value)


def verify(run: Path, data: Prepared, model: Model, device: torch.device) -> Iterator[Mismatch]:
    """Everything that does not hold of a run's twins; nothing, and a seal beside the run, if all of it holds.

    The model must be the run's own, frozen.

    Raises:
        InputError: the run stored no twins.
    """
    if not (run / FOLDER / MANIFEST).exists():
        raise InputError(
            f"expected stored scans in {run / FOLDER}, got no {MANIFEST}; attack again with --save-adversarial all"
        )
    (run / SEAL).unlink(missing_ok=True)
    files = read_json(run / FOLDER / MANIFEST)["files"]
    found: list[Mismatch] = []
    values: dict[str, Array] = {}
    for file in files:
        found += _of_file(run, data, file, values)
    found += _of_dice(run, data, model, device, values)
    yield from found
    if not found:
        RunFolder(run).seal({"files": len(files), "cases": len(values)})


def _of_file(run: Path, data: Prepared, file: Mapping[str, Any], values: dict[str, Array]) -> Iterator[Mismatch]:
    """Hash and geometry of a twin; its slices go to `values` by case, (channels, rows, columns)."""
    record, path = data.records[file["scan"]], run / FOLDER / file["path"]
    sidecar = path.with_name(path.name + ".json")
    for needed in (path, sidecar):
        if not needed.exists():
            yield Mismatch(file["scan"], f"{needed} is missing")
            return
    if sha256(path) != read_json(sidecar).get("sha256"):
        yield Mismatch(file["scan"], f"{path} is not the file that its sidecar describes (sha256)")
    try:
        stored, geometry = read_stored(path, record)
        of_source = read_stored(Path(data.options["source"]) / file.get("source", file["path"]), record)[1]
    except InputError as error:
        yield Mismatch(file["scan"], str(error))
        return
    for name, value in of_source.items():
        if geometry.get(name) != value:
            yield Mismatch(file["scan"], f"{name} of {path}: expected {value}, got {geometry.get(name)}")
    channels = file.get("channels", [0])
    if stored.shape[2:] != tuple(record["shape"][1:]) or len(stored) != len(channels):
        return  # there is no slice to score
    first = 0 if stored.shape[1] > 1 else file["slices"][0]
    for n in file["slices"]:
        case = values.setdefault(record["case_ids"][n], np.array(data.stored(file["scan"])[:, n]))
        case[channels] = stored[:, n - first]


def _of_dice(
    run: Path, data: Prepared, model: Model, device: torch.device, values: Mapping[str, Array]
) -> Iterator[Mismatch]:
    """Budget, window and counts of every stored case, in the batches of the run itself."""
    header, config = read_json(run / "run.json"), read_json(run / "config.json")
    attack = registry.build(config["attack"], "attack")
    rows = RunFolder(run).rows().set_index(["case", "cls"])
    ids = {case for case, _ in rows.index}
    refs = [ref for ref in data.refs("all") if ref.id in ids]
    size = int(header["batch_size"])
    for chunk in chunks(refs):
        cases = [data.read(ref) for ref in chunk]
        for start in range(0, len(cases), size):
            part = cases[start : start + size]
            if any(case.id in values for case in part):
                yield from _of_batch(part, values, model, attack.ball, rows, device)


def _of_batch(
    cases: Sequence[Case], values: Mapping[str, Array], model: Model, ball: Ball, rows: pd.DataFrame, device: Any
) -> Iterator[Mismatch]:
    twins = [_twin(case, values[case.id]) if case.id in values else case for case in cases]
    batch, levels, source = Batch.of(cases, device), Levels.of(twins, device), Levels.of(cases, device)
    assert levels is not None  # prepared cases know their files
    assert source is not None
    image = levels.image(levels.stored, batch.image)
    with torch.no_grad():
        pred = model.decide(model(image))
    found = counts(pred, batch.target)
    moved = (levels.stored - source.stored) * levels.slope / (levels.high - levels.low)
    for n, case in enumerate(cases):
        if case.id not in values:
            continue
        yield from _of_budget(case, moved[n : n + 1], ball, float(rows.loc[case.id]["budget"].iloc[0]))
        if moved[n][source.outside[n]].any():
            yield Mismatch(case.id, "a voxel outside of the intensity window was changed")
        for k in model.task.scored:
            cls, here = model.task.classes[k], found[n, k, 1:].tolist()
            there = [int(rows.at[(case.id, cls), name]) for name in ("n_adv", "hit_adv")]  # type: ignore[arg-type]
            if there != here:
                yield Mismatch(case.id, f"{cls}: predicted and hit pixels were {there}, from disk {here}")


def _of_budget(case: Case, moved: torch.Tensor, ball: Ball, budget: float) -> Iterator[Mismatch]:
    ball = registry.with_eps(ball, budget)
    size = ball.size(moved, torch.zeros_like(moved)).item()
    # floats are stored to their own precision only
    slack = LIMIT if not case.storage or not case.storage.stored.dtype.is_floating_point else 1e-6
    if not size <= ball.limit * (1 + slack) + (slack if slack > LIMIT else 0):
        yield Mismatch(case.id, f"the change has size {size:.9g}, more than its budget of {ball.limit:.9g}")


def _twin(case: Case, stored: Array) -> Case:
    assert case.storage is not None
    return replace(case, storage=replace(case.storage, stored=torch.from_numpy(stored)))
