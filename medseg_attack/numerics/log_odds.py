"""Log-odds: the one output that every model has."""

import torch
from jaxtyping import Float
from torch import Tensor

from medseg_attack.types import LogOdds


def softmax_log_odds(logits: Float[Tensor, "b k *s"]) -> LogOdds:
    """`l_k = z_k - logsumexp_{j != k} z_j`, so that `sigmoid(l)` is `softmax(z)` exactly; argmax is kept.

    Written as a loop over classes: `log p - log(1 - p)` would be infinite where float32 rounds p to 1.

    >>> z = torch.tensor([[0.0, 100.0, -50.0]])
    >>> softmax_log_odds(z).tolist()
    [[-100.0, 100.0, -150.0]]
    """
    others = [torch.cat((logits[:, :k], logits[:, k + 1 :]), 1) for k in range(logits.shape[1])]
    return torch.stack([logits[:, k] - torch.logsumexp(rest, 1) for k, rest in enumerate(others)], 1)
