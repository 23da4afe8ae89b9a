"""Every registered detector: no score without a fit, scores that belong to a case alone, and a gradient to climb."""

import functools
from collections.abc import Callable
from contextlib import nullcontext, suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import blobs
from helpers.detectors import calibrated, of_own_patients, scores, training
from torch import nn

from medseg_attack import registry
from medseg_attack.detectors.answers.uncertainty import Entropy
from medseg_attack.detectors.base import Detector
from medseg_attack.detectors.gaussian import fit_gaussian
from medseg_attack.errors import InputError
from medseg_attack.models.segmodel import SegModel, frozen
from medseg_attack.stats.alarms import auroc
from medseg_attack.types import Batch, Case, Task, Window

DETECTORS = [name for name in registry.names("detector") if name != "saved"]
SHORT = {"spatial_consistency": "spatial_consistency(pairs=4)", "isolation_forest": "isolation_forest(trees=10)"}
FREE, ONE = Task("free", ("a", "b")), Task("one", ("background", "a", "b"), exclusive=True)
SPECS = {name: SHORT.get(name, name) for name in DETECTORS}


class Deep(nn.Module):
    """A network in two levels, for any number of axes."""

    def __init__(self, dims: int) -> None:
        super().__init__()
        conv = (nn.Conv2d, nn.Conv3d)[dims - 2]
        pool = (nn.AvgPool2d, nn.AvgPool3d)[dims - 2]
        self.first, self.down = nn.Sequential(conv(1, 4, 3, padding=1), nn.ReLU()), pool(2)
        self.deep = nn.Sequential(conv(4, 6, 3, padding=1), nn.ReLU())
        self.up, self.last = nn.Upsample(scale_factor=2), conv(10, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        top = self.first(x)
        answer: torch.Tensor = self.last(torch.cat([top, self.up(self.deep(self.down(top)))], 1))
        return answer


def model_of(dims: int) -> SegModel:
    if dims == 2:
        return blobs.healthy()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return SegModel(Deep(3), blobs.TASK, dims=3).eval()


def volumes(n: int, start: int = 0) -> Batch:
    """Whole scans with a bright ball in each."""
    cases = []
    for number in range(start, start + n):
        random = torch.Generator().manual_seed(number)
        place = torch.randint(3, 9, (3,), generator=random)
        grid = torch.stack(torch.meshgrid(*(torch.arange(12),) * 3, indexing="ij"))
        ball = ((grid - place.view(3, 1, 1, 1)) ** 2).sum(0) <= 9
        image = (0.3 + 0.3 * ball + 0.05 * torch.randn(12, 12, 12, generator=random)).clamp(0.01, 0.99)
        target = torch.stack([ball, grid[0] > 8])
        cases.append(Case(f"v{number}", f"v{number}", f"v{number}", image[None], target, (1.0,) * 3, Window(0, 1)))
    return Batch.of(cases)


@functools.cache
def some(dims: int, n: int, start: int = 0) -> Batch:
    return volumes(n, start) if dims == 3 else of_own_patients(blobs.batch(n, 2000 + start))


@pytest.fixture(scope="module")
def fitted() -> Callable[[str, int], Detector]:
    known: dict[tuple[str, int], Detector] = {}

    def fit(name: str, dims: int) -> Detector:
        if (name, dims) not in known:
            detector: Detector = registry.build(SPECS.get(name, name), "detector")
            with frozen(model_of(dims)) as model:
                known[name, dims] = detector.fitted(training(detector, model, some(dims, 24)))
        return known[name, dims]

    return fit


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("name", DETECTORS)
class TestDetector:
    def test_a_score_belongs_to_a_case_alone(
        self, name: str, dims: int, fitted: Callable[[str, int], Detector]
    ) -> None:
        batch = some(dims, 3, 50)
        with frozen(model_of(dims)) as model:
            together = scores(fitted(name, dims), model, batch.image, batch.cases)
            alone = [
                scores(fitted(name, dims), model, batch.image[n : n + 1], batch.cases[n : n + 1]) for n in range(3)
            ]
        assert together.shape == (3,)
        assert torch.isfinite(together).all()
        torch.testing.assert_close(together, torch.cat(alone), rtol=1e-4, atol=1e-6)

    def test_what_it_learned_gives_the_same_scores_when_it_is_read_again(
        self, name: str, dims: int, fitted: Callable[[str, int], Detector], tmp_path: Path
    ) -> None:
        from medseg_attack.models.checkpoints import load_tensors, save_tensors

        detector, batch = fitted(name, dims), some(dims, 4, 60)
        assert detector.learned is not None
        save_tensors(tmp_path / "learned.safetensors", dict(detector.learned))
        again = registry.build(registry.spec(detector), "detector").with_learned(
            load_tensors(tmp_path / "learned.safetensors")
        )
        with frozen(model_of(dims)) as model:
            assert torch.equal(
                scores(detector, model, batch.image, batch.cases), scores(again, model, batch.image, batch.cases)
            )

    def test_an_attack_has_a_gradient_to_climb(
        self, name: str, dims: int, fitted: Callable[[str, int], Detector]
    ) -> None:
        batch = some(dims, 2, 70)
        x = (batch.image + 0.05 * torch.randn(batch.image.shape, generator=torch.Generator().manual_seed(1))).clamp(
            0, 1
        )
        x.requires_grad_()
        with frozen(model_of(dims)) as model:
            score = fitted(name, dims).score(fitted(name, dims).observe(model, x, batch.cases)[1], batch.cases)
            (grad,) = torch.autograd.grad(score.sum(), x)
        assert torch.isfinite(grad).all()
        assert (grad != 0).flatten(1).any(1).all()


@pytest.mark.parametrize("name", DETECTORS)
def test_a_single_case_to_learn_from_is_refused_or_enough(name: str) -> None:
    """It has no standard deviation: by it, scores would be no numbers."""
    detector: Detector = registry.build(SPECS[name], "detector")
    fit, batch = some(2, 1), some(2, 2, 50)
    with frozen(model_of(2)) as model:
        learned_from = training(detector, model, fit)
        with suppress(InputError):
            fitted = detector.fitted(learned_from)
            assert scores(fitted, model, batch.image, batch.cases).isfinite().all()


@pytest.mark.parametrize("n", [1, 2])
def test_a_gaussian_is_of_two_cases_or_more(n: int) -> None:
    with pytest.raises(InputError, match="expected 2 or more cases") if n == 1 else nullcontext():
        fit_gaussian(torch.rand(n, 3, dtype=torch.float64))


@pytest.mark.parametrize("name", [name for name in DETECTORS if name != "plausible_mask"])
def test_the_gradient_leads_to_images_that_are_more_suspicious_or_less(
    name: str, fitted: Callable[[str, int], Detector]
) -> None:
    """Also that of what stands in for a score that has none, such as soft masks for masks.

    Left out is the plausible mask, whose number of parts no soft mask knows.
    """
    detector, batch = fitted(name, 2), some(2, 4, 70)
    ends = []
    with frozen(model_of(2)) as model:
        for sign in (1, -1):
            image = batch.image
            for _ in range(12):
                x = image.clone().requires_grad_()
                score = detector.score(detector.observe(model, x, batch.cases)[1], batch.cases)
                (grad,) = torch.autograd.grad(score.sum(), x)
                image = (image + sign * 2 / 255 * grad.sign()).clamp(0, 1)
            ends.append(float(scores(detector, model, image, batch.cases).mean()))
    assert ends[0] > ends[1]


@pytest.mark.parametrize(
    ("within", "outside"),
    [
        ("spatial_consistency(pairs=1)", "spatial_consistency(pairs=0)"),
        ("isolation_forest(trees=1)", "isolation_forest(trees=0)"),
        ("strip(copies=1)", "strip(copies=0)"),
        ("explanation(components=1)", "explanation(components=0)"),
        ("lid(neighbours=2)", "lid(neighbours=1)"),
        ("qfeat(levels=2)", "qfeat(levels=1)"),
        ("one_class_svm(nu=1.0)", "one_class_svm(nu=1.01)"),
        ("one_class_svm(nu=0.01)", "one_class_svm(nu=0.0)"),
        ("mgm(layer='grid')", "mgm(layer='shallow')"),
    ],
)
def test_an_option_out_of_its_range_is_refused_and_its_ends_are_not(within: str, outside: str) -> None:
    option = outside.partition("(")[2].partition("=")[0]
    registry.build(within, "detector")
    with pytest.raises(InputError, match=option):
        registry.build(outside, "detector")


@pytest.mark.parametrize("task", [FREE, ONE])
def test_squeezing_is_measured_by_the_mean_l1_distance_of_a_pixel_s_probabilities(task: Task) -> None:
    """Of yes and no for each class where these may overlap; the squeezer that moves the answer most counts."""
    image = torch.rand(2, 1, 6, 5, generator=torch.Generator().manual_seed(0))

    def probabilities(x: torch.Tensor) -> torch.Tensor:
        logits = torch.cat([3 * x, 2 - 4 * x, x.square()][: len(task.classes)], 1)
        return logits.softmax(1) if task.exclusive else logits.sigmoid()

    class Net(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.cat([3 * x, 2 - 4 * x, x.square()][: len(task.classes)], 1)

    detector = registry.build("feature_squeezing(squeezers=(median(3), bit_depth(1)))", "detector")
    p = probabilities(image)
    if not task.exclusive:
        p = torch.stack([p, 1 - p], 2)
    each = []
    for squeezer in detector.squeezers:
        q = probabilities(squeezer(image, [0, 0]))
        q = q if task.exclusive else torch.stack([q, 1 - q], 2)
        distance = (p - q).abs()
        each.append((distance.sum(1) if task.exclusive else distance.sum(2).mean(1)).flatten(1).mean(1))
    with frozen(SegModel(Net(), task)) as model:
        own = scores(detector, model, image, ())
    torch.testing.assert_close(own.float(), torch.stack(each).amax(0), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", [*DETECTORS, "any_of((entropy, plausible_mask))"])
def test_a_detector_says_whether_it_looks_at_whole_scans(name: str, fitted: Callable[[str, int], Detector]) -> None:
    """Its score of a slice then changes with the other slice of the scan, and an attack keeps both or neither."""
    batch = some(2, 2, 50)
    cases = tuple(replace(case, volume="scan") for case in batch.cases)
    with frozen(model_of(2)) as model:
        own, other = (scores(fitted(name, 2), model, image, cases)[0] for image in (batch.image, batch.image[[0, 0]]))
    assert fitted(name, 2).looks_at_scans() == (float(other) != pytest.approx(float(own), rel=1e-4))


@pytest.mark.parametrize("name", [n for n in DETECTORS if registry.build(n, "detector").learns_from == "clean"])
def test_among_several_detectors_each_is_on_the_scale_of_patients_that_it_did_not_learn_from(name: str) -> None:
    """One that knows its own training cases by heart would decide alone: others are all far from these."""
    spec, unseen = SPECS[name], some(2, 60, 1000)
    pair = registry.build(f"any_of(({spec}, entropy))", "detector")
    with frozen(model_of(2)) as model:
        learned = pair.fitted(training(pair, model, some(2, 24))).learned
        alone = registry.build(spec, "detector")
        own = scores(alone.fitted(training(alone, model, some(2, 24))), model, unseen.image, unseen.cases)
    assert learned is not None
    scaled = (own - learned["0.own.middle"]) / learned["0.own.spread"]
    assert abs(float(scaled.median())) < 6
    assert float((scaled - scaled.median()).abs().median()) < 6


@pytest.mark.parametrize("name", DETECTORS)
def test_clean_against_clean_is_chance(name: str, fitted: Callable[[str, int], Detector]) -> None:
    with frozen(model_of(2)) as model:
        first, second = (
            scores(fitted(name, 2), model, batch.image, batch.cases).numpy()
            for batch in (some(2, 300, 1000), some(2, 300, 1300))
        )
    assert 0.45 <= auroc(first, second) <= 0.55


@pytest.mark.parametrize("name", DETECTORS)
def test_a_detector_that_was_not_fitted_scores_nothing_unless_there_is_nothing_to_learn(name: str) -> None:
    detector, batch = registry.build(SPECS.get(name, name), "detector"), some(2, 2)
    with frozen(model_of(2)) as model:
        if detector.fitted(training(detector, model, some(2, 24))).learned == {}:
            return
        with pytest.raises(InputError, match="to be fitted, got one that is not"):
            scores(detector, model, batch.image, batch.cases)


def test_a_calibrated_detector_tells_p_values() -> None:
    with frozen(model_of(2)) as model:
        detector = calibrated("entropy", model, some(2, 4), some(2, 19, 100))
    least, most = detector.p_values([-np.inf, np.inf])
    assert (least, most) == (1.0, 1 / 20)
    assert detector.limit == sorted(detector.calibration)[-2]


@pytest.mark.parametrize("task", [FREE, ONE])
@pytest.mark.parametrize(
    ("name", "sure", "unsure"), [("entropy", 0, 1), ("probability_margin", 0, 1), ("variation_ratio", 0, 1)]
)
def test_uncertainty_is_largest_where_nothing_is_known(name: str, sure: int, unsure: int, task: Task) -> None:
    detector = registry.build(name, "detector")
    k = len(task.classes)
    certain = torch.full((1, k, 4, 4), -30.0)
    certain[:, 0] = 30.0
    p = 1 / k if task.exclusive else 0.5
    unknown = torch.full((1, k, 4, 4), float(np.log(p / (1 - p))))
    low, high = (float(detector.doubt(log_odds, task).mean()) for log_odds in (certain, unknown))
    best = {"entropy": np.log(k if task.exclusive else 2), "probability_margin": 1.0, "variation_ratio": 1 - p}[name]
    assert low == pytest.approx(0, abs=1e-6)
    assert high == pytest.approx(best, abs=1e-5)


def test_squeezing_by_the_identity_is_no_squeezing() -> None:
    batch = some(2, 3)
    with frozen(model_of(2)) as model:
        detector = registry.build("feature_squeezing(squeezers=(bit_depth(16), median(1)))", "detector")
        identity = registry.build("feature_squeezing(squeezers=(median(1),))", "detector")
        assert scores(identity, model, batch.image, batch.cases).tolist() == [0.0] * 3
        assert scores(detector, model, batch.image, batch.cases).max() < 1e-3
    with pytest.raises(InputError, match="expected squeezers such as"):
        registry.build("feature_squeezing(squeezers=())", "detector")


IMAGE = torch.zeros(2, 1, 4, 4)


@pytest.mark.parametrize("answer", [IMAGE, (IMAGE,), (IMAGE, IMAGE, IMAGE), ("text", IMAGE), None])
def test_what_a_detector_observes_is_an_answer_and_statistics(answer: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Entropy, "observe", lambda *rest: answer)
    with pytest.raises(RuntimeError, match="expected the model's answer and statistics from the detector entropy, got"):
        Entropy().asked(blobs.healthy(), IMAGE, ())
