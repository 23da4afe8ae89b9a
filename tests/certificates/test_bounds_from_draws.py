"""Bounds from the same draws of noise by a second way: whatever loosens, tightens or negates one turns these red."""

import math

import numpy as np
import pytest
import torch
from helpers.certified import build, faint_denoiser, model_of, scan_of
from numpy.typing import NDArray
from scipy.stats import binom, norm
from torch import Tensor

from medseg_attack.certificates.base import Bound
from medseg_attack.certificates.smoothing.base import Smoothing, noisy_masks
from medseg_attack.certificates.smoothing.denoised import Denoised
from medseg_attack.models.networks.denoiser import denoised, load_denoiser
from medseg_attack.models.segmodel import SegModel, frozen
from medseg_attack.numerics.samples import draw, reseeded
from medseg_attack.types import Batch

RADII, SEED = [0.0, 0.02, 0.05], 1


def observed_bounds(name: str) -> tuple[Smoothing, SegModel, Batch, list[Bound]]:
    certificate, scan, model = build(name), scan_of(name), model_of(name)
    with frozen(model):
        observed = certificate.observe(model, scan, RADII, SEED, 16)
        return certificate, model, scan, certificate.bounds(observed, scan, model, RADII)  # type: ignore[return-value]


def masks_of(certificate: Smoothing, model: SegModel, scan: Batch, n: int, purpose: str = "bound") -> Tensor:
    with frozen(model):
        return torch.stack(list(noisy_masks(model, scan, certificate.sigma, n, SEED, purpose, 8)))


def interval(values: NDArray[np.float64], ratio: float, alpha: float) -> tuple[float, float]:
    """The narrowest order statistics outside of the quantiles Phi(-ratio) and Phi(ratio), by their definition."""
    n, values = len(values), np.sort(values)
    below = [k for k in range(1, n + 1) if binom.sf(k - 1, n, norm.cdf(-ratio)) >= 1 - alpha / 2]
    above = [k for k in range(1, n + 1) if binom.cdf(k - 1, n, norm.cdf(ratio)) >= 1 - alpha / 2]
    return values[max(below) - 1], values[min(above) - 1]


def test_the_interval_of_a_volume_is_that_of_its_order_statistics() -> None:
    certificate, model, scan, bounds = observed_bounds("volume")
    volumes = masks_of(certificate, model, scan, certificate.draws).sum((1, 3, 4)).double().numpy() * 2.0 / 1000
    for bound in bounds:
        k = model.task.classes.index(bound.cls)
        alpha = certificate.alpha / len(model.task.scored)
        low, high = interval(volumes[:, k], bound.radius / certificate.sigma, alpha)
        assert (bound.low, bound.high) == pytest.approx((low, high), rel=1e-12)
        assert low < bound.value < high


def test_the_interval_of_an_ejection_fraction_is_that_of_its_order_statistics() -> None:
    certificate, model, scan, bounds = observed_bounds("ejection_fraction")
    pixels = masks_of(certificate, model, scan, certificate.draws)[:, :, model.task.classes.index("square")].sum((2, 3))
    first = [n for n, case in enumerate(scan.cases) if case.phase == "ED"]
    last = [n for n, case in enumerate(scan.cases) if case.phase == "ES"]
    end, start = pixels[:, last].sum(1).double(), pixels[:, first].sum(1).double()
    fractions = (100 * (start - end) / start).numpy()
    assert len(np.unique(fractions)) > 5
    for bound in bounds:
        low, high = interval(fractions, bound.radius / certificate.sigma, certificate.alpha)
        assert (bound.low, bound.high) == pytest.approx((low, high), rel=1e-9)


def holm(votes: NDArray[np.int64], n: int, tau: float, alpha: float) -> NDArray[np.bool_]:
    """The hypotheses that Holm's test rejects, step by step: that an answer has the probability tau at most."""
    p = binom.sf(votes - 1, n, tau)
    rejected = np.zeros(len(p), bool)
    for step, place in enumerate(np.argsort(p, kind="stable")):
        if p[place] > alpha / (len(p) - step):
            break
        rejected[place] = True
    return rejected


def dice(pred: Tensor, truth: Tensor) -> float:
    return 2 * int((pred & truth).sum()) / (int(pred.sum()) + int(truth.sum()))


@pytest.mark.parametrize("name", ["segcertify", "hierarchical"])
def test_what_is_certified_of_pixels_is_what_holm_rejects_of_the_second_draws(name: str) -> None:
    certificate, model, scan, bounds = observed_bounds(name)
    exclusive, n = model.task.exclusive, certificate.draws
    first = masks_of(certificate, model, scan, 100, "choice").sum(0)
    votes = masks_of(certificate, model, scan, n).sum(0)
    if exclusive:
        answer = torch.nn.functional.one_hot(first.argmax(1), first.shape[1]).movedim(-1, 1).bool()
    else:
        answer = first > 50
    leaves = answer.clone()
    if exclusive:  # the finest level that leads by 30 of the first 100 draws
        organs = torch.tensor([False, True, True]).view(1, 3, 1, 1).expand_as(answer)
        ranked = first.sort(1, descending=True).values
        leads = (ranked[:, 0] - ranked[:, 1] >= 30)[:, None]
        own = torch.where(answer[:, :1], ~organs, organs)
        coarse = (((first * own).sum(1) - (first * ~own).sum(1)) >= 30)[:, None]
        leaves = torch.where(leads, answer, torch.where(coarse, own, True))
        assert 0 < (leaves.sum(1) > 1).sum() < leaves[:, 0].numel()
    agreeing = (votes * leaves).sum(1, keepdim=True) if exclusive else torch.where(answer, votes, n - votes)
    for radius in RADII:
        tau = norm.cdf(radius / certificate.sigma)
        sure = torch.from_numpy(holm(agreeing.flatten().numpy(), n, tau, certificate.alpha)).view(agreeing.shape)
        one = (leaves.sum(1, keepdim=True) == 1) if exclusive else torch.ones_like(sure)
        worst = torch.where(sure, torch.where(one, answer, leaves & ~scan.target), ~scan.target)
        assert 0 < sure.float().mean() < 1
        for bound in (bound for bound in bounds if bound.radius == radius):
            k = model.task.classes.index(bound.cls)
            assert bound.low == pytest.approx(dice(worst[:, k], scan.target[:, k]), abs=1e-12)
            assert bound.abstained == pytest.approx(1 - sure.double().mean().item(), abs=1e-12)
            assert bound.n_certified == int((sure & one & answer)[:, k].sum())
        with frozen(model):
            seen = certificate.observe(model, scan, [radius], SEED, 16)
        assert torch.equal(certificate.certain(seen, radius, model), sure.all(1))  # type: ignore[arg-type]


def bernstein(values: NDArray[np.float64], alpha: float) -> float:
    n, log = len(values), math.log(2 / alpha)
    return float(np.mean(values) - math.sqrt(2 * np.var(values, ddof=1) * log / n) - 7 * log / (3 * (n - 1)))


def test_a_denoised_bound_is_that_of_the_denoiser_and_the_model_together() -> None:
    scan, model = scan_of("denoised"), model_of("denoised")
    inner = build("expected_dice")
    certificate = Denoised(inner, faint_denoiser())
    assert isinstance(inner, Smoothing)
    network = load_denoiser(faint_denoiser())
    with frozen(model), torch.no_grad():
        bounds = certificate.bounds(certificate.observe(model, scan, RADII, SEED, 16), scan, model, RADII)
        seeds = [reseeded([SEED], case.id, "bound")[0] for case in scan.cases]
        scores = []
        for n in range(inner.draws):
            noisy = scan.image + inner.sigma * draw(torch.randn, scan.image, reseeded(seeds, n))
            mask = model.decide(model(denoised(network, noisy, inner.sigma)))
            scores.append([dice(mask[:, k], scan.target[:, k]) for k in range(mask.shape[1])])
    values = np.array(scores)
    for bound in bounds:
        k = model.task.classes.index(bound.cls)
        sure = max(bernstein(values[:, k], inner.alpha / len(model.task.scored)), 0.0)
        assert bound.value == pytest.approx(values[:, k].mean(), abs=1e-6)
        assert bound.low == pytest.approx(norm.cdf(norm.ppf(sure) - bound.radius / inner.sigma), abs=1e-6)
