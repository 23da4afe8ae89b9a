"""A certificate of a data set: which scans it is of, its rows beside an attack's, and going on where it stopped."""

import itertools
import json
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar
from unittest.mock import Mock, patch

import numpy as np
import pytest
import torch
from helpers import blobs
from jaxtyping import Bool
from PIL import Image as Pictures
from torch import Tensor

from medseg_attack.certificates.base import Bound, Certificate
from medseg_attack.data.prepared.reading import Prepared
from medseg_attack.errors import InputError
from medseg_attack.evaluation import certifying
from medseg_attack.evaluation.certifying import Certification, certified, certify, require_log_odds
from medseg_attack.evaluation.pictures.abstained import abstained_picture
from medseg_attack.models.model_ref import ModelRef
from medseg_attack.models.segmodel import SegModel, frozen
from medseg_attack.storage.locks import locked
from medseg_attack.types import Batch, CaseRef, Image, Model, Phase, Task, Window

CPU = torch.device("cpu")
SIDE = 4


@dataclass(frozen=True)
class Sums(Certificate):
    """The sum of a scan, which a change within r may move by 10 r; an attack adds r to each pixel, or takes it away."""

    phases: bool = False
    asked: list[Any] = field(default_factory=list, compare=False)
    sizes: list[int] = field(default_factory=list, compare=False)

    quantity: ClassVar[str] = "ml"
    promise: ClassVar[str] = "All."

    @property
    def needs_phases(self) -> bool:  # type: ignore[override]
        return self.phases

    @property
    def weights_hash(self) -> str:
        return "w"

    @property
    def default_radii(self) -> tuple[float, ...]:
        return (1.0,)

    def passes(self, shape: tuple[int, ...], radii: Sequence[float]) -> int:
        return shape[0] * len(radii)

    def require(self, radius: float, task: Task, shapes: Sequence[tuple[int, ...]]) -> None:
        self.asked.append((radius, tuple(shapes)))
        if radius > 5:
            raise InputError("expected a radius of 5 at most, got more; take less")

    def observe(self, model: Model, scan: Batch, radii: Sequence[float], seed: int, batch_size: int) -> Any:
        self.asked.append((seed, tuple(radii), batch_size))
        self.sizes.append(len(scan.cases))
        return float(scan.image.sum())

    def bounds(self, observed: Any, scan: Batch, model: Model, radii: Sequence[float]) -> list[Bound]:
        case = scan.cases[0]
        ends = {"clean": observed, "value": observed}
        return [
            Bound(
                case.volume,
                case.group,
                "round",
                radius,
                low=observed - 10 * radius,
                high=observed + 10 * radius,
                **ends,
            )
            for radius in radii
        ]

    def certain(self, observed: Any, radius: float, model: Model) -> Bool[Tensor, "b *s"] | None:
        return None if radius == 2 else torch.ones(self.sizes[0], SIDE, SIDE).bool()

    def attacked(self, model: Model, scan: Batch, radius: float, seed: int) -> Iterator[Image]:
        self.asked.append(("attack", seed))
        yield scan.image + radius
        yield scan.image - radius

    def refuted(self, observed: Any, elsewhere: Any, scan: Batch, model: Model, radius: float) -> str:
        return f"{elsewhere - observed:g}" if radius >= 1 and elsewhere > observed else ""


class Pointwise(torch.nn.Module):
    def __init__(self, scale: float = 20.0) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat((self.scale * (x - 0.5), self.scale * (0.5 - x)), 1)


def scan_of(name: str, value: float) -> Batch:
    cases = [
        replace(
            blobs.case(n),
            id=f"{name}_{n}",
            volume=name,
            group=name[:2],
            image=torch.full((1, SIDE, SIDE), value + n / 100),
            target=torch.ones(2, SIDE, SIDE).bool(),
        )
        for n in range(2)
    ]
    return Batch.of(cases)


def refs_of(names: str, phases: Sequence[Phase] = ("",)) -> list[CaseRef]:
    """Two slices of each scan, the later one first."""
    return [
        CaseRef(f"{name}_{n}", name, name[:2], (SIDE, SIDE), n, phases[k % len(phases)])
        for k, name in enumerate(names.split())
        for n in (1, 0)
    ]


@pytest.fixture
def todo(tmp_path: Path) -> Callable[..., Certification]:
    def build(names: str = "pb_a pa_a pc_a", phases: Sequence[Phase] = ("",), **more: Any) -> Certification:
        ref = Mock(ModelRef, label="m", weights_hash="h", black_box=False, prompt="")
        ref.errors_named.side_effect = nullcontext
        ref.load.return_value = SegModel(Pointwise(), blobs.TASK).eval()
        data = Mock(
            Prepared,
            task=blobs.TASK,
            root=tmp_path / "data",
            sources=(tmp_path / "scans",),
            fingerprint="f",
            window=lambda ref: Window(0.0, 1.0, "HU"),
            read=lambda ref: scan_of(ref.volume, 0.3).cases[ref.index],
        )
        data.name = "toy"
        facts: dict[str, Any] = {"radii": (1.0, 2.0), "checked": 2, "seed": 7, "out": tmp_path / "out"} | more
        certificate = facts.pop("certificate", Sums())
        return Certification(certificate, ref, data, refs_of(names, phases), **facts)

    return build


@pytest.fixture(autouse=True)
def named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(certifying.registry, "spec", lambda part: "sums")


def test_scans_are_whole_in_their_order_and_passes_are_those_of_all_slices(todo: Callable[..., Certification]) -> None:
    plain = todo()
    assert [[ref.id for ref in scan] for scan in plain.scans] == [
        [f"{name}_0", f"{name}_1"] for name in ("pa_a", "pb_a", "pc_a")
    ]
    assert plain.forwards == 3 * 2 * SIDE * 2
    assert plain.unit == "HU"
    refs = [CaseRef("p", "p", "p", (2, 4, 4)), CaseRef("q", "q", "q", (3, 4, 4))]
    assert replace(plain, refs=refs[::-1]).forwards == (2 + 3) * 2


def test_the_unit_is_one_that_all_scans_have(todo: Callable[..., Certification]) -> None:
    plain = todo()
    for units, unit in ((("HU", "HU", "HU"), "HU"), (("", "HU", "HU"), ""), (("HU", "HU", ""), "")):
        of_scan = dict(zip(("pb_a", "pa_a", "pc_a"), units, strict=True))
        with patch.object(plain.data, "window", lambda ref, units=of_scan: Window(0.0, 1.0, units[ref.volume])):
            assert plain.unit == unit


def test_phases_of_a_patient_go_together_if_there_is_one_of_each(todo: Callable[..., Certification]) -> None:
    both = todo("pb_2 pb_1 pa_1 pa_2 pc_1 pd_1 pd_2 pd_3", ("ES", "ED"), certificate=Sums(phases=True))
    assert [[ref.id for ref in pair] for pair in both.scans] == [
        ["pa_2_0", "pa_2_1", "pa_1_0", "pa_1_1"],
        ["pb_1_0", "pb_1_1", "pb_2_0", "pb_2_1"],
    ]
    with pytest.raises(InputError, match="end diastole and end systole"):
        todo("pa_1 pb_1", ("ES", "ED"), certificate=Sums(phases=True)).require()


def test_what_determines_the_rows_does_not_depend_on_the_order_of_cases(todo: Callable[..., Certification]) -> None:
    plain = todo()
    config = plain.config
    assert {name: config[name] for name in ("data", "weights", "certificate_weights", "radii", "checked", "seed")} == {
        "data": "f",
        "weights": "h",
        "certificate_weights": "w",
        "radii": [1.0, 2.0],
        "checked": 2,
        "seed": 7,
    }
    assert config["certificate"] == "sums"
    assert config["certificate_version"] == 3
    assert replace(plain, refs=plain.refs[::-1]).config == config
    assert replace(plain, refs=plain.refs[:-1]).config["cases"] != config["cases"]


def test_a_radius_is_asked_of_scans_of_each_shape(todo: Callable[..., Certification], tmp_path: Path) -> None:
    plain = todo()
    plain.require()
    shape = ((SIDE, SIDE), (SIDE, SIDE))
    assert plain.certificate.asked == [(1.0, shape), (2.0, shape)]  # type: ignore[attr-defined]
    with pytest.raises(InputError, match="expected a radius of 5"):
        replace(plain, radii=(1.0, 6.0)).require()
    with pytest.raises(InputError, match="expected cases to certify"):
        replace(plain, refs=()).require()
    with pytest.raises(InputError, match="scans"):
        replace(plain, out=tmp_path / "scans" / "out").require()


def test_rows_hold_bounds_and_what_the_attack_reached_on_either_side(todo: Callable[..., Certification]) -> None:
    certificate, scan = Sums(), scan_of("pa_a", 0.3)
    total = 16 * 0.3 + 16 * 0.31
    model = SegModel(Pointwise(), blobs.TASK).eval()
    rows, certain = certified(certificate, model, scan, (0.5, 1.0, 2.0), seed=3, batch_size=5)
    assert list(certain) == [0.5, 1.0]
    assert [row["radius"] for row in rows] == [0.5, 1.0, 2.0]
    for row, refuted in zip(rows, ("", "32", "64"), strict=True):
        radius = row["radius"]
        assert (row["checked"], row["refuted"]) == (True, refuted)
        assert row["attacked_low"] == pytest.approx(total - 32 * radius, rel=1e-5)
        assert row["attacked_high"] == pytest.approx(total + 32 * radius, rel=1e-5)
        (bound,) = certificate.bounds(float(scan.image.sum()), scan, model, [radius])
        assert {name: row[name] for name in asdict(bound)} == pytest.approx(asdict(bound), nan_ok=True)
    first, *others = certificate.asked
    draws = first[0]
    assert first == (draws, (0.5, 1.0, 2.0), 5)
    expected = [(("attack", draws), (draws + 1, (r,), 5), (draws + 2, (r,), 5)) for r in (0.5, 1.0, 2.0)]
    assert others == [call for calls in expected for call in calls]
    other = Sums()
    certified(other, model, scan, (1.0,), seed=4, checked=False)
    assert other.asked[0][0] != draws
    assert len(other.asked) == 1
    silent, zero = Sums(), Sums()
    (row,), _ = certified(silent, model, scan, (1.0,), checked=False)
    certified(zero, model, scan, (1.0,), seed=0, batch_size=16, checked=False)
    assert silent.asked == zero.asked
    assert (row["checked"], row["refuted"]) == (False, "")
    assert math.isnan(row["attacked_low"])
    assert math.isnan(row["attacked_high"])


def test_seconds_are_those_of_each_scan_and_shards_share_a_folder_of_their_own(
    todo: Callable[..., Certification], monkeypatch: pytest.MonkeyPatch
) -> None:
    ticks, locks = itertools.count(5), list[bool]()
    monkeypatch.setattr(certifying, "time", SimpleNamespace(perf_counter=lambda: float(next(ticks))))
    real = certifying.locked
    monkeypatch.setattr(
        certifying, "locked", lambda folder, *, shared: (locks.append(shared), real(folder, shared=shared))[1]
    )
    whole = todo()
    list(certify(whole, CPU))
    assert json.loads((whole.out / "run.json").read_text())["seconds"] == 3.0  # of three scans
    assert locks == [True]
    other = todo(out=whole.out.parent / "other")
    other.out.mkdir()
    (other.out / "notes.txt").touch()
    with pytest.raises(InputError, match=r"to be new or to hold this certificate, got .*notes.txt"):
        list(certify(other, CPU))


def test_scans_of_a_shard_are_certified_once_and_the_last_shard_writes_the_header(
    todo: Callable[..., Certification],
) -> None:
    whole = todo(checked=2)
    assert list(certify(whole, CPU, batch_size=3, shard=(1, 2))) == [1]
    assert not (whole.out / "run.json").exists()
    assert [file.name for file in sorted((whole.out / "parts").iterdir())] == ["00001.parquet"]
    before = (whole.out / "parts" / "00001.parquet").stat().st_mtime_ns
    assert list(certify(whole, CPU, batch_size=3)) == [1, 1, 1]
    assert (whole.out / "parts" / "00001.parquet").stat().st_mtime_ns == before
    folder = certifying.RunFolder(whole.out)
    rows = folder.rows()
    assert rows["volume"].tolist() == ["pa_a", "pa_a", "pb_a", "pb_a", "pc_a", "pc_a"]
    assert rows["checked"].tolist() == [True, True, True, True, False, False]
    assert folder.batch_sizes == [3]
    header = json.loads((whole.out / "run.json").read_text())
    facts = {"model": "m", "data": "toy", "unit": "HU", "device": "cpu", "partial": False}
    assert {name: header[name] for name in facts} == facts
    assert header["seconds"] == folder.seconds
    assert "prompt" not in header
    assert header["flags"]  # the attack refuted some bounds
    assert header["versions"]
    assert header["provenance"]
    pictures = sorted(file.name for file in (whole.out / "maps").iterdir())
    assert [name.split("-")[0] for name in pictures] == ["pa_a", "pb_a", "pc_a"]
    assert all(name.endswith("-r1.png") for name in pictures)


def test_a_scan_of_one_case_has_a_map(todo: Callable[..., Certification]) -> None:
    one = todo("pa_a", checked=0)
    list(certify(replace(one, refs=one.refs[1:]), CPU))
    assert len(list((one.out / "maps").iterdir())) == 1


def test_a_model_of_which_nothing_can_be_certified_is_refused_before_a_folder_is_begun(
    todo: Callable[..., Certification], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Sums, "needs_repeats", True)
    monkeypatch.setattr(SegModel, "is_random", True)
    plain = todo()
    with pytest.raises(InputError, match="expected a model that answers the same twice for sums"):
        list(certify(plain, CPU))
    monkeypatch.undo()
    with pytest.raises(InputError, match="expected a radius of 5 at most"):
        list(certify(replace(plain, radii=(6.0,)), CPU))
    assert not (plain.out / "config.json").exists()


def test_names_of_maps_differ_where_a_file_system_would_not_tell_them_apart() -> None:
    names = {certifying._map_name(volume, radius) for volume in ("a/b", "a:b", "a" * 200) for radius in (0.5, 1.0)}
    assert len(names) == 6
    assert all(len(name) < 110 for name in names)
    assert {name.rpartition("-")[2] for name in names} == {"r0.5.png", "r1.png"}


def test_a_black_box_is_not_checked_and_a_prompt_is_told(todo: Callable[..., Certification]) -> None:
    boxed = todo("pa_a", checked=9, partial=True)
    boxed.model_ref.black_box, boxed.model_ref.prompt = True, "a box"  # type: ignore[misc]
    list(certify(boxed, CPU))
    assert not certifying.RunFolder(boxed.out).rows()["checked"].any()
    header = json.loads((boxed.out / "run.json").read_text())
    assert (header["prompt"], header["partial"]) == ("a box", True)


@pytest.mark.parametrize("case", ["new", "rows", "old", "beside"])
def test_what_fails_before_any_row_leaves_nothing_behind_where_nobody_else_is(
    todo: Callable[..., Certification], monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    broken = todo()
    real, left = certifying.certified, [case == "rows"]

    def failing(*words: Any, **more: Any) -> Any:
        if not left.pop():
            raise InputError("expected a, got b; do c")
        left.append(False)
        return real(*words, **more)

    if case == "old":
        certifying.RunFolder.open(broken.out, broken.config)
    monkeypatch.setattr(certifying, "certified", failing)
    broken.out.mkdir(exist_ok=True)
    if case == "beside":
        with locked(broken.out, shared=True), pytest.raises(InputError, match="expected a"):
            list(certify(broken, CPU))
    else:
        with pytest.raises(InputError, match="expected a"):
            list(certify(broken, CPU))
    assert (broken.out / "config.json").exists() == (case != "new")
    assert not (broken.out / "run.json").exists()


@pytest.mark.parametrize(("spread", "refused"), [(1.4, False), (1.6, True), (1.0, False)])
def test_answers_of_exclusive_classes_look_like_probabilities_where_some_pixel_is_nearly_sure(
    spread: float, refused: bool
) -> None:
    class Probable(torch.nn.Module):
        """Log-odds within [-spread / 2, spread / 2] of two classes, which sum to 0."""

        def forward(self, x: Tensor) -> Tensor:
            return torch.cat(((1 + spread * (x - 0.5)) / 2, (1 - spread * (x - 0.5)) / 2), 1)

    task = Task("toy", ("background", "organ"), exclusive=True)
    image = torch.linspace(0, 1, 16).view(1, SIDE, SIDE)
    case = replace(blobs.case(0), image=image, target=torch.stack((image[0] < 0.5, image[0] >= 0.5)))
    with frozen(SegModel(Probable(), task, head="softmax").eval()) as model:
        if refused:
            with pytest.raises(InputError, match="expected log-odds of the model on"):
                require_log_odds(model, Batch.of([case]))
        else:
            require_log_odds(model, Batch.of([case]))


def test_a_map_is_orange_where_the_certificate_abstains_in_slices_side_by_side(tmp_path: Path) -> None:
    """Five slices in two rows of three."""
    images = [torch.full((2, 2, 3), n / 10) for n in range(5)]
    cases = [replace(blobs.case(n), image=image, target=torch.ones(2, 2, 3).bool()) for n, image in enumerate(images)]
    for case in cases:
        case.image[1] = 0.9  # of another channel
    certain = torch.ones(5, 2, 3).bool()
    certain[4, 1, 2] = False
    scan = Batch.of(cases)
    page = abstained_picture(scan, certain)
    expected = np.zeros((4, 9, 3), np.uint8)
    for n in range(5):
        row, column = divmod(n, 3)
        expected[2 * row : 2 * row + 2, 3 * column : 3 * column + 3] = round(255 * n / 10)
    expected[3, 5] = np.round(255 * (0.4 * 0.4 + 0.6 * np.array([0.90, 0.45, 0.0])))
    np.testing.assert_array_equal(page, expected)
    whole = replace(cases[0], image=torch.stack(images, 1), target=torch.ones(2, 5, 2, 3).bool())
    np.testing.assert_array_equal(abstained_picture(Batch.of([whole]), certain[None]), expected)
    certifying.draw_abstained(scan, certain, tmp_path / "map.png")
    np.testing.assert_array_equal(np.asarray(Pictures.open(tmp_path / "map.png")), expected)
    image = replace(cases[0], image=torch.full((2, 2, 3), 1.5))
    assert (abstained_picture(Batch.of([image]), certain[:1]) == 255).all()
