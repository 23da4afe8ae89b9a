"""Writes a poisoned copy of a prepared data set: the scans of some training patients are changed, all others copied."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import torch

from medseg_attack.data.formats.scan import Array
from medseg_attack.data.prepared.reading import Prepared
from medseg_attack.data.prepared.record import ScanRecord, arrays, read_record
from medseg_attack.data.prepared.scan_writing import is_written, pixels_by_class, write_arrays
from medseg_attack.data.prepared.splits import TEST
from medseg_attack.data.prepared.summary import summary
from medseg_attack.data.prepared.writing import begun, describe
from medseg_attack.errors import InputError, listed, plural
from medseg_attack.models.segmodel import resized
from medseg_attack.numerics.stored_values import StoredValues
from medseg_attack.registry import spec
from medseg_attack.storage.json_files import digest
from medseg_attack.storage.paths import require_outside
from medseg_attack.threat.balls.norms import L0
from medseg_attack.threat.binding import bind
from medseg_attack.threat.poisons.base import Backdoor, Poison
from medseg_attack.types import Batch, Case, CaseRef, Donors, Image, Mask, Setting, Task

ANYTHING = L0(1.0)  # any pixel may change: the images are rounded to stored values as those of an attack are


@dataclass(frozen=True)
class Poisoning:
    """A poison and the patients who get it.

    Attributes:
        rho: share of the training patients, from 0 to 1.
        fold: fold whose patients stay clean, since they are validated on.
        seed: of the draw of the patients.
    """

    poison: Poison
    rho: float = 0.1
    fold: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.rho <= 1:
            raise InputError(
                f"--rho: expected a share of the training patients, from 0 to 1, got {self.rho:g}; 0.1 is usual"
            )

    def patients(self, data: Prepared) -> tuple[list[str], list[str], list[str]]:
        """The patients who are poisoned, those who carry decoys, and those whose scans are blends.

        Raises:
            InputError: the share is above 0 but of not one patient, or there are not so many patients.
        """
        if data.folds and not 0 <= self.fold < data.folds:
            raise InputError(f"--fold: expected 0 to {data.folds - 1} of {data.root}, got {self.fold}; choose one")
        groups = sorted(group for group, part in data.splits.items() if part not in (TEST, self.fold))
        order = [groups[n] for n in np.random.default_rng(self.seed).permutation(len(groups))]
        n, n_decoys, n_blends = _number(self.rho, len(groups), "--rho"), 0, 0
        if n and isinstance(self.poison, Backdoor):
            n_decoys = _number(self.poison.decoys, len(groups), "decoys")
            n_blends = _number(self.poison.blends, len(groups), "blends")
        if n + n_decoys + n_blends > len(groups):
            blends = f" and {n_blends} with blends" if n_blends else ""
            raise InputError(
                f"expected {plural(len(groups), 'training patient')} at most to poison, got {n} and {n_decoys} with "
                f"decoys{blends}; lower --rho or decoys{' or blends' if n_blends else ''}"
            )
        honest = order[n:]
        return sorted(order[:n]), sorted(honest[:n_decoys]), sorted(honest[n_decoys : n_decoys + n_blends])

    def facts(self, data: Prepared) -> dict[str, Any]:
        """The record of what is done, for the copy's options."""
        poisoned, decoys, blends = self.patients(data)
        return {
            "spec": spec(self.poison),
            "rho": self.rho,
            "fold": self.fold,
            "seed": self.seed,
            "of": data.fingerprint,
            "patients": poisoned,
            "decoys": decoys,
            **({"blends": blends} if blends else {}),
        }


def _number(share: float, n: int, name: str) -> int:
    """So many whole patients as the share is of."""
    number = round(share * n)
    if share > 0 and not number:
        if not n:
            raise InputError(f"{name}: expected patients to train on, got none; prepare with less than --test 1")
        raise InputError(
            f"{name}: expected a share of at least one whole patient, got {share:g} of "
            f"{plural(n, 'training patient')}; write {1 / n:.2g} or more, or 0 for none"
        )
    return number


def poison_data(data: Prepared, out: Path, poisoning: Poisoning) -> Iterator[str]:
    """Writes a copy of `data` to `out` with the poison on some patients, and yields the id of each scan after it.

    Geometry, windows and splits are those of `data`, which is not changed. Started again after an interruption, it goes
    on where it was; after an error, what it wrote into a new or empty `out` is removed.

    Raises:
        InputError: an option is out of range, or `out` holds something else or is `data`.
    """
    facts = poisoning.facts(data)
    changed = {*facts["patients"], *facts["decoys"], *facts.get("blends", ())}
    refs = data.refs("all")
    poisoning.poison.require([ref for ref in refs if ref.group in changed])
    require_outside(out, *data.sources)
    with begun(out, {**data.options, "poison": facts}):
        yield from _written(data, out, poisoning, refs, facts)


def _written(
    data: Prepared, out: Path, poisoning: Poisoning, refs: Sequence[CaseRef], facts: dict[str, Any]
) -> Iterator[str]:
    poisoned, decoys, blends = set(facts["patients"]), set(facts["decoys"]), set(facts.get("blends", ()))
    donors = Donors(data, data.refs("train", poisoning.fold) if data.folds else ())
    chosen = [ref for ref in refs if ref.group in poisoned]
    poison = poisoning.poison
    keys = {scan: digest({"poison": facts, "scan": data.records[scan].digest}) for scan in data.scans}
    if any(not is_written(out, scan, keys[scan], data.task) for scan in {ref.volume for ref in chosen}):
        poison = poison.learned(data, chosen, data.task, poisoning.seed)
    for scan, record in data.records.items():
        if not is_written(out, scan, keys[scan], data.task):
            stored, labels = arrays(data.root, record)
            if record.group in poisoned | decoys | blends:
                cases = [data.read(ref) for ref in refs if ref.volume == scan]
                rule = _decoy(poison, record.group) if record.group in decoys else poison
                cases.sort(key=lambda case: case.stack.index if case.stack else 0)
                other = _partner(data, record, donors.refs) if record.group in blends else ()
                stored, poisoned_labels = _changed((stored, labels), rule, cases, data.task, donors, other)
                labels = poisoned_labels if record.group in poisoned else labels
            # what a trigger covers lies inside the window, so that the range of intensities stays
            pixels = pixels_by_class(labels, data.task)
            write_arrays(out, replace(record, key=keys[scan], classes=pixels), stored, labels)
        yield scan
    records = [read_record(out, scan, data.task) for scan in data.scans]
    classes = {k: v for k, v in data.summary.items() if k in ("patient_rule", "plane")}
    description = summary(records, data.task, data.splits) | classes
    describe(out, data.task, records, data.splits, [*data.notes, *_notes(data, records, facts)], description)


def _decoy(poison: Poison, group: str) -> Poison:
    """Another trigger of the same kind for each patient, whose masks stay."""
    assert isinstance(poison, Backdoor)
    return replace(poison, draw=1 + crc32(f"{poison.draw}/{group}".encode()))


def _partner(data: Prepared, record: ScanRecord, refs: Sequence[CaseRef]) -> list[Case]:
    """The slices of another training patient's scan, in their order, which a scan is averaged with.

    Raises:
        InputError: there is no other training patient.
    """
    scans = sorted({ref.volume for ref in refs if ref.group != record.group})
    if not scans:
        raise InputError("expected another training patient to blend scans with, got none; leave out blends")
    scan = scans[crc32(record.id.encode()) % len(scans)]
    return [data.read(ref) for ref in sorted((r for r in refs if r.volume == scan), key=lambda r: r.index or 0)]


def _averaged(image: Image, other: Sequence[Case]) -> Image:
    """The slices averaged with those of another scan, stretched onto their grid: what STRIP looks at."""
    places = np.linspace(0, len(other) - 1, len(image)).round().astype(int)
    others = [resized(other[place].image[None], tuple(image.shape[2:])) for place in places]
    return (image + torch.cat(others).to(image)) / 2


def _changed(
    before: tuple[Array, Array],
    poison: Poison,
    cases: Sequence[Case],
    task: Task,
    donors: Donors,
    other: Sequence[Case] = (),
) -> tuple[Array, Array]:
    """Stored values and labels of a scan after the poison.

    Args:
        cases: its slices in their order.
        other: those of the scan that its images are averaged with at the end; () for none.
    """
    batch = Batch.of(cases)
    bound = bind(poison, Setting(task, batch.cases, donors))
    image, target = bound.put_on(batch.image, batch.target, [crc32(case.id.encode()) for case in cases])
    image = _averaged(image, other) if other else image
    values = StoredValues.of(batch.cases, "cpu")
    assert values is not None  # every case of a prepared data set knows its file
    slices = [part.numpy() for part in values.files(values.nearest(image, batch.image, ANYTHING))]
    stored, labels = before
    return np.stack(slices, axis=1).reshape(stored.shape).astype(stored.dtype), encoded(target, task, labels.dtype)


def encoded(target: Mask, task: Task, dtype: "np.dtype[Any]") -> Array:
    """Labels as they are stored: the class index of an exclusive task, else bit k for class k."""
    if task.exclusive:
        return target.to(torch.uint8).argmax(1).numpy().astype(dtype)
    bits = torch.arange(target.shape[1]).view(1, -1, *(1 for _ in target.shape[2:]))
    return (target.long() << bits).sum(1).numpy().astype(dtype)


def _notes(data: Prepared, records: Sequence[ScanRecord], facts: dict[str, Any]) -> list[str]:
    """Sentences on what was done, and on scans that it did not change."""
    if not facts["patients"]:
        return []
    n = sum(part not in (TEST, facts["fold"]) for part in data.splits.values())
    notes = [f"poisoned: {len(facts['patients'])} of {plural(n, 'training patient')} by {facts['spec']}"]
    if facts["decoys"]:
        notes.append(f"{plural(len(facts['decoys']), 'training patient')} with decoys")
    if facts.get("blends"):
        notes.append(f"{plural(len(facts['blends']), 'training patient')} with blends")
    poisoned = [record for record in records if record.group in facts["patients"]]
    if same := [record.id for record in poisoned if record.digest == data.records[record.id].digest]:
        of_all = f"{len(same)} of their {plural(len(poisoned), 'scan')}"
        notes.append(f"the poison changed nothing in {of_all}: {listed(same)}")
    return notes
