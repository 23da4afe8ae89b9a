"""The selftest is green here, and red for every bug that is planted; the command says so."""

import importlib.util
import inspect
import json
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

from medseg_attack.attacks.gradient import pgd as gradient
from medseg_attack.attacks.gradient.pgd import PGD
from medseg_attack.attacks.gradient.wang2024 import Blend
from medseg_attack.checks import installation as selftest
from medseg_attack.checks import other_libraries
from medseg_attack.cli import app
from medseg_attack.threat.balls.norms import L2, Linf
from medseg_attack.threat.objectives import losses as objectives
from medseg_attack.threat.objectives.swapped import bce_swapped, dice_swapped, focal_swapped
from medseg_attack.types import Adversarial

Patch = pytest.MonkeyPatch


@pytest.mark.parametrize("check", selftest.CHECKS, ids=lambda check: check.__name__)
def test_every_check_is_green(check: Callable[[], None]) -> None:
    check()


def negated(step: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda *args: -step(*args)


def swap(patch: Patch, name: str, swapped: Callable[..., Tensor]) -> None:
    """Puts the body with swapped arguments where every default and every attack finds it."""
    plain, other = inspect.unwrap(getattr(objectives, name)), inspect.unwrap(swapped)  # tests check shapes around them
    patch.setattr(plain, "__code__", other.__code__)


def last_of_both(self: Adversarial, other: Adversarial) -> Adversarial:
    return other


def not_boxed(self: Linf, x: Tensor, x0: Tensor) -> Tensor:
    return x.clamp(x0 - self.eps, x0 + self.eps)


def cut_per_pixel(self: L2, x: Tensor, x0: Tensor) -> Tensor:
    return x.clamp(x0 - self.eps, x0 + self.eps).clamp(0, 1)


def around_zero(self: Linf, x: Tensor, x0: Tensor) -> Tensor:
    return x.clamp(-self.eps, self.eps)


def over_the_batch(grad: Tensor) -> Tensor:
    return grad / grad.abs().mean()


def of_the_batch(grad: Tensor) -> Tensor:
    return grad / grad.square().sum().sqrt()


BUGS: dict[str, Callable[[Patch], None]] = {
    "the sign of a step": lambda patch: patch.setattr(Linf, "step", negated(Linf.step)),
    "the sign of a step in L2": lambda patch: patch.setattr(L2, "step", negated(L2.step)),
    "the sign of an objective": lambda patch: patch.setattr(
        PGD, "_gradients", lambda self, *a, real=PGD._gradients: (-grad for grad in real(self, *a))
    ),
    "the arguments of bce": lambda patch: swap(patch, "bce", bce_swapped),
    "the arguments of focal": lambda patch: swap(patch, "focal", focal_swapped),
    "the arguments of soft_dice": lambda patch: swap(patch, "soft_dice", dice_swapped),
    "no projection": lambda patch: patch.setattr(Linf, "project", lambda self, x, x0: x.clamp(0, 1)),
    "a projection around 0": lambda patch: patch.setattr(Linf, "project", around_zero),
    "a projection that forgets the box": lambda patch: patch.setattr(Linf, "project", not_boxed),
    "a projection of another norm": lambda patch: patch.setattr(L2, "project", cut_per_pixel),
    "a blended step": lambda patch: patch.setattr(Linf, "step", Blend.step),
    "a step of the whole batch": lambda patch: patch.setattr(L2, "step", lambda self, g, x: self.eps * of_the_batch(g)),
    "a momentum over the batch": lambda patch: patch.setattr(gradient, "scaled", over_the_batch),
    "no momentum": lambda patch: patch.setattr(gradient, "scaled", lambda grad: grad),
    "the last instead of the worst": lambda patch: patch.setattr(Adversarial, "__or__", last_of_both),
    "softmax logits as they are": lambda patch: patch.setattr(selftest, "softmax_log_odds", lambda z: z),
    "random numbers of the batch": lambda patch: patch.setattr(
        "medseg_attack.threat.balls.norms.draw",
        lambda random, like, seeds: random(like.shape, dtype=torch.float64).to(like),
    ),
}


@pytest.mark.parametrize("bug", BUGS)
def test_a_planted_bug_turns_it_red(bug: str, monkeypatch: Patch) -> None:
    BUGS[bug](monkeypatch)
    assert any(outcome.problem for outcome in selftest.run())
    result = CliRunner().invoke(app, ["selftest"])
    assert result.exit_code == 1
    assert "WRONG" in result.stdout


def test_the_command_prints_names_and_what_was_compared() -> None:
    result = CliRunner().invoke(app, ["selftest"])
    assert result.exit_code == 0
    assert max(map(len, result.stdout.splitlines())) <= 100
    outcomes = json.loads(CliRunner().invoke(app, ["selftest", "--json"]).stdout)["checks"]
    assert [one["name"] for one in outcomes] == [check.__name__ for check in selftest.CHECKS]
    assert all(one["compared"] and not one["problem"] for one in outcomes)
    assert all(one["name"] in result.stdout for one in outcomes)


def test_a_check_that_crashes_is_red() -> None:
    def crash() -> None:
        """Nothing."""
        raise ZeroDivisionError("by zero")

    (outcome,) = selftest.run([crash])
    assert outcome.problem == "ZeroDivisionError: by zero"


def test_nan_is_not_the_same() -> None:
    with pytest.raises(selftest.WrongError):
        selftest.same(torch.tensor([float("nan")]), torch.tensor([0.0]), "x")


def test_a_library_that_is_not_known_or_not_installed_is_named(monkeypatch: Patch) -> None:
    result = CliRunner().invoke(app, ["selftest", "--against", "folbox"])
    assert result.exit_code == 2
    assert "did you mean foolbox?" in " ".join(result.stderr.split())
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    result = CliRunner().invoke(app, ["selftest", "--against", "adv_lib"])
    assert result.exit_code == 2
    assert "pip install adv-lib" in " ".join(result.stderr.split())


@pytest.mark.parametrize("name", other_libraries.LIBRARIES)
def test_other_libraries_go_the_same_way(name: str) -> None:
    if importlib.util.find_spec(name) is None:
        pytest.skip(f"{name} is not installed; pip install '.[references]' in an environment of its own")
    for compare in other_libraries.comparisons([name]):
        compare()


def test_the_comparison_sees_every_iterate_and_a_difference(monkeypatch: Patch) -> None:
    """A library that is written here: textbook steps agree, a blended one does not."""

    def textbook(net: other_libraries.Classifier, image: Tensor, labels: Tensor) -> Tensor:
        x = image
        for _ in range(other_libraries.STEPS):
            x = x.detach().requires_grad_()
            (grad,) = torch.autograd.grad(torch.nn.functional.cross_entropy(net(x), labels), x)
            x = x.detach() + other_libraries.SIZE * other_libraries.EPS * grad.sign()
            x = x.clamp(image - other_libraries.EPS, image + other_libraries.EPS).clamp(0, 1)
        return x

    compare = other_libraries._check("textbook", other_libraries.BIM, textbook)
    assert len(other_libraries.our_iterates(other_libraries.BIM)) == other_libraries.STEPS + 1
    compare()
    monkeypatch.setattr(Linf, "step", Blend.step)
    with pytest.raises(selftest.WrongError, match="iterate 1"):
        compare()
