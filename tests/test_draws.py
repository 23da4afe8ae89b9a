"""Every test begins with the same draws, whatever ran before it in its process."""

import pytest
import torch


@pytest.fixture
def drawn() -> torch.Tensor:
    return torch.rand(3)


@pytest.mark.parametrize("draws", [1, 2, 3])
def test_what_is_drawn_depends_on_no_other_test(draws: int, drawn: torch.Tensor, pytestconfig: pytest.Config) -> None:
    seed = pytestconfig.getoption("--seed")
    assert torch.equal(torch.rand(5), torch.rand(5, generator=torch.Generator().manual_seed(2 * seed + 1)))
    assert torch.equal(drawn, torch.rand(3, generator=torch.Generator().manual_seed(2 * seed)))
    torch.rand(draws)
