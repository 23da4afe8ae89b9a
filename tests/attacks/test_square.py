"""The square attack: its squares, its budget of queries, its bounds."""

import pytest
import torch
from helpers.oracle_scene import EPS, ORGAN, images, oracle, truth
from torch import Tensor

from medseg_attack import registry
from medseg_attack.attacks.blackbox.square import Square, _bump, _InL2, _side, _square, share
from medseg_attack.attacks.counting import CountedModel
from medseg_attack.errors import InputError
from medseg_attack.threat.balls.norms import L2, Linf
from medseg_attack.threat.objectives.losses import margin, soft_dice
from medseg_attack.types import Image, LogOdds

SEEDS = [1, 2, 3]


def test_every_pixel_ends_at_an_end_of_its_range() -> None:
    model, image = oracle(ORGAN), images()
    target = truth(model, image)
    result = Square(Linf(EPS), margin, queries=60)(model, image, target, SEEDS)
    low, high = (image - EPS).clamp(min=0), (image + EPS).clamp(max=1)
    at_an_end = torch.isclose(result.image, low, atol=1e-12) | torch.isclose(result.image, high, atol=1e-12)
    assert at_an_end.all()


def test_nothing_out_of_reach_is_flipped_and_the_search_finds_more_than_its_stripes() -> None:
    model, image = oracle(ORGAN), images(0.1)
    target = truth(model, image)
    within, flips = (image - 0.5).abs() < EPS, []
    for queries in (1, 400):
        result = Square(Linf(EPS), margin, queries, first=0.05)(model, image, target, SEEDS)
        wrong = model.decide(model(result.image)) != target
        assert not (wrong & ~within).any()
        flips.append(wrong.flatten(1).sum(1))
    assert (flips[1] > 1.1 * flips[0]).all()


@pytest.mark.parametrize("ball", [Linf(EPS), L2(0.5)], ids=["linf", "l2"])
def test_queries_are_counted_and_the_first_is_never_lost(ball: Linf | L2) -> None:
    model, image = oracle(ORGAN, "blurred_oracle"), images(0.1)
    target = truth(model, image)
    harms = []
    for queries in (1, 7, 40):
        metered = CountedModel(model)
        result = Square(ball, soft_dice, queries)(metered, image, target, SEEDS)
        assert (metered.forwards, metered.backwards) == (queries, 0)
        assert (ball.size(result.image, image) <= ball.limit + 1e-12).all()
        harms.append(result.harm)
    assert (harms[0] <= torch.minimum(harms[1], harms[2])).all()  # the schedule of squares is that of the budget
    assert (harms[0] < harms[2]).all()


def test_a_square_is_kept_where_it_raises_the_objective_of_its_image() -> None:
    """Each image's tries lie one square from the last that was higher than all before."""
    image, tried = images(0.1), []

    def noting(log_odds: Tensor, target: Tensor, progress: float = 1.0) -> Tensor:
        tried.append((log_odds / 10 + 0.5).detach())
        return margin(log_odds, target)

    target = truth(oracle(ORGAN), image)
    Square(Linf(EPS), noting, queries=40, first=0.05)(oracle(ORGAN), image, target, SEEDS)
    heights = torch.stack([margin(10 * x - 5, target) for x in tried])
    squares = [round((share(max(n - 1, 0), 40, 0.05) * image[0].numel()) ** 0.5) ** 2 for n in range(40)]
    for i in range(3):
        for n in range(1, 40):
            last = int(heights[:n, i].argmax())
            assert ((tried[n][i] - tried[last][i]).abs() > 1e-12).sum() <= max(squares[n], 1)


def test_squares_reach_every_row_and_column() -> None:
    x = torch.zeros(400, 1, 6, 9)
    assert _side(x, 4 / 54) == 2
    inside, corner = _square(x, 2, list(range(400)))
    assert torch.equal(inside.flatten(1).sum(1), torch.full((400,), 4.0))
    assert set(corner[:, 0].tolist()) == set(range(5))
    assert set(corner[:, 1].tolist()) == set(range(8))
    assert inside.sum(0).min() > 0
    assert _side(x, 1.0) == 6  # limited by the shorter side
    volume = torch.zeros(5, 1, 6, 6, 6)
    assert _side(volume, 27 / 216) == 3
    cubes, _ = _square(volume, 3, list(range(5)))
    assert torch.equal(cubes.flatten(1).sum(1), torch.full((5,), 27.0))


def test_squares_shrink_as_published() -> None:
    sizes = [share(query, 10000, 0.8) for query in (0, 10, 11, 51, 201, 501, 1001, 2001, 4001, 6001, 8001)]
    assert sizes == [0.8, 0.8] + [0.8 / 2**n for n in range(1, 10)]
    assert share(150, 300, 0.8) == 0.8 / 2**7  # half way, whatever the budget


def shown(ball: Linf | L2, image: Image, queries: int, first: float) -> list[Image]:
    """What the attack asks about."""
    queried: list[Image] = []

    class Watched(CountedModel):
        def __call__(self, image: Image) -> LogOdds:
            queried.append(image.detach().clone())
            return super().__call__(image)

    model = oracle(ORGAN)
    Square(ball, margin, queries, first)(Watched(model), image, truth(model, image), SEEDS)
    return queried


def test_the_first_square_is_the_largest() -> None:
    """Stripes are columns: a square of one sign changes some, first row to last. The second covers a fourth of it."""
    stripes, first, second, *_ = shown(Linf(EPS), torch.full((3, 1, 20, 20), 0.5, dtype=torch.float64), 100, 0.64)
    for i in range(3):
        rows = (first[i, 0] != stripes[i, 0]).any(1).nonzero().flatten()
        assert len(rows) == rows[-1] - rows[0] + 1 == 16  # of 20: 0.64 of the image
        columns = (first[i, 0] != stripes[i, 0]).any(0).nonzero().flatten()
        assert columns[-1] - columns[0] < 16
        assert min((second[i, 0] != before[i, 0]).sum() for before in (stripes, first)) <= 64


@pytest.mark.parametrize(("share_of_all", "side"), [(1 / 400, 3), (4 / 400, 3), (9 / 400, 3), (16 / 400, 5), (1.0, 19)])
def test_squares_of_l2_have_a_middle(share_of_all: float, side: int) -> None:
    image = torch.full((3, 1, 20, 20), 0.5, dtype=torch.float64)
    moved = _InL2(L2(0.5), image).next(image, share_of_all, SEEDS)
    assert (moved != image).flatten(1).sum(1).tolist() == [side**2] * 3


@pytest.mark.parametrize("shape", [(12, 10), (9, 8, 7), (15,)])
def test_a_bump_is_two_opposite_hills_of_length_one(shape: tuple[int, ...]) -> None:
    x = torch.zeros(6, 2, *shape, dtype=torch.float64)
    side = _side(x, 0.3)
    inside, corner = _square(x, side, list(range(6)))
    bump = _bump(x, corner, side, list(range(6)))
    axes = tuple(range(2, x.ndim))
    torch.testing.assert_close(bump.square().sum(axes), torch.ones(6, 2, dtype=torch.float64))
    assert torch.equal(bump != 0, (inside > 0).expand_as(bump))
    assert (bump.amax(axes) > 0).all()
    assert (bump.amin(axes) < 0).all()


def published_hill(rows: int, columns: int) -> Tensor:
    """Windows around the middle that grow by a pixel to each side, each with a weight added (the paper's eta)."""
    hill = torch.zeros(rows, columns, dtype=torch.float64)
    for away in range(max(rows // 2, columns // 2) + 1):
        top, left = rows // 2 - away, columns // 2 - away
        hill[max(top, 0) : top + 2 * away + 1, max(left, 0) : left + 2 * away + 1] += 1 / (away + 1) ** 2
    return hill / hill.norm()


@pytest.mark.parametrize("side", [2, 3, 4, 5, 7, 8, 13])
def test_hills_are_those_of_the_paper_on_even_and_odd_sides(side: int) -> None:
    x = torch.zeros(20, 1, side, side, dtype=torch.float64)
    upper, lower = published_hill(side // 2, side), published_hill(side - side // 2, side)
    expected = torch.cat((upper, -lower)) / 2**0.5
    seen = set()
    for bump in _bump(x, torch.zeros(20, 2, dtype=torch.long), side, list(range(20)))[:, 0]:
        ways = {"rows": expected, "columns": expected.T}
        seen |= {(way, sign) for way, hills in ways.items() for sign in (1, -1) if torch.allclose(bump, sign * hills)}
        assert any(torch.allclose(bump, sign * hills) for hills in ways.values() for sign in (1, -1))
    assert len(seen) == 4


def test_l2_spends_its_whole_length() -> None:
    model, image = oracle(ORGAN), images(0.1)
    result = Square(L2(0.5), margin, queries=30)(model, image, truth(model, image), SEEDS)
    torch.testing.assert_close(result.size, torch.full((3,), 0.5, dtype=torch.float64), atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("square(queries=0)", "queries >= 1, got 0"),
        ("square(first=0.0)", "0 < first <= 1"),
        ("square(blend)", "linf or l2 for square, got blend"),
    ],
)
def test_wrong_options_are_told(text: str, message: str) -> None:
    with pytest.raises(InputError) as error:
        registry.build(text, "attack")
    assert message in str(error.value)


def test_first_bumps_are_a_fifth_of_the_shortest_side_wide_and_alike_in_size() -> None:
    image = torch.full((2, 1, 10, 30), 0.5, dtype=torch.float64)
    change = _InL2(L2(0.1), image).start([1, 2]) - image
    energy = torch.nn.functional.avg_pool2d(change.square(), 2) * 4
    torch.testing.assert_close(energy, torch.full_like(energy, 0.1**2 / energy[0].numel()))
