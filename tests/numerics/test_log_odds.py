"""Log-odds against probabilities: divergences, temperatures, means of several models, answers that are not finite."""

import pytest
import torch
from torch import Tensor
from torch.distributions import Bernoulli, Categorical, kl_divergence

from medseg_attack.numerics.log_odds import (
    divergence,
    log_odds_of_votes,
    mean_logits,
    mean_probabilities,
    softened,
    softmax_log_odds,
    without_nan,
)

WEIGHTS = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)


def logits(*shape: int, seed: int = 0) -> Tensor:
    return 3 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_log_odds_of_a_softmax_have_its_probabilities() -> None:
    z = logits(2, 4, 3, 5)
    torch.testing.assert_close(softmax_log_odds(z).sigmoid(), z.softmax(1))


def test_a_divergence_is_that_of_the_distributions() -> None:
    p, q = logits(2, 3, 4, 5), logits(2, 3, 4, 5, seed=1)
    apart = kl_divergence(Bernoulli(logits=p), Bernoulli(logits=q)).sum(1)
    torch.testing.assert_close(divergence(p, q, False), apart)
    together = kl_divergence(Categorical(logits=p.movedim(1, -1)), Categorical(logits=q.movedim(1, -1)))
    torch.testing.assert_close(divergence(softmax_log_odds(p), softmax_log_odds(q), True), together)
    first = torch.zeros_like(p)
    first[:, :1] = 2.0
    torch.testing.assert_close(divergence(p, q, False, first), 2 * divergence(p[:, :1], q[:, :1], False))


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_a_temperature_divides_logits(temperature: float) -> None:
    z = logits(2, 3, 4)
    torch.testing.assert_close(softened(z, temperature, False), z / temperature)
    expected = softmax_log_odds(z / temperature)
    torch.testing.assert_close(softened(softmax_log_odds(z), temperature, True), expected)


def test_means_of_models_are_of_logits_or_of_probabilities() -> None:
    stacked = logits(3, 2, 4, 5)
    mean = (WEIGHTS.view(3, 1, 1, 1) * stacked).sum(0)
    torch.testing.assert_close(mean_logits(stacked, WEIGHTS, False), mean)
    each = torch.stack([softmax_log_odds(z) for z in stacked])
    torch.testing.assert_close(mean_logits(each, WEIGHTS, True), softmax_log_odds(mean))
    probabilities = (WEIGHTS.view(3, 1, 1, 1) * stacked.sigmoid()).sum(0)
    torch.testing.assert_close(mean_probabilities(stacked, WEIGHTS).sigmoid(), probabilities)


def test_votes_are_counted_with_half_a_vote_on_either_side() -> None:
    votes = torch.tensor([[True, True, False], [True, False, False], [True, True, False]]).view(3, 1, 3, 1)
    share = torch.tensor([1.0, 0.7, 0.0], dtype=torch.float64).view(1, 3, 1)
    expected = ((3 * share + 0.5) / 4).logit()
    torch.testing.assert_close(log_odds_of_votes(votes, WEIGHTS, expected), expected)


def test_what_is_not_finite_says_that_a_class_is_not_there_unless_it_is_infinite() -> None:
    z = torch.tensor([torch.nan, torch.inf, -torch.inf, 3.0, -0.5]).view(1, 5, 1)
    assert without_nan(z).flatten().tolist() == [-100.0, 100.0, -100.0, 3.0, -0.5]
