"""Perturbed copies read again as a third party would: hash, geometry, budget, and Dice to the last pixel."""

import logging
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from medseg_attack import registry
from medseg_attack.data.formats.scan import Array
from medseg_attack.data.prepared.reading import Prepared
from medseg_attack.data.prepared.record import damage
from medseg_attack.errors import InputError
from medseg_attack.exports.copies import (
    MANIFEST,
    PerturbedCopy,
    Sidecar,
    copies_of,
    has_scans,
    read_manifest,
    read_stored,
)
from medseg_attack.exports.resampled import is_resampled, resampled_geometry
from medseg_attack.metrics.overlap import counts
from medseg_attack.numerics.log_odds import without_nan
from medseg_attack.numerics.stored_values import StoredValues
from medseg_attack.runs.chunks import chunks
from medseg_attack.runs.claim import IDENTITY
from medseg_attack.runs.folder import COPIES, SEAL, RunFolder
from medseg_attack.runs.stored_files import HEADER_FILE, STUDY_FILE, read_config, read_header
from medseg_attack.runs.stored_specs import attack_of
from medseg_attack.storage.files import file_hash
from medseg_attack.storage.json_files import is_as_written, read_json
from medseg_attack.storage.yaml_files import read_yaml
from medseg_attack.threat.binding import bind
from medseg_attack.types import Ball, Batch, Case, Image, Mask, Model, Setting, Task

LIMIT = 1e-9  # of a ball's limit: stored values are compared in float64


@dataclass(frozen=True)
class Mismatch:
    """A case or file, and what is wrong with it."""

    what: str
    problem: str


def verify(run: Path, data: Prepared, model: Model, device: torch.device) -> Iterator[Mismatch]:
    """Everything that does not hold of a run's copies; nothing, and a seal beside the run, if all of it holds.

    The model must be the run's own, frozen.

    Raises:
        InputError: the run stored no copies.
    """
    if not (run / COPIES / MANIFEST).exists():
        raise InputError(
            f"expected stored scans in {run / COPIES}, got no {MANIFEST}; attack again with --save-adversarial all"
        )
    manifest = read_manifest(run)
    attack = registry.build(attack_of(RunFolder(run).config), "attack")
    rows = RunFolder(run).rows().set_index(["case", "cls"])
    of_files: list[Mismatch] = []
    of_cases: list[Mismatch] = []
    n_cases = 0
    for cases, values, wrong in read_copies(run, data, manifest["files"]):
        of_files += wrong
        n_cases += len(values)
        for batch, written, pred in predict_copies(run, model, device, cases, values):
            of_cases += _check_batch(batch, written, pred, values, model, attack.ball, rows)
    mismatches = of_files + _left_out(run, data, manifest)
    mismatches += [Mismatch(scan, text) for scan in _scans(run) if (text := damage(data.root, data.records[scan]))]
    mismatches += [
        Mismatch(one["scan"], f"{one['path']} is missing or not the segmentation that was written (sha256)")
        for one in manifest.get("segmentations", ())
        if not (run / COPIES / one["path"]).exists() or file_hash(run / COPIES / one["path"]) != one["sha256"]
    ]
    mismatches += [
        Mismatch(run.name, f"{file} is not the file of images that was written (sha256)")
        for file in RunFolder(run).changed_images()
    ]
    mismatches += of_cases
    mismatches += _changed_records(run)
    yield from mismatches
    try:
        if mismatches:
            (run / SEAL).unlink(missing_ok=True)
        else:
            RunFolder(run).seal({"files": len(manifest["files"]), "cases": n_cases})
    except (InputError, OSError) as error:  # what was looked at may belong to somebody else
        logging.getLogger(__name__).warning("note: whether %s was verified is not marked beside it: %s", run, error)


def _changed_records(run: Path) -> Iterator[Mismatch]:
    """Changes of the header and the list of copies since they were written, and where study, identity and run differ.

    An edit of study and identity alike is unseen where the run does not say the same thing.
    """
    for file in (run / HEADER_FILE, run / COPIES / MANIFEST):
        if not is_as_written(read_json(file)):
            yield Mismatch(run.name, f"{file.name} is not as it was written (digest)")
    out = run.parent.parent
    if not (out / IDENTITY).exists():
        return
    header, config, study = read_header(run), read_config(run), read_yaml(out / STUDY_FILE)
    identity = {"native": False} | read_json(out / IDENTITY)
    both = {key: (study[key], identity[key]) for key in study.keys() & identity.keys() - {"data"}}
    for key, (of_study, of_identity) in sorted(both.items()):
        if of_study != of_identity:
            yield Mismatch(out.name, f"{key}: {STUDY_FILE} says {of_study}, {IDENTITY} {of_identity}")
    of_run = {key: config[key] for key in ("data", "seed", "metrics")} | {"split": header.get("split")}
    of_study = identity | {"metrics": sorted(identity["metrics"])}
    for key, value in of_run.items():
        if value != of_study[key]:
            yield Mismatch(run.name, f"{key}: {value} in the run, {of_study[key]} in {IDENTITY}")
    if config["weights"] not in identity["weights"]:
        yield Mismatch(run.name, f"its weights are none of {IDENTITY}")


def _scans(run: Path) -> list[str]:
    return sorted(set(RunFolder(run).rows()["volume"]))


def _left_out(run: Path, data: Prepared, manifest: Mapping[str, Any]) -> list[Mismatch]:
    """Files that the run wrote and its list no longer has: all of them, or as many as were asked for."""
    rows = RunFolder(run).rows()
    cases, scans = set(rows["case"]), _scans(run)
    whole_scans = has_scans(read_header(run))
    written = {
        copy.written: scan
        for scan in scans
        for copy in copies_of(data.records[scan])
        if cases & set(copy.cases(data.records[scan], whole_scans=whole_scans))
    }
    listed = {file["path"]: file["scan"] for file in manifest["files"]}
    which = manifest.get("which", "all")
    strangers = sorted(path for path, scan in listed.items() if written.get(path) != scan)
    if strangers:
        return [Mismatch(run.name, f"{strangers[0]} is no file of the run's scans")]
    if which == "all":
        return [Mismatch(scan, f"{path} is not in {MANIFEST}") for path, scan in written.items() if path not in listed]
    n = min(int(which.partition(":")[2]), len(written))
    return [] if len(listed) >= n else [Mismatch(run.name, f"{MANIFEST} lists {len(listed)} files of {n}")]


def read_copies(
    run: Path, data: Prepared, files: Sequence[Mapping[str, Any]]
) -> Iterator[tuple[list[Case], dict[str, Array], list[Mismatch]]]:
    """The run's cases by chunk, the stored values of their copies by case, and what does not hold of the files.

    A chunk without copies has no cases here. The files of no case of the run come last.
    """
    whole_scans = has_scans(read_header(run))
    ids = {str(case) for case in RunFolder(run).rows()["case"]}
    refs = [ref for ref in data.refs("all", dims=3 if whole_scans else 2) if ref.id in ids]
    by_scan: dict[str, list[Mapping[str, Any]]] = {}
    for file in files:
        if file["scan"] in data.records:
            by_scan.setdefault(file["scan"], []).append(file)
    for chunk in chunks(refs):
        of_chunk = {scan: by_scan.pop(scan) for scan in dict.fromkeys(ref.volume for ref in chunk) if scan in by_scan}
        values, wrong = _values(run, data, of_chunk, whole_scans)
        yield [data.read(ref) for ref in chunk] if values else [], values, wrong
    yield [], {}, _values(run, data, by_scan, whole_scans)[1]


def _values(
    run: Path, data: Prepared, by_scan: Mapping[str, Sequence[Mapping[str, Any]]], whole_scans: bool
) -> tuple[dict[str, Array], list[Mismatch]]:
    """The stored values of some scans' copies by case, and what does not hold of their files."""
    values: dict[str, Array] = {}
    mismatches: list[Mismatch] = []
    for scan, files in by_scan.items():
        record = data.records[scan]
        copies = {copy.written: copy for copy in copies_of(record)}
        stored, slices = np.array(data.stored(scan)), set[int]()
        for file in files:
            if file["path"] in copies:  # of strangers `_left_out` tells
                mismatches += _check_file(run, data, file, copies[file["path"]], stored, slices)
        if not whole_scans:
            values |= {record.case_ids[n]: stored[:, n] for n in sorted(slices)}
        elif len(slices) == len(record.case_ids):  # every slice was read
            values[scan] = stored
    return values, mismatches


def _check_file(
    run: Path, data: Prepared, file: Mapping[str, Any], copy: PerturbedCopy, values: Array, slices: set[int]
) -> Iterator[Mismatch]:
    """Hash and geometry of a copy; its slices go to `values`, (channels, slices, rows, columns), and are noted."""
    record, path = data.records[file["scan"]], run / COPIES / file["path"]
    sidecar = path.with_name(path.name + ".json")
    for needed in (path, sidecar):
        if not needed.exists():
            yield Mismatch(file["scan"], f"{needed} is missing")
            return
    yield from _check_sidecar(run, file, copy)
    try:
        stored, geometry = read_stored(path, record)
        of_source = (
            resampled_geometry(record)
            if is_resampled(record)
            else read_stored(Path(data.options["source"]) / copy.path, record)[1]
        )
    except InputError as error:
        yield Mismatch(file["scan"], str(error))
        return
    channels = list(copy.channels)
    expected, got = {**of_source, "channels": channels}, {"channels": file.get("channels", [0]), **geometry}
    for name, value in expected.items():
        if got.get(name) != value:
            yield Mismatch(file["scan"], f"{name} of {path}: expected {value}, got {got.get(name)}")
    if stored.shape[2:] != tuple(record.shape[1:]) or len(stored) != len(channels):
        return  # no slice can be scored
    for n, values_of in zip(copy.slices, stored.swapaxes(0, 1), strict=False):
        if n in file["slices"]:
            values[channels, n] = values_of
            slices.add(n)


def _check_sidecar(run: Path, file: Mapping[str, Any], copy: PerturbedCopy) -> Iterator[Mismatch]:
    """Facts beside a copy that do not hold of it: its hash, source, attack and weights."""
    path = run / COPIES / file["path"]
    sidecar = path.with_name(path.name + ".json")
    record, config = read_json(sidecar, Sidecar), RunFolder(run).config
    if file_hash(path) != record["sha256"]:
        yield Mismatch(file["scan"], f"{path} is not the file that its sidecar describes (sha256)")
    if not is_as_written(record):
        yield Mismatch(file["scan"], f"{sidecar} is not as it was written (digest)")
    facts = copy.source | {key: config[key] for key in ("attack", "weights")}
    yield from (
        Mismatch(file["scan"], f"{key} in {place}: expected {facts[key]}, got {content.get(key)}")
        for place, content, keys in ((sidecar, record, facts.keys()), (MANIFEST, file, copy.source.keys()))
        for key in keys
        if content.get(key) != facts[key]
    )


def predict_copies(
    run: Path, model: Model, device: torch.device, cases: Sequence[Case], values: Mapping[str, Array]
) -> Iterator[tuple[Batch, StoredValues, Mask]]:
    """The untouched batches of a chunk, what is written of them, and the prediction on that; other cases stay clean.

    Args:
        cases: of the chunk, from `read_copies`.
        values: the stored values by case.
    """
    size = int(read_header(run).get("batch_size", 1))
    for start in range(0, len(cases), size):
        part = cases[start : start + size]
        if not any(case.id in values for case in part):
            continue
        perturbed = [_perturbed(case, values[case.id]) if case.id in values else case for case in part]
        batch, written = Batch.of(part, device), StoredValues.of(perturbed, device)
        assert written is not None  # prepared cases know their files
        with torch.no_grad():
            bound = bind(model, Setting(model.task, batch.cases))
            pred = model.decide(without_nan(bound(written.image(written.raw, batch.image))))
        yield batch, written, pred


def _check_batch(
    batch: Batch,
    written: StoredValues,
    pred: Mask,
    values: Mapping[str, Array],
    model: Model,
    ball: Ball,
    rows: pd.DataFrame,
) -> Iterator[Mismatch]:
    """Budget, window and counts of the stored cases."""
    kept = ~ball.covered(written.image(written.raw, batch.image), batch.image)  # what a patch covers is in no count
    pixels = counts(pred & kept, batch.target & kept)
    for n, case in enumerate(batch.cases):
        if case.id not in values:
            continue
        source, stored = StoredValues.of([case], batch.image.device), written.raw[n : n + 1]
        assert source is not None
        parts, budget = source.parts_in_float64(stored), float(rows.loc[case.id]["budget"].iloc[0])
        yield from _check_budget(model.task, case, parts, ball, budget)
        if source.changes_outside(stored):
            yield Mismatch(case.id, "a voxel outside of the intensity window, or of padding, was changed")
        for k in model.task.scored:
            cls, on_disk = model.task.classes[k], pixels[n, k, 1:].tolist()
            in_rows = [int(rows.at[(case.id, cls), name]) for name in ("n_adv", "hit_adv")]  # type: ignore[arg-type]
            if in_rows != on_disk:
                yield Mismatch(case.id, f"{cls}: predicted and hit pixels were {in_rows}, from disk {on_disk}")


def _check_budget(
    task: Task, case: Case, parts: Iterable[tuple[Image, Image]], ball: Ball, budget: float
) -> Iterator[Mismatch]:
    # a ball with a unit of its own has one size for all cases, and no fraction of the window
    ball = bind(ball if math.isnan(budget) else registry.with_eps(ball, budget), Setting(task, (case,)))
    size = ball.size_of_parts(parts).item()
    # floats are stored to their own precision only
    slack = LIMIT if not case.storage or not case.storage.stored.dtype.is_floating_point else 1e-6
    if not size <= ball.limit * (1 + slack) + (slack if slack > LIMIT else 0):
        yield Mismatch(case.id, f"the change has size {size:.9g}, more than its budget of {ball.limit:.9g}")


def _perturbed(case: Case, stored: Array) -> Case:
    assert case.storage is not None
    return replace(case, storage=replace(case.storage, stored=torch.from_numpy(stored)))
