"""MedIS: its losses against values by hand, its fusion against its members, and layers without a gradient."""

import pytest
import torch
from helpers.blobs import batch, healthy
from torch import Tensor

from medseg_attack import registry
from medseg_attack.attacks.composed.least_of import LeastOf
from medseg_attack.attacks.composed.medis import medis
from medseg_attack.attacks.gradient.pgd import PGD
from medseg_attack.attacks.minimal.igsm import Igsm
from medseg_attack.defences.bpda import Bpda, Layer
from medseg_attack.metrics.harm import harm
from medseg_attack.models.segmodel import frozen
from medseg_attack.threat.balls.norms import Linf
from medseg_attack.threat.goals.criteria import ByDice, ByMiou
from medseg_attack.threat.objectives.losses import bce, soft_dice
from medseg_attack.threat.objectives.medis import LOSSES, exp_log, exp_log_shukla2023, lovasz_hinge
from medseg_attack.types import Image, LogOdds, Mask, Model, Objective

TRUTH = torch.zeros(1, 1, 4, 5, dtype=torch.bool)
TRUTH[..., 1:3, 1:4] = True


def along(objective: Objective, z: Tensor) -> float:
    """How the objective changes as the prediction comes to agree with the truth."""
    z = z.clone().requires_grad_()
    (grad,) = torch.autograd.grad(objective(z, TRUTH, 1.0).sum(), z)
    return (grad * (2.0 * TRUTH - 1)).sum().item()


@pytest.mark.parametrize("objective", list(LOSSES), ids=[registry.spec(loss) for loss in LOSSES])
def test_losses_fall_as_the_prediction_agrees(objective: Objective) -> None:
    for scale in (0.1, 1.0):
        z = scale * torch.randn(1, 1, 4, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        assert along(objective, z) < 0


def test_the_released_exp_log_pushes_the_wrong_way() -> None:
    z = torch.where(TRUTH, 1.0, -1.0).double() + 0.1 * torch.randn(
        1, 1, 4, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )
    assert along(exp_log, z) < 0
    assert along(exp_log_shukla2023, z) > 0


def test_the_released_exp_log_mends_what_it_attacks() -> None:
    batch_ = batch()
    with frozen(healthy()) as model:
        before = harm(model.decide(model(batch_.image)), batch_.target)
        harms = []
        for loss in (exp_log, exp_log_shukla2023):
            x = batch_.image
            for _ in range(4):
                x = x.detach().requires_grad_()
                x = (x + torch.autograd.grad(loss(model(x), batch_.target).sum(), x)[0].sign() / 255).clamp(0, 1)
            harms.append(harm(model.decide(model(x)), batch_.target))
    assert (harms[0] > before).all()
    assert (harms[1] < before).all()


def test_values_by_hand() -> None:
    z = torch.zeros(1, 1, 1, 4, dtype=torch.float64)
    truth = torch.tensor([[[[True, False, False, False]]]])
    dice = (2 * 0.5 + 1) / (2 + 1 + 1)
    expected = torch.tensor([dice]).log().square() / 2 + torch.tensor(2.0).log().square() / 2
    torch.testing.assert_close(exp_log(z, truth), expected.double(), atol=1e-6, rtol=0)
    log_cosh = registry.build("log_cosh_dice", "objective")(z, truth)
    torch.testing.assert_close(log_cosh, torch.tensor([1 - dice]).cosh().log().double(), atol=1e-6, rtol=0)
    # hinges 1 (organ) and 1, 1, 1; at ties the extension is their common value
    torch.testing.assert_close(lovasz_hinge(z, truth), torch.ones(1, dtype=torch.float64))
    # one false positive beside one organ pixel: 1 - IoU is 1/2
    hard = torch.tensor([[[[1.0, 0.0, -1.0, -1.0]]]], dtype=torch.float64)
    torch.testing.assert_close(lovasz_hinge(hard, truth), torch.full((1,), 0.5, dtype=torch.float64))
    # a single organ pixel in a large plain: weights 1 beside it are 1 + 5 / 961, on it 1 + 5 (1 - 1 / 961)
    plain = torch.zeros(1, 1, 99, 99, dtype=torch.bool)
    plain[..., 49, 49] = True
    near = registry.build("boundary_iou", "objective")(torch.zeros(1, 1, 99, 99, dtype=torch.float64), plain)
    w = torch.full((99, 99), 1.0, dtype=torch.float64)
    w[34:65, 34:65] = 1 + 5 / 961
    w[49, 49] = 1 + 5 * 960 / 961
    both, either = w[49, 49] / 2, w.sum() / 2 + w[49, 49] / 2
    torch.testing.assert_close(near, (torch.log(torch.tensor(2.0)) + 1 - (both + 1) / (either + 1)).double()[None])


def test_the_change_is_the_number_of_updates_times_the_step() -> None:
    batch_ = batch()
    attack = Igsm(Linf(20 / 255), soft_dice, success=ByDice(below=0.8), steps=9, step_size=1 / 255)
    with frozen(healthy()) as model:
        result = attack(model, batch_.image, batch_.target, [1, 2, 3, 4])
    assert result.success is not None
    assert result.success.any()
    updates = torch.as_tensor(result.passes)[:, 1][result.success]
    torch.testing.assert_close(result.size[result.success] * 255, updates.float(), atol=1e-3, rtol=0)


@pytest.mark.parametrize("released", [False, True])
def test_the_fusion_succeeds_wherever_a_member_does_with_the_least_change(released: bool) -> None:
    batch_ = batch(6)
    fused = medis(success=ByDice(below=0.89), steps=4, released=released)
    with frozen(healthy()) as model:
        members = [member(model, batch_.image, batch_.target, range(6)) for member in fused.attacks]
        result = fused(model, batch_.image, batch_.target, range(6))
        assert torch.equal(result.harm, harm(model.decide(model(result.image)), batch_.target))
    success = torch.stack([torch.as_tensor(member.success) for member in members])
    sizes = torch.stack([member.size for member in members]).masked_fill(~success, torch.inf)
    assert torch.equal(torch.as_tensor(result.success), success.any(0))
    assert torch.equal(result.size, torch.where(success.any(0), sizes.amin(0), 0.0))
    assert success.any()
    assert not success.all()
    spent = sum(torch.as_tensor(member.passes) for member in members)
    assert torch.equal(torch.as_tensor(result.passes), spent + torch.tensor([1, 0]))


def test_the_fusion_can_hold_any_attacks_for_the_least_change() -> None:
    text = "least_of((dag(success=by_dice), igsm(objective=soft_dice, success=by_dice, ball=linf(64/255))))"
    attack = registry.build(text, "attack")
    assert isinstance(attack, LeastOf)
    assert registry.build(registry.spec(attack), "attack") == attack
    assert registry.with_eps(attack, 0.01).ball == Linf(0.01)


def test_medis_is_its_five_losses_and_their_sum() -> None:
    assert [registry.spec(member.objective) for member in medis().attacks] == [
        "boundary_iou",
        "log_cosh_dice",
        "bce_dice",
        "exp_log",
        "lovasz_hinge",
        "medis_combined",
    ]
    assert medis().attacks[0].success == ByMiou(below=0.5, above=0.45)
    assert all(registry.spec(member.objective).endswith("_shukla2023") for member in medis(released=True).attacks)


def quantised(image: Tensor) -> Tensor:
    """Eight grey levels: a staircase, whose slope is 0 wherever it has one."""
    return (7 * image).round() / 7


class Layered:
    """A model behind a layer."""

    def __init__(self, model: Model, layer: Layer) -> None:
        self.task, self.model, self.layer = model.task, model, layer

    def __call__(self, image: Image) -> LogOdds:
        return self.model(self.layer(image))

    def decide(self, log_odds: LogOdds) -> Mask:
        return self.model.decide(log_odds)


def test_a_staircase_hides_the_gradient_and_bpda_finds_it() -> None:
    batch_ = batch()
    attack = PGD(Linf(0.1), bce, steps=8, random_start=False)
    with frozen(healthy()) as model:
        hidden, shown = Layered(model, quantised), Layered(model, Bpda(quantised))
        torch.testing.assert_close(hidden(batch_.image), shown(batch_.image))
        before = harm(shown.decide(shown(batch_.image)), batch_.target)
        blind = attack(hidden, batch_.image, batch_.target, range(4))
        seeing = attack(shown, batch_.image, batch_.target, range(4))
        # what is scored is the real staircase, whatever gradient the attack was lent
        after = harm(hidden.decide(hidden(seeing.image)), batch_.target)
    assert torch.equal(blind.image, batch_.image)
    torch.testing.assert_close(seeing.harm, after)
    assert (after > before + 0.1).all()


def test_bpda_takes_value_and_slope_from_two_functions() -> None:
    image = torch.rand(1, 1, 3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64).requires_grad_()
    layer = Bpda(torch.sign, lambda x: 3 * x)
    out = layer(image)
    assert torch.equal(out, torch.ones_like(out))
    (grad,) = torch.autograd.grad(out.sum(), image)
    assert torch.equal(grad, torch.full_like(grad, 3.0))
