"""Every registered certificate: closed forms, repeatable draws, and an attack that finds a bound that is false."""

import itertools
import json
import math
from collections.abc import Iterator
from dataclasses import replace
from html import unescape
from pathlib import Path

import pytest
import torch
from helpers import blobs
from helpers.certified import EXCLUSIVE, FREE, ONE, SHORT, build, constant, model_of, radii_of, scan_of, task_of
from helpers.command import medattack
from helpers.pages import chart_points, nan, page_of, section, tables
from helpers.runs import dice_of, write_run
from scipy.stats import binom, norm

from medseg_attack import registry
from medseg_attack.certificates.base import NORM
from medseg_attack.certificates.entries import information
from medseg_attack.certificates.smoothing import segcertify
from medseg_attack.certificates.smoothing.hierarchical import Hierarchical
from medseg_attack.certificates.smoothing.segcertify import SegCertify, Votes
from medseg_attack.errors import InputError
from medseg_attack.evaluation.certifying import require_log_odds
from medseg_attack.evaluation.pictures.abstained import abstained_picture
from medseg_attack.models.segmodel import SegModel, frozen
from medseg_attack.numerics.samples import length
from medseg_attack.report.sheet import between, number
from medseg_attack.types import Batch, Case, Task, Window

CERTIFICATES = registry.names("certificate")
PLAIN = [
    name for name in CERTIFICATES if name not in (*EXCLUSIVE, "ejection_fraction", "lipschitz")
]  # any data set will do


PIXELWISE = ("segcertify", "hierarchical", "demasked", "lipschitz")


def draws_noise(name: str) -> bool:
    return name not in ("demasked", "lipschitz")


@pytest.mark.parametrize("name", CERTIFICATES)
class TestCertificate:
    def test_the_same_seed_gives_the_same_bounds_whatever_the_batch(self, name: str) -> None:
        certificate, batch = build(name), scan_of(name)
        radii = radii_of(name)[:2]
        with frozen(model_of(name)) as model:
            results = [
                certificate.bounds(certificate.observe(model, batch, radii, seed, size), batch, model, radii)
                for seed, size in ((1, 32), (1, 2), (2, 32))
            ]
        assert repr(results[0]) == repr(results[1])
        assert repr(results[0]) != repr(results[2]) or name in ("segcertify", "demasked", "hierarchical", "lipschitz")

    def test_a_wider_radius_bounds_less(self, name: str) -> None:
        certificate, batch = build(name), scan_of(name)
        with frozen(model_of(name)) as model:
            observed = certificate.observe(model, batch, radii_of(name), 1, 32)
            bounds = certificate.bounds(observed, batch, model, radii_of(name))
        for cls in blobs.TASK.classes:
            of_class = [bound for bound in bounds if bound.cls == cls]
            lows = [bound.low for bound in of_class]
            if name == "demasked":  # strips for wider patches stand elsewhere
                assert max(lows) == lows[0]
            else:
                assert lows == sorted(lows, reverse=True)
            if certificate.quantity in ("ml", "%"):
                assert [bound.high for bound in of_class] == sorted(bound.high for bound in of_class)
            assert all(bound.low <= bound.value + 1e-12 for bound in of_class)

    @pytest.mark.parametrize("exclusive", [False, True])
    def test_a_model_that_never_changes_its_answer_is_certified_in_full(self, name: str, exclusive: bool) -> None:
        answer = torch.zeros(3 if exclusive else 2, 6, 5, dtype=torch.bool)
        answer[-1, 2:4], answer[0] = True, False
        if exclusive:
            answer[0] = ~answer.any(0)
        if task_of(name).exclusive > exclusive:
            pytest.skip(f"{name} is of classes that exclude each other")
        model, batch = constant(answer, exclusive)
        certificate = build(name)
        radius = radii_of(name)[1]
        observed = certificate.observe(model, batch, [radius], 1, 8)
        (bound,) = (bound for bound in certificate.bounds(observed, batch, model, [radius]) if bound.cls == "square")
        if name == "ejection_fraction":
            assert bound.low == bound.high == bound.value == 0
        elif certificate.quantity == "ml":
            assert bound.low == bound.high == bound.value == pytest.approx(2 * 10 * 10.0 / 1000)
        elif name in ("segcertify", "demasked", "hierarchical", "lipschitz"):
            assert bound.low == 1.0
            assert bound.abstained == 0.0
            assert bound.n_target == bound.n_certified == bound.hit_certified == 20
        else:
            perfect = 1 - 7 * math.log(2 / (0.01 / len(model.task.scored))) / (3 * 59)
            assert bound.low == pytest.approx(norm.cdf(norm.ppf(perfect) - 0.2))
        assert bound.pixels == 60
        assert bound.width == 100
        if certificate.quantity == "Dice":  # that of an organ without a pixel is 1
            (empty,) = (b for b in certificate.bounds(observed, batch, model, [radius]) if b.cls == "round")
            assert empty.clean == empty.value == bound.value == 1.0
            assert empty.low == bound.low
        others = certificate.observe(model, batch, [radius], 2, 8)
        assert certificate.refuted(observed, others, batch, model, radius) == "", "what reaches a bound is within it"

    def test_the_plain_value_is_that_of_the_model_as_it_is(self, name: str) -> None:
        """Also where something stands in front of the model: no noise, no denoiser."""
        certificate, batch = build(name), scan_of(name)
        with frozen(model_of(name)) as model:
            radius = radii_of(name)[1]
            bounds = certificate.bounds(certificate.observe(model, batch, [radius], 1, 32), batch, model, [radius])
            with torch.no_grad():
                mask = model.decide(model(batch.image))
        for bound in bounds:
            k = model.task.classes.index(bound.cls)
            own, truth = mask[:, k], batch.target[:, k]
            pixels = own.flatten(1).sum(1)
            expected = {
                "Dice": 2 * int((own & truth).sum()) / int(own.sum() + truth.sum()),
                "ml": int(pixels.sum()) * 1.0 * 1.0 * 2.0 / 1000,  # millimetres
                "%": 100 * (1 - float(pixels[len(pixels) // 2 :].sum() / pixels[: len(pixels) // 2].sum())),
            }
            assert bound.clean == pytest.approx(expected[certificate.quantity], rel=1e-6)

    def test_an_interval_is_attacked_from_both_sides(self, name: str) -> None:
        certificate, batch = build(name), scan_of(name)
        if certificate.quantity not in ("ml", "%"):
            pytest.skip("it is bounded from below alone")
        with frozen(model_of(name)) as model:
            images = [batch.image, *certificate.attacked(model, batch, 2.0, 1)]
            each = [certificate.observe(model, Batch(x, batch.target, batch.cases), [0.02], 1, 32) for x in images]
            values = [sum(bound.clean for bound in certificate.bounds(seen, batch, model, [0.02])) for seen in each]
        assert min(values) < values[0] < max(values)

    def test_each_case_is_passed_as_often_as_the_plan_says(self, name: str) -> None:
        certificate, batch, model = build(name), scan_of(name), model_of(name)
        seen: list[int] = []
        with frozen(model), model.register_forward_hook(lambda net, inputs, answer: seen.append(len(inputs[0]))):
            certificate.observe(model, batch, radii_of(name)[1:], 1, 32)
        assert sum(seen) == len(batch.cases) * certificate.passes(tuple(batch.image.shape[2:]), radii_of(name)[1:])

    def test_nothing_changes_within_the_radius_0(self, name: str) -> None:
        with frozen(model_of(name)) as model:
            (scan,) = {tuple(x.flatten().tolist()) for x in build(name).attacked(model, scan_of(name), 0.0, 1)}
        assert scan == tuple(scan_of(name).image.flatten().tolist())

    def test_the_map_shows_the_share_that_the_table_says(self, name: str) -> None:
        certificate, batch = build(name), scan_of(name)
        with frozen(model_of(name)) as model:
            observed = certificate.observe(model, batch, radii_of(name), 1, 32)
            for radius in radii_of(name):
                certain = certificate.certain(observed, radius, model)
                first = certificate.bounds(observed, batch, model, [radius])[0]
                if name not in PIXELWISE:
                    assert certain is None
                    assert math.isnan(first.abstained)
                    assert first.n_target == first.n_certified == first.hit_certified == -1
                    continue
                assert certain is not None
                share = 1 - certain.double().mean().item()
                of_entries = len(model.task.classes) if not model.task.exclusive else 1
                assert first.abstained - 1e-9 <= share <= of_entries * first.abstained + 1e-9
                picture = abstained_picture(batch, certain).reshape(-1, 3).astype(int)
                coloured = (picture[:, 0] != picture[:, 2]).sum()
                assert coloured == int((~certain).sum())

    def test_an_attack_within_the_radius_does_not_refute_it(self, name: str) -> None:
        certificate, batch = build(name), scan_of(name, 2)
        with frozen(model_of(name)) as model:
            radius = radii_of(name)[2]
            observed = certificate.observe(model, batch, [radius], 1, 32)
            for x in certificate.attacked(model, batch, radius, 1):
                if certificate.measure == NORM:
                    assert length((x - batch.image).unsqueeze(0)).item() <= radius * (1 + 1e-5)
                elsewhere = certificate.observe(model, Batch(x, batch.target, batch.cases), [radius], 2, 32)
                assert certificate.refuted(observed, elsewhere, batch, model, radius) == ""

    def test_a_false_bound_is_refuted(self, name: str) -> None:
        """What is certified at a small radius does not hold for a change that is much larger."""
        certificate, batch = build(name, **({"draws": 100} if draws_noise(name) else {})), scan_of(name, 2)
        claimed, radius = {"demasked": (1.0, 16.0)}.get(name, (0.01, 5.0))
        with frozen(model_of(name)) as model:
            observed = certificate.observe(model, batch, [claimed], 1, 32)
            changed = [Batch(x, batch.target, batch.cases) for x in certificate.attacked(model, batch, radius, 1)]
            assert any(
                certificate.refuted(observed, certificate.observe(model, each, [claimed], 2, 32), batch, model, claimed)
                for each in changed
            )

    def test_a_radius_beyond_what_can_be_shown_is_refused(self, name: str) -> None:
        if name == "lipschitz":
            pytest.skip("any radius has a bound")
        with pytest.raises(InputError, match=r"expected .* (draws|columns)"):
            build(name).require(256.0, task_of(name), [(256, 256)])
        fine = build(name, **({"draws": 500} if draws_noise(name) else {}))
        fine.require(
            radii_of(name)[0] + (name == "demasked") + 0.001 * (name != "demasked"), task_of(name), [(256, 256)]
        )

    @pytest.mark.parametrize(
        ("field", "within", "outside"),
        [
            ("sigma", [1e-9], [0.0, -1.0]),
            ("draws", [2], [1]),
            ("alpha", [1e-9, 0.999], [0.0, 1.0]),
            ("stride", [1], [0]),
            ("first_draws", [1], [0]),
            ("gap", [0.0, 1.0], [-0.01, 1.01]),
        ],
    )
    def test_options_out_of_range_are_refused(
        self, name: str, field: str, within: list[float], outside: list[float]
    ) -> None:
        if registry.find(name).takes(field):
            for value in within:
                build(name, **{field: value})
            for value in outside:
                with pytest.raises(InputError, match=field):
                    build(name, **{field: value})

    def test_as_many_draws_as_are_asked_for_show_something_and_one_less_does_not(self, name: str) -> None:
        """Of answers that all agree, at the fewest draws that are not refused."""
        if not draws_noise(name):
            pytest.skip("it draws no noise")
        task, shape, radius = task_of(name), (1, 1, 6, 5), 0.13
        organs, sigma, alpha = len(task.scored), SHORT["sigma"], SHORT["alpha"]

        def is_refused(draws: int) -> bool:
            try:
                build(name, draws=draws).require(radius, task, [shape] * 2)
            except InputError:
                return True
            return False

        fewest = next(n for n in range(2, 500) if not is_refused(n))
        below, above = norm.cdf(-radius / sigma), norm.cdf(radius / sigma)

        def shows(n: int) -> bool:
            if name in ("segcertify", "hierarchical"):  # 2 slices of 30 pixels
                return bool(above**n <= alpha / (60 if task.exclusive else 60 * len(task.classes)))
            if name in ("volume", "ejection_fraction"):  # the least of n draws is below that quantile
                return bool((1 - below) ** n <= alpha / 2 / (organs if name == "volume" else 1))
            least = 1 - 7 * math.log(2 / (alpha / organs)) / (3 * (n - 1))
            return bool(norm.cdf(norm.ppf(max(least, 0)) - radius / sigma) >= 0.01)

        assert shows(fewest)
        assert not shows(fewest - 1)

    def test_scans_are_certified_like_slices(self, name: str) -> None:
        if name == "lipschitz":
            pytest.skip("its network is 2-D")
        image = torch.rand(1, 6, 8, 8, generator=torch.Generator().manual_seed(0))
        task, target = task_of(name), torch.cat([image > 0.5, image <= 0.5, image > 1][: len(task_of(name).classes)])
        case = Case("s", "s", "p", image, target, (2.0, 1.0, 1.0), Window(0, 1))
        model = SegModel(torch.nn.Conv3d(1, len(task.classes), 1), task, dims=3)
        phased = build(name).needs_phases
        cases = [replace(case, id="t", phase="ED"), replace(case, phase="ES")] if phased else [case]
        batch, certificate = Batch.of(cases), build(name)
        with frozen(model):
            radius = radii_of(name)[1]
            bounds = certificate.bounds(certificate.observe(model, batch, [radius], 1, 4), batch, model, [radius])
        assert [bound.cls for bound in bounds] == (["square"] if phased else ["round", "square"])
        assert {bound.volume for bound in bounds} == {"s"}


def test_an_answer_that_is_a_coin_s_is_abstained_from() -> None:
    """Each pixel's answer is the sign of its noise."""
    model = SegModel(torch.nn.Identity(), Task("t", ("a",)))
    case = Case(
        "c", "v", "p", torch.zeros(1, 16, 16), torch.ones(1, 16, 16, dtype=torch.bool), (1.0, 1.0), Window(0, 1)
    )
    certificate, batch = SegCertify(0.1, 100, 0.01), Batch.of([case])
    with frozen(model):
        (bound,) = certificate.bounds(certificate.observe(model, batch, [0.01], 1, 32), batch, model, [0.01])
    assert bound.abstained == 1.0
    assert bound.low == 0.0


@pytest.mark.parametrize("exclusive", [False, True])
def test_what_is_not_certified_counts_as_wrong(exclusive: bool) -> None:
    """By hand: two pixels of organ a are certified, one is not; beside them one wrong pixel, and one abstained from."""
    task = ONE if exclusive else FREE
    a = torch.tensor([[1, 1, 1, 0, 0, 0]], dtype=torch.bool)
    answer_a = torch.tensor([[1, 1, 1, 1, 0, 0]], dtype=torch.bool)
    nothing = torch.zeros_like(a)
    target = torch.stack([~a, a, nothing]) if exclusive else torch.stack([a, nothing])
    answer = torch.stack([~answer_a, answer_a, nothing]) if exclusive else torch.stack([answer_a, nothing])
    sure = torch.tensor([[100, 100, 0, 100, 0, 100]], dtype=torch.int16)
    votes = torch.where(answer, sure, 0 if exclusive else 100 - sure)
    if not exclusive:
        votes[1] = 0
    case = Case("c", "v", "p", torch.zeros(1, 1, 6), target, (1.0, 1.0), Window(0, 1))
    certificate = SegCertify(0.1, 100, 0.01)
    clean = torch.zeros(len(task.classes), 3, dtype=torch.int64)
    observed = Votes(clean, answer[None], answer[None], votes[None], 100)
    bounds = certificate.bounds(observed, Batch.of([case]), SegModel(torch.nn.Identity(), task), [0.05])
    (bound,) = (bound for bound in bounds if bound.cls == "round")
    assert bound.low == pytest.approx(2 * 2 / (2 * 2 + 1 + 2))  # TP 2, FN 1, FP 1 certified and 1 not certified
    assert (bound.n_target, bound.n_certified, bound.hit_certified) == (3, 3, 2)


@pytest.mark.parametrize("name", ["segcertify", "hierarchical"])
def test_votes_are_counted_up_to_any_number_of_draws(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Far radii need more than the 32,767 that 16 bits hold."""
    truth = torch.tensor([[True, False]])
    scan = Batch.of([Case("c", "v", "p", torch.zeros(1, 1, 2), torch.stack([~truth, truth]), (1.0, 1.0), Window(0, 1))])

    def same(model: object, scan: Batch, sigma: float, draws: int, *rest: object) -> Iterator[torch.Tensor]:
        return itertools.repeat(scan.target, draws)

    monkeypatch.setattr(segcertify, "noisy_masks", same)
    certificate = build(name, draws=33_000, first_draws=33_000)
    for exclusive in (True, False)[: 1 if name in EXCLUSIVE else 2]:
        model = SegModel(torch.nn.Conv2d(1, 2, 1), Task("t", ("a", "b"), exclusive))
        with frozen(model):
            observed = certificate.observe(model, scan, [0.3], 0, 1)
        assert torch.equal(observed.answer, scan.target)
        assert bool(certificate.certain(observed, 0.3, model).all())


@pytest.mark.parametrize("wrong", [0, 1])
def test_a_certified_answer_is_refuted_where_it_is_a_minority_among_all_that_are_certified(wrong: int) -> None:
    """Of so many certified answers, one that half of the draws give may have a few votes less by chance."""
    n, entries, alpha = 100, 200, 0.01
    few = next(k for k in range(n, -1, -1) if binom.cdf(k, n, 0.5) < alpha / entries)
    assert binom.cdf(few + 5, n, 0.5) < alpha, "one answer by itself would be refuted"
    yes = torch.ones(1, 1, 1, entries, dtype=torch.bool)
    case = Case("c", "v", "p", torch.zeros(1, 1, entries), yes[0], (1.0, 1.0), Window(0, 1))
    model, certificate = SegModel(torch.nn.Identity(), Task("t", ("a",))), SegCertify(0.1, n, alpha)
    clean, votes = torch.zeros(1, 3, dtype=torch.int64), torch.full(yes.shape, n)
    observed = Votes(clean, yes, yes, votes, n)
    there = votes.clone()
    there[..., 0] = few + 1 - wrong
    refuted = certificate.refuted(observed, Votes(clean, yes, yes, there, n), Batch.of([case]), model, 0.01)
    assert bool(refuted) == bool(wrong)


@pytest.mark.parametrize("radius", [-1.0, math.inf, math.nan])
def test_the_radius_that_cannot_be_is_the_one_that_is_named(radius: float) -> None:
    with pytest.raises(InputError, match=f"expected a finite radius of 0 or more, got {radius:g}"):
        build("expected_dice").radii([0.5, radius, 0.1])


def test_radii_are_in_rising_order_each_once_and_0_is_one() -> None:
    assert build("expected_dice").radii([0.5, 0.0, 0.1, 0.5]) == (0.0, 0.1, 0.5)


def test_slices_of_no_scan_have_no_volume() -> None:
    certificate, batch = build("volume"), Batch.of([blobs.case(1000)])
    with frozen(blobs.healthy()) as model, pytest.raises(InputError, match="slices of a scan for a volume"):
        certificate.bounds(certificate.observe(model, batch, [0.01], 1, 8), batch, model, [0.01])


def coarse(first: torch.Tensor, gap: float = 0.3) -> torch.Tensor:
    """The classes of which a pixel is to be certified as one, from its votes in ten first draws."""
    answer = torch.zeros(1, 4, 1, 1, dtype=torch.bool).scatter_(1, first.view(1, 4, 1, 1).argmax(1, keepdim=True), True)
    certificate = Hierarchical(0.1, 100, 0.01, first_draws=10, gap=gap)
    leaves = certificate._leaves(first.view(1, 4, 1, 1), answer, Task("t", ("background", "a", "b", "c"), True))
    return leaves.flatten().int()


@pytest.mark.parametrize(
    ("votes", "leaves", "gain"),
    [
        ((0, 0, 2, 8), (0, 0, 0, 1), 1.0),
        ((1, 3, 2, 4), (0, 1, 1, 1), 0.2075),  # an organ, of whatever class
        ((1, 5, 2, 2), (0, 1, 0, 0), 1.0),  # a class leads if it leads the next one, though not all others together
        ((8, 2, 0, 0), (1, 0, 0, 0), 1.0),
        ((5, 5, 0, 0), (1, 1, 1, 1), 0.0),
        ((4, 3, 3, 0), (1, 1, 1, 1), 0.0),  # the most frequent class is the background, which organs outvote
    ],
)
def test_levels_and_their_information(votes: tuple[int, ...], leaves: tuple[int, ...], gain: float) -> None:
    level = coarse(torch.tensor(votes, dtype=torch.int16))
    assert tuple(level.tolist()) == leaves
    one = torch.ones(1, 1, 1, 1, dtype=torch.bool)
    assert information(level.view(1, 4, 1, 1).bool(), one) == pytest.approx(gain, abs=5e-5)
    assert information(level.view(1, 4, 1, 1).bool(), ~one) == 0.0


def test_where_the_background_is_most_frequent_no_organ_is_certified_though_all_together_outvote_it() -> None:
    assert coarse(torch.tensor((4, 3, 3, 0), dtype=torch.int16), gap=0.2).tolist() == [1, 1, 1, 1]


def test_a_hierarchy_abstains_from_no_pixel_that_segcertify_certifies() -> None:
    batch = scan_of("hierarchical")
    flat, deep = SegCertify(0.1, 60, 0.01), Hierarchical(0.1, 60, 0.01)
    with frozen(model_of("hierarchical")) as model:
        observed = [certificate.observe(model, batch, [], 1, 32) for certificate in (flat, deep)]
    for radius in (0.0, 0.03, 0.05):
        sure, also = (c.certified(o, radius, ONE) for c, o in zip((flat, deep), observed, strict=True))
        assert bool((sure <= also).all())
        assert sure.sum() < also.sum()


def test_a_level_does_not_depend_on_the_draws_that_test_it() -> None:
    batch = scan_of("hierarchical")
    with frozen(model_of("hierarchical")) as model:
        few, many = (Hierarchical(0.1, draws, 0.01).observe(model, batch, [], 1, 32) for draws in (2, 60))
    assert torch.equal(few.leaves, many.leaves)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("certify")
    phantom = "phantom(patients=6, slices=3, side=32)"
    medattack("prepare", root / "scans", "--format", phantom, "--out", root / "data")
    train = ("--model", "unet_small(channels=(8, 16))", "--lr", "3e-3", "--epochs", 1, "--out", root / "model")
    medattack("train", "--data", root / "data", *train)
    return root


@pytest.mark.parametrize(
    ("certainty", "softmax", "refused"), [(20.0, True, True), (20.0, False, False), (0.5, False, False)]
)
def test_the_answers_of_a_sure_softmax_are_told_from_log_odds(certainty: float, softmax: bool, refused: bool) -> None:
    """The last network hardly learned: its log-odds lie as near to each other as those of a softmax do."""

    class Net(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            logits = certainty * torch.cat([x - 0.5, 0.5 - x, 0.1 - x], 1)
            return logits.softmax(1) if softmax else logits

    image = torch.linspace(0, 1, 64).view(1, 1, 8, 8)
    case = Case("c", "scan", "p", image[0], torch.ones(3, 8, 8, dtype=torch.bool), (1.0, 1.0), Window(0, 1))
    with frozen(SegModel(Net(), Task("t", ("background", "a", "b"), exclusive=True))) as model:
        if refused:
            with pytest.raises(InputError, match="expected log-odds of the model on scan, got what looks like prob"):
                require_log_odds(model, Batch.of([case]))
        else:
            require_log_odds(model, Batch.of([case]))


def test_a_radius_that_no_number_of_draws_certifies_is_said_to_be_too_large() -> None:
    certificate = SegCertify(0.1, 100, 0.01)
    task = Task("t", ("organ",))
    with pytest.raises(InputError, match=r"^expected a radius at which draws can certify .* take a smaller radius, or"):
        certificate.require(3.8, task, [(96, 96)])
    with pytest.raises(InputError, match=r"^expected [\d,]{3,11} draws or more to certify one of 9216 answers"):
        certificate.require(0.2, task, [(96, 96)])


class TestCommand:
    def words(self, home: Path, *more: object) -> tuple[object, ...]:
        where = ("--data", home / "data", "--model", home / "model", "--limit", 1)
        return ("certify", *where, "--check", 1, *more)

    def certificate(self, name: str) -> tuple[object, ...]:
        return "--certificate", registry.spec(build(name)), "--radius", 1 if name == "demasked" else 0.01

    @pytest.mark.parametrize("name", PLAIN)
    def test_the_table_says_what_is_certified_and_what_is_not(self, home: Path, tmp_path: Path, name: str) -> None:
        written = ("--csv", tmp_path / "bounds.csv", "--plot", tmp_path / "bounds.png", "--out", tmp_path / "out")
        result = medattack(*self.words(home, *self.certificate(name), *written))
        assert "Certified is" in " ".join(result.stdout.split())
        assert "PARTIAL: --limit left cases out." in " ".join(result.stdout.split())
        assert "An attack within each radius was run against the bounds of 1 scan." in result.stdout
        assert max(map(len, result.stdout.splitlines())) <= 100
        assert (tmp_path / "bounds.png").stat().st_size > 1000
        assert (tmp_path / "bounds.csv").read_text().startswith("run,volume,group,cls,radius")
        maps = list((tmp_path / "out" / "maps").glob("*.png"))
        assert len(maps) == (name in PIXELWISE)
        assert ("maps of abstained pixels" in result.stderr) == (name in PIXELWISE)

    def test_the_page_has_the_numbers_of_the_certificate(self, home: Path, tmp_path: Path) -> None:
        words = self.words(home, *self.certificate("expected_dice"), "--out", tmp_path / "bounds", "--json")
        content = json.loads(medattack(*words).stdout)
        write_run(tmp_path / "runs", dice_of(0, 2))
        page = page_of(tmp_path / "page", tmp_path / "runs", tmp_path / "bounds")
        text = section(page, "certificates")
        ((heads, *lines),) = tables(text)
        names = (*heads[2:-2], "mean")
        assert len(names) == 4
        assert "PARTIAL: --limit left cases out." in text
        assert (content["data"], content["partial"]) == ("phantom", True)
        (row,) = content["radii"]
        for line, column in zip(lines, ("clean", "value", "low"), strict=True):
            assert line[2 : 2 + len(names)] == [number(row[f"{name}_{column}"]) for name in names]
        (points,) = chart_points(page)
        assert {point["organ"]: point["bound"] for point in points} == {name: row[f"{name}_low"] for name in names}
        assert {point["radius"] for point in points} == {row["radius"]}
        assert lines[2][0] == f"{row['radius']:.4g}"
        assert lines[2][-1] == between(nan(row["ci_low"]), nan(row["ci_high"]))
        assert content["certificate"] in unescape(text)
        assert "An attack within each radius was run against the bounds of 1 scan; it refuted none." in text

    def test_it_goes_on_where_it_stopped(self, home: Path, tmp_path: Path) -> None:
        words = self.words(home, *self.certificate("expected_dice"), "--out", tmp_path / "out", "--json")
        first = medattack(*words).stdout
        (part,) = (tmp_path / "out" / "parts").glob("*.parquet")
        before = part.read_bytes()
        part.unlink()
        assert medattack(*words).stdout == first
        table = part.read_bytes()
        assert len(table) == len(before)
        state = part.stat().st_mtime_ns
        medattack(*words)
        assert part.stat().st_mtime_ns == state

    def test_shards_add_up(self, home: Path, tmp_path: Path) -> None:
        certificate = self.certificate("expected_dice")
        where = ("certify", "--data", home / "data", "--model", home / "model", "--limit", 0.9)
        whole = medattack(*where, "--check", 0, *certificate, "--out", tmp_path / "whole", "--json").stdout
        out = tmp_path / "parts"
        first, last = (
            medattack(*where, "--check", 0, *certificate, "--out", out, "--json", "--shard", f"{k}/2") for k in (1, 0)
        )
        assert json.loads(first.stdout) == {"finished": False, "shard": [1, 2], "out": str(out)}  # no table of a part
        assert "shard 1/2 is done" in first.stderr
        assert last.stdout == whole

    def test_a_plan_writes_nothing(self, home: Path, tmp_path: Path) -> None:
        words = (*self.words(home, *self.certificate("segcertify")), "--plan", "--out", tmp_path / "out")
        assert "forwards" in medattack(*words).stdout
        whole, *parts = (
            json.loads(medattack(*words, "--json", "--shard", shard).stdout) for shard in ("0/1", "0/2", "1/2")
        )
        assert all(whole[name] == sum(part[name] for part in parts) for name in ("scans", "cases", "forwards"))
        assert not (tmp_path / "out").exists()

    def test_a_plan_says_that_the_attacks_of_check_come_on_top(self, home: Path) -> None:
        words = "certify", "--data", home / "data", "--model", home / "model", *self.certificate("segcertify"), "--plan"
        printed = medattack(*words).stdout
        assert max(map(len, printed.splitlines()[3:])) <= 100  # below the folder
        said = " ".join(printed.split())
        assert "On top come the attacks that try to refute the bounds of 2 scans" in said
        assert "On top" not in medattack(*words, "--check", 0).stdout

    @pytest.mark.parametrize(
        ("words", "sentence"),
        [
            (("--certificate", "ejection_fraction(organ='stomach')"), "expected scans of end diastole and end systole"),
            (("--certificate", "hierarchical"), "expected classes that exclude each other for hierarchical"),
            (("--certificate", "demasked", "--radius", 0.5), "expected a patch of 0 to 31 whole columns"),
            (
                ("--certificate", "demasked", "--model", "voted('MODEL')"),
                "expected a model that answers the same twice",
            ),
            (("--radius", -1), "expected a finite radius of 0 or more"),
            (("--radius", 5), "take a smaller radius"),
            (("--certificate", "expected_dices"), "did you mean expected_dice"),
            (("--certificate", "segcertify(draws=10)"), "draws or more to certify"),
            (("--certificate", "volume(sigma=0)"), "expected sigma above 0"),
            *((("--limit", limit), f"a share below 1, got {limit};") for limit in ("-1", "0", "1.5")),
            *((("--limit", limit), f"expected a finite number, got {limit};") for limit in ("nan", "inf")),
            (("--plot", "bounds.tiff"), "expected a file .png, .pdf, .svg to draw, got bounds.tiff"),
            (("--split", "nowhere"), "'test', 'val', 'train', 'all'"),
        ],
    )
    def test_bad_input_is_a_sentence(
        self, home: Path, tmp_path: Path, words: tuple[object, ...], sentence: str
    ) -> None:
        words = tuple(str(word).replace("MODEL", str(home / "model")) for word in words)
        result = medattack(*self.words(home, "--out", tmp_path / "out", *words), code=2)
        assert sentence in " ".join(result.stderr.split())
        assert not (tmp_path / "out").exists()

    def test_a_folder_of_other_things_is_refused_and_left_as_it_was(self, home: Path, tmp_path: Path) -> None:
        write_run(tmp_path / "runs", dice_of(0, 2))
        before = sorted(tmp_path.rglob("*"))
        result = medattack(*self.words(home, *self.certificate("expected_dice"), "--out", tmp_path / "runs"), code=2)
        assert "to be new or to hold this certificate, got a folder of other things" in " ".join(result.stderr.split())
        assert sorted(tmp_path.rglob("*")) == before

    def test_a_model_that_answers_with_probabilities_is_refused(self, home: Path, tmp_path: Path) -> None:
        network = "nn.Sequential(nn.Conv2d(1, 3, 3, padding=1), nn.Sigmoid())"
        (tmp_path / "net.py").write_text(f"from torch import nn\n\n\ndef build():\n    return {network}\n")
        words = self.words(home, *self.certificate("expected_dice"), "--model", f"own('{tmp_path}/net.py:build')")
        result = medattack(*words, "--out", tmp_path / "out", code=2)
        assert "got what looks like probabilities (all outputs lie in" in " ".join(result.stderr.split())
        assert not (tmp_path / "out").exists()

    def test_nothing_is_written_into_the_prepared_data(self, home: Path) -> None:
        data = home / "data"
        before = sorted(data.rglob("*"))
        for out in (data, data / "bounds"):
            assert "outside of" in medattack(*self.words(home, "--out", out), code=2).stderr
        assert sorted(data.rglob("*")) == before

    def test_a_bound_that_an_attack_refutes_is_exit_code_1(
        self, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from medseg_attack.certificates.smoothing import expected_dice

        monkeypatch.setattr(expected_dice, "shifted", lambda probability, ratio: 1.0)
        words = self.words(home, *self.certificate("expected_dice"), "--out", tmp_path / "out")
        assert "MA039 invalid - " in medattack(*words, code=1).stdout
        (flag,) = json.loads(medattack(*words, "--json", code=1).stdout)["flags"]
        assert flag["code"] == "MA039"
        assert json.loads((tmp_path / "out" / "run.json").read_text())["flags"] == [flag]


def test_slices_of_a_map_stand_side_by_side_and_abstained_pixels_are_orange() -> None:
    case = Case("c", "v", "p", torch.full((1, 3, 4, 6), 0.5), torch.ones(1, 3, 4, 6).bool(), (1.0,) * 3, Window(0, 1))
    certain = torch.ones(1, 3, 4, 6, dtype=torch.bool)
    certain[0, 2, 1, 5] = False
    picture = abstained_picture(Batch.of([case]), certain)
    assert picture.shape == (8, 12, 3)
    assert picture[4 + 1, 5].tolist() == [189, 120, 51]
    assert (picture[:4] == 128).all()
    assert (picture[4:, 6:] == 0).all()
