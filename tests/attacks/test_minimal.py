"""Attacks that look for the least change: against optima in closed form, and what a failure is."""

import math
from dataclasses import replace

import pytest
import torch
from helpers.near_decision import EXCLUSIVE, ORGAN, SEEDS, attacked, images, nearest, oracle
from torch import Tensor, nn

from medseg_attack import registry
from medseg_attack.attacks.counting import CountedModel
from medseg_attack.attacks.minimal.alma_prox import AlmaProx, _Multipliers, _penalty, _spread, prox_linf
from medseg_attack.attacks.minimal.asma import Asma
from medseg_attack.attacks.minimal.dag import Dag
from medseg_attack.attacks.minimal.jsma import Jsma
from medseg_attack.attacks.minimal.search import Search
from medseg_attack.errors import InputError
from medseg_attack.threat.balls.norms import L0, Linf
from medseg_attack.threat.goals.aim import Aim, find_aim
from medseg_attack.threat.goals.criteria import ByPixels
from medseg_attack.threat.goals.masks import Erase, Shift
from medseg_attack.types import Adversarial, LogOdds, PerSample, Task

GAMMA = 0.001
MINIMAL = [
    name
    for name in registry.names("attack")
    if hasattr(registry.build(name, "attack"), "success") and registry.find(name, "attack").threat != "no model"
]


@pytest.mark.parametrize("task", [ORGAN, EXCLUSIVE], ids=["sigmoid", "softmax"])
class TestOptima:
    """Of the closed forms: the k-th smallest distance in Linf, the root of the sum of the k smallest squares in L2."""

    @pytest.mark.parametrize(
        ("text", "bound"),
        [
            (f"dag(steps=40, step_size={GAMMA})", GAMMA / 0.019),
            ("deepfool", 0.03),  # the overshoot, and what the last step adds
            ("alma_prox(steps=60)", 0.08),
            ("pdpgd(steps=150)", 0.25),
        ],
    )
    def test_linf(self, task: Task, text: str, bound: float) -> None:
        image = images()
        result, flipped = attacked(registry.build(text, "attack"), task, image)
        optimum = nearest(image)[:, -1]
        assert (flipped >= 0.99).all()
        assert result.success is not None
        assert result.success.all()
        assert (result.size >= optimum - 1e-12).all()
        assert (result.size <= optimum * (1 + bound)).all()

    @pytest.mark.parametrize(
        ("text", "bound"),
        [
            ("dag(l2(20), steps=40)", 0.1),
            ("deepfool(l2(20))", 0.3),
            ("cw(steps=40, searches=6)", 0.5),
            ("pdgd(steps=300)", 0.3),
            ("lbfgs(steps=15, searches=8)", 1.2),  # cross-entropy goes on beyond the boundary
        ],
    )
    def test_l2(self, task: Task, text: str, bound: float) -> None:
        image = images()
        result, flipped = attacked(registry.build(text, "attack"), task, image)
        optimum = nearest(image).square().sum(1).sqrt()
        assert (flipped >= 0.99).all()
        assert (result.size >= optimum - 1e-12).all()
        assert (result.size <= optimum * (1 + bound)).all()

    def test_l0_flips_what_theta_reaches(self, task: Task) -> None:
        image = images(0.4)
        share = 0.5
        attack = Jsma(L0(1.0), success=ByPixels(share), share=0.01, theta=0.5)
        result, flipped = attacked(attack, task, image)
        assert (flipped >= share).all()
        assert (result.size - share < 0.02).all()  # every change flips its pixel; the last round may be cut short
        short, flipped = attacked(replace(attack, theta=0.1, success=ByPixels(0.99)), task, image)
        assert not torch.as_tensor(short.success).any()
        assert torch.equal(short.image, image)

    def test_towards_a_goal_only_organ_pixels_move(self, task: Task) -> None:
        image = images()
        goal = Erase("organ")
        for attack in (Dag(goal=goal, steps=40), Asma(goal=goal, steps=60)):
            result, _ = attacked(attack, task, image)
            assert torch.as_tensor(result.success).all()
            model = oracle(task)
            organ = model.decide(model(image))[:, 1 if task.exclusive else 0]
            moved = (result.image - image)[:, 0]
            assert (moved[organ] <= 0).all()
            assert moved[~organ].abs().max() < 1e-12


def test_dag_moves_by_gamma_and_stops_where_it_succeeds() -> None:
    image = images()
    model = oracle(ORGAN)
    truth = model.decide(model(image))
    single_step = Dag(steps=1, step_size=GAMMA, success=ByPixels(0.02))(model, image, truth, SEEDS)
    torch.testing.assert_close(single_step.size, torch.full_like(single_step.size, GAMMA))
    half = Dag(success=ByPixels(0.5))(model, image, truth, SEEDS)
    steps = torch.as_tensor(half.passes)[:, 1]
    torch.testing.assert_close(half.size, steps.double() * GAMMA)
    assert (half.size - nearest(image, 0.5)[:, -1]).min() >= 0
    assert (half.size - nearest(image, 0.5)[:, -1]).max() <= GAMMA
    # what flipped early was left alone
    early = (image - 0.5).abs() < GAMMA / 2
    assert (half.image - image).abs()[early].max() <= GAMMA + 1e-12


@pytest.mark.parametrize("name", MINIMAL)
def test_a_failure_is_the_untouched_image_and_says_so(name: str) -> None:
    image, model = images(0.4), oracle(ORGAN)  # 99 % need more than the ball holds
    truth = model.decide(model(image))
    few = {"steps": 3, "searches": 2}
    attack = registry.with_eps(registry.build(name, "attack", few), 0.001)
    result = attack(model, image, truth, SEEDS)
    assert result.success is not None
    assert not result.success.any()
    assert torch.equal(result.image, image)
    assert result.size.max() == 0


@pytest.mark.parametrize("name", [name for name in MINIMAL if registry.find(name).takes("goal")])
@pytest.mark.parametrize("goal", [None, Erase("organ")], ids=["away", "goal"])
def test_every_gradient_of_an_image_is_counted(name: str, goal: Erase | None) -> None:
    if name.startswith("asma") and goal is None:
        return  # it can only go towards one
    image, model = images(0.4)[:1], CountedModel(oracle(EXCLUSIVE))
    truth = model.decide(model(image))
    model.forwards = 0
    attack = registry.build(name, "attack", {"steps": 2, "searches": 2, "goal": goal, "success": ByPixels(1.0)})
    result = attack(model, image, truth, SEEDS[:1])
    if result.passes is not None:
        assert result.passes.tolist() == [[model.forwards, model.backwards]]


@pytest.mark.parametrize("name", MINIMAL)
def test_an_image_that_meets_the_rule_is_left_alone(name: str) -> None:
    image, model = images(), oracle(ORGAN)
    truth = torch.zeros(3, 1, 24, 20, dtype=torch.bool)
    few = {"steps": 3, "searches": 2, "success": ByPixels(0.3)}
    if registry.find(name).takes("goal"):
        few["goal"] = Erase("organ")
    dark = image - 0.2
    result = registry.build(name, "attack", few)(model, dark, truth, SEEDS)
    if name == "least_of":
        return  # of its own criterion
    assert torch.as_tensor(result.success).all()
    assert torch.equal(result.image, dark)


@pytest.mark.parametrize("text", ["dag", "alma_prox(steps=40)", "pdgd(steps=60)"])
def test_one_search_serves_every_budget(text: str) -> None:
    image, model = images(), oracle(ORGAN)
    image[0] = 0.5 + (image[0] - 0.5) / 4  # closer to the decision than the others
    truth = model.decide(model(image))
    attack = registry.build(text, "attack")
    whole = attack(model, image, truth, SEEDS)
    budgets = [whole.size[0].item() * 1.01, whole.size.max().item() * 1.01]
    balls = [registry.with_eps(attack.ball, eps) for eps in budgets]
    swept = list(attack.sweep(model, image, truth, SEEDS, balls))
    assert torch.as_tensor(swept[0].success).tolist() == [True, False, False]
    assert torch.as_tensor(swept[1].success).tolist() == [True, True, True]
    for ball, result in zip(balls, swept, strict=True):
        alone = replace(attack, ball=ball)(model, image, truth, SEEDS)
        assert torch.equal(result.image, alone.image)
        assert (result.size <= ball.eps).all()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("alma_prox(l2(1))", "a ball of linf"),
        ("cw(linf(0.1))", "a ball of l2"),
        ("jsma(linf(0.1))", "a ball of l0"),
        ("dag(goal=bce)", "takes a goal or None"),
        ("dag(goal=3)", "takes a goal or None"),
        ("dag(success=bce)", "takes something like by_pixels"),
        ("asma(goal=None)", "can only go towards one"),
        ("dag(steps=0)", "steps >= 1"),
        ("least_of((pgd,))", "a criterion of success"),
        ("least_of((dag(linf(0.1)), dag(linf(0.2))))", "one ball"),
        ("least_of((dag, dag(goal=erase)))", "one goal"),
        ("l0(1.5)", "share of pixels"),
    ],
)
def test_what_cannot_be_is_told(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        registry.build(text, "ball" if text.startswith("l0") else "attack")


def test_entries_are_over_the_boundary_exactly_where_the_decision_is() -> None:
    log_odds = torch.randn(2, 3, 5, 4, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    for task in (Task("free", ("a", "b", "c")), Task("one", ("background", "a", "b"), exclusive=True)):
        model = oracle(task)
        pred = model.decide(log_odds)
        truth = model.decide(log_odds.roll(1, 1))
        away, to = Aim.of(None, ByPixels(), task), Aim.of(Erase("a"), ByPixels(), task)
        assert to.goal is not None
        wanted = to.goal(truth)
        right = (pred == truth).all(1, keepdim=True) if task.exclusive else pred == truth
        good = (pred == wanted).all(1, keepdim=True) if task.exclusive else pred == wanted
        assert torch.equal(away.excess(log_odds, truth) > 0, ~right)
        assert torch.equal(to.excess(log_odds, truth) > 0, good)


def test_margins_of_an_exclusive_task_are_differences_of_its_logits() -> None:
    from medseg_attack.numerics.log_odds import softmax_log_odds

    logits = 8 * torch.randn(1, 3, 6, 5, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    truth = oracle(EXCLUSIVE).decide(logits.roll(1, 1))
    own = (logits * truth).sum(1)
    other = logits.masked_fill(truth, -torch.inf).amax(1)
    excess = Aim.of(None, ByPixels(), EXCLUSIVE).excess(softmax_log_odds(logits), truth)
    torch.testing.assert_close(excess[:, 0], other - own)


def test_the_proximal_point_meets_its_condition() -> None:
    rng = torch.Generator().manual_seed(4)
    image = torch.rand(5, 1, 6, 7, generator=rng, dtype=torch.float64) * 0.6 + 0.2
    change = 0.1 * torch.randn(5, 1, 6, 7, generator=rng, dtype=torch.float64)  # stays inside of the box
    metric = torch.rand(5, 1, 6, 7, generator=rng, dtype=torch.float64) + 0.1
    weight = torch.tensor([0.01, 0.1, 0.5, 1e9, 0.0], dtype=torch.float64)
    prox = prox_linf(change, weight, metric, image)
    a = prox.abs().flatten(1).amax(1)
    pull = (metric * (change.abs() - a.view(-1, 1, 1, 1)).clamp(min=0)).flatten(1).sum(1)
    torch.testing.assert_close(pull[:3], weight[:3], atol=1e-9, rtol=0)
    assert a[3] < 1e-9
    torch.testing.assert_close(prox[4], change[4])


def test_the_penalty_has_its_slope_at_the_boundary_and_is_smooth_there() -> None:
    y = torch.tensor([-1e-9, 0.0, 1e-9, 0.5], dtype=torch.float64, requires_grad=True)
    ones, rise = torch.ones(4, dtype=torch.float64), torch.full((4,), 0.01, dtype=torch.float64)
    (grad,) = torch.autograd.grad(_penalty(y, ones, rise).sum(), y)
    assert grad[0].item() == pytest.approx(1.0)
    assert grad[2].item() == pytest.approx(1.0)
    assert grad[3].item() == pytest.approx(1.01, abs=1e-4)  # the released derivative gives 0.51


def test_asma_at_its_goal_only_shrinks_the_change() -> None:
    """With the prediction as wanted the gradient is -2 times the change; at the image itself there is none."""
    image, model = images(), oracle(ORGAN)
    dark = image - 0.3
    wanted = torch.zeros(3, 1, 24, 20, dtype=torch.bool)
    result = Asma(goal=Erase(), steps=5)(model, dark, wanted, SEEDS)
    assert torch.equal(result.image, dark)


def test_no_pixel_is_changed_twice_by_jsma() -> None:
    shown: list[Tensor] = []

    class Watched(CountedModel):
        def __call__(self, image: Tensor) -> LogOdds:
            shown.append(image.detach().clone())
            return super().__call__(image)

    image, model = images(0.4), Watched(oracle(ORGAN))
    truth = model.decide(model(image))
    shown.clear()
    Jsma(L0(1.0), steps=12, share=0.05, theta=0.3)(model, image, truth, SEEDS)
    changes = torch.stack([(a != b) for a, b in zip(shown[1:-1], shown[:-2], strict=True)]).sum(0)
    assert changes.max() == 1
    assert (shown[-2] != image).double().mean() <= 12 * 0.05 + 1e-9


def test_the_aim_is_found_wherever_it_sits_and_only_if_there_is_one() -> None:
    inside = registry.build(
        "least_of((igsm(goal=erase('organ')), igsm(soft_dice, goal=erase('organ'))))".replace(
            "igsm(soft_dice", "igsm(objective=soft_dice"
        ),
        "attack",
    )
    aim = find_aim(inside, ORGAN)
    assert aim is not None
    assert aim.goal == Erase("organ")
    assert aim.goal.setting is not None
    climbed = find_aim(registry.build("pgd(objective=toward(bce, erase('organ'), by_pixels))", "attack"), ORGAN)
    assert climbed is not None
    assert climbed.success == ByPixels()
    assert find_aim(registry.build("pgd", "attack"), ORGAN) is None
    assert find_aim((Dag(), Dag(goal=Erase())), ORGAN) is None


def test_l0_counts_and_keeps_the_largest_changes() -> None:
    ball = L0(0.25)
    image = torch.full((2, 1, 2, 4), 0.5)
    moved = image.clone()
    moved[0, 0, 0] = torch.tensor([0.6, 0.9, 0.5, 0.1])
    assert ball.size(moved, image).tolist() == [3 / 8, 0.0]
    kept = ball.project(moved, image)
    assert kept[0, 0, 0].tolist() == pytest.approx([0.5, 0.9, 0.5, 0.1])
    assert ball.size(ball.sample(image, [1, 2]), image).tolist() == [0.25, 0.25]
    assert torch.equal(L0(0.0).project(moved, image), image)
    assert ball.step(moved - image, image).abs().sum() == 2


def test_harm_of_a_find_is_capped_so_that_the_smaller_wins() -> None:
    image, model = images(), oracle(ORGAN)
    truth = model.decide(model(image))
    search = Search(model, Linf(0.5), Aim.of(None, ByPixels(0.5), ORGAN), image, truth)

    def candidate(size: float) -> Adversarial:
        x = image + torch.where(truth, -size, size)
        return search.candidate(x, model(x))

    best = candidate(0.015) | candidate(0.02) | candidate(0.004)
    torch.testing.assert_close(best.size, torch.full_like(best.size, 0.015))


def test_a_goal_in_mm_cannot_be_told_by_a_model_alone() -> None:
    image, model = images(), oracle(ORGAN)
    with pytest.raises(InputError, match="cases"):
        Dag(goal=Shift())(model, image, model.decide(model(image)), SEEDS)


def test_a_penalty_doubles_where_it_was_in_vain_and_there_alone() -> None:
    """A constraint that was met in the meantime, or that fell by 5 %, needs no stronger push."""
    before = torch.tensor([1.0, 1.0, 1.0, -1.0]).view(1, 1, 4)
    state = _Multipliers.start(before)
    assert state.rise.flatten().tolist() == pytest.approx([0.01] * 4)
    now = torch.tensor([1.0, 0.96, 0.9, 0.5]).view(1, 1, 4)
    between = state.after(now, 5, 10)
    assert torch.equal(between.rise, state.rise)  # between two checks none rises
    checked = state.after(now, 10, 10)
    assert checked.rise.flatten().tolist() == pytest.approx([0.02, 0.02, 0.01, 0.01])
    assert checked.after(now, 20, 10).rise.flatten().tolist() == pytest.approx([0.04, 0.04, 0.02, 0.02])


def test_the_rate_is_whole_until_the_first_success_and_a_tenth_at_the_end() -> None:
    attack = AlmaProx(steps=100, step_size=0.5)
    first = torch.tensor([0.0, 20.0, 50.0])
    assert attack._rate(0, first).tolist() == pytest.approx([0.5] * 3)
    assert attack._rate(20, first)[1:].tolist() == pytest.approx([0.5] * 2)
    assert attack._rate(100, first).tolist() == pytest.approx([0.05] * 3)
    fall = torch.stack([attack._rate(step, first) for step in range(101)])
    assert (fall.diff(dim=0) <= 0).all()


@pytest.mark.parametrize("step_size", [0.005, 0.02])
def test_the_rate_falls_from_the_step_of_each_case_s_first_success_on(
    step_size: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half of the steps stand for that step as long as there was no success."""
    image, model, steps, rate = images(), oracle(ORGAN), 40, AlmaProx._rate
    truth, asked, known = model.decide(model(image)), list[Tensor](), list[Tensor]()

    def remembered(attack: AlmaProx, step: int, first: PerSample) -> PerSample:
        known.append(first.clone())
        return rate(attack, step, first)

    monkeypatch.setattr(AlmaProx, "_rate", remembered)
    assert isinstance(model, nn.Module)
    with model.register_forward_pre_hook(lambda net, inputs: asked.append(inputs[0].detach().clone())):
        AlmaProx(steps=steps, step_size=step_size, success=ByPixels(0.5))(model, image, truth, SEEDS)
    first = torch.full((len(image),), math.inf)
    for step, (x, own) in enumerate(zip(asked[1 : steps + 1], known, strict=True)):  # the untouched images come before
        turned = (model.decide(model(x)) != truth).flatten(1).double().mean(1)
        first = torch.where(turned >= 0.5, first.clamp(max=step), first)
        assert own.tolist() == first.clamp(max=steps / 2).tolist()
    assert (first < steps / 2).any()


@pytest.mark.parametrize("goal", [None, Erase("a")])
@pytest.mark.parametrize("logits", [(5.0, 3.0, 1.0, 0.0, -3.0), (0.0, 1.0, 5.0, 3.0), (5.0, 3.0, 1.0)])
def test_margins_are_divided_by_the_first_logit_less_the_third_or_towards_a_goal_the_mean_of_the_next_two(
    logits: tuple[float, ...], goal: Erase | None
) -> None:
    """The difference of logits ratio, and its targeted form (Croce & Hein, arXiv 2003.01690)."""
    task = Task("t", ("background", "a", "b", "c", "d")[: len(logits)], exclusive=True)
    log_p = torch.tensor(logits, dtype=torch.float64).view(1, -1, 1, 1).log_softmax(1)
    log_odds = log_p - torch.log1p(-log_p.exp())
    search = Search(oracle(ORGAN), Linf(0.5), Aim.of(goal, ByPixels(), task), images(), images() > 0)
    third = (1.0 if goal is None else 0.5) if len(logits) > 3 else 1.0
    assert float(_spread(search, log_odds)) == pytest.approx(5.0 - third, rel=1e-6)
