"""Each flag that is raised before a run is raised by a model or an image that is broken in that way."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from helpers.blobs import TASK, Around, SmallUNet, batch, broken, healthy, healthy_net, quantiser
from torch import Tensor, nn

from medseg_attack import registry
from medseg_attack.attacks.gradient.pgd import PGD, bim, fgsm
from medseg_attack.attacks.gradient.wang2024 import FgsmWang2024
from medseg_attack.checks.flags import Finding
from medseg_attack.checks.model.answers import check_label_order
from medseg_attack.checks.model.asking import check_model
from medseg_attack.checks.model.scene import Scene
from medseg_attack.checks.probes import preflight
from medseg_attack.models.segmodel import SegModel
from medseg_attack.threat.balls.norms import Linf
from medseg_attack.threat.objectives.losses import bce, margin, soft_dice
from medseg_attack.types import Attack, Batch, Case, LogOdds, Mask, PerSample, Task, Window

EPS = 4 / 255
GOOD: list[Attack] = [PGD(Linf(EPS), objective, steps=40) for objective in (bce, soft_dice)]


def codes(findings: list[Finding]) -> set[str]:
    return {finding.code for finding in findings}


def moved(change: object) -> Batch:
    """The batch with every image changed."""
    return Batch.of([replace(case, image=change(case.image)) for case in batch().cases])  # type: ignore[operator]


def test_a_healthy_model_raises_none() -> None:
    assert preflight(healthy(), batch(), GOOD) == []


def test_a_healthy_model_raises_none_under_one_step() -> None:
    assert preflight(healthy(), batch(), [fgsm(Linf(EPS))]) == []


def test_a_healthy_exclusive_model_raises_none() -> None:
    task = Task("blobs", ("background", *TASK.classes), exclusive=True)
    model = SegModel(Around(after=WithBackground()), task).eval()
    seen = batch()
    target = torch.cat((~seen.target.any(1, keepdim=True), seen.target), 1)
    assert codes(preflight(model, replace(seen, target=target), GOOD)) == set()


class WithBackground(nn.Module):
    def forward(self, z: Tensor) -> Tensor:
        return torch.cat((torch.zeros_like(z[:, :1]), z), 1)


@pytest.mark.parametrize(("moved_by", "flagged"), [(55, False), (75, True)])
def test_hard_cases_that_fit_a_little_better_reversed_raise_none(moved_by: int, flagged: bool) -> None:
    """A bar of 100 in 197 columns, predicted too far to the right: Dice 0.45, or 0.58 if reversed; 0.25, or 0.78."""
    target, log_odds = torch.zeros(1, 1, 2, 197, dtype=torch.bool), torch.full((1, 1, 2, 197), -1.0)
    target[..., :100] = True
    log_odds[..., moved_by : moved_by + 100] = 1
    one = Case("a", "a", "a", target[0].float(), target[0], (1.0, 1.0), Window(0, 1))
    scene = Scene(SegModel(nn.Identity(), Task("bars", ("bar",))), Batch.of([one]), (), log_odds)
    assert bool(check_label_order(scene)) == flagged


def test_checks_leave_a_model_as_it_was() -> None:
    model = healthy()
    before_ = {name: value.clone() for name, value in model.state_dict().items()}
    seen = batch()
    image = seen.image.clone()
    preflight(model, seen, GOOD)
    assert all(torch.equal(value, before_[name]) for name, value in model.state_dict().items())
    assert torch.equal(image, seen.image)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_3_bit_quantiser_looks_robust_and_is_caught() -> None:
    model, seen = broken(before=quantiser), batch()
    result = PGD(Linf(EPS), random_start=False)(model, seen.image, seen.target, range(4))
    assert torch.equal(result.image, seen.image)  # what a table would call robust
    assert {"MA001", "MA006", "MA009", "MA020", "MA021"} <= codes(preflight(model, seen, GOOD))


def test_ma001_a_step_without_slope() -> None:
    assert "MA001" in codes(check_model(broken(before=quantiser), batch()))


def test_ma001_a_z_score_that_is_cut_inside_the_model() -> None:
    assert "MA001" in codes(check_model(broken(before=lambda x: ((x - 0.35) / 0.1).clamp(0, 1)), batch()))


def test_ma002_a_detached_model() -> None:
    assert "MA002" in codes(check_model(broken(before=lambda x: x.detach()), batch()))


def test_ma002_a_model_whose_weights_alone_have_gradients() -> None:
    model = SegModel(Around(after=nn.Conv2d(2, 2, 1)), TASK)
    blocked = SegModel(nn.Sequential(Detach(), model.net), TASK).eval()
    assert "MA002" in codes(check_model(blocked, batch()))


class Detach(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.detach()


@pytest.mark.parametrize("draw", ["dropout", "noise"])
def test_ma003_a_randomised_model(draw: str) -> None:
    torch.manual_seed(0)
    change = {"dropout": lambda x: F.dropout(x, 0.1, True), "noise": lambda x: x + 0.1 * torch.randn_like(x)}[draw]
    raised = codes(check_model(broken(before=change), batch()))
    assert "MA003" in raised
    assert not {"MA004", "MA020", "MA021"} & raised  # its passes cannot be compared with each other


def test_ma004_a_model_in_train_mode() -> None:
    net = SmallUNet()
    net.load_state_dict(healthy_net().state_dict())
    model = SegModel(net.train(), TASK).train()
    assert "MA004" in codes(check_model(model, batch()))


class OfBatch(nn.Module):
    """Takes the mean of all images off each, as batch normalisation in train mode does."""

    def forward(self, x: Tensor) -> Tensor:
        return x - x.mean() + 0.3


def test_ma004_is_asked_where_a_single_case_has_its_shape() -> None:
    one = Batch.of(batch().cases[:1])
    raised = codes(check_model(SegModel(nn.Sequential(OfBatch(), healthy_net()), TASK).eval(), one))
    assert "MA004" in raised
    assert "MA004" not in codes(check_model(healthy(), one))


@pytest.mark.parametrize("exclusive", [False, True])
def test_ma005_probabilities(exclusive: bool) -> None:
    if not exclusive:
        assert "MA005" in codes(check_model(broken(after=torch.sigmoid), batch()))
        return
    task = Task("blobs", ("background", *TASK.classes), exclusive=True)
    net = nn.Sequential(Around(after=WithBackground()), nn.Softmax(1))
    seen = batch()
    target = torch.cat((~seen.target.any(1, keepdim=True), seen.target), 1)
    assert "MA005" in codes(check_model(SegModel(net, task).eval(), replace(seen, target=target)))


@pytest.mark.parametrize("squash", [torch.sigmoid, lambda z: (z / 2 + 0.5).clamp(0, 1)])
@pytest.mark.parametrize("classes", [2, 3, 5])
def test_ma005_a_sigmoid_of_each_class_before_a_softmax(squash: object, classes: int) -> None:
    task = Task("blobs", ("background", *(f"c{n}" for n in range(classes - 1))), exclusive=True)

    class Squashed(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            logits = torch.cat([healthy_net()(x)] * 3, 1)[:, :classes]
            result: Tensor = squash(logits)  # type: ignore[operator]
            return result

    seen = batch()
    target = torch.zeros(len(seen.image), classes, *seen.image.shape[2:], dtype=torch.bool)
    target[:, :2] = seen.target
    assert "MA005" in codes(check_model(SegModel(Squashed(), task).eval(), replace(seen, target=target)))


def test_ma014_names_the_order_of_labels_that_would_fit() -> None:
    def numbers(change: object) -> list[str]:
        findings = check_model(broken(after=change), batch())
        return [finding.numbers.partition(" if ")[2] for finding in findings if finding.code == "MA014"]

    assert numbers(lambda z: z) == []
    assert numbers(lambda z: z.flip(1)) == ["its square is round and its round is square"]
    assert numbers(lambda z: z.flip(2)) == ["its rows are reversed"]
    assert numbers(lambda z: z.flip(2, 3)) == ["its rows and columns are reversed"]
    assert numbers(lambda z: z.transpose(2, 3)) == ["its rows and columns are exchanged"]
    both = "its square is round and its round is square and its columns are reversed"
    assert numbers(lambda z: z.flip(1, 3)) == [both]
    assert numbers(lambda z: 0 * z - 1) == []  # nothing would fit


@pytest.mark.parametrize(
    ("turn", "fit"),
    [
        (lambda x: x.transpose(2, 3), "rows and columns are exchanged"),
        (lambda x: x.flip(3), "columns are reversed"),
        (lambda x: x.transpose(2, 3).flip(2), "rows and columns are exchanged and rows are reversed"),
    ],
)
def test_ma014_names_the_order_of_axes_that_a_model_was_trained_on(turn: Callable[[Tensor], Tensor], fit: str) -> None:
    """A network that answers by place, as one knows the left ventricle: wrong on turned images however it is turned."""
    seen = batch()
    known = turn(seen.image)

    class ByPlace(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            whole = (x - known[: len(x)]).abs().flatten(1).amax(1) < 1e-6
            return torch.where(
                whole[:, None, None, None], 2.0 * turn(seen.target.float())[: len(x)] - 1, -torch.ones(1)
            )

    findings = check_model(SegModel(ByPlace(), TASK).eval(), seen, gradient=False)
    (found,) = [finding for finding in findings if finding.code == "MA014"]
    assert found.numbers.endswith(f", 1.000 if it gets images whose {fit}")
    assert "axes=" in found.flag.todo


def test_ma014_is_asked_of_whole_scans_as_well() -> None:
    rng = torch.Generator().manual_seed(0)
    target = torch.rand(1, 2, 6, 5, 5, generator=rng) < 0.3

    class Known(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return (target.flip(2).transpose(3, 4).float() - 0.5) + 0 * x

    case = replace(batch().cases[0], image=torch.rand(1, 6, 5, 5, generator=rng), target=target[0])
    findings = check_model(SegModel(Known(), TASK, dims=3).eval(), Batch.of([case]), gradient=False)
    (numbers,) = [finding.numbers for finding in findings if finding.code == "MA014"]
    assert numbers.endswith("1.000 if its rows and columns are exchanged and its slices are reversed")


def backwards(log_odds: LogOdds, target: Mask, progress: float = 1.0) -> PerSample:
    """An objective whose sign is wrong in its gradient only."""
    loss = bce(log_odds, target)
    return 2 * loss.detach() - loss


def test_ma006_an_attack_that_climbs_the_wrong_way() -> None:
    assert "MA006" in codes(preflight(healthy(), batch(), [PGD(Linf(EPS), backwards, steps=8, random_start=False)]))


def test_ma006_an_attack_that_returns_a_worse_image_than_it_saw() -> None:
    forth_and_back = bim(Linf(EPS), Turning(), steps=20)  # type: ignore[arg-type]
    findings = preflight(healthy(), batch(), [forth_and_back])
    assert "MA006" in codes(findings)


def test_an_attack_too_weak_to_change_a_mask_climbs_all_the_same() -> None:
    """It returns the untouched image, whose loss is lower than that of its random start."""
    faint = PGD(Linf(1e-4), steps=5)
    assert torch.equal(faint(healthy(), batch().image, batch().target, range(4)).image, batch().image)
    assert "MA006" not in codes(preflight(healthy(), batch(), [faint]))


@pytest.mark.parametrize("attack", ["ni_fgsm(steps=4)", "igsm(steps=3)", "di2_fgsm(steps=4)"])
def test_what_an_attack_looks_at_is_not_what_it_returns(attack: str) -> None:
    """NI looks ahead of its place, beyond the ball; DI looks at resized images; igsm returns failures untouched."""
    built = registry.build(attack, "attack", {"ball": Linf(16 / 255)})
    assert not {"MA006", "MA007"} & codes(preflight(healthy(), batch(), [built]))


class Turning:
    """Climbs for the first half of an attack and descends for the second."""

    def __call__(self, log_odds: LogOdds, target: Mask, progress: float = 1.0) -> PerSample:
        loss = bce(log_odds, target)
        return loss if progress < 0.5 else 2 * loss.detach() - loss


def test_ma007_steps_too_small_to_arrive() -> None:
    findings = preflight(healthy(), batch(), [PGD(Linf(8 / 255), steps=8, step_size=0.06)])
    (numbers,) = (finding.numbers for finding in findings if finding.code == "MA007")
    assert numbers.endswith(f"of Dice, mean over the {len(batch().cases)} cases looked at")


def test_ma007_after_40_steps_only_if_twice_as_many_do_much_more() -> None:
    model = healthy()
    small = PGD(Linf(8 / 255), steps=40, step_size=0.012, random_start=False)
    assert "MA007" in codes(preflight(model, batch(), [small]))  # its steps cannot reach the edge of the ball
    late = PGD(Linf(10 / 255), steps=40, step_size=0.1)
    assert "MA007" not in codes(preflight(model, batch(), [late]))


def test_ma009_a_model_that_no_gradient_breaks() -> None:
    assert "MA009" in codes(preflight(broken(before=quantiser), batch(), GOOD))


def test_ma009_is_not_raised_where_no_case_has_an_organ() -> None:
    bare = Batch.of([replace(case, target=torch.zeros_like(case.target)) for case in batch().cases])
    assert "MA009" not in codes(preflight(healthy(), bare, GOOD))


def test_ma010_a_search_without_gradients_wins() -> None:
    hidden = broken(before=lambda x: (x * 30).round() / 30)  # finer steps: noise gets through, gradients do not
    assert "MA010" in codes(preflight(hidden, batch(), [fgsm(Linf(16 / 255))]))


def test_ma015_less_than_one_grey_level() -> None:
    stored = moved(lambda image: (image * 60).round() / 60)
    assert "MA015" in codes(check_model(healthy(), stored, [fgsm(Linf(1 / 255))]))
    assert "MA015" not in codes(check_model(healthy(), stored, [fgsm(Linf(1 / 60))]))
    assert "MA015" not in codes(check_model(healthy(), batch(), [fgsm(Linf(1e-4))]))  # no lattice to be seen


def test_ma016_organs_at_the_end_of_the_window() -> None:
    assert "MA016" in codes(check_model(healthy(), moved(lambda image: image.clamp(max=0.4) / 0.4)))


def test_ma017_half_precision() -> None:
    assert "MA017" in codes(check_model(broken(after=lambda z: z.bfloat16()), batch()))


def test_ma017_half_precision_inside() -> None:
    """What is cast back to float32 before it leaves the model has lost as much."""

    class Inside(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            with torch.autocast("cpu", torch.bfloat16):
                z: Tensor = healthy_net()(x)
            return z.float()

    (one,) = [each for each in check_model(SegModel(Inside(), TASK).eval(), batch()) if each.code == "MA017"]
    assert one.numbers == "the gradient is computed in bfloat16, the log-odds are float32"
    rounded = broken(after=lambda z: z.half().float())
    assert "MA017" in codes(check_model(rounded, batch()))


def test_ma036_an_output_that_is_cut_off() -> None:
    for bound in (1.0, 3.0):
        findings = check_model(broken(after=lambda z, bound=bound: z.clamp(-bound, bound)), batch())
        (one,) = [finding for finding in findings if finding.code == "MA036"]
        assert one.numbers == f"their log-odds stand at {bound:.3g}"
    assert "MA036" not in codes(check_model(broken(after=lambda z: z.clamp(-100, 100)), batch()))
    assert "MA036" not in codes(check_model(broken(after=lambda z: 3 * torch.tanh(z / 3)), batch()))  # it still pulls


def test_ma036_probabilities_that_float32_rounds_to_1() -> None:
    model = SegModel(Around(after=nn.Sequential(Times(4.0), nn.Sigmoid())), TASK, head="probabilities").eval()
    assert "MA036" in codes(check_model(model, batch()))


class Times(nn.Module):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, z: Tensor) -> Tensor:
        return self.factor * z


def test_ma019_logits_times_1000() -> None:
    loud = broken(after=lambda z: 1000 * z)
    assert "MA019" in codes(check_model(loud, batch(), GOOD))
    assert "MA019" not in codes(check_model(loud, batch(), [PGD(Linf(EPS), margin)]))  # which does not saturate


class Wavering(torch.autograd.Function):
    """The identity with a gradient that was made up."""

    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: object, grad: Tensor) -> Tensor:  # type: ignore[override]
        return torch.randn(grad.shape, generator=torch.Generator().manual_seed(0)).to(grad) * grad.abs().mean()


def test_ma020_and_ma021_a_gradient_that_was_made_up() -> None:
    raised = codes(check_model(broken(before=Wavering.apply), batch()))
    assert {"MA020", "MA021"} <= raised


def test_ma021_a_gradient_that_oscillates() -> None:
    """Right at every point, and of no use a pixel value away."""
    rippled = broken(before=lambda x: x + 0.004 * torch.sin(3000 * x))
    assert "MA021" in codes(check_model(rippled, batch(), GOOD))


def test_ma022_a_gradient_that_is_not_finite() -> None:
    assert "MA022" in codes(check_model(broken(before=lambda x: x + 0 * (x - x).abs().sqrt()), batch()))


def test_ma023_an_objective_that_misses_the_score() -> None:
    def blind(log_odds: LogOdds, target: Mask, progress: float = 1.0) -> PerSample:
        return bce(log_odds[..., :8, :8], target[..., :8, :8])  # looks at one corner

    assert "MA023" in codes(preflight(healthy(), batch(), [PGD(Linf(EPS), blind, steps=20)]))


@pytest.mark.parametrize("shift", [-0.5, 0.5])
def test_ma025_values_outside_the_box(shift: float) -> None:
    assert "MA025" in codes(check_model(healthy(), moved(lambda image: image + shift)))


def test_ma026_a_z_score_cut_to_the_box() -> None:
    assert "MA026" in codes(
        check_model(healthy(), moved(lambda image: ((image - image.mean()) / image.std()).clamp(0, 1)))
    )


def test_ma034_averaging_helps_against_a_randomised_model() -> None:
    torch.manual_seed(0)
    noisy = broken(before=lambda x: x + 0.1 * torch.randn_like(x))
    assert "MA034" in codes(preflight(noisy, batch(8), [PGD(Linf(8 / 255), steps=10)]))


def test_an_attack_of_three_channels_is_looked_at_as_well() -> None:
    model = SegModel(Mean(), TASK, in_channels=3).eval()
    assert codes(preflight(model, batch(), [FgsmWang2024()])) == set()


class Mean(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = healthy_net()(x.mean(1, keepdim=True))
        return result


def test_the_network_of_these_tests_has_learned_its_task() -> None:
    from medseg_attack.checks.probes import mean_dice

    model, seen = healthy(), batch(16)
    with torch.no_grad():
        clean = mean_dice(model, model.decide(model(seen.image)), seen.target)
    assert clean.mean() > 0.9
