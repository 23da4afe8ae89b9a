"""Perturbed copies of a run's scans, written from the stored values it kept."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from medseg_attack.data.formats.scan import Array
from medseg_attack.data.prepared.reading import Prepared
from medseg_attack.data.prepared.record import ScanRecord
from medseg_attack.errors import InputError, plural
from medseg_attack.exports.copies import copies_of, write_twin
from medseg_attack.exports.verification import FOLDER, MANIFEST, _ids, _of_scans
from medseg_attack.files import read_json, write_json
from medseg_attack.metrics.overlap import dice_of
from medseg_attack.runs.folder import RunFolder
from medseg_attack.types import CaseRef


def export(run: Path, data: Prepared, refs: Sequence[CaseRef], which: str, *, keep_headers: bool = False) -> None:
    """Writes twins of the run's scans from the stored values it kept, then the list of them.

    Args:
        which: "all", or "worst:N" for the N files with the lowest Dice.
        keep_headers: whether the headers of the patients are copied, too.

    Raises:
        InputError: the scans cannot be written back, or the attack's images are in no file's type.
    """
    rows, config, header = RunFolder(run).rows(), read_json(run / "config.json"), read_json(run / "run.json")
    whole = _of_scans(header)
    files = [(scan, twin) for scan in sorted({ref.volume for ref in refs}) for twin in copies_of(data.records[scan])]
    if which != "all":
        dice = {twin.path: _dice(rows, _ids(data, scan, twin, whole)) for scan, twin in files}
        ranks = {twin.path: (dice[twin.path], scan, () if whole else twin.slices) for scan, twin in files}
        worst = sorted(set(ranks.values()))[: int(which.partition(":")[2])]
        # channels that have files of their own, and slices of a scan that was attacked as one, are stored together
        files = [(scan, twin) for scan, twin in files if ranks[twin.path] in worst]
    saved = []
    for scan, twin in files:
        record, ids = data.records[scan], _ids(data, scan, twin, whole)
        rows_of_file = rows[rows["case"].isin(ids)].drop_duplicates("case").set_index("case")
        slices = [n for n in twin.slices if whole or record.case_ids[n] in rows_of_file.index]
        if rows_of_file.empty:
            continue
        stored = np.array(data.stored(scan))
        for n, image in zip(slices, _images(RunFolder(run), record, slices, whole), strict=True):
            if image.dtype != stored.dtype or len(image) != len(stored):
                raise InputError(
                    f"expected {plural(len(stored), 'channel')} of {stored.dtype}, got {len(image)} of {image.dtype} "
                    f"in {run}; this attack cannot be stored: --save-adversarial none"
                )
            stored[:, n] = image
        facts = {
            "attack": config["attack"],
            "told": f"{header['attack']}, {header['ball']}",
            "eps": header["eps"],
            "weights": config["weights"],
            "cases": {
                case: {"budget": _number(row["budget"]), "linf": row["linf"], "width": _number(row["width"])}
                for case, row in rows_of_file.iterrows()
            },
        }
        source = Path(data.options["source"])
        write_twin(run / FOLDER, twin, source, record, stored, facts, keep_headers=keep_headers)
        saved.append(
            {"scan": scan, "path": twin.written, **twin.source, "slices": slices, "channels": list(twin.channels)}
        )
    write_json(run / FOLDER / MANIFEST, {"which": which, "files": saved})


def _images(folder: RunFolder, record: ScanRecord, slices: Sequence[int], whole: bool) -> list[Array]:
    """The stored images of these slices, each (channels, rows, columns)."""
    if not whole:
        return folder.images([record.case_ids[n] for n in slices])
    (scan,) = folder.images([record.id])
    return [scan[:, n] for n in slices]


def _dice(rows: pd.DataFrame, ids: Sequence[str]) -> float:
    pixels = rows[rows["case"].isin(ids)][["n_target_adv", "n_adv", "hit_adv"]].sum()
    return dice_of(torch.tensor(pixels.tolist()), empty=1.0, dtype=torch.float64).item()


def _number(value: float) -> float | None:
    return None if value != value else float(value)
