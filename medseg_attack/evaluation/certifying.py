"""A certificate of a model on a data set: scan by scan, resumed and sharded like an attack, checked by an attack."""

import math
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby, product
from pathlib import Path
from typing import Any
from zlib import crc32

import pyarrow as pa
import torch
from jaxtyping import Bool
from torch import Tensor

from medseg_attack import registry
from medseg_attack.certificates.base import Bound, Certificate
from medseg_attack.checks.certified import check_soundness
from medseg_attack.checks.model.answers import check_probabilities
from medseg_attack.checks.model.scene import Scene
from medseg_attack.data.prepared.reading import Prepared
from medseg_attack.errors import InputError
from medseg_attack.evaluation.pictures.abstained import draw_abstained
from medseg_attack.models.model_ref import ModelRef
from medseg_attack.models.segmodel import SegModel, frozen
from medseg_attack.registry.foreign import at_fault, lent, part_name, require_like, words_of
from medseg_attack.runs.claim import require_new
from medseg_attack.runs.folder import RunFolder
from medseg_attack.runs.grid import safe
from medseg_attack.runs.stored_files import CONFIG_FILE
from medseg_attack.runtime import deterministic, provenance, versions
from medseg_attack.storage.json_files import digest
from medseg_attack.storage.locks import locked
from medseg_attack.storage.paths import require_outside
from medseg_attack.storage.stages import begin_stage
from medseg_attack.threat.binding import bind
from medseg_attack.types import Batch, CaseRef, Image, Model, Setting

VERSION = 3  # of the rows
MAPS = "maps"  # folder of pictures of abstained pixels, beside the rows
SURE = 1.5  # of 2, from probabilities of 0 to 1 as log-odds: a network that hardly learned reaches less


@dataclass(frozen=True, eq=False)
class Certification:
    """A certificate that is to be computed for the scans of a split.

    Attributes:
        radii: of the change, as the certificate measures it.
        partial: whether these cases are part of the split's (`--limit`).
        checked: number of scans that an attack within each radius tries to refute, from the first one.
        out: folder of the rows.
    """

    certificate: Certificate
    model_ref: ModelRef
    data: Prepared
    refs: Sequence[CaseRef]
    radii: tuple[float, ...]
    checked: int
    seed: int
    out: Path
    partial: bool = False

    @property
    def scans(self) -> list[tuple[CaseRef, ...]]:
        """The cases of each whole scan, or of both phases of each patient that has them."""
        ordered = sorted(self.refs, key=lambda ref: (ref.volume, ref.index or 0))
        scans = [tuple(group) for _, group in groupby(ordered, key=lambda ref: ref.volume)]
        return _pairs(scans) if self.certificate.needs_phases else scans

    @property
    def unit(self) -> str:
        """The unit of the scans' intensities, such as "HU"; "" where it is not known, or scans differ in it."""
        units = {self.data.window(ref).unit for ref in self.refs}
        return units.pop() if len(units) == 1 else ""

    @property
    def config(self) -> dict[str, Any]:
        """All that determines the rows."""
        return {
            "certificate_version": VERSION,
            "data": self.data.fingerprint,
            "cases": digest(sorted(ref.id for ref in self.refs)),
            "weights": self.model_ref.weights_hash,
            "certificate": registry.spec(self.certificate),
            "certificate_weights": self.certificate.weights_hash,
            "radii": list(self.radii),
            "checked": self.checked,
            "seed": self.seed,
        }

    @property
    def forwards(self) -> int:
        """Forward passes for all scans, without those of the attack that checks them."""
        return sum(self.certificate.passes(ref.shape, self.radii) for scan in self.scans for ref in scan)

    @property
    def is_finished(self) -> bool:
        """Whether the bounds of every scan are on the disk, whichever shard wrote them."""
        folder = RunFolder(self.out)
        return all(folder.has(number) for number in range(len(self.scans)))

    def require(self) -> None:
        """Refuses what cannot be certified, before anything slow happens.

        Raises:
            InputError: there are no cases, or a radius is beyond what can be shown of a scan.
        """
        if not self.refs:
            raise InputError(f"expected cases to certify in {self.data.root}, got none; choose another --split")
        if not self.scans:
            raise InputError(
                f"expected scans of end diastole and end systole of a patient in {self.data.root}, got none; prepare "
                "a data set that says the phase, such as ACDC with its Info.cfg, again"
            )
        require_outside(self.out, *self.data.sources)
        shapes = {tuple(ref.shape for ref in scan) for scan in self.scans}
        for radius in self.radii:
            for of_scan in shapes:
                self.certificate.require(radius, self.data.task, of_scan)


def _map_name(volume: str, radius: float) -> str:
    """The file of a scan's map; names that differ only in what a file system refuses have files of their own."""
    return f"{safe(volume)[:80]}-{digest(volume)[:6]}-r{radius:g}.png"


def _pairs(scans: Sequence[tuple[CaseRef, ...]]) -> list[tuple[CaseRef, ...]]:
    """End diastole and end systole of each patient that has one scan of each."""
    phases: dict[str, dict[str, list[tuple[CaseRef, ...]]]] = defaultdict(lambda: defaultdict(list))
    for scan in scans:
        phases[scan[0].group][scan[0].phase].append(scan)
    pairs = [(of_patient["ED"], of_patient["ES"]) for of_patient in phases.values()]
    return [(*first[0], *last[0]) for first, last in pairs if len(first) == len(last) == 1]


def certify(
    todo: Certification, device: torch.device, *, batch_size: int = 16, shard: tuple[int, int] = (0, 1)
) -> Iterator[int]:
    """Writes the bounds of every scan that lacks them, scan by scan.

    Yields:
        After each scan of the shard, 1.
    """
    todo.require()
    begin_stage(f"loading {todo.model_ref.label}")
    model = todo.model_ref.load(todo.data.task, device)
    todo.certificate.require_model(model)
    with locked(todo.out, shared=True) as lock:
        is_new = not (todo.out / CONFIG_FILE).exists()
        require_new(todo.out, CONFIG_FILE, "certificate")
        folder = RunFolder.open(todo.out, todo.config)
        try:
            for _ in _written(todo, model, folder, device, batch_size, shard):
                yield 1
        except (Exception, SystemExit):
            if is_new and lock.is_alone() and not folder.has_rows:
                folder.withdraw(MAPS)  # nothing was computed: leave nothing behind
            raise
        if todo.is_finished:
            facts: dict[str, Any] = {"model": todo.model_ref.label, "data": todo.data.name, "unit": todo.unit}
            facts |= {"device": str(device), "partial": todo.partial}
            facts |= {"prompt": todo.model_ref.prompt} if todo.model_ref.prompt else {}
            flags = [flag.record() for flag in check_soundness(folder.rows())]
            source = {"versions": versions(), "provenance": provenance()}
            folder.finish({**facts, "seconds": folder.seconds, "flags": flags, **source})


def _written(
    todo: Certification,
    model: SegModel,
    folder: RunFolder,
    device: torch.device,
    batch_size: int,
    shard: tuple[int, int],
) -> Iterator[None]:
    """Writes the bounds of the scans of a shard that lack them, and yields after each scan of it."""
    k, n = shard
    for number, scan in enumerate(todo.scans):
        if number % n != k:
            continue
        if not folder.has(number):
            with frozen(model), deterministic(device), todo.model_ref.errors_named():
                start = time.perf_counter()
                begin_stage(f"bounding {scan[0].volume}")
                batch = Batch.of([todo.data.read(ref) for ref in scan], device)
                require_log_odds(model, batch)
                checked = number < todo.checked and not todo.model_ref.black_box
                how: dict[str, Any] = {"seed": todo.seed, "batch_size": batch_size, "checked": checked}
                rows, certain = certified(todo.certificate, model, batch, todo.radii, **how)
                for radius, pixels in certain.items():
                    draw_abstained(batch, pixels, todo.out / MAPS / _map_name(scan[0].volume, radius))
                folder.write_table(number, pa.Table.from_pylist(rows), time.perf_counter() - start, batch_size)
        yield


def require_log_odds(model: SegModel, scan: Batch) -> None:
    """Refuses a model that answers with probabilities, since bounds are computed from log-odds.

    Args:
        model: frozen.

    Raises:
        InputError: no answer on the scan is beyond those of probabilities; of classes that exclude each other, if some
            pixel is nearly sure as well.
    """
    bound = bind(model, Setting(model.task, scan.cases))
    with torch.no_grad():
        scene = Scene(bound, scan, (), bound(scan.image))
    spread = float(scene.log_odds.max() - scene.log_odds.min())
    if model.task.exclusive and spread < SURE:
        return
    for finding in check_probabilities(scene):
        raise InputError(
            f"expected log-odds of the model on {scan.cases[0].volume}, got what looks like probabilities "
            f"({finding.numbers}); return the values before its last sigmoid or softmax"
        )


def certified(
    certificate: Certificate,
    model: Model,
    scan: Batch,
    radii: Sequence[float],
    *,
    seed: int = 0,
    batch_size: int = 16,
    checked: bool = True,
) -> "tuple[list[dict[str, Any]], dict[float, Bool[Tensor, 'b *s']]]":
    """The bounds of one scan as rows: the fields of `Bound`, and what an attack within each radius reached.

    `medattack certify` writes these rows, and `medseg_attack.certify` returns them.

    Args:
        scan: all slices of it, or the whole 3-D scan.
        radii: as the certificate measures a change of the whole scan.
        checked: whether such an attack is run; it needs the model's gradient.

    Returns:
        The rows; and by radius the pixels that are not abstained from, of certificates of single pixels.
    """
    draws = crc32(f"{seed}/certificate".encode())

    def lent_scan() -> Batch:
        return Batch(lent(certificate, scan.image), lent(certificate, scan.target), scan.cases)

    def bounds_of(answers: Any, of: Batch, at: Sequence[float]) -> list[Bound]:
        bounds = certificate.bounds(
            answers, Batch(lent(certificate, of.image), lent(certificate, of.target), of.cases), model, at
        )
        _check_bounds(certificate, bounds, at)
        return bounds

    observed = certificate.observe(model, lent_scan(), radii, draws, batch_size)
    bounds = bounds_of(observed, scan, radii)
    refuted: dict[float, str] = {}
    reached: dict[tuple[float, str], list[float]] = defaultdict(list)
    for radius in radii if checked else ():
        begin_stage(f"attacking {scan.cases[0].volume} within {radius:g}")
        for number, image in enumerate(_changed(certificate, model, lent_scan(), radius, draws), start=1):
            changed = Batch(image, scan.target, scan.cases)
            elsewhere = certificate.observe(model, changed, [radius], draws + number, batch_size)
            how = certificate.refuted(observed, elsewhere, lent_scan(), model, radius)
            if not isinstance(how, str):
                raise at_fault(
                    certificate,
                    f'expected a text on what refutes a bound from {part_name(certificate)}, "" for nothing, got '
                    f"{how!r:.40}; return a text",
                )
            refuted[radius] = refuted.get(radius) or how
            for bound in bounds_of(elsewhere, changed, [radius]):
                reached[radius, bound.cls].append(bound.value)
    certain = {radius: certificate.certain(observed, radius, model) for radius in radii}
    known = {radius: pixels for radius, pixels in certain.items() if pixels is not None}
    return [_row(bound, checked, refuted, reached) for bound in bounds], known


def _changed(certificate: Certificate, model: Model, scan: Batch, radius: float, seed: int) -> Iterator[Image]:
    """The scan as the certificate's own attack changes it, at least once: a bound without it was not checked."""
    untouched, number = scan.image.clone(), 0
    images = certificate.attacked(model, scan, radius, seed)
    if not isinstance(images, Iterator):
        raise at_fault(
            certificate, f"expected attacked() of {part_name(certificate)} to yield scans, got {words_of(images)}"
        )
    for image in images:
        require_like(certificate, "a changed scan", untouched, image)
        if not bool(image.isfinite().all()):
            raise at_fault(certificate, f"expected a finite changed scan from {part_name(certificate)}, got NaN in it")
        number += 1
        yield image
    if not number:
        raise at_fault(
            certificate,
            f"expected changed scans to check the bounds of {part_name(certificate)}, got none at the radius "
            f"{radius:g}; let attacked() yield one, such as the scan with noise",
        )


def _check_bounds(certificate: Certificate, bounds: Any, radii: Sequence[float]) -> None:
    """Refuses what are no bounds of the same classes at each radius.

    Raises:
        RuntimeError: they are not; an InputError, if the certificate is of somebody else's.
    """
    if not isinstance(bounds, list) or not all(isinstance(bound, Bound) for bound in bounds) or not bounds:
        got = "other things" if isinstance(bounds, list) and bounds else "none" if bounds == [] else words_of(bounds)
        raise at_fault(
            certificate, f"expected a list of Bound from {part_name(certificate)}, got {got}; return one for each class"
        )
    classes = list(dict.fromkeys(bound.cls for bound in bounds))
    if Counter((bound.radius, bound.cls) for bound in bounds) != Counter(product(radii, classes)):
        got = ", ".join(f"{bound.cls} at {bound.radius:g}" for bound in bounds)
        raise at_fault(
            certificate,
            f"expected one bound for each class and each radius of {', '.join(f'{radius:g}' for radius in radii)} from "
            f"{part_name(certificate)}, got {got}; return these",
        )
    numbers = [number for each in bounds for number in (each.clean, each.value, each.low, each.high)]
    if odd := [number for number in numbers if not isinstance(number, float | int)]:
        raise at_fault(
            certificate,
            f"expected numbers in the bounds of {part_name(certificate)}, got a {type(odd[0]).__name__}; return floats",
        )


def _contradiction(bound: Bound) -> str:
    """How the value of the untouched scan, which is within every radius, contradicts the bounds; "" for not at all."""
    slack = 1e-9 * max(1.0, abs(bound.value))  # NaN is no bound, and in no order
    if bound.value < bound.low - slack or bound.value > bound.high + slack:
        return f"the untouched scan has {bound.value:g}, outside of {bound.low:g} to {bound.high:g}"
    return ""


def _row(
    bound: Bound, checked: bool, refuted: Mapping[float, str], reached: Mapping[tuple[float, str], list[float]]
) -> dict[str, Any]:
    """A bound with the values that the attack reached, from below and from above, which may be estimates."""
    values = reached.get((bound.radius, bound.cls), [math.nan])
    ends = {"attacked_low": min(values), "attacked_high": max(values)}
    return {
        **asdict(bound),
        **ends,
        "checked": checked,
        "refuted": refuted.get(bound.radius, "") or _contradiction(bound),
    }
