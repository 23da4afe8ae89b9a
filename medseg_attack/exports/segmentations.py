"""Predictions on the DICOM copies of a run, written as DICOM SEG beside them."""

from pathlib import Path

import numpy as np
import torch

from medseg_attack.data.formats.dicom.writing import seg_bytes
from medseg_attack.data.formats.scan import Array
from medseg_attack.data.prepared.reading import Prepared
from medseg_attack.errors import InputError
from medseg_attack.exports.copies import MANIFEST, Sidecar, copies_of, read_manifest, run_key
from medseg_attack.exports.verification import predict_copies, read_copies
from medseg_attack.models.segmodel import SegModel, frozen
from medseg_attack.runs.folder import COPIES
from medseg_attack.storage.files import file_hash, whole
from medseg_attack.storage.json_files import read_json, with_digest, write_json
from medseg_attack.storage.paths import inside


def write_segmentations(run: Path, data: Prepared, model: SegModel, device: torch.device) -> None:
    """One SEG per DICOM scan of which the run wrote copies: RUN/adversarial/<scan>/<scan>.seg.dcm.

    They are in the manifest, as the copies are. Predicted from what stands on the disk, in the batches of the run.

    Raises:
        InputError: the copies or their list are not what the run wrote.
    """
    manifest = read_manifest(run)
    slices = {
        (scan, copy.written): copy.slices
        for scan in {file["scan"] for file in manifest["files"]} & data.records.keys()
        for copy in copies_of(data.records[scan])
    }
    for file in manifest["files"]:
        # a run on some cases (--limit) lists their slices of the file alone
        in_file = slices.get((file["scan"], file["path"]), ())
        if not file["slices"] or file["slices"] != [n for n in in_file if n in file["slices"]]:
            raise _changed(run, f"{file['path']} of {file['scan']}, which is no file of its scans")
    files = [file for file in manifest["files"] if data.records[file["scan"]].frames]
    if not files or "segmentations" in manifest:
        return
    masks: dict[str, Array] = {}
    scored = list(model.task.scored)
    with frozen(model):
        for cases, values, wrong in read_copies(run, data, files):
            if wrong:
                raise _changed(run, f"{wrong[0].what}: {wrong[0].problem}")
            for batch, _, pred in predict_copies(run, model, device, cases, values):
                on_cpu = pred[:, scored].cpu().numpy()
                for n, case in enumerate(batch.cases):
                    if case.id in values:
                        masks |= _by_slice(on_cpu[n], case.id, data)
    classes = [model.task.classes[k] for k in scored]
    written = []
    for scan in dict.fromkeys(file["scan"] for file in files):
        of_scan = [file for file in files if file["scan"] == scan]
        copies = [inside(run / COPIES, file["path"]) for file in of_scan]
        record, slices_of_scan = data.records[scan], [n for file in of_scan for n in file["slices"]]
        path = copies[0].parent / f"{scan}.seg.dcm"
        content = seg_bytes(
            copies,
            np.stack([np.moveaxis(masks[record.case_ids[n]], 0, -1) for n in slices_of_scan]),
            classes,
            _key(copies[0]),
            float(record.spacing_mm[0]),
            frames=[record.frames[n][1] for n in slices_of_scan],
        )
        with whole(path) as part:
            part.write_bytes(content)
        written.append({"scan": scan, "path": path.relative_to(run / COPIES).as_posix(), "sha256": file_hash(path)})
    write_json(run / COPIES / MANIFEST, with_digest(manifest | {"segmentations": written}))


def _changed(run: Path, got: str) -> InputError:
    return InputError(f"expected the copies that were written to {run / COPIES}, got {got}; delete {run}, attack again")


def _by_slice(mask: Array, case: str, data: Prepared) -> dict[str, Array]:
    """A case's mask by the ids of its slices; a case may be a whole scan."""
    if mask.ndim == 3:
        return {case: mask}
    return dict(zip(data.records[case].case_ids, np.moveaxis(mask, 1, 0), strict=True))


def _key(copy: Path) -> str:
    """A key of the run and the scan: another one gives other UIDs."""
    return run_key(read_json(copy.with_name(f"{copy.name}.json"), Sidecar)) + copy.parent.name
