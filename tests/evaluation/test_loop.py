"""The loop: rows that do not depend on batches, order, shards or being killed, and that trust no attack."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import count, groupby
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
import torch
from helpers.short_attacks import ATTACKS, cases, short
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from medseg_attack import registry
from medseg_attack.errors import InputError
from medseg_attack.evaluation import crafting, loop, outcomes
from medseg_attack.evaluation.loop import PendingRun, attack_chunk, run_attacks
from medseg_attack.metrics.scans import Bits, packed
from medseg_attack.metrics.surface import hd95_mm
from medseg_attack.models.importers.output import PickOutput
from medseg_attack.models.networks.monai import with_windows
from medseg_attack.models.segmodel import SegModel, frozen
from medseg_attack.numerics import slabs
from medseg_attack.runs.chunks import chunks
from medseg_attack.runs.folder import RunFolder
from medseg_attack.runs.rows import Row
from medseg_attack.runtime import BatchSize
from medseg_attack.types import Adversarial, Attack, Batch, Case, CaseRef, Fittable, Stack, Storage, Task, Window

TASK = Task("toy", ("a", "b"))
JUDGES_CLEAN = ("clean", "pgd", "padam", "bias_field", "spsa")  # some of the attacks that do so first


@dataclass(frozen=True)
class Toy:
    """Forty cases of two shapes."""

    reads: list[str] = field(default_factory=list)

    def refs(self) -> list[CaseRef]:
        shapes = [(16, 12) if i % 3 else (12, 16) for i in range(40)]
        return [
            CaseRef(f"p{i % 5}_{i:02d}", f"p{i % 5}_{shape[0]}", f"p{i % 5}", shape) for i, shape in enumerate(shapes)
        ]

    def read(self, ref: CaseRef) -> Case:
        self.reads.append(ref.id)
        generator = torch.Generator().manual_seed(int(ref.id[-2:]))
        image = torch.rand(1, *ref.shape, generator=generator)
        target = torch.stack([image[0] > 0.5, image[0] > 0.8])
        slices = sorted(other.id for other in self.refs() if other.volume == ref.volume)
        stack = Stack(slices.index(ref.id), len(slices), 2.0)
        return Case(ref.id, ref.volume, ref.id[:2], image, target, (1.0, 1.5), Window(0, 1), stack)


@pytest.fixture
def model() -> Iterator[SegModel]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = torch.nn.Sequential(
            torch.nn.Conv2d(1, 8, 3, padding=1),
            torch.nn.BatchNorm2d(8),
            torch.nn.ReLU(),
            torch.nn.Conv2d(8, 2, 3, padding=1),
        )
        with torch.no_grad():
            net[3].weight.mul_(8)
    model = SegModel(net, TASK)
    with frozen(model):
        yield model


def attacks(*texts: str) -> list[Attack]:
    return [registry.build(text, "attack") for text in texts]


def run_into(
    folder: Path,
    model: SegModel,
    todo: Sequence[Attack],
    *,
    data: Toy | None = None,
    refs: Sequence[CaseRef] | None = None,
    batch_size: int = 16,
    shard: tuple[int, int] = (0, 1),
) -> list[pd.DataFrame]:
    data = data or Toy()
    folders = [RunFolder.open(folder / str(i), {"attack": registry.spec(attack)}) for i, attack in enumerate(todo)]
    pairs = [PendingRun(attack, one) for attack, one in zip(todo, folders, strict=True)]
    for _ in run_attacks(model, data, pairs, refs or data.refs(), batch_size=batch_size, shard=shard):
        pass
    return [one.rows() for one in folders]


TWO = attacks("pgd(steps=3)", "noise")


def test_chunks_hold_one_shape_and_do_not_depend_on_order() -> None:
    refs = Toy().refs()
    parts = chunks(refs)
    assert parts == chunks(refs[::-1])
    assert all(len({ref.shape for ref in chunk}) == 1 and len(chunk) <= 32 for chunk in parts)
    assert len(parts) < len({ref.volume for ref in refs})
    assert sorted(ref.id for chunk in parts for ref in chunk) == sorted(ref.id for ref in refs)


def test_a_scan_is_never_cut_however_long_it_is() -> None:
    refs = [CaseRef(f"{volume}_{i:03d}", volume, volume, (8, 8)) for volume in ("a", "b", "c") for i in range(50)]
    refs += [CaseRef(f"d{n}_{i}", f"d{n}", f"d{n}", (8, 8)) for n in range(9) for i in range(10)]
    parts = chunks(refs)
    assert [len(chunk) for chunk in parts] == [50, 50, 50, 30, 30, 30]
    assert sum(len({ref.volume for ref in chunk}) for chunk in parts) == len({ref.volume for ref in refs})


def test_order_does_not_change_a_bit(tmp_path: Path, model: SegModel) -> None:
    first = run_into(tmp_path / "a", model, TWO)
    other = run_into(tmp_path / "b", model, TWO, refs=Toy().refs()[::-1])
    for one, two in zip(first, other, strict=True):
        pd.testing.assert_frame_equal(one, two, check_exact=True)


def test_shards_add_up_bit_for_bit(tmp_path: Path, model: SegModel) -> None:
    whole = run_into(tmp_path / "whole", model, TWO)
    first = RunFolder.open(tmp_path / "parts" / "0", {"attack": registry.spec(TWO[0])})
    pairs = [
        PendingRun(TWO[0], first),
        PendingRun(TWO[1], RunFolder.open(tmp_path / "parts" / "1", {"attack": registry.spec(TWO[1])})),
    ]
    assert sum(run_attacks(model, Toy(), pairs, Toy().refs(), shard=(1, 2))) < 2 * len(Toy().refs())
    assert not first.has(0)
    parts = run_into(tmp_path / "parts", model, TWO, shard=(0, 2))
    for one, two in zip(whole, parts, strict=True):
        pd.testing.assert_frame_equal(one, two, check_exact=True)


def test_a_run_goes_on_where_it_stopped(tmp_path: Path, model: SegModel) -> None:
    whole = run_into(tmp_path / "whole", model, TWO)
    folders = [RunFolder.open(tmp_path / "cut" / str(i), {"attack": registry.spec(a)}) for i, a in enumerate(TWO)]
    data = Toy()
    cut = run_attacks(model, data, [PendingRun(a, f) for a, f in zip(TWO, folders, strict=True)], data.refs())
    next(cut)
    cut.close()
    assert not folders[0].has(1)
    (folders[0].path / "parts" / ".00001.parquet.123.part").write_bytes(b"half a file")  # what a kill leaves
    again = Toy()
    resumed = run_into(tmp_path / "cut", model, TWO, data=again)
    assert len(again.reads) < len(data.refs())
    for one, two in zip(whole, resumed, strict=True):
        pd.testing.assert_frame_equal(one, two, check_exact=True)


def test_batch_size_changes_nothing_in_double(tmp_path: Path, model: SegModel) -> None:
    class Double(Toy):
        def read(self, ref: CaseRef) -> Case:
            case = super().read(ref)
            return replace(case, image=case.image.double())

    model = model.double()
    one, seven = (run_into(tmp_path / str(n), model, TWO, data=Double(), batch_size=n) for n in (1, 7))
    for left, right in zip(one, seven, strict=True):
        exact = [c for c in left if left[c].dtype != float]
        pd.testing.assert_frame_equal(left[exact], right[exact], check_exact=True)
        pd.testing.assert_frame_equal(left, right, check_exact=False, rtol=0, atol=1e-12)


def test_batch_size_changes_dice_by_less_than_a_thousandth_in_float(tmp_path: Path, model: SegModel) -> None:
    from medseg_attack.stats.scores import by_organ, pooled, scored

    tables = []
    for n in (1, 7):
        rows = run_into(tmp_path / str(n), model, TWO, batch_size=n)[0].assign(run="run")
        tables.append(by_organ(scored(pooled(rows, "volume"), "one"), "dice_adv"))
    assert (tables[0] - tables[1]).abs().to_numpy().max() < 1e-3


def test_rows_hold_the_counts_of_both_predictions(model: SegModel) -> None:
    cases = [Toy().read(ref) for ref in Toy().refs() if ref.volume == "p0_16"]
    batch = Batch.of(cases)
    (result,) = attack_chunk(model, [batch], attacks("fgsm"), metrics={"hd95_mm": hd95_mm}, keep_images=True)
    rows, images = result.rows, torch.stack(result.images)
    assert [(row.case, row.cls) for row in rows] == [(case.id, cls) for case in cases for cls in "ab"]
    clean, hit = model.decide(model(batch.image)), model.decide(model(images))
    of_scan = (mask.transpose(0, 1)[None] for mask in (hit, batch.target))
    distance = hd95_mm(*of_scan, [(2.0, 1.0, 1.5)])
    for number, row in enumerate(rows):
        i, k = divmod(number, 2)
        assert row.n_target == batch.target[i, k].sum()
        assert (row.n_clean, row.n_adv) == (clean[i, k].sum(), hit[i, k].sum())
        assert row.hit_clean == (clean & batch.target)[i, k].sum()
        assert row.hit_adv == (hit & batch.target)[i, k].sum()
        assert row.extra["hd95_mm_adv"] == pytest.approx(distance[0, k].item())
        sides = len(cases) * 2.0, *(n * mm for n, mm in zip(batch.image.shape[2:], (1.0, 1.5), strict=True))
        assert row.extra["diagonal_mm"] == pytest.approx(math.hypot(*sides))
        assert row.linf == pytest.approx(8 / 255, abs=1e-6)
        assert (row.z_mm, row.y_mm, row.x_mm) == (2.0, 1.0, 1.5)
        z, (y, x) = i * hit[i, k].sum(), hit[i, k].nonzero().sum(0)
        assert (row.z_adv, row.y_adv, row.x_adv) == (z, y, x)


def test_a_scan_that_lacks_slices_has_no_distances(model: SegModel) -> None:
    cases = [Toy().read(ref) for ref in Toy().refs() if ref.volume == "p0_16"]
    batches = [Batch.of(cases[:2]), Batch.of(cases[2:])]
    measured = {}
    for name, part in (("whole", batches), ("part", batches[:1])):
        rows = attack_chunk(model, part, attacks("clean"), metrics={"hd95_mm": hd95_mm})[0].rows
        measured[name] = [row.extra["hd95_mm_adv"] for row in rows]
    assert all(value > 0 for value in measured["whole"])
    assert all(value != value for value in measured["part"])


def test_an_image_of_no_scan_is_measured_alone(model: SegModel) -> None:
    case = replace(Toy().read(Toy().refs()[1]), stack=None)
    rows = attack_chunk(model, [Batch.of([case])], attacks("clean"), metrics={"hd95_mm": hd95_mm})[0].rows
    pred = model.decide(model(case.image[None]))
    distance = hd95_mm(pred, case.target[None], [case.spacing_mm])[0].tolist()
    assert [row.extra["hd95_mm_clean"] for row in rows] == distance
    assert rows[0].z_mm != rows[0].z_mm  # a volume in ml cannot be told


def test_an_exclusive_task_is_scored_without_its_background() -> None:
    task = Task("exclusive", ("background", "organ"), exclusive=True)
    model = SegModel(torch.nn.Conv2d(1, 2, 1), task)
    image = torch.rand(1, 6, 6)
    target = torch.stack([image[0] < 0.5, image[0] >= 0.5])
    case = Case("c", "v", "g", image, target, (1.0, 1.0), Window(0, 1))
    rows = attack_chunk(model, [Batch.of([case])], attacks("clean"))[0].rows
    assert [row.cls for row in rows] == ["organ"]


@pytest.mark.parametrize(
    ("text", "forwards", "backwards"),
    [
        ("clean", 1, 0),
        ("noise", 1, 0),
        ("fgsm", 2, 1),
        ("bim(steps=4)", 5, 4),
        ("pgd(steps=5)", 7, 5),
        ("pgd(steps=5, restarts=2)", 14, 10),
    ],
)
def test_passes_are_counted(model: SegModel, text: str, forwards: int, backwards: int) -> None:
    batch = Batch.of([Toy().read(Toy().refs()[0])])
    rows = attack_chunk(model, [batch], attacks(text))[0].rows
    assert (rows[0].forwards, rows[0].backwards) == (forwards, backwards)


def test_budgets_of_one_attack_share_a_gradient_and_are_charged_alike(model: SegModel) -> None:
    batch = Batch.of([Toy().read(Toy().refs()[0])])
    together = attack_chunk(model, [batch], attacks("fgsm(linf(1/255))", "noise", "fgsm(linf(4/255))"))
    alone = [attack_chunk(model, [batch], attacks(text))[0].rows for text in ("fgsm(linf(1/255))", "fgsm(linf(4/255))")]
    assert [str(together[0].rows), str(together[2].rows)] == [str(rows) for rows in alone]  # NaN is NaN here


@dataclass(frozen=True)
class Cheat:
    """Returns what it should not."""

    shift: float = 0.0
    ball: object = registry.build("linf(0.01)", "ball")

    def __call__(self, model: object, image: Tensor, target: Tensor, seeds: Sequence[int]) -> Adversarial:
        return Adversarial(image + self.shift, torch.ones(len(image)), torch.zeros(len(image)))


@pytest.mark.parametrize("shift", [0.02, -2.0, float("nan")])
def test_an_attack_that_leaves_its_ball_is_caught_by_name(model: SegModel, shift: float) -> None:
    batch = Batch.of([Toy().read(Toy().refs()[0])])
    with pytest.raises(InputError, match="p0_00"):
        attack_chunk(model, [batch], [Cheat(shift)])  # type: ignore[list-item]


@dataclass(frozen=True)
class InPlace(Cheat):
    """Changes what it is given."""

    part: str = "image"

    def __call__(self, model: object, image: Tensor, target: Tensor, seeds: Sequence[int]) -> Adversarial:
        if self.part == "image":
            image.add_(0.3)
        else:
            target.logical_not_()
        return super().__call__(model, image.clamp(0, 1), target, seeds)


@pytest.mark.parametrize("part", ["image", "mask"])
@pytest.mark.parametrize("n", [0, 1])
def test_an_attack_that_changes_an_image_or_a_mask_in_place_is_caught(model: SegModel, part: str, n: int) -> None:
    batch = Batch.of([Toy().read(Toy().refs()[0])]) if n else Batch.of(cases())
    with pytest.raises(InputError, match="changed in place; the attack is at fault: let it change a clone"):
        attack_chunk(model, [batch], [InPlace(part=part)])  # type: ignore[list-item]


@pytest.mark.parametrize(("value", "shift"), [(1.0, 0.005), (0.0, -0.005)])
def test_an_attack_that_leaves_the_box_is_caught_although_it_is_in_its_ball(
    model: SegModel, value: float, shift: float
) -> None:
    cases = [Toy().read(ref) for ref in Toy().refs()[:4:3]]
    image = cases[1].image.clamp(0.1, 0.9)
    inside = [replace(case, image=case.image.clamp(0.1, 0.9)) for case in cases]
    attack_chunk(model, [Batch.of(inside)], [Cheat(shift)])  # type: ignore[list-item]
    image[0, 3, 4] = value
    with pytest.raises(InputError, match=rf"within \[0, 1\].* on {cases[1].id};"):
        attack_chunk(model, [Batch.of([inside[0], replace(cases[1], image=image)])], [Cheat(shift)])  # type: ignore[list-item]


def test_an_image_without_an_answer_is_named_where_its_attack_never_asked_about_it() -> None:
    class Fragile(torch.nn.Module):
        """NaN on images that are brighter than 0.902 somewhere."""

        def forward(self, x: Tensor) -> Tensor:
            lost = torch.where(x.amax((1, 2, 3), keepdim=True) > 0.902, torch.nan, 0.0)
            return torch.cat((x - 0.5, 0.5 - x), 1) + lost

    bright, dark = (Toy().read(ref) for ref in Toy().refs()[:4:3])
    bright, dark = (replace(case, image=torch.full_like(case.image, at)) for case, at in ((bright, 0.9), (dark, 0.5)))
    batch = Batch.of([bright, dark])
    (result,) = attack_chunk(SegModel(Fragile(), TASK).eval(), [batch], [Cheat(0.005)])  # type: ignore[list-item]
    assert {(row.case, row.extra["without_answer"]) for row in result.rows} == {(bright.id, 1.0), (dark.id, 0.0)}


def test_attacks_of_different_losses_share_a_pass_and_no_gradient(model: SegModel) -> None:
    batch = Batch.of([Toy().read(Toy().refs()[0])])
    texts = [f"fgsm(linf({eps}), {loss})" for eps in ("1/255", "4/255") for loss in ("bce", "margin", "soft_dice")]
    passes = []
    handle = model.register_forward_hook(lambda *args: passes.append(1))
    together = attack_chunk(model, [batch], attacks(*texts), keep_images=True)
    handle.remove()
    assert len(passes) == 3 + len(texts)  # the untouched image, the gradients', one result is judged, all are scored
    for text, result in zip(texts, together, strict=True):
        (alone,) = attack_chunk(model, [batch], attacks(text), keep_images=True)
        assert torch.equal(result.images[0], alone.images[0])
        assert str(result.rows) == str(alone.rows)
    assert not torch.equal(together[3].images[0], together[4].images[0])


class Checkpointed(torch.nn.Module):
    """A network that computes again in its backward pass what it did not keep."""

    def __init__(self, net: torch.nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = checkpoint(self.net, x, use_reentrant=False)
        return result


@pytest.mark.filterwarnings("ignore")  # of torch's compiler and checkpoints
@pytest.mark.parametrize("kind", ["compiled", "checkpointed", "windows"])
def test_losses_share_a_pass_of_networks_that_keep_little(model: SegModel, kind: str) -> None:
    net: torch.nn.Module = {
        "compiled": lambda: PickOutput(torch.compile(model.net, backend="aot_eager"), "", 2),
        "checkpointed": lambda: Checkpointed(model.net),
        "windows": lambda: with_windows(model.net, 2, window=(8, 8), overlap=0.5, importance="gaussian", mirror=()),
    }[kind]()
    batch = Batch.of([Toy().read(Toy().refs()[0])])
    texts = [f"fgsm(linf(4/255), {loss})" for loss in ("bce", "margin", "soft_dice")]
    with frozen(SegModel(net, TASK)) as one:
        together = attack_chunk(one, [batch], attacks(*texts), keep_images=True)
        for text, result in zip(texts, together, strict=True):
            (alone,) = attack_chunk(one, [batch], attacks(text), keep_images=True)
            assert torch.equal(result.images[0], alone.images[0])


def test_scans_of_several_slabs_share_no_pass(model: SegModel, monkeypatch: pytest.MonkeyPatch) -> None:
    batch, passes = Batch.of([Toy().read(Toy().refs()[0])]), []
    monkeypatch.setattr(slabs, "SLAB", 100)
    handle = model.register_forward_hook(lambda *args: passes.append(1))
    attack_chunk(model, [batch], attacks("fgsm(linf(1/255), bce)", "fgsm(linf(1/255), margin)"))
    handle.remove()
    assert len(passes) == 6


@pytest.mark.parametrize("name", ATTACKS)
def test_the_segmentation_of_the_untouched_image_saves_a_pass_and_changes_nothing(model: SegModel, name: str) -> None:
    batch, attack, passes = Batch.of(cases()), short(name), []
    if isinstance(attack, Fittable):
        attack = attack.with_learned(attack.fit(model, [batch], seed=0))
    clean = packed(outcomes.decide(model, batch))

    def crafted(clean: list[Bits] | None) -> tuple[crafting.Crafted, int]:
        passes.clear()
        handle = model.register_forward_hook(lambda layer, args, output: passes.append(args[0].data_ptr()))
        (result,) = crafting.craft(model, batch, [attack], [None], 0, clean=clean)
        handle.remove()
        return result, len(passes)

    (one, few), (other, many) = crafted(clean), crafted(None)
    assert torch.equal(one.image, other.image)
    assert one.cost == other.cost
    assert few < many if name in JUDGES_CLEAN else few <= many


def test_a_model_that_is_bound_to_its_cases_is_asked_again(model: SegModel) -> None:
    """It may draw, and what it drew for its score is not for the attack."""
    batch, seen = Batch.of(cases()), []

    @dataclass
    class Bound:
        task: Task = TASK

        def __call__(self, image: Tensor) -> Tensor:
            seen.append(torch.equal(image, batch.image))
            result: Tensor = model(image)
            return result

        def decide(self, log_odds: Tensor) -> Tensor:
            return model.decide(log_odds)

        def bind(self, setting: object) -> "Bound":
            return Bound()

    attack_chunk(Bound(), [batch], attacks("pgd(linf(4/255), steps=2)"))
    assert sum(seen) == 2


@pytest.mark.parametrize("text", ["noise", "pgd(steps=1)"])
def test_another_seed_is_another_attack_and_so_is_another_case(tmp_path: Path, model: SegModel, text: str) -> None:
    case = Toy().read(Toy().refs()[0])
    twin = replace(case, id="other")
    images = [
        attack_chunk(model, [Batch.of([case, twin])], attacks(text), seed=seed, keep_images=True)[0].images
        for seed in (0, 1, 0)
    ]
    assert torch.equal(images[0][0], images[2][0])
    assert not torch.equal(images[0][0], images[1][0])
    assert not torch.equal(images[0][0], images[0][1])
    rows = []
    for seed in (0, 1):
        folder = RunFolder.open(tmp_path / str(seed), {"seed": seed})
        list(run_attacks(model, Toy(), [PendingRun(attacks(text)[0], folder)], Toy().refs()[:4], seed=seed))
        rows.append(folder.rows())
    assert not rows[0].equals(rows[1])


def test_a_model_that_returns_nan_is_caught_by_case(model: SegModel) -> None:
    broken = SegModel(torch.nn.Conv2d(1, 2, 1), TASK)
    with torch.no_grad():
        broken.net.weight.fill_(float("nan"))  # type: ignore[union-attr]
    with pytest.raises(InputError, match=r"finite log-odds.*p0_00"):
        attack_chunk(broken, [Batch.of([Toy().read(Toy().refs()[0])])], attacks("clean"))


def test_a_row_has_no_clock() -> None:
    assert not {"seconds", "time"} & set(Row.__annotations__)


@pytest.mark.parametrize("storage", [None, Storage(torch.arange(192).view(1, 16, 12))])
def test_copies_of_one_channel_are_attacked_and_measured_one_by_one(storage: Storage | None) -> None:
    """An attack on three copies of a grey channel returns three, which no file holds, around the channel that was."""
    case = replace(Toy().read(Toy().refs()[1]), storage=storage)
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 2, 1))
    attack = registry.build("fgsm_wang2024(blend(0.02), channels=3)", "attack")
    (result,) = attack_chunk(SegModel(net, TASK, in_channels=3).eval(), [Batch.of([case])], [attack], keep_images=True)
    (image,) = result.images
    assert image.shape == (3, 16, 12)
    assert result.rows[0].linf == pytest.approx((image - case.image).abs().max().item())
    assert 0 < result.rows[0].size <= 0.04


def test_pixels_that_a_patch_covers_are_in_no_count_the_clean_ones_among_them(model: SegModel) -> None:
    data = Toy()
    cases = [data.read(ref) for ref in data.refs()[:1]]
    batch = Batch.of(cases)
    (attack,) = attacks("patch(area(0.1), steps=0)")
    (result,) = attack_chunk(model, [batch], [attack], keep_images=True)
    covered = attack.ball.covered(result.images[0][None], batch.image)[0, 0]
    assert 0 < covered.sum() < covered.numel() / 2
    with torch.no_grad():
        clean = model.decide(model(batch.image))[0] & ~covered
        adv = model.decide(model(result.images[0][None]))[0] & ~covered
    target = batch.target[0] & ~covered
    for k, row in enumerate(result.rows):
        assert (row.n_target, row.n_clean, row.n_adv) == (target[k].sum(), clean[k].sum(), adv[k].sum())
        assert (row.hit_clean, row.hit_adv) == ((target & clean)[k].sum(), (target & adv)[k].sum())
        assert row.n_target_adv == row.n_target


def test_seconds_of_an_attack_are_those_of_its_batches_alone(model: SegModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a clock that ticks once whenever it is read."""
    ticks = count()
    monkeypatch.setattr(crafting, "time", SimpleNamespace(perf_counter=lambda: float(next(ticks))))
    cases = [Toy().read(ref) for ref in Toy().refs() if ref.volume == "p0_16"]
    results = attack_chunk(model, [Batch.of(cases[:1]), Batch.of(cases[1:])], TWO)
    assert [result.seconds for result in results] == [2.0, 2.0]
    monkeypatch.setattr(crafting, "wait_for", lambda device: next(ticks))  # which is part of it
    (result,) = attack_chunk(model, [Batch.of(cases)], TWO[:1])
    assert result.seconds == 2.0
    assert [result.images for result in results] == [[], []]


def test_a_chunk_says_how_long_it_took_and_a_batch_that_memory_is_short_of_is_made_again(
    tmp_path: Path, model: SegModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    ticks, noted, sizes = count(), list[tuple[int, float]](), list[int]()
    real_chunk, real_note = loop.attack_chunk, BatchSize.note

    def chunk(model: SegModel, batches: Sequence[Batch], *words: Any, **more: Any) -> Any:
        sizes.append(max(len(batch.cases) for batch in batches))
        if sizes[-1] > 4:
            raise MemoryError
        return real_chunk(model, batches, *words, **more)

    def note(size: BatchSize, cases: int, seconds: float) -> None:
        noted.append((cases, seconds))
        real_note(size, cases, seconds)

    monkeypatch.setattr(loop, "time", SimpleNamespace(perf_counter=lambda: float(next(ticks))))
    monkeypatch.setattr(loop, "attack_chunk", chunk)
    monkeypatch.setattr(BatchSize, "note", note)
    folder = RunFolder.open(tmp_path / "run", {"seed": 0})
    refs = Toy().refs()
    assert list(run_attacks(model, Toy(), [PendingRun(TWO[1], folder)], refs, batch_size=None)) == [
        len(chunk) for chunk in chunks(refs)
    ]
    assert noted == [(len(chunk), 1.0) for chunk in chunks(refs)]
    assert sizes[0] > 4
    assert sizes[-1] <= 4
    assert set(folder.batch_sizes) <= {1, 2, 3, 4}
    with pytest.raises(MemoryError):
        list(run_attacks(model, Toy(), [PendingRun(TWO[0], RunFolder.open(tmp_path / "a", {"a": 1}))], refs))


def test_slices_of_a_volume_are_in_one_batch_where_they_fit_and_parts_of_others_are_almost_equal() -> None:
    def refs(*lengths: int) -> list[CaseRef]:
        return [CaseRef(f"{v}_{i}", str(v), "p", (4, 4)) for v, n in enumerate(lengths) for i in range(n)]

    def sizes(cases: Sequence[CaseRef], size: int) -> list[list[tuple[str, int]]]:
        batches = loop.in_batches(cases, size)
        assert [ref for batch in batches for ref in batch] == list(cases)
        return [[(v, len(list(group))) for v, group in groupby(batch, lambda ref: ref.volume)] for batch in batches]

    assert sizes(refs(3, 2, 2, 4), 5) == [[("0", 3), ("1", 2)], [("2", 2)], [("3", 4)]]
    assert sizes(refs(2, 11, 1), 5) == [[("0", 2), ("1", 3)], [("1", 4)], [("1", 4), ("2", 1)]]
    assert sizes(refs(5, 5), 5) == [[("0", 5)], [("1", 5)]]
    assert sizes(refs(2), 1) == [[("0", 1)], [("0", 1)]]


def test_where_no_seed_is_said_it_is_0(tmp_path: Path, model: SegModel) -> None:
    batch = Batch.of([Toy().read(ref) for ref in Toy().refs()[:4:3]])
    images = [
        attack_chunk(model, [batch], attacks("noise"), keep_images=True, **more)[0].images[0]
        for more in ({}, {"seed": 0}, {"seed": 1})
    ]
    assert torch.equal(images[0], images[1])
    assert not torch.equal(images[0], images[2])
    with torch.no_grad():
        clean = packed(model.decide(model(batch.image)))
    changed = [
        next(outcomes.attack_batch(model, batch, clean, attacks("noise"), [None], **more)).crafted.image
        for more in ({}, {"seed": 0})
    ]
    assert torch.equal(*changed)
    assert torch.equal(changed[0][0], images[0])
    tables = []
    for more in ({}, {"seed": 0}):
        folder = RunFolder.open(tmp_path / str(len(tables)), more)
        list(run_attacks(model, Toy(), [PendingRun(TWO[1], folder)], Toy().refs()[:4], **more))
        tables.append(folder.rows())
        assert folder.batch_sizes == [16]
    pd.testing.assert_frame_equal(*tables, check_exact=True)
