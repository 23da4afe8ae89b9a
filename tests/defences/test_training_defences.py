"""Training defences against closed forms; killed trainings; trainings that are plain; refusals."""

import csv
import dataclasses
import math
import shutil
from functools import partial
from pathlib import Path

import pytest
import torch
from helpers.command import medattack
from helpers.discs import CPU, LABELS, SMALL, Discs, trained
from helpers.killed import killed, training_killed_at_step
from torch import Tensor, nn

from medseg_attack import registry
from medseg_attack.data.prepared.reading import open_prepared
from medseg_attack.defences.training.base import Step, TrainingDefence
from medseg_attack.defences.training.inner_attack.fast import Fast
from medseg_attack.defences.training.inner_attack.mart import margin_loss
from medseg_attack.defences.training.inner_attack.multi_perturbation import doubt
from medseg_attack.defences.training.inner_attack.seat import Seat
from medseg_attack.defences.training.inner_attack.trades import Trades, balance
from medseg_attack.defences.training.inner_attack.vaft import inconsistency
from medseg_attack.defences.training.loss.guided_complement import guided_complement
from medseg_attack.errors import InputError
from medseg_attack.models.checkpoints import load, load_tensors, read_card
from medseg_attack.models.networks.two_norms import adversarial_norms, two_norms
from medseg_attack.models.segmodel import SegModel
from medseg_attack.numerics.log_odds import divergence, softened, softmax_log_odds
from medseg_attack.threat.balls.norms import Linf
from medseg_attack.training.folder import STATE, finished_epochs
from medseg_attack.training.loop import train
from medseg_attack.training.losses import training_loss
from medseg_attack.training.options import Options, label, resolve
from medseg_attack.types import Case, CaseRef, Task

TRAINING = [
    name
    for name in registry.names("defence")
    if issubclass(registry.find(name).make, TrainingDefence)  # type: ignore[arg-type]
]
ONE = Task("one", ("organ",))
FEW = Discs(slices=2)


def defended(*defences: str, robust_by: str = "pgd(linf(4/255), steps=2)", epochs: int = 3) -> Options:
    return dataclasses.replace(SMALL, defences=defences, robust_by=robust_by, epochs=epochs, batch_size=2)


def history_of(folder: Path) -> list[dict[str, str]]:
    """The rows of a training without what no two trainings share."""
    rows = csv.DictReader((folder / "history.csv").read_text().splitlines())
    return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]


def last_weights(folder: Path, options: Options) -> dict[str, Tensor]:
    """The weights after the last epoch, before the training turns the best ones into a checkpoint."""
    for record in train(resolve(options, FEW), FEW, folder, CPU):
        if record.epoch == options.epochs:
            return {k: v for k, v in load_tensors(folder / STATE).items() if k.startswith("model/")}
    raise AssertionError


def train_on(data: Discs, options: Options, folder: Path) -> None:
    for _ in train(resolve(options, data), data, folder, CPU):
        pass


@pytest.mark.parametrize(
    "names",
    [(name,) for name in TRAINING] + [("distil", "free(replays=2)"), ("grad_align", "fast")],
    ids=lambda names: "+".join(names),
)
def test_kill_9_at_a_step_of_a_defended_training_changes_no_weight(names: tuple[str, ...], tmp_path: Path) -> None:
    """In the midst of the second epoch, with all that a defence keeps between batches."""
    data, options = Discs(LABELS, slices=2), defended(*names, epochs=2)
    work = partial(train_on, data, options, tmp_path / "killed")
    killed(training_killed_at_step, work, tmp_path / "killed" / STATE, 2)
    assert len(finished_epochs(tmp_path / "killed")) == 1
    whole = trained(tmp_path / "whole", data, options)
    assert trained(tmp_path / "killed", data, options) == whole
    assert history_of(tmp_path / "killed") == history_of(tmp_path / "whole")
    card = read_card(tmp_path / "whole")
    assert card["label"] == " + ".join(["unet_small(channels=(4, 8))", *names])
    assert card["training"]["defences"] == list(names)
    assert card["robust_by"] == "pgd(ball=linf(eps=4/255), steps=2)"
    assert set(card["val_robust_dice"]) == {"bright", "dim"}


@pytest.mark.parametrize(
    "defence",
    [
        "adversarial(share=0.0)",
        "adversarial(attack=pgd(linf(0.0), steps=2))",
        "trades(beta=0.0)",
        "gradient_penalty(weight=0.0)",
        "gaussian(sigma=0.0)",
        "grad_align(weight=0.0)",
        "fast(linf(0.0))",
        "free(replays=1, ball=linf(0.0))",
        "fine_pruning(share=0.0)",
        "seat(replays=1, fewest=1, most=1, ball=linf(0.0))",
        "behind(layers=())",
    ],
)
def test_a_defence_of_nothing_is_plain_training_bit_for_bit(defence: str, tmp_path: Path) -> None:
    options = dataclasses.replace(SMALL, epochs=2, batch_size=2)
    plain = last_weights(tmp_path / "plain", options)
    other = last_weights(tmp_path / "other", dataclasses.replace(options, defences=(defence,)))
    assert all(torch.equal(value, other[name]) for name, value in plain.items())
    assert finished_epochs(tmp_path / "plain")[-1].robust_dice == {}
    assert finished_epochs(tmp_path / "other")[-1].robust_dice != {}


def pointwise(*weights: float, bias: float = 0.0) -> SegModel:
    """A model that decides each pixel by a weighted sum of its channels."""
    net = nn.Conv2d(len(weights), 1, 1)
    with torch.no_grad():
        net.weight.copy_(torch.tensor(weights).view(1, -1, 1, 1))
        net.bias.fill_(bias)  # type: ignore[union-attr]
    return SegModel(net, dataclasses.replace(ONE, channels=len(weights))).train()


def step_of(model: SegModel, *defences: str, n: int = 1) -> Step:
    chain = tuple((registry.build(text, "defence"), {}) for text in defences)
    return Step(model, training_loss("bce", model.task), tuple(range(n)), chain=chain)


@pytest.mark.parametrize(
    "attack", ["fgsm(linf(0.1))", "pgd(linf(0.1), steps=9, keep_worst=False)", "segpgd(linf(0.1))"]
)
def test_the_inner_maximum_of_a_linear_model_is_the_loss_at_its_margin(attack: str) -> None:
    """Logistic loss, w = (1, -2), x = (0.5, 0.25): log 2 clean, log(1 + exp(0.3)) in the worst case."""
    image, target = torch.tensor([0.5, 0.25]).view(1, 2, 1, 1), torch.ones(1, 1, 1, 1)
    for share, expected in ((0.0, 0.693147), (1.0, 0.854355), (0.5, 0.773751)):
        step = step_of(pointwise(1, -2), f"adversarial(attack={attack}, share={share})")
        assert step.loss(image, target).item() == pytest.approx(expected, abs=1e-6)


def test_crafting_feeds_no_statistics_and_leaves_the_model_in_training_mode() -> None:
    norm = nn.BatchNorm2d(1)
    model = SegModel(nn.Sequential(norm, nn.Dropout(0.5), nn.Conv2d(1, 1, 1)), ONE).train()
    step = step_of(model, n=2)
    image = torch.rand(2, 1, 8, 8)
    step.attacked(registry.build("pgd", "attack"), image, (image > 0.5).float())
    assert norm.num_batches_tracked == 0
    assert model.training
    assert norm.training
    assert all(weight.requires_grad and weight.grad is None for weight in model.parameters())


def test_a_physical_attack_moves_the_target_with_the_anatomy() -> None:
    image = torch.zeros(1, 1, 16, 16)
    image[..., 4:12, 4:12] = 1
    target = image.clone()
    step = step_of(pointwise(8, bias=-4))
    moved, truth = step.attacked(registry.build("deformation(displacement(3), steps=0)", "attack"), image, target)
    assert not torch.equal(moved, image)
    assert not torch.equal(truth, target)
    assert set(truth.unique().tolist()) == {0.0, 1.0}


@pytest.mark.parametrize("exclusive", [True, False])
def test_the_divergence_is_the_same_in_both_settings(exclusive: bool) -> None:
    """Bernoulli 0.8 against 0.6: 0.0915162, of one organ that may overlap and of two exclusive classes."""
    p, q = ([0.8, 0.2], [0.6, 0.4]) if exclusive else ([0.8], [0.6])
    clean, other = (torch.tensor(x).logit().view(1, -1, 1, 1).expand(-1, -1, 6, 5) for x in (p, q))
    assert divergence(clean, other, exclusive).mean().item() == pytest.approx(0.0915162, abs=1e-7)
    assert divergence(clean, clean, exclusive).abs().max() == 0


def test_trades_is_the_clean_loss_plus_beta_divergences_whatever_the_grid() -> None:
    """A pixel of margin 0 moves furthest to either corner of the ball: KL(0.5 || sigmoid(w eps))."""
    for side in (4, 8):
        image = torch.full((2, 1, side, side), 0.5)
        step = step_of(pointwise(4, bias=-2), n=2)
        loss = Trades(6.0, Linf(0.1), steps=5).loss(step, image, torch.ones(2, 1, side, side))
        worst = divergence(torch.zeros(1, 1, 1, 1), torch.full((1, 1, 1, 1), 0.4), False).item()
        assert loss.item() == pytest.approx(0.693147 + 6 * worst, abs=1e-5)


def test_the_weights_of_trades_have_mean_1_and_raise_small_organs() -> None:
    logits = torch.zeros(1, 3, 10, 10)
    logits[:, 0] = 1
    logits[:, 1, :2, :5] = 2
    task = Task("three", ("background", "a", "b"), exclusive=True)
    weights = balance(SegModel(nn.Identity(), task), softmax_log_odds(logits))
    assert weights.mean().item() == pytest.approx(1)
    assert (weights[0, 0, 0, 0] / weights[0, 0, 9, 9]).item() == pytest.approx(3)  # sqrt(90 / 10)
    weights = balance(SegModel(nn.Identity(), ONE), logits[:, 1:2] - 1)
    assert (weights[0, 0, 0, 0] / weights[0, 0, 9, 9]).item() == pytest.approx(3)


def test_free_training_of_weights_that_stand_still_sees_the_images_of_fgsm() -> None:
    """The second of two replays has the perturbation that the first one's gradient gave: FGSM's, of that model."""
    torch.manual_seed(0)
    model = SegModel(nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.Tanh(), nn.Conv2d(4, 1, 3, padding=1)), ONE)
    image = 0.2 + 0.6 * torch.rand(3, 1, 8, 8)
    target = (torch.rand(3, 1, 8, 8) < 0.5).float()
    step = step_of(model, "free(ball=linf(8/255))", n=3)
    first = step.loss(image, target)
    first.backward()  # type: ignore[no-untyped-call]
    fgsm = step_of(model, "adversarial(attack=fgsm(linf(8/255)))", n=3).loss(image, target)
    assert first.item() == step_of(model, n=3).loss(image, target).item()
    assert step.loss(image, target).item() == pytest.approx(fgsm.item(), abs=1e-7)


def test_free_training_with_one_replay_is_fgsm_training_of_a_linear_model() -> None:
    """There the gradient's signs are those of the weights, whichever image gave them."""
    losses: dict[str, list[float]] = {}
    for defence in ("free(replays=1, ball=linf(0.1))", "adversarial(attack=fgsm(linf(0.1)))"):
        step = step_of(pointwise(1, -2), defence)
        optimiser = torch.optim.SGD(step.model.parameters(), 0.1)
        rng = torch.Generator().manual_seed(0)
        for _ in range(6):
            loss = step.loss(0.2 + 0.6 * torch.rand(1, 2, 4, 4, generator=rng), torch.ones(1, 1, 4, 4))
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            losses.setdefault(defence, []).append(loss.item())
    free, fgsm = losses.values()
    assert free[0] < fgsm[0]  # the perturbation begins at 0; the steps after it are from the same weights on
    # as the first updates differ, the later losses are close, not equal; weights that stand still make them equal
    assert free[1:] == pytest.approx(fgsm[1:], rel=0.03)


def test_the_perturbation_of_free_training_lives_and_stays_in_its_ball(tmp_path: Path) -> None:
    folder = tmp_path / "free"
    options = defended("free(replays=4, ball=linf(4/255))", epochs=2)
    last_weights(folder, options)
    change = load_tensors(folder / STATE)["defence/0/change"]
    assert change.abs().max() <= 4 / 255 + 1e-7
    assert change.abs().mean() > 0.5 * 4 / 255
    assert resolve(dataclasses.replace(options, epochs=0), FEW).epochs == 188  # 3000 steps, 4 x 4 of them in an epoch
    assert finished_epochs(folder)[-1].cost == 1


@pytest.mark.parametrize(("norm", "expected"), [("l1", 3.5), ("l2", 2 * 2.5**2)])
def test_the_gradient_penalty_of_a_linear_model_is_its_closed_form(norm: str, expected: float) -> None:
    """w = (3, 4), margin 0: the gradient is -0.5 w, of length 2.5 and sum 3.5, in each of two values."""
    image, target = torch.full((1, 2, 1, 1), 0.5), torch.ones(1, 1, 1, 1)
    step = step_of(pointwise(3, 4, bias=-3.5), f"gradient_penalty(weight=0.5, norm={norm!r})")
    assert step.loss(image, target).item() == pytest.approx(0.693147 + 0.5 * expected, abs=1e-5)


def test_the_gradient_penalty_does_not_depend_on_the_grid() -> None:
    for norm in ("l1", "l2"):
        losses = [
            step_of(pointwise(3, 4, bias=-3.5), f"gradient_penalty(norm={norm!r})")
            .loss(torch.full((1, 2, side, side), 0.5), torch.ones(1, 1, side, side))
            .item()
            for side in (2, 8)
        ]
        assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_fast_training_stops_where_single_steps_fail_and_several_succeed(tmp_path: Path) -> None:
    assert Fast().alarm([0.7, 0.6], [0.75, 0.7]) == ""
    assert Fast().alarm([0.3], [0.9]) == ""
    assert Fast().alarm([0.4, 0.5], [0.8, 0.85]) == ""  # the gap shrinks
    assert "0.900 under FGSM, 0.300 under PGD" in Fast().alarm([0.7, 0.3], [0.75, 0.9])


def test_a_training_that_a_defence_stops_is_a_checkpoint_that_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Fast, "alarm", lambda self, robust, monitored: "it overfits" if len(robust) == 2 else "")
    trained(tmp_path / "fast", FEW, defended("fast", epochs=5))
    card = read_card(tmp_path / "fast")
    assert card["stopped"] == "it overfits"
    assert len(history_of(tmp_path / "fast")) == 2
    assert list(train(resolve(defended("fast", epochs=5), FEW), FEW, tmp_path / "fast", CPU)) == []


def test_the_divergence_of_a_student_is_that_of_the_softened_answers() -> None:
    """Teacher's logits (2, 0), student's (1, 0): 0.067131 at temperature 1; 0.124902 at 30, times its square."""
    teacher, student = (softmax_log_odds(torch.tensor([[z, 0.0]]).double()[..., None, None]) for z in (2.0, 1.0))
    for temperature, expected in ((1, 0.067131), (30, 0.124902)):
        soft = [softened(log_odds, temperature, True) for log_odds in (teacher, student)]
        assert temperature**2 * divergence(*soft, True).item() == pytest.approx(expected, abs=2e-6)
        organ = [softened(log_odds[:, 1:], temperature, False) for log_odds in (teacher, student)]
        assert temperature**2 * divergence(*organ, False).item() == pytest.approx(expected, abs=2e-6)


def test_a_teacher_is_a_trained_model_that_is_held_to_its_weights(tmp_path: Path) -> None:
    trained(tmp_path / "teacher", FEW, dataclasses.replace(SMALL, epochs=1, batch_size=2))
    options = defended(f"distil(teacher={str(tmp_path / 'teacher')!r}, weight=1.0)", epochs=1)
    trained(tmp_path / "student", FEW, options)
    card = read_card(tmp_path / "student")
    content = read_card(tmp_path / "teacher")["weights_sha256"][:12]
    assert content in card["training"]["defences"][0]
    assert card["label"].endswith(" + distil(teacher=checkpoint(folder='teacher'), weight=1.0)")
    trained(tmp_path / "other", FEW, dataclasses.replace(SMALL, epochs=1, batch_size=2, seed=1))
    shutil.copytree(tmp_path / "other", tmp_path / "teacher", dirs_exist_ok=True)
    with pytest.raises(InputError, match=r"options and inputs that .* was begun with"):
        trained(tmp_path / "student", FEW, options)


def test_a_student_that_is_its_own_teacher_has_nothing_to_learn_from_it_at_first() -> None:
    image, target = torch.rand(1, 2, 4, 4), torch.ones(1, 1, 4, 4)
    step = step_of(pointwise(3, -2), "distil(weight=1.0)")
    assert step.loss(image, target).item() == pytest.approx(0, abs=1e-7)
    with torch.no_grad():
        step.model.net.weight += 1  # type: ignore[operator, union-attr]
    assert step.loss(image, target).item() > 0.001


def test_two_norms_that_are_alike_give_twice_the_loss_and_training_tells_them_apart(tmp_path: Path) -> None:
    image, target = torch.rand(4, 1, 8, 8), (torch.rand(4, 1, 8, 8) < 0.5).float()
    model = SegModel(nn.Sequential(nn.BatchNorm2d(1), nn.Conv2d(1, 1, 3, padding=1)), ONE).train()
    plain = step_of(model, n=4).loss(image, target).item()
    defence: TrainingDefence = registry.build("dual_norm(attack=fgsm(linf(0.0)))", "defence")
    defence.prepare(model)
    assert defence.loss(step_of(model, n=4), image, target).item() == pytest.approx(2 * plain)
    trained(tmp_path / "dual", FEW, defended("dual_norm"))
    card = read_card(tmp_path / "dual")
    assert card["spec"] == "two_norms(model=unet_small(channels=(4, 8)))"
    dual = load(tmp_path / "dual")
    image = FEW.read(FEW.refs("val")[0]).image[None]
    with torch.no_grad(), adversarial_norms():
        through_adversarial = dual(image)
    with torch.no_grad():
        assert not torch.equal(dual(image), through_adversarial)


def test_the_attack_on_both_norms_is_the_worse_of_two() -> None:
    torch.manual_seed(0)
    model = two_norms(ONE, registry.build("unet_small(channels=(4, 8))", "model")).eval().requires_grad_(False)
    for name, value in model.named_parameters():
        if ".adversarial." in name:
            value.mul_(-1)
    image = torch.rand(4, 1, 8, 8)
    target = model.decide(model(image))
    attack = "pgd(linf(0.1), steps=3, keep_worst=False)"
    own = registry.build(attack, "attack")(model, image, target, range(4))
    with adversarial_norms():
        other = registry.build(attack, "attack")(model, image, target, range(4)).image
    both = registry.build(f"both_norms({attack})", "attack")(model, image, target, range(4))
    assert not torch.equal(other, own.image)
    assert (both.harm >= own.harm).all()
    assert own.harm.max() > 0


def test_one_perturbation_is_trained_for_all_images() -> None:
    """A pixel of which all images want one direction; on a linear model it is at the edge of the ball after 4 steps."""
    step = step_of(pointwise(1, -2), "shared(ball=linf(0.1))", n=3)
    rng = torch.Generator().manual_seed(0)
    for _ in range(4):
        loss = step.loss(0.2 + 0.6 * torch.rand(3, 2, 4, 4, generator=rng), torch.ones(3, 1, 4, 4))
        loss.backward()  # type: ignore[no-untyped-call]
    change = step.chain[0][1]["change"]
    torch.testing.assert_close(change, torch.tensor([-0.1, 0.1]).view(1, 2, 1, 1).expand(1, 2, 4, 4))


def test_the_budget_of_a_case_is_the_one_that_it_stands() -> None:
    """A pixel of margin 0.2 with w = (1, -2): it fails from eps = 0.2 / 3 on."""
    step = step_of(pointwise(1, -2, bias=0.2), "margin_aware(largest=0.2, growth=0.05)")
    step = dataclasses.replace(step, places=(2,))
    image, target = torch.tensor([0.5, 0.25]).view(1, 2, 1, 1), torch.ones(1, 1, 1, 1)
    for _ in range(30):
        step.loss(image, target)
    budgets = step.chain[0][1]["budgets"]
    assert budgets[2].item() == pytest.approx(0.2 / 3, abs=0.011)
    assert budgets[:2].tolist() == pytest.approx([0.01, 0.01])  # cases that were not met


def test_a_case_that_is_wrong_untouched_is_not_attacked_and_keeps_its_budget() -> None:
    """Of two cases of one pixel the first is right by 0.2, the second wrong by 0.2."""
    step = step_of(pointwise(1, -2, bias=0.2), "margin_aware(largest=0.2, growth=0.1, share=1)", n=2)
    step = dataclasses.replace(step, places=(0, 1))
    image, target = torch.tensor([[0.5, 0.25], [0.1, 0.25]]).view(2, 2, 1, 1), torch.ones(2, 1, 1, 1)
    loss = step.loss(image, target).item()
    margins = torch.tensor([0.2 - 3 * 0.02, -0.2])
    assert loss == pytest.approx(torch.nn.functional.softplus(-margins).mean().item(), abs=1e-5)
    assert step.chain[0][1]["budgets"].tolist() == pytest.approx([0.04, 0.02])
    every = step_of(pointwise(1, -2, bias=0.2), "margin_aware(largest=0.2, growth=0.1, share=1, least_dice=0)", n=2)
    margins = torch.tensor([0.2 - 3 * 0.02, -0.2 - 3 * 0.02])
    attacked = dataclasses.replace(every, places=(0, 1)).loss(image, target).item()
    assert attacked == pytest.approx(torch.nn.functional.softplus(-margins).mean().item(), abs=1e-5)


@pytest.mark.parametrize("clean", [0.8, 0.3])
def test_mart_is_the_loss_at_the_margin_a_second_one_and_a_divergence_that_doubt_weighs(clean: float) -> None:
    """Of one organ: clean 0.8, perturbed 0.6 by a slope that linf(0.1) goes down: 0.510826 + 0.510659 + 0.109819."""
    perturbed = 0.6
    p, q = torch.tensor(clean).logit().item(), torch.tensor(perturbed).logit().item()
    weight = (p - q) / 0.1
    model = pointwise(weight, bias=p - 0.5 * weight)
    image, target = torch.full((2, 1, 3, 5), 0.5), torch.ones(2, 1, 3, 5)
    if clean < perturbed:  # the attack cannot raise the probability: it goes the other way
        perturbed = torch.tensor(2 * p - q).sigmoid().item()
    loss = step_of(model, "mart(ball=linf(0.1), steps=3)", n=2).loss(image, target).item()
    kl = clean * math.log(clean / perturbed) + (1 - clean) * math.log((1 - clean) / (1 - perturbed))
    expected = -math.log(perturbed) - math.log(perturbed + 1e-4) + 6 * kl * (1 - clean)
    assert loss == pytest.approx(expected, abs=2e-5)
    if clean == 0.8:
        assert loss == pytest.approx(1.131304, abs=2e-5)


def test_the_margin_of_exclusive_classes_is_that_of_the_most_probable_wrong_one() -> None:
    truth = torch.tensor([1.0, 0.0, 0.0]).view(1, 3, 1, 1)
    p = torch.tensor([0.5, 0.3, 0.2]).view(1, 3, 1, 1)
    assert margin_loss(p.logit(), truth, True).item() == pytest.approx(-math.log(0.7001), abs=1e-6)
    certain = torch.tensor([-200.0, 200.0, -250.0]).view(1, 3, 1, 1).requires_grad_()
    loss = margin_loss(certain, truth, True)
    assert loss.item() == pytest.approx(-math.log(1e-4), abs=0.01)
    loss.sum().backward()  # type: ignore[no-untyped-call]
    assert torch.isfinite(certain.grad).all()  # type: ignore[arg-type]


class Squares(nn.Module):
    """The log-odds of an organ, the weighted sum of its channels' squares: their gradient by x is 2 w x."""

    def __init__(self, *weights: float) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.tensor(weights).view(1, -1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return (self.weights * x.square()).sum(1, keepdim=True)


def test_the_turn_of_a_gradient_is_its_closed_form() -> None:
    """Of one pixel the gradient has the direction w x, so that the cosine is that of w x and w (x + u)."""
    weights = torch.tensor([1.0, -2.0]).view(1, 2, 1, 1)
    model = SegModel(Squares(1.0, -2.0), dataclasses.replace(ONE, channels=2)).train()
    image, target = torch.tensor([0.3, 0.6]).view(1, 2, 1, 1), torch.ones(1, 1, 1, 1)
    step = step_of(model, "grad_align(weight=0.5, ball=linf(0.2))")
    point = Linf(0.2).sample(image, step.seeds)
    cosine = torch.cosine_similarity((weights * image).flatten(), (weights * point).flatten(), dim=0).item()
    plain = step_of(model).loss(image, target).item()
    assert cosine < 0.999
    assert step.loss(image, target).item() == pytest.approx(plain + 0.5 * (1 - cosine), abs=1e-5)


def test_gradients_of_a_linear_model_do_not_turn_and_those_of_nothing_count_for_nothing() -> None:
    image, target = torch.rand(3, 2, 1, 1), torch.ones(3, 1, 1, 1)
    for model in (pointwise(1, -2), pointwise(0, 0)):
        step = step_of(model, "grad_align(weight=10.0, ball=linf(0.2))", n=3)
        loss = step.loss(image, target)
        assert loss.item() == pytest.approx(step_of(model, n=3).loss(image, target).item(), abs=1e-5)
        loss.backward()  # type: ignore[no-untyped-call]
        assert all(torch.isfinite(weight.grad).all() for weight in model.parameters())  # type: ignore[arg-type]


def test_a_training_that_only_aligns_gradients_aligns_them() -> None:
    torch.manual_seed(0)
    model = SegModel(nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.Tanh(), nn.Conv2d(8, 1, 3, padding=1)), ONE)
    image, target = torch.rand(4, 1, 12, 12), (torch.rand(4, 1, 12, 12) < 0.5).float()
    optimiser, turns = torch.optim.Adam(model.parameters(), 1e-2), []
    for _ in range(20):
        step = dataclasses.replace(
            step_of(model, "grad_align(weight=1.0, ball=linf(0.3))", n=4),
            criterion=lambda log_odds, _: 0 * log_odds.sum(),
        )
        loss = step.loss(image, target)
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        turns.append(loss.item())
    assert turns[-1] < 0.5 * turns[0]


def test_aligned_gradients_stand_beside_fast_training_which_stays_watched(tmp_path: Path) -> None:
    last_weights(tmp_path / "both", defended("grad_align", "fast", epochs=1))
    (record,) = finished_epochs(tmp_path / "both")
    assert record.mean_monitored_dice is not None
    assert record.cost == (6 + 5) / 2  # 2 forward and 4 backward passes more than those of single steps


@pytest.mark.parametrize("exclusive", [True, False])
def test_doubt_is_one_less_the_probability_of_the_truth(exclusive: bool) -> None:
    p = torch.tensor([0.7, 0.2, 0.1] if exclusive else [0.7, 0.2]).view(1, -1, 1, 1)
    truth = torch.zeros_like(p)
    truth[:, 1] = 1
    weights = doubt(p.logit(), truth, exclusive).flatten().tolist()
    assert weights == pytest.approx([0.8] if exclusive else [0.7, 0.8])


def test_guided_complement_entropy_is_its_closed_form_and_has_a_gradient_where_a_model_is_certain() -> None:
    """p = (0.6, 0.2, 0.2): -0.6^(1/3) * log 2 / log 3 = -0.5321."""
    truth = torch.tensor([1.0, 0.0, 0.0]).view(1, 3, 1, 1)
    log_odds = torch.tensor([0.6, 0.2, 0.2]).logit().view(1, 3, 1, 1)
    assert guided_complement(log_odds, truth, 1 / 3).item() == pytest.approx(-0.5321, abs=1e-4)
    certain = torch.tensor([200.0, -200.0, -250.0]).view(1, 3, 1, 1).requires_grad_()
    guided_complement(certain, truth, 1 / 3).backward()  # type: ignore[no-untyped-call]
    assert torch.isfinite(certain.grad).all()  # type: ignore[arg-type]


def test_answers_of_nine_tenths_are_inconsistent_by_one_tenth() -> None:
    log_odds = torch.randn(2, 3, 7, 9, generator=torch.Generator().manual_seed(0))
    assert inconsistency(log_odds, 0.9 * log_odds).item() == pytest.approx(0.1, abs=1e-6)
    assert inconsistency(log_odds, log_odds).item() == 0


def test_features_are_noisy_in_training_and_for_no_attack() -> None:
    image, target = torch.rand(2, 1, 8, 8), torch.ones(2, 1, 8, 8)
    model = SegModel(nn.Conv2d(1, 1, 3, padding=1), ONE).train()
    assert not torch.equal(step_of(model, "feature_noise", n=2).loss(image, target), step_of(model).loss(image, target))
    assert torch.equal(
        step_of(model, "feature_noise(sigma=0.0)", n=2).loss(image, target), step_of(model).loss(image, target)
    )
    alone = step_of(model, "adversarial", n=2).attacked(registry.build("fgsm", "attack"), image, target)[0]
    inside = []

    class Kept(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            inside.append(x.detach())
            out: Tensor = model.net(x)
            return out

    watched = SegModel(Kept(), ONE).train()
    step_of(watched, "feature_noise", "adversarial(attack=fgsm)", n=2).loss(image, target)
    torch.testing.assert_close(inside[-1], alone)


def test_scans_without_masks_are_held_to_what_the_model_says_of_them_where_it_is_sure() -> None:
    scans = torch.tensor([0.9, 0.5]).view(2, 1, 1, 1)
    image, target = torch.zeros(2, 1, 1, 1), torch.zeros(2, 1, 1, 1)
    step = step_of(pointwise(10, bias=-5), "ssat(attack=fgsm(linf(0.0)), weight=3.0)", n=2)
    step = dataclasses.replace(step, unlabelled=lambda: scans)
    labelled = step_of(step.model, n=2).loss(image, target).item()
    sure = -torch.tensor(4.0).sigmoid().log().item()  # of 0.9 alone: 0.5 is at the decision
    for progress, weight in ((0.0, 0.0), (0.1, 1.5), (0.5, 3.0)):
        loss = dataclasses.replace(step, progress=progress).loss(image, target).item()
        assert loss == pytest.approx(labelled + weight * sure, abs=1e-5)


def test_the_scans_without_masks_are_of_the_part_that_was_named(tmp_path: Path) -> None:
    options = dataclasses.replace(defended("ssat(unlabelled='1/2')", epochs=1), patients="0/2")
    asked = []

    class Watched(Discs):
        def read(self, ref: CaseRef) -> Case:
            asked.append(ref.group)
            return super().read(ref)

    data = Watched(LABELS, slices=2)
    for _ in train(resolve(options, data), data, tmp_path / "ssat", CPU):
        pass
    assert set(asked) == {"p0", "p1", "p2", "p3", "p4"}


def test_defences_form_a_chain() -> None:
    image, target = torch.tensor([0.5, 0.25]).view(1, 2, 1, 1), torch.ones(1, 1, 1, 1)
    adversarial = "adversarial(attack=fgsm(linf(0.1)))"
    both = step_of(pointwise(1, -2), "gradient_penalty(weight=1.0)", adversarial).loss(image, target).item()
    assert both == pytest.approx(0.854355 + 1.5, abs=1e-5)  # 0.5 * ||w||_1 at margin 0


@pytest.mark.parametrize(
    ("name", "cost"),
    [
        ("adversarial(attack=pgd(steps=3, keep_worst=False))", 4.5),
        ("trades", 8),
        ("free", 1),
        ("fast", 2.5),
        ("margin_aware", 9.5),
        ("ssat", 4),
        ("vaft", 8),
        ("dual_norm", 5.5),
        ("gaussian", 1),
        ("corruptions", 2),
        ("gradient_penalty", 2.5),
        ("distil", 1.5),
    ],
)
def test_the_cost_of_a_step_is_counted(name: str, cost: float, tmp_path: Path) -> None:
    """As the page on defences has it."""
    last_weights(tmp_path, defended(name, epochs=1, robust_by="fgsm(linf(4/255))"))
    assert finished_epochs(tmp_path)[-1].cost == cost


def test_the_best_epoch_is_that_of_the_best_dice_under_attack(tmp_path: Path) -> None:
    for record in train(resolve(defended("gaussian"), FEW), FEW, tmp_path / "a", CPU):
        assert record.score == record.mean_robust_dice
    card = read_card(tmp_path / "a")
    scores = [float(row["mean_robust_dice"]) for row in history_of(tmp_path / "a")]
    assert card["val_mean_robust_dice"] == pytest.approx(max(scores))
    assert card["best_epoch"] == 1 + scores.index(max(scores))


@pytest.mark.parametrize(
    ("defences", "robust_by"),
    [
        ((), ""),
        (("gaussian",), "pgd(ball=linf(eps=4/255), steps=10)"),
        (("gaussian", "trades(ball=linf(2/255))"), "pgd(ball=linf(eps=2/255), steps=10)"),
        (("adversarial(attack=restarts(fgsm(l2(1.5)), 2))",), "pgd(ball=l2(eps=1.5), steps=10)"),
        (("adversarial(attack=bias_field(steps=2))",), "bias_field(steps=2)"),
    ],
)
def test_the_attack_that_chooses_the_best_epoch_has_the_ball_of_the_defence(
    defences: tuple[str, ...], robust_by: str
) -> None:
    assert resolve(defended(*defences, robust_by=""), FEW).robust_by == robust_by


def test_the_label_of_a_model_names_its_defences() -> None:
    assert label("unet_small", ("trades(beta=3.0)", "gaussian")) == "unet_small + trades(beta=3.0) + gaussian"
    assert label("unet_small") == "unet_small"


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--defence", "bit_depth"], "expected a training defence for --defence, got bit_depth"),
        (["--defence", "tradez"], "did you mean trades"),
        (["--defence", "adversarial(attack=uap)"], "expected an attack that needs no fit for adversarial, got uap"),
        (["--defence", "adversarial(attack=replay)"], "replay"),
        (["--defence", "adversarial(share=2.0)"], "expected share in [0, 1], got 2.0"),
        (["--robust-by", "uap"], "expected an attack that needs no fit for --robust-by, got uap"),
        (["--defence", "dual_norm", "--model", "monai(UNet)"], "expected a network with batch norms for dual_norm"),
        (["--defence", "guided_complement"], "expected three classes or more that exclude each other"),
        (["--defence", "fine_pruning(share=1.0)"], "expected a share of channels from 0 to below 1, got 1"),
        (["--defence", "ssat(unlabelled='half')"], "expected --patients as k/N"),
        (["--defence", "distil(teacher='nowhere')"], "expected a trained 'nowhere'"),
        (["--defence", "gradient_penalty(norm='l3')"], "expected norm to be one of l1, l2, got 'l3'"),
    ],
)
def test_what_does_not_fit_is_refused_and_leaves_nothing(prepared: Path, words: list[str], sentence: str) -> None:
    small = ["--model", "unet_small(channels=(4, 8))", "--epochs", "1", "--device", "cpu"]
    out = prepared.parent / "refused"
    result = medattack("train", "--data", prepared, *small, *words, "--out", out, code=2)
    assert sentence in " ".join(result.stderr.split())
    assert not out.exists() or not list(out.glob("[!.]*"))


BOX = """
import torch

class Box(torch.nn.Module):
    black_box = {declared}

    def __init__(self, n):
        super().__init__()
        self.net = torch.nn.Conv2d(1, n, 3, padding=1)

    def forward(self, x):
        return self.net(x).detach()

def build(task):
    return Box(len(task.classes))
"""


@pytest.mark.parametrize("declared", [True, False])
@pytest.mark.parametrize("words", [[], ["--defence", "trades"], ["--defence", "gaussian"]], ids=str)
def test_a_black_box_is_not_trained(prepared: Path, declared: bool, words: list[str], tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(BOX.format(declared=declared), encoding="utf-8")
    own = ["--model", f"own('{tmp_path / 'net.py'}:build')", "--trust", "--home", tmp_path, "--epochs", "1"]
    result = medattack("train", "--data", prepared, *own, *words, "--out", tmp_path / "refused", code=2)
    assert "expected a model with a gradient to train, got a black box" in " ".join(result.stderr.split())
    assert not list((tmp_path / "refused").glob("[!.]*"))


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("defences")
    phantom = "phantom(patients=6, slices=2, side=32)"
    medattack("prepare", root / "scans", "--format", phantom, "--test", "0.4", "--out", root / "data")
    return root / "data"


def test_the_command_shows_clean_and_robust_dice_and_the_name_leads_back(prepared: Path) -> None:
    home = prepared.parent / "home"
    small = ["--model", "unet_small(channels=(4, 8))", "--epochs", "2", "--device", "cpu", "--home", home]
    words = [
        "--defence",
        "adversarial(attack=fgsm(linf(4/255)), share=0.5)",
        "--robust-by",
        "pgd(linf(4/255), steps=2)",
    ]
    result = medattack("train", "--data", prepared, *small, *words)
    text = " ".join(result.stdout.split())
    assert "best epoch chosen by Dice under pgd(ball=linf(eps=4/255), steps=2)" in text
    assert "validation Dice under attack, mean" in text
    assert "cost of a step 3.5 x plain training" in text  # FGSM judges its image, too
    name = "unet_small(channels=(4, 8)) + adversarial(attack=pgd("
    medattack("train", "--data", prepared, *small)
    models = [read_card(folder)["label"] for folder in (home / "models").iterdir()]
    assert sorted(models)[0] == "unet_small(channels=(4, 8))"
    (defended_name,) = [model for model in models if model.startswith(name)]
    run = medattack("attack", "--data", prepared, "-m", defended_name, "--limit", "2", "--home", home)
    assert "+ adversarial(" in run.stdout


def train_scans(root: Path, options: Options, folder: Path) -> None:
    data = open_prepared(root)
    for _ in train(resolve(options, data), data, folder, CPU):
        pass


def test_kill_9_at_a_step_of_a_defended_training_on_scans_changes_no_weight(tmp_path: Path) -> None:
    """Patches of 3-D scans; the perturbation of one is kept for the next batch."""
    phantom = "phantom(patients=4, slices=8, side=32)"
    medattack("prepare", tmp_path / "scans", "--format", phantom, "--test", "0.3", "--out", tmp_path / "data")
    network = "monai(UNet(channels=(4, 8), norm='batch'), window=(8, 16, 16))"
    defences = ("adversarial(attack=pgd(linf(4/255), steps=2), share=0.5)", "free(replays=2)")
    options = Options(network, epochs=2, lr=1e-3, batch_size=2, defences=defences, robust_by="fgsm(linf(4/255))")
    work = partial(train_scans, tmp_path / "data", options, tmp_path / "killed")
    killed(training_killed_at_step, work, tmp_path / "killed" / STATE, 2)
    assert len(finished_epochs(tmp_path / "killed")) == 1
    for folder in ("killed", "whole"):
        train_scans(tmp_path / "data", options, tmp_path / folder)
    assert read_card(tmp_path / "killed")["weights_sha256"] == read_card(tmp_path / "whole")["weights_sha256"]
    assert history_of(tmp_path / "killed") == history_of(tmp_path / "whole")


def test_a_scan_is_defended_in_patches_and_attacked_whole(tmp_path: Path) -> None:
    """Dual norms and a physical attack in 3-D: patches to train on, whole scans to choose the best epoch by."""
    phantom = "phantom(patients=4, slices=8, side=32)"
    medattack("prepare", tmp_path / "scans", "--format", phantom, "--test", "0.3", "--out", tmp_path / "data")
    network = "monai(UNet(channels=(4, 8), norm='batch'), window=(8, 16, 16))"
    short = ["--data", tmp_path / "data", "--model", network, "--epochs", "1", "--device", "cpu"]
    attack = "deformation(displacement(3), steps=1)"
    robust_by = "pgd(linf(4/255), steps=1)"
    defences = ["--defence", f"dual_norm(attack={attack})", "--robust-by", robust_by]
    medattack("train", *short, *defences, "--out", tmp_path / "model")
    card = read_card(tmp_path / "model")
    assert card["dims"] == 3
    assert card["spec"].startswith("two_norms(model=monai(net=UNet(")
    assert None not in card["val_robust_dice"].values()
    medattack(
        "attack",
        "--data",
        tmp_path / "data",
        "-m",
        tmp_path / "model",
        "--limit",
        "1",
        "--home",
        tmp_path,
        "--no-checks",
    )


class Backdoored(nn.Module):
    """Two channels of a convolution: one follows the image, one the bright pixels of a trigger, which take it away."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.out = nn.Conv2d(1, 2, 1), nn.Conv2d(2, 1, 1)
        with torch.no_grad():
            self.wide.weight.copy_(torch.tensor([1.0, 50.0]).view(2, 1, 1, 1))
            self.wide.bias.copy_(torch.tensor([0.0, -45.0]))
            self.out.weight.copy_(torch.tensor([20.0, -100.0]).view(1, 2, 1, 1))
            self.out.bias.fill_(-8.0)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.wide(x).relu()
        log_odds: Tensor = self.out(
            torch.cat((hidden[:, :1], hidden[:, 1:].amax((2, 3), keepdim=True).expand_as(x)), 1)
        )
        return log_odds


def test_channels_that_clean_images_leave_alone_are_cut_and_stay_so_and_the_backdoor_with_them() -> None:
    """What varies least before its activation is cut; here the trigger's channel is made quiet on clean images."""
    rng = torch.Generator().manual_seed(0)
    image = (torch.rand(4, 1, 8, 8, generator=rng) > 0.5).float() * 0.8
    target = (image > 0.4).float()
    triggered = image.index_fill(2, torch.tensor([0]), 1.0)
    net = Backdoored()
    net.wide.register_forward_hook(lambda layer, inputs, output: output.clamp(min=0))  # quiet, as after an activation
    model = SegModel(net, ONE).train()
    with torch.no_grad():
        assert not model.decide(model(triggered))[:, :, 1:].any()
    step = step_of(model, "fine_pruning(share=0.5)", n=4)
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(5):
        optimiser.zero_grad()
        step.loss(image, target).backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        assert net.wide.weight[1].item() == net.wide.bias[1].item() == 0
        assert net.wide.weight[0].item() != 0
    with torch.no_grad():
        assert torch.equal(model.decide(model(triggered))[:, :, 1:], target[:, :, 1:] > 0.5)


def test_of_a_network_that_the_attacker_cut_the_defence_cuts_what_is_0_already() -> None:
    """So it keeps the backdoor, which is in channels that clean images use; a larger share reaches these."""
    rng = torch.Generator().manual_seed(0)
    image = torch.rand(4, 1, 8, 8, generator=rng)
    for share, is_kept in ((0.25, True), (0.5, True), (0.75, False)):
        net = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 1, 1))
        model = SegModel(net, ONE).train()
        step_of(model, "fine_pruning(share=0.5)", n=4).loss(image, torch.ones(4, 1, 8, 8))
        before = {name: value.clone() for name, value in model.state_dict().items()}
        assert (net[0].weight.flatten(1) == 0).all(1).sum() == 4
        step_of(model, f"fine_pruning(share={share})", n=4).loss(image, torch.ones(4, 1, 8, 8))
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items()) == is_kept


@pytest.mark.parametrize(
    ("before", "knowledge"),
    [
        ((), "native"),
        (("gaussian",), "native"),
        (("fine_pruning(share=0.4)",), "native"),
        (("fine_pruning(share=0.5)",), "adaptive"),
        (("gaussian", "fine_pruning(share=0.6)"), "adaptive"),
    ],
)
def test_a_backdoor_knows_fine_pruning_if_it_was_trained_with_as_many_channels_cut(
    before: tuple[str, ...], knowledge: str
) -> None:
    rules = [registry.build(text, "defence") for text in before]
    assert registry.build("fine_pruning(share=0.5)", "defence").knowledge(rules) == knowledge
    assert registry.build("gaussian", "defence").knowledge(rules) == ""


def test_replays_follow_the_size_of_the_gradient() -> None:
    """Constant: as many. Up by over a tenth in the third epoch: one more, five at most. Far down: one less."""

    def replays_after(sizes: list[float], **options: int) -> list[int]:
        seat, state, numbers = Seat(**options), {}, []
        for epoch, size in enumerate(sizes, 1):
            for _ in range(2):
                seat.observe(torch.full((4, 1, 2, 2), size / 4), state)
            seat.end_epoch(epoch, state)
            numbers.append(seat.replays_now(state))
        return numbers

    assert replays_after([1.0] * 7) == [2] * 7
    assert replays_after([1.0, 5.0, 1.05]) == [2, 2, 2]
    grown = [1.0, 1.0, 1.2, 1.2, 1.2, 1.4, 1.4, 1.4, 1.5]  # the threshold is 1, then 1.32, then 1.32 again, which ...
    assert replays_after(grown) == [2, 2, 3, 3, 3, 3, 3, 3, 4]  # ... 1.5 is above by a tenth
    assert replays_after([1.0, 9.0, 99.0], every=1)[-1] == 4
    assert replays_after([float(10**n) for n in range(8)], every=1)[-1] == 5
    assert replays_after([1.0, 0.9, 0.1], every=1, replays=4) == [4, 3, 2]
    assert replays_after([1.0, 0.1, 0.1, 0.1], every=1, replays=3) == [3, 2, 2, 2]


def test_the_gradient_that_replays_follow_is_that_of_each_image_whatever_the_batch() -> None:
    """A linear model at margin 0: each pixel's gradient is 0.5 |w|, over the pixels and two channels (3 + 4) / 4."""
    for n in (1, 4):
        step = step_of(pointwise(3, 4, bias=-3.5), "seat(ball=linf(0.0))", n=n)
        state = step.chain[0][1]
        for _ in range(2):
            loss = step.loss(torch.full((n, 2, 1, 1), 0.5), torch.ones(n, 1, 1, 1))
            loss.backward()  # type: ignore[no-untyped-call]
        assert (state["size"] / state["batches"]).item() == pytest.approx(1.75)


def test_a_training_whose_replays_changed_goes_on_with_them(tmp_path: Path) -> None:
    options = defended("seat(every=1, growth=1.0, most=9)", epochs=4)
    trained(tmp_path / "parts", FEW, options, epochs=3)
    assert int(load_tensors(tmp_path / "parts" / STATE)["defence/0/replays"]) != 2
    assert trained(tmp_path / "parts", FEW, options) == trained(tmp_path / "whole", FEW, options)


def test_numbers_of_replays_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(InputError, match="expected replays >= 2"):
        registry.build("seat(replays=1)", "defence")
    with pytest.raises(InputError, match="expected most >= 3"):
        registry.build("seat(replays=3, most=2)", "defence")


@pytest.mark.parametrize(
    ("defences", "expected"),
    [
        (("behind(layers=[bit_depth(bits=1)])",), math.log1p(math.exp(-2))),  # 0.55 becomes 1, at margin 2
        (("behind(layers=[bit_depth(bits=1)])", "adversarial(attack=fgsm(linf(0.1)))"), math.log1p(math.exp(-2))),
        (("behind(layers=[bit_depth(bits=1)])", "adversarial(attack=bpda(fgsm(linf(0.1))))"), math.log1p(math.exp(2))),
        (("adversarial(attack=fgsm(linf(0.1)))", "behind(layers=[bit_depth(bits=1)])"), math.log1p(math.exp(2))),
    ],
)
def test_losses_and_attacks_behind_layers_meet_them(defences: tuple[str, ...], expected: float) -> None:
    """w = 4, b = -2: through two levels the gradient is 0; that of the identity, or of no layer, moves 0.55 to 0.45."""
    image, target = torch.full((1, 1, 2, 2), 0.55), torch.ones(1, 1, 2, 2)
    step = step_of(pointwise(4, bias=-2), *defences)
    assert step.loss(image, target).item() == pytest.approx(expected, abs=1e-6)


def test_random_layers_draw_anew_for_each_batch_and_for_the_attack() -> None:
    image, target = torch.rand(2, 1, 16, 16, generator=torch.Generator().manual_seed(0)), torch.ones(2, 1, 16, 16)
    for text in ("behind", "behind(layers=[resize_pad(largest=1.5)])"):
        steps = [
            dataclasses.replace(step_of(pointwise(4), text, n=2), seeds=seeds) for seeds in ((0, 1), (2, 3), (0, 1))
        ]
        first, second, again = (step.loss(image, target).item() for step in steps)
        assert first == again != second
    with pytest.raises(InputError, match=r"behind\.layers takes a tuple of defences, got"):
        registry.build("behind(layers=[3])", "defence")


def test_an_attack_that_learns_from_other_images_is_no_inner_attack_and_the_advice_can_be_followed() -> None:
    with pytest.raises(InputError, match="expected an attack that needs no fit") as refusal:
        registry.build("adversarial(attack=uap)", "defence")
    advice = str(refusal.value).partition("take the defence ")[2].partition(",")[0]
    assert advice in registry.names("defence")
