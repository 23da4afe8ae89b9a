"""The state of an optimiser as named tensors, and back."""

from collections.abc import Mapping

import torch
from torch import Tensor


def moments(optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The moments of an optimiser, by the names that a stored training gives them."""
    return {
        f"optimiser/{index}/{name}": value
        for index, entry in optimiser.state_dict()["state"].items()
        for name, value in entry.items()
    }


def restore_moments(optimiser: torch.optim.Optimizer, stored: Mapping[str, Tensor]) -> None:
    """The inverse of `moments`; other tensors of the stored training are passed over."""
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in stored.items():
        if key.startswith("optimiser/"):
            _, index, name = key.split("/")
            state.setdefault(int(index), {})[name] = value
    optimiser.load_state_dict({"state": state, "param_groups": optimiser.state_dict()["param_groups"]})
