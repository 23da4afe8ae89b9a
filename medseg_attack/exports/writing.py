"""Perturbed copies of a run's scans, written from the stored values it kept."""

import gzip
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pandas as pd
import torch

from medseg_attack.data.formats.dicom.writing import copy_bytes, require_copy
from medseg_attack.data.formats.nifti_header import is_gzipped
from medseg_attack.data.formats.pictures import is_picture, write_picture
from medseg_attack.data.formats.scan import Array
from medseg_attack.data.prepared.reading import Prepared
from medseg_attack.data.prepared.record import ScanRecord
from medseg_attack.errors import InputError, plural
from medseg_attack.exports.copies import MANIFEST, PerturbedCopy, copies_of, has_scans, run_key
from medseg_attack.exports.resampled import is_resampled, layout_of, resampled_nifti, with_scale
from medseg_attack.metrics.overlap import dice_of
from medseg_attack.runs.folder import COPIES, RunFolder
from medseg_attack.runs.stored_files import read_config, read_header
from medseg_attack.storage.files import file_hash, whole
from medseg_attack.storage.json_files import with_digest, write_json
from medseg_attack.storage.paths import inside, require_file, require_outside
from medseg_attack.types import CaseRef

MARK = "perturbed by medattack: not for diagnosis"
_PRIVATE = ("descrip", "aux_file", "intent_name", "db_name")  # NIfTI's free texts


def export(run: Path, data: Prepared, refs: Sequence[CaseRef], which: str, *, keep_headers: bool = False) -> None:
    """Writes copies of the run's scans from the stored values it kept, then the list of them.

    Args:
        which: "all", or "worst:N" for the N files with the lowest Dice.
        keep_headers: whether the headers of the patients are copied, too.

    Raises:
        InputError: the scans cannot be written back, or the attack's images are in no file's type.
    """
    rows, config, header = RunFolder(run).rows(), read_config(run), read_header(run)
    whole_scans = has_scans(header)
    files = [(scan, copy) for scan in sorted({ref.volume for ref in refs}) for copy in copies_of(data.records[scan])]
    if which != "all":
        pixels = rows.groupby("case")[["n_target_adv", "n_adv", "hit_adv"]].sum()
        dice = {
            copy.path: _dice(pixels, copy.cases(data.records[scan], whole_scans=whole_scans)) for scan, copy in files
        }
        ranks = {copy.path: (dice[copy.path], scan, () if whole_scans else copy.slices) for scan, copy in files}
        worst = sorted(set(ranks.values()))[: int(which.partition(":")[2])]
        # channels that have files of their own, and slices of a scan that was attacked as one, are stored together
        files = [(scan, copy) for scan, copy in files if ranks[copy.path] in worst]
    saved = []
    cases = rows.drop_duplicates("case").set_index("case")[["budget", "linf", "width"]]
    for scan, copy in files:
        record, ids = data.records[scan], copy.cases(data.records[scan], whole_scans=whole_scans)
        rows_of_file = cases.loc[[case for case in ids if case in cases.index]]
        slices = [n for n in copy.slices if whole_scans or record.case_ids[n] in rows_of_file.index]
        if rows_of_file.empty:
            continue
        stored = np.array(data.stored(scan))
        for n, image in zip(slices, _images(RunFolder(run), record, slices, whole_scans), strict=True):
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
        write_copy(run / COPIES, copy, source, record, stored, facts, keep_headers=keep_headers)
        saved.append(
            {"scan": scan, "path": copy.written, **copy.source, "slices": slices, "channels": list(copy.channels)}
        )
    write_json(run / COPIES / MANIFEST, with_digest({"which": which, "files": saved}))


def require_copies(data: Prepared, scan: str, *, keep_headers: bool) -> None:
    """Passes if copies of a scan can be written: what fails should do so before an attack, not after it.

    Raises:
        InputError: they cannot.
    """
    record = data.records[scan]
    first = copies_of(record)[0]
    if record.frames:
        require_copy(Path(data.options["source"]) / first.path, float(record.spacing_mm[0]), keep_headers=keep_headers)


def write_copy(
    root: Path,
    copy: PerturbedCopy,
    source: Path,
    record: ScanRecord,
    stored: Array,
    facts: Mapping[str, Any],
    *,
    keep_headers: bool = False,
) -> None:
    """Writes the copy, then its sidecar.

    Args:
        root: of the copies, never inside the source's.
        source: root of the source.
        stored: of the whole scan, (channels, slices, rows, columns), in the type of the file.
        facts: what the sidecar says beside the file's hash; for DICOM with "attack", "told", "eps", "weights".
        keep_headers: whether the patient's and other headers are copied.
    """
    require_outside(root, source)
    path = inside(root, copy.written)
    values = stored[list(copy.channels)][:, list(copy.slices)]
    with whole(path) as part:
        if record.frames:
            content = copy_bytes(
                source / copy.path,
                values[0],
                patient=record.group,
                attack=facts["told"],
                key=run_key(facts),
                keep_headers=keep_headers,
            )
            part.write_bytes(content)
        elif is_picture(path):
            write_picture(part, values[:, 0], source / copy.path, path.name)
        else:
            volumes = np.stack([layout_of(record).to_file(channel) for channel in values], axis=-1)
            if is_resampled(record):
                part.write_bytes(resampled_nifti(volumes, record, MARK))
            else:
                part.write_bytes(_nifti(source / copy.path, volumes, keep_headers))
    sidecar = {"mark": MARK, "sha256": file_hash(path), **copy.source, **facts}
    if is_resampled(record):
        sidecar["grid"] = f"{list(record.shape)}, resampled from {list(record.shape_before)}"
        sidecar["scales"] = record.scales or [[record.slope, record.inter]]
    if copy.written not in (copy.path, copy.name):
        sidecar["format"] = f"PNG, because {Path(copy.path).suffix} would change the pixels again"
    write_json(path.with_name(path.name + ".json"), with_digest(sidecar))


def _images(folder: RunFolder, record: ScanRecord, slices: Sequence[int], whole_scans: bool) -> list[Array]:
    """The stored images of these slices, each (channels, rows, columns)."""
    if not whole_scans:
        return folder.images([record.case_ids[n] for n in slices])
    (scan,) = folder.images([record.id])
    return [scan[:, n] for n in slices]


def _dice(pixels: pd.DataFrame, ids: list[str]) -> float:
    """The Dice of some cases, of which `pixels` has sums over classes; those that were not attacked count nothing."""
    total = pixels.reindex(ids).sum()
    return dice_of(torch.tensor(total.tolist()), empty=1.0, dtype=torch.float64).item()


def _number(value: float) -> float | None:
    return None if value != value else float(value)


def _nifti(source: Path, stored: Array, keep_headers: bool) -> bytes:
    """The source's file with other stored values: same type, scale and geometry, without its free texts."""
    image: Any = nibabel.load(require_file(source, "a NIfTI file"))
    header = image.header.copy()
    if not keep_headers:
        header.extensions.clear()  # they may hold a whole DICOM header
        for field in _PRIVATE:
            if field in header:
                header[field] = b""
    if "descrip" in header:
        header["descrip"] = MARK.encode()
    data = stored.reshape(image.shape).astype(header.get_data_dtype())
    copy: Any = type(image)(data, None, header)
    content = with_scale(copy, float(image.dataobj.slope), float(image.dataobj.inter))
    return gzip.compress(content, mtime=0) if is_gzipped(source) else content
