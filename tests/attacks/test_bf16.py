"""An attack in bfloat16: what it sees is rounded, what scores it is not."""

import pytest
import torch
from torch import Tensor, nn

from medseg_attack import registry
from medseg_attack.attacks.composed.bf16 import Bf16
from medseg_attack.attacks.gradient.pgd import PGD
from medseg_attack.evaluation.loop import attack_chunk
from medseg_attack.evaluation.outcomes import decide
from medseg_attack.models.segmodel import SegModel
from medseg_attack.threat.balls.norms import Linf
from medseg_attack.types import Batch, Case, Task, Window

TASK = Task("task", ("organ",))
FINE = 1 + 2**-12  # between the steps of 2 ** -7 that bfloat16 has there
EPS = 0.125


class Scaled(nn.Module):
    """A convolution by one weight and a bias; it notes the types of its outputs."""

    def __init__(self, weight: float, bias: float) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 1, 1)
        nn.init.constant_(self.conv.weight, weight)
        nn.init.constant_(self.conv.bias, bias)  # type: ignore[arg-type]
        self.types: list[torch.dtype] = []

    def forward(self, x: Tensor) -> Tensor:
        answer: Tensor = self.conv(x)
        self.types.append(answer.dtype)
        return answer


def batch(dtype: torch.dtype = torch.float32) -> Batch:
    image = torch.linspace(0, 1, 64).view(1, 8, 8).to(dtype)
    return Batch.of([Case("c", "v", "p", image, image > 0.5, (1.0, 1.0), Window(0, 1))])


def test_the_attack_sees_rounded_products_and_is_scored_by_whole_ones() -> None:
    net = Scaled(FINE, -0.5 * FINE)
    model, one = SegModel(net, TASK).requires_grad_(False), batch()
    (result,) = attack_chunk(model, [one], [Bf16(PGD(Linf(EPS), steps=3))], keep_images=True)
    scored = [n for n, dtype in enumerate(net.types) if dtype == torch.float32]
    assert scored == [0, len(net.types) - 1]  # the untouched image, and what the attack returned
    assert set(net.types[1:-1]) == {torch.bfloat16}
    assert len(net.types) == 2 + 3 + 1  # a gradient for each step, and where it ended
    image = torch.stack(result.images)
    pred = decide(model, Batch(image, one.target, one.cases))
    (row,) = result.rows
    assert (row.n_adv, row.hit_adv) == (pred.sum(), (pred & one.target).sum())


def test_the_images_are_those_of_the_attack_on_the_rounded_weights() -> None:
    """On one scaled pixel the slope has the sign of the weight, rounded or not: PGD ends in the same corner."""
    one = batch()
    attacks = [PGD(Linf(EPS), steps=8, random_start=False, keep_worst=False)]
    attacks += [Bf16(attacks[0])]  # type: ignore[list-item]
    model = SegModel(Scaled(4.0, -2.0), TASK).requires_grad_(False)
    plain, half = attack_chunk(model, [one], attacks, keep_images=True)
    torch.testing.assert_close(half.images, plain.images, atol=0, rtol=0)
    assert (plain.images[0] - one.image[0]).abs().max() == pytest.approx(EPS)
    assert (half.rows[0].forwards, half.rows[0].backwards) == (plain.rows[0].forwards, plain.rows[0].backwards)


def test_a_sum_that_bfloat16_cannot_tell_apart_is_seen_as_one() -> None:
    model = SegModel(Scaled(FINE, 0.0), TASK).requires_grad_(False)
    seen: list[Tensor] = []

    class Looking(PGD):
        def __call__(self, model, image, target, seeds):  # type: ignore[no-untyped-def]
            seen.append(model(image))
            return super().__call__(model, image, target, seeds)

    one = batch()
    Bf16(Looking(steps=1))(model, one.image, one.target, [0])
    (log_odds,) = seen
    assert log_odds.dtype == torch.float32
    expected = (one.image.bfloat16() * torch.tensor(FINE).bfloat16()).float()
    torch.testing.assert_close(log_odds, expected, atol=0, rtol=0)
    assert not torch.equal(log_odds, model(one.image))


def test_in_double_precision_it_is_the_attack_itself() -> None:
    model, one = SegModel(Scaled(FINE, -0.5), TASK).double().requires_grad_(False), batch(torch.float64)
    attack = registry.build("pgd(steps=4)", "attack")
    results = [each(model, one.image, one.target, [0]) for each in (attack, Bf16(attack))]
    assert torch.equal(results[0].image, results[1].image)
