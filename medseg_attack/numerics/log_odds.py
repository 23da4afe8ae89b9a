"""Log-odds: the one output that every model has."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

from medseg_attack.types import LogOdds

NO_ANSWER = 100.0  # exp(-100) is still a number in float32


def softmax_log_odds(logits: Float[Tensor, "b k *s"]) -> LogOdds:
    """`l_k = z_k - logsumexp_{j != k} z_j`, so that `sigmoid(l)` is `softmax(z)` exactly; argmax is kept.

    Written as a loop over classes: `log p - log(1 - p)` would be infinite where float32 rounds p to 1.

    >>> z = torch.tensor([[0.0, 100.0, -50.0]])
    >>> softmax_log_odds(z).tolist()
    [[-100.0, 100.0, -150.0]]
    """
    others = [torch.cat((logits[:, :k], logits[:, k + 1 :]), 1) for k in range(logits.shape[1])]
    return torch.stack([logits[:, k] - torch.logsumexp(rest, 1) for k, rest in enumerate(others)], 1)


def divergence(
    log_odds: LogOdds, other: LogOdds, exclusive: bool, weights: Tensor | None = None
) -> Float[Tensor, "b *s"]:
    """The Kullback-Leibler divergence from one answer to another, of each pixel, in nats.

    Args:
        exclusive: whether classes exclude each other; otherwise each is a decision of its own, and they are added up.
        weights: of the entries, (b, k, *s); None weighs all alike.

    >>> p, q = torch.tensor([0.8, 0.2]).view(1, 2, 1), torch.tensor([0.6, 0.4]).view(1, 2, 1)
    >>> f"{divergence(p.logit(), q.logit(), True).item():.6f} {divergence(p.logit(), p.logit(), True).item()}"
    '0.091516 0.0'
    """
    p = torch.sigmoid(log_odds)
    terms = p * (functional.logsigmoid(log_odds) - functional.logsigmoid(other))
    if not exclusive:
        terms = terms + (1 - p) * (functional.logsigmoid(-log_odds) - functional.logsigmoid(-other))
    return (terms if weights is None else terms * weights).sum(1)


def softened(log_odds: LogOdds, temperature: float, exclusive: bool) -> LogOdds:
    """The log-odds of an answer whose logits are divided by a temperature; 1 leaves them."""
    if temperature == 1:
        return log_odds
    if not exclusive:
        return log_odds / temperature
    return softmax_log_odds(functional.logsigmoid(log_odds) / temperature)


def mean_logits(stacked: Float[Tensor, "m b k *s"], weights: Float[Tensor, "m"], exclusive: bool) -> LogOdds:
    """Log-odds of the weighted mean of several models' logits; of exclusive classes that of the logits of a softmax.

    Log-probabilities are logits less a number that a pixel's classes share, so the mean of log-probabilities has the
    softmax of the mean logits.

    Args:
        weights: of the models, of sum 1.
    """
    if not exclusive:
        return torch.einsum("m,m...->...", weights, stacked)
    return softmax_log_odds(torch.einsum("m,m...->...", weights, functional.logsigmoid(stacked)))


def mean_probabilities(stacked: Float[Tensor, "m b k *s"], weights: Float[Tensor, "m"]) -> LogOdds:
    """Log-odds of the weighted mean of several models' probabilities.

    >>> mean = mean_probabilities(torch.tensor([0.0, 1.0986123]).view(2, 1, 1, 1), torch.tensor([0.5, 0.5]))
    >>> f"{mean.sigmoid().item():.4f}"
    '0.6250'

    Args:
        weights: of the models, of sum 1.
    """
    log_weights = weights.log().view(-1, *(1 for _ in stacked.shape[1:]))
    present, absent = functional.logsigmoid(stacked) + log_weights, functional.logsigmoid(-stacked) + log_weights
    return torch.logsumexp(present, 0) - torch.logsumexp(absent, 0)


def log_odds_of_votes(votes: Bool[Tensor, "m b k *s"], weights: Float[Tensor, "m"], like: Tensor) -> LogOdds:
    """Log-odds of the weighted share of votes, with half a vote more on either side, so that they are finite."""
    n = len(votes)
    share = torch.einsum("m,m...->...", weights, votes.to(like))
    return ((share * n + 0.5) / (n + 1)).logit()


def is_finite(values: Tensor) -> Bool[Tensor, "b"]:
    """Whether all numbers of each sample are finite; NaN and infinity show in the least and the largest of them.

    >>> is_finite(torch.tensor([[1.0, torch.nan], [1.0, -torch.inf], [1.0, 2.0]])).tolist()
    [False, False, True]
    """
    flat = values.flatten(1)
    return torch.isfinite(flat.amin(1)) & torch.isfinite(flat.amax(1))


def without_nan(log_odds: LogOdds) -> LogOdds:
    """Log-odds that are finite: NaN says that a class is not there, infinity that it is, -infinity that it is not.

    >>> without_nan(torch.tensor([[[torch.nan, torch.inf, 2.0]]])).tolist()
    [[[-100.0, 100.0, 2.0]]]
    """
    return torch.nan_to_num(log_odds, nan=-NO_ANSWER, posinf=NO_ANSWER, neginf=-NO_ANSWER)
