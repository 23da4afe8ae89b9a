"""Numbers that detectors must give, worked out by hand or by another library."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from helpers import blobs
from helpers.detectors import of_own_patients, scores, training
from scipy.stats import chi2, multivariate_normal
from sklearn.ensemble import IsolationForest as Forest
from sklearn.svm import SVC, OneClassSVM
from torch import nn

from medseg_attack import registry
from medseg_attack.defences.inputs.median import Median
from medseg_attack.detectors.answers.uncertainty import Entropy
from medseg_attack.detectors.base import Training, folds, joined
from medseg_attack.detectors.combined.any_of import AnyOf, held_out_scores
from medseg_attack.detectors.consistency import rotation_consistency, spatial_consistency
from medseg_attack.detectors.density.isolation_forest import _depths, path_length
from medseg_attack.detectors.density.lid import dimensionality
from medseg_attack.detectors.features import pooled
from medseg_attack.detectors.gaussian import fit_gaussian, squared_distance
from medseg_attack.detectors.images.explanation import input_times_gradient
from medseg_attack.detectors.images.noise_map import residual_sigma
from medseg_attack.detectors.trained.features import _quantised
from medseg_attack.errors import InputError
from medseg_attack.models.hidden_maps import hidden
from medseg_attack.models.linear import blurred_oracle, oracle
from medseg_attack.models.segmodel import SegModel, frozen
from medseg_attack.models.sliding_window import SlidingWindow
from medseg_attack.stats.alarms import auroc
from medseg_attack.types import Task

TWO = Task("two", ("a", "b"))


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def of(x: torch.Tensor) -> Training:
    """Statistics of cases of one patient each."""
    (case,) = blobs.batch(1).cases
    return Training(x, tuple(replace(case, id=str(n), volume=str(n), group=str(n)) for n in range(len(x))))


class TestDensities:
    def test_the_squared_distance_is_that_of_the_normal_distribution(self) -> None:
        mean, scale = torch.zeros(2, dtype=torch.float64), torch.ones(2, dtype=torch.float64)
        factor = torch.diag(torch.tensor([2.0, 1.0], dtype=torch.float64))
        square = float(squared_distance(torch.tensor([[2.0, 1.0]], dtype=torch.float64), mean, scale, factor))
        assert square == pytest.approx(2)
        log_p = -0.5 * (square + 2 * math.log(2 * math.pi) + math.log(4))
        assert log_p == pytest.approx(-3.531024, abs=1e-6)
        assert log_p == pytest.approx(multivariate_normal([0, 0], np.diag([4, 1])).logpdf([2, 1]))

    @pytest.mark.parametrize("d", [4, 16])
    def test_held_out_normal_data_has_the_distances_of_chi_squared(self, d: int) -> None:
        mix = torch.eye(d, dtype=torch.float64) + 0.1 * normal(d, d, seed=1)
        known = fit_gaussian(normal(4000, d) @ mix)
        square = squared_distance(normal(4000, d, seed=2) @ mix, *(known[k] for k in ("mean", "scale", "factor")))
        assert float(square.mean()) == pytest.approx(d, rel=0.05)
        assert float(square.quantile(0.95)) == pytest.approx(chi2(d).ppf(0.95), rel=0.05)

    @pytest.mark.parametrize(("d", "expected"), [(2, 1.92), (5, 5.01)])
    def test_the_dimensionality_of_a_ball_is_its_dimension(self, d: int, expected: float) -> None:
        x = normal(4000, d)
        radius = torch.rand(4000, generator=torch.Generator().manual_seed(1), dtype=torch.float64) ** (1 / d)
        distances = (x / x.norm(dim=1, keepdim=True) * radius[:, None]).norm(dim=1).sort().values[:100]
        assert float(dimensionality(distances[None])) == pytest.approx(expected, rel=0.3)

    def test_trees_are_walked_as_scikit_learn_walks_them(self) -> None:
        x, queries = normal(300, 5), normal(50, 5, seed=3)
        detector = registry.build("isolation_forest(trees=20)", "detector").fitted(of(x))
        assert detector.learned is not None
        depth = _depths(queries, detector.learned["trees"])
        assert depth.shape == (50, 100)
        own = 2 ** (-depth[:, :20].mean(1) / path_length(256))
        forest = Forest(n_estimators=20, max_samples=256, random_state=0).fit(x.numpy())
        np.testing.assert_allclose(own.numpy(), -forest.score_samples(queries.numpy()), rtol=1e-6)
        assert path_length(256) == pytest.approx(10.2448, abs=1e-4)

    @pytest.mark.parametrize("n", [40, 300])
    def test_a_forest_s_score_is_the_mean_depth_of_five_in_units_of_a_failed_search(self, n: int) -> None:
        """Fewer cases than 256 are all taken for each tree, and their number is the unit."""
        x, queries = normal(n, 3), normal(20, 3, seed=3)
        own = registry.build("isolation_forest(trees=4)", "detector").fitted(of(x)).score(queries, ())
        forests = [Forest(n_estimators=4, max_samples=min(256, n), random_state=k).fit(x.numpy()) for k in range(5)]
        depths = [-np.log2(-forest.score_samples(queries.numpy())) for forest in forests]
        np.testing.assert_allclose(own.numpy(), 2.0 ** -np.mean(depths, 0), rtol=1e-6)

    def test_the_dimensionality_is_that_of_the_nearest_training_cases(self) -> None:
        x, queries = normal(60, 3) * torch.tensor([1.0, 5.0, 0.1], dtype=torch.float64) + 2, normal(10, 3, seed=3)
        own = registry.build("lid(neighbours=7)", "detector").fitted(of(x)).score(queries, ())
        z, points = ((each - x.mean(0)) / x.std(0) for each in (queries, x))
        nearest = np.sort(np.linalg.norm(z.numpy()[:, None] - points.numpy(), axis=2), 1)[:, :7]
        np.testing.assert_allclose(own.numpy(), -1 / np.log(nearest / nearest[:, 6:]).mean(1), rtol=1e-9)

    def test_a_training_case_itself_has_a_dimensionality_and_a_gradient(self) -> None:
        x = normal(10, 3)
        detector, queries = registry.build("lid", "detector").fitted(of(x)), x.clone().requires_grad_()
        score = detector.score(queries, ())
        (grad,) = torch.autograd.grad(score.sum(), queries)
        assert bool(score.isfinite().all() & grad.isfinite().all())

    @pytest.mark.parametrize(
        ("x", "share"), [(torch.arange(10.0).double()[:, None] // 2 + normal(10, 1) / 1e4, 10), (normal(10, 900), 0.1)]
    )
    def test_a_bandwidth_is_chosen_by_the_densities_of_patients_that_are_held_out(
        self, x: torch.Tensor, share: float
    ) -> None:
        """Pairs of a patient each, far from the others: the widest. In 900 dimensions all are far: the narrowest."""
        cases = of(x).cases
        pairs = tuple(replace(case, group=str(n // 2)) for n, case in enumerate(cases))
        learned = registry.build("kernel_density", "detector").fitted(Training(x, pairs)).learned
        z = (x - x.mean(0)) / x.std(0)
        nearest = np.sort(np.linalg.norm(z.numpy()[:, None] - z.numpy(), axis=2), 1)[:, 1]
        assert float(learned["width"]) == pytest.approx(share * np.sort(nearest)[4], rel=1e-6)

    def test_the_one_class_machine_is_that_of_scikit_learn(self) -> None:
        x, queries = normal(200, 4), normal(20, 4, seed=3)
        own = registry.build("one_class_svm", "detector").fitted(of(x)).score(queries, ())
        z = (x - x.mean(0)) / x.std(0)
        machine = OneClassSVM(nu=0.05, gamma=1 / 4).fit(z.numpy())
        expected = -machine.decision_function(((queries - x.mean(0)) / x.std(0)).numpy())
        np.testing.assert_allclose(own.numpy(), expected, rtol=1e-9, atol=1e-12)

    @pytest.mark.parametrize("name", ["mgm", "kernel_density", "isolation_forest(trees=20)", "one_class_svm"])
    def test_a_point_10_deviations_away_is_in_the_top_1_percent(self, name: str) -> None:
        detector = registry.build(name, "detector").fitted(of(normal(200, 4)))
        usual = detector.score(normal(500, 4, seed=5), ())
        far = detector.score(torch.full((1, 4), 10.0, dtype=torch.float64), ())
        assert float(far) > float(usual.quantile(0.99))


class TestTrained:
    @staticmethod
    def shuffled(name: str) -> float:
        x = normal(600, 6)
        clean, noisy, attacked = x[:200], x[200:400], x[400:]
        detector = registry.build(name, "detector").fitted(Training(clean, (), noisy, attacked))
        first, second = (detector.score(normal(400, 6, seed=n), ()).numpy() for n in (7, 8))
        return auroc(first, second)

    @pytest.mark.parametrize("name", ["dfeat", "linear_probe", "qfeat"])
    def test_labels_that_mean_nothing_teach_nothing(self, name: str) -> None:
        assert 0.4 <= self.shuffled(name) <= 0.6

    @pytest.mark.parametrize("name", ["dfeat", "linear_probe", "qfeat"])
    def test_classes_that_lie_apart_are_told_apart(self, name: str) -> None:
        shift = torch.tensor([2.0, 0, 0, 0, 0, 0], dtype=torch.float64)
        sides = normal(200, 6), normal(200, 6, seed=1), normal(200, 6, seed=2) + shift
        detector = registry.build(name, "detector").fitted(Training(sides[0], (), *sides[1:]))
        clean, attacked = detector.score(normal(300, 6, seed=3), ()), detector.score(normal(300, 6, seed=4) + shift, ())
        assert auroc(clean.numpy(), attacked.numpy()) > 0.85

    def test_the_machine_on_levels_is_that_of_scikit_learn(self) -> None:
        clean, noisy, attacked = normal(80, 3), normal(80, 3, seed=1), normal(80, 3, seed=2) + 1
        detector = registry.build("qfeat", "detector").fitted(Training(clean, (), noisy, attacked))
        steps = np.quantile(clean.numpy(), [0.25, 0.5, 0.75], axis=0)

        def levels(x: torch.Tensor) -> np.ndarray:
            return (x.numpy()[:, None] > steps).sum(1).astype(float)

        x, labels = levels(torch.cat([clean, noisy, attacked])), [0] * 160 + [1] * 80
        machine = SVC(C=1.0, gamma="scale", class_weight="balanced").fit(x, labels)
        queries = normal(30, 3, seed=4)
        np.testing.assert_allclose(detector.score(queries, ()).numpy(), machine.decision_function(levels(queries)))

    def test_levels_are_climbed_through_soft_steps_of_slope_10(self) -> None:
        """The gradient is that of a sum of sigmoids, 10 times as steep as one of a feature's standard deviation."""
        steps, scale = torch.tensor([[0.0, 5.0], [1.0, 6.0]]), torch.tensor([0.5, 2.0])
        x = torch.tensor([[0.3, 6.5]], requires_grad=True)
        levels = _quantised(x, steps, scale)
        assert levels.tolist() == [[1.0, 2.0]]
        (grad,) = torch.autograd.grad(levels.sum(), x)
        soft = torch.sigmoid(10 * (x.detach() - steps) / scale)
        torch.testing.assert_close(grad, (10 / scale * soft * (1 - soft)).sum(0, keepdim=True))


class TestImages:
    @pytest.mark.parametrize(
        ("noise", "expected"),
        [
            (normal(1, 1, 256, 256), 0.997),
            ((normal(1, 1, 256, 256) > 0).double() * 2 - 1, 1.014),
            ((torch.rand(1, 1, 256, 256, dtype=torch.float64) - 0.5) * math.sqrt(12), 1.011),
        ],
    )
    def test_noise_of_variance_1_has_sigma_1(self, noise: torch.Tensor, expected: float) -> None:
        assert float(residual_sigma(0.5 + noise / 100)) * 100 == pytest.approx(expected, abs=0.02)

    def test_a_ramp_has_no_noise_and_what_the_window_cuts_off_does_not_count(self) -> None:
        ramp = torch.linspace(0.1, 0.9, 32, dtype=torch.float64).expand(1, 1, 32, 32)
        assert float(residual_sigma(ramp)) < 1e-5
        image = 0.5 + 0.01 * normal(1, 1, 64, 64)
        for end in (0, 1):
            cut = image.clone()
            cut[..., :32] = end
            assert float(residual_sigma(cut)) == pytest.approx(float(residual_sigma(image)), rel=0.1)
        assert float(residual_sigma(torch.stack([image, image], 2))) == pytest.approx(float(residual_sigma(image)))

    def test_more_noise_and_less_are_as_suspicious(self) -> None:
        """The score is |log(sigma / median sigma of clean cases)|."""
        sigmas = torch.tensor([[0.01], [0.02], [0.04], [0.02], [0.005]], dtype=torch.float64)
        detector = registry.build("noise_map", "detector").fitted(of(sigmas[:3].log()))
        expected = [math.log(2), 0, math.log(2), 0, math.log(4)]
        assert detector.score(sigmas.log(), ()).tolist() == pytest.approx(expected, abs=1e-12)

    def test_the_attribution_of_a_linear_model_is_its_weight_times_the_image(self) -> None:
        weight = normal(2, 1, 1, 1).float()

        class Linear(nn.Module):
            def forward(self, x: torch.Tensor) -> torch.Tensor:
                return nn.functional.conv2d(x, weight) + 5

        model = SegModel(Linear(), TWO)
        x = torch.rand(1, 1, 6, 6).requires_grad_()
        attribution = input_times_gradient(model(x), model, x, create_graph=False)
        torch.testing.assert_close(attribution, (x * weight.sum()).abs().detach())

    @pytest.mark.parametrize(
        ("shape", "sides"), [((40, 33), (32, 32)), ((20, 40), (20, 32)), ((13, 12, 9), (12, 12, 9))]
    )
    def test_an_attribution_is_averaged_to_at_most_32_by_32_or_12_by_12_by_12(
        self, shape: tuple[int, ...], sides: tuple[int, ...]
    ) -> None:
        detector = registry.build("explanation", "detector")
        statistics = detector.observe(oracle(TWO), torch.rand(1, 1, *shape), ())[1]
        assert statistics.shape == (1, math.prod(sides))


class TestConsistency:
    @pytest.mark.parametrize("name", ["rotation_consistency", "spatial_consistency(pairs=8)"])
    @pytest.mark.parametrize("shape", [(12, 12), (9, 14), (6, 8, 8)])
    def test_a_model_of_single_pixels_is_consistent(self, name: str, shape: tuple[int, ...]) -> None:
        image = torch.rand(2, 1, *shape, generator=torch.Generator().manual_seed(0))
        detector = registry.build(name, "detector")
        assert scores(detector, oracle(TWO), image, ()).tolist() == [0.0, 0.0]

    def test_parts_lie_apart_by_a_quarter_to_three_quarters_of_their_side(self) -> None:
        pairs = spatial_consistency.SpatialConsistency(pairs=300)._places((40, 40))  # sides of 20
        for axis in (0, 1):
            assert {abs(first[axis] - second[axis]) for first, second in pairs} == set(range(5, 16))

    def test_a_box_filter_is_consistent_when_it_is_turned(self) -> None:
        image = torch.rand(2, 1, 12, 12, generator=torch.Generator().manual_seed(0))
        assert scores(registry.build("rotation_consistency", "detector"), blurred_oracle(TWO), image, ()).tolist() == [
            0,
            0,
        ]

    def test_a_scan_is_turned_by_three_quarters_and_mirrored_both_ways(self) -> None:
        image, seen = torch.rand(1, 1, 3, 4), []

        class Net(nn.Module):
            def forward(self, x: torch.Tensor) -> torch.Tensor:
                seen.append(x)
                return (x - 0.5).expand(-1, 2, -1, -1)

        scores(registry.build("rotation_consistency", "detector"), SegModel(Net(), TWO), image, ())
        poses = [image, *(image.rot90(k, (2, 3)) for k in (1, 2, 3)), image.flip(3), image.flip(2)]
        assert sorted(str(x.tolist()) for x in seen) == sorted(str(x.tolist()) for x in poses)

    @pytest.mark.parametrize("module", [rotation_consistency, spatial_consistency])
    def test_the_score_of_masks_has_the_gradient_of_that_of_probabilities(self, module: Any) -> None:
        """Soft Dice 2 pq / (p^2 + q^2), soft IoU pq / (p^2 + q^2 - pq), one less the mean over classes."""
        own, other = (normal(3, 2, 4, 5, seed=n).requires_grad_() for n in (1, 2))
        p, q = (x.sigmoid() for x in (own, other))
        both, squares = (each.flatten(2).sum(2) for each in (p * q, p**2 + q**2))
        ratio = 2 * both / squares if module is rotation_consistency else both / (squares - both)
        expected = torch.autograd.grad(1 - ratio.mean(1).sum(), (own, other))
        score = module._disagreement(oracle(TWO), own, other)
        masks = [x.detach() >= 0 for x in (own, other)]
        hit, union = ((f(*masks)).flatten(2).sum(2).double() for f in (torch.logical_and, torch.logical_or))
        hard = 2 * hit / (hit + union) if module is rotation_consistency else hit / union
        torch.testing.assert_close(score.detach(), 1 - hard.mean(1))
        for grad, wanted in zip(torch.autograd.grad(score.sum(), (own, other)), expected, strict=True):
            torch.testing.assert_close(grad, wanted)

    def test_a_model_that_looks_to_one_side_is_not(self) -> None:
        class Sided(nn.Module):
            def forward(self, x: torch.Tensor) -> torch.Tensor:
                return (x.cumsum(-1) - 3).expand(-1, 2, -1, -1)

        image = torch.rand(2, 1, 12, 12, generator=torch.Generator().manual_seed(0))
        for name in ("rotation_consistency", "spatial_consistency"):
            score = scores(registry.build(name, "detector"), SegModel(Sided(), TWO), image, ())
            assert ((score > 0.1) & (score <= 1)).all()


class TestFeatures:
    def test_the_deepest_map_is_that_of_the_fewest_pixels_and_the_late_one_comes_last(self) -> None:
        batch = blobs.batch(3)
        with frozen(blobs.healthy()) as model, torch.no_grad():
            log_odds, layers = hidden(model, batch.image)
            assert torch.equal(log_odds, model(batch.image))
        assert layers.deepest.shape == (3, 24, 16, 16)
        assert [tuple(each.shape[1:]) for each in layers.pyramid] == [(12, 32, 32), (24, 16, 16)]
        assert layers.late.shape == (3, 12, 32, 32)
        assert (layers.deepest >= 0).all(), "behind its last activation"
        assert [part.shape[1] for part in pooled(layers, "pyramid")] == [12, 24]
        assert pooled(layers, "grid")[0].shape == (3, 24 * 16)

    def test_a_network_without_layers_is_known_by_its_answer(self) -> None:
        image = torch.rand(1, 1, 8, 8)
        assert torch.equal(hidden(oracle(TWO), image)[1].deepest, oracle(TWO)(image))

    def test_windows_of_a_scan_give_one_map_and_a_gradient(self) -> None:
        net = SlidingWindow(blobs.healthy_net(), (16, 16)).eval()
        model = SegModel(net, blobs.TASK).eval()
        x = blobs.batch(2).image.requires_grad_()
        _, layers = hidden(model, x)
        assert layers.deepest.shape == (2, 24, 8, 8)
        (grad,) = torch.autograd.grad(layers.deepest.sum(), x)
        assert (grad != 0).any()


@pytest.mark.parametrize("other", ["strip", "linear_probe", "dfeat"])
def test_detectors_without_a_scale_of_clean_scores_are_no_part_of_several(other: str) -> None:
    with pytest.raises(InputError, match="learn from statistics of clean scans for any_of"):
        registry.build(f"any_of((entropy, {other}))", "detector")


@pytest.mark.parametrize("parts", [(), (Median(3),), (Entropy(), Median(3)), ("entropy",)])
def test_what_is_no_detector_is_no_part_of_several(parts: tuple[object, ...]) -> None:
    with pytest.raises(InputError, match="expected detectors that learn from statistics of clean scans for any_of"):
        AnyOf(parts)


def test_folds_are_of_patients_one_after_the_other() -> None:
    cases = of(normal(7, 1)).cases
    assert folds([case for case in cases for _ in range(2)]).tolist() == [n % 5 for n in range(7) for _ in range(2)]


@pytest.mark.parametrize(("sigmas", "expected"), [((0.0, 1.0, 3.0), (1, 1, 3)), ((0.0, 1.0), (0, 1))])
def test_scores_of_three_patients_or_more_are_of_what_learned_from_the_others(
    sigmas: tuple[float, ...], expected: tuple[float, ...]
) -> None:
    """The distance from the median of the others, the lower of two; of two patients, from that of both."""
    detector = registry.build("noise_map", "detector")
    assert held_out_scores(detector, of(torch.tensor(sigmas).double()[:, None])).tolist() == list(expected)


@pytest.mark.parametrize("unit", [1e-4, 1e4])
def test_among_several_detectors_the_unit_of_a_score_does_not_matter(unit: float) -> None:
    x = 1 + 0.1 * normal(30, 1)
    detector = registry.build("any_of((entropy, variation_ratio))", "detector")
    fitted = detector.fitted(of(joined([x, unit * x])))
    queries = normal(10, 1, seed=1)
    alone, other = (fitted.score(joined(pair), ()) for pair in ([queries, 0 * queries], [0 * queries, unit * queries]))
    torch.testing.assert_close(alone, other, rtol=1e-5, atol=1e-9)


def test_several_detectors_alarm_where_one_of_them_does() -> None:
    batch, fit = of_own_patients(blobs.batch(8, 5000)), of_own_patients(blobs.batch(12, 5100))
    with frozen(blobs.healthy()) as model:
        detector = registry.build("any_of(detectors=(entropy, mgm))", "detector")
        fitted = detector.fitted(training(detector, model, fit))
        each = []
        for n, name in enumerate(("entropy", "mgm")):
            alone = registry.build(name, "detector")
            own = scores(alone.fitted(training(alone, model, fit)), model, batch.image, batch.cases)
            each.append((own - fitted.learned[f"{n}.own.middle"]) / fitted.learned[f"{n}.own.spread"])
        together = scores(fitted, model, batch.image, batch.cases)
    torch.testing.assert_close(together, torch.maximum(*each))
