"""Spectral signatures on clusters that are drawn."""

import numpy as np
import pytest

from medseg_attack.stats.spectral import spectral_scores


@pytest.mark.parametrize("seed", range(5))
def test_one_in_twenty_that_is_shifted_by_8_deviations_leads_the_list(seed: int) -> None:
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(200, 16))
    direction = rng.normal(size=16)
    features[:10] += 8 * direction / np.linalg.norm(direction)
    most = np.argsort(-spectral_scores(features))[:15]  # 1.5 times the share that is poisoned
    assert set(range(10)) <= set(most.tolist())


def test_the_order_of_items_and_the_origin_do_not_matter() -> None:
    rng = np.random.default_rng(0)
    features = rng.normal(size=(12, 4))
    order = rng.permutation(12)
    np.testing.assert_allclose(spectral_scores(features[order] + 5), spectral_scores(features)[order], atol=1e-9)
