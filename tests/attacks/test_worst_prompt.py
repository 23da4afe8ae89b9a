"""The worst of several prompts: no pixel changes, and what is scored is the prompt that did most harm."""

from dataclasses import dataclass, replace

import pytest
import torch
from helpers import blobs
from helpers.promptable import NETWORKS

from medseg_attack.attacks.controls.worst_prompt import WorstPrompt
from medseg_attack.attacks.judging import judge
from medseg_attack.errors import InputError
from medseg_attack.evaluation.loop import attack_chunk
from medseg_attack.evaluation.pictures.attacked_scans import _outcome
from medseg_attack.library.models import wrap
from medseg_attack.models.prompts import Boxes, Points
from medseg_attack.models.segmodel import SegModel
from medseg_attack.numerics.samples import draw, reseeded
from medseg_attack.registry import build
from medseg_attack.runs.rows import Row
from medseg_attack.threat.binding import bind
from medseg_attack.types import Adversarial, Batch, Case, CaseRef, Donors, Setting

SEEDS = [5, 6, 7]
KINDS = pytest.mark.parametrize("kind", ["box", "points"])


def model(kind: str = "box") -> SegModel:
    names: dict[str, type[torch.nn.Module]] = {}
    exec(NETWORKS, names)
    return wrap(names["Box" if kind == "box" else "Point"]().eval(), ("round", "square"), False, prompt=kind)


def batch() -> Batch:
    """Three cases, of which the last has one organ of two."""
    *cases, last = blobs.batch(3).cases
    return Batch.of([*cases, replace(last, target=last.target * torch.tensor([True, False])[:, None, None])])


def result(attack: WorstPrompt, kind: str = "box") -> Adversarial:
    of, cases = model(kind), batch()
    setting = Setting(of.task, cases.cases, stream="attack 0")
    return bind(attack, setting)(bind(of, setting), cases.image, cases.target, SEEDS)


@dataclass(frozen=True)
class Shelf:
    """Cases that nobody asks for."""

    def read(self, ref: CaseRef) -> Case:
        raise AssertionError(ref)


def rows(kind: str, *attacks: str) -> list[list[Row]]:
    """The rows of each attack, without what it cost."""
    results = attack_chunk(model(kind), [batch()], [build(text, "attack") for text in attacks])
    return [[replace(row, forwards=0) for row in each.rows] for each in results]


@KINDS
@pytest.mark.parametrize("text", ["worst_prompt(jitter=0)", "worst_prompt(prompts=1)"])
def test_without_jitter_or_a_second_prompt_it_is_the_clean_row(kind: str, text: str) -> None:
    clean, worst = rows(kind, "clean", text)
    assert repr(worst) == repr(clean)  # NaN equals NaN


@KINDS
def test_the_loop_scores_the_prompt_that_did_most_harm(kind: str) -> None:
    of, cases = model(kind), batch()
    worst = result(WorstPrompt(prompts=6), kind)
    assert worst.prompts is not None
    assert torch.equal(worst.image, cases.image)
    assert (worst.size == 0).all()
    assert worst.prompts[2, 1].isnan().all()  # no organ, no prompt
    known = worst.prompts[~worst.prompts.isnan()]
    assert known.min() >= 0
    assert known.max() <= blobs.SIDE - 1
    scored = bind(of, Setting(of.task, cases.cases, prompts=worst.prompts))
    assert torch.equal(judge(scored, WorstPrompt.ball, cases.image, cases.image, cases.target).harm, worst.harm)
    clean, moved = rows(kind, "clean", "worst_prompt(prompts=6)")
    before, after = (2 * sum(r.hit_adv for r in of) / sum(r.n_adv + r.n_target for r in of) for of in (clean, moved))
    assert after < before
    assert [row.n_clean for row in moved] == [row.n_clean for row in clean]


def test_it_is_the_worst_of_all_that_are_drawn() -> None:
    """More prompts do no less harm, and the harm of each that is drawn is no larger than that of the worst."""
    of, cases = model(), batch()
    harms = [result(WorstPrompt(prompts=n)).harm for n in (1, 3, 6)]
    assert (harms[0] <= harms[1]).all()
    assert (harms[1] <= harms[2]).all()
    assert (harms[0] < harms[2]).any()
    own = of.net.bind(Setting(of.task, cases.cases)).prompts(3)  # type: ignore[operator]
    for number in range(1, 6):
        moved = (own + 10 * (2 * draw(torch.rand, own, reseeded(SEEDS, number)) - 1)).clamp(0, blobs.SIDE - 1)
        moved = moved.sort(2).values  # sides that passed each other
        bound = bind(of, Setting(of.task, cases.cases, prompts=moved))
        harm = judge(bound, WorstPrompt.ball, cases.image, cases.image, cases.target).harm
        assert (harm <= harms[2]).all()


def test_each_coordinate_moves_by_a_uniform_length() -> None:
    """Of one prompt beside the own one, where it did more harm."""
    moves = []
    of, cases = model(), batch()
    own = of.net.bind(Setting(of.task, cases.cases)).prompts(3)  # type: ignore[operator]
    for seed in range(40):
        setting = Setting(of.task, cases.cases)
        attack = bind(WorstPrompt(prompts=2, jitter=3), setting)
        worst = attack(bind(of, setting), cases.image, cases.target, [seed, seed + 100, seed + 200])
        assert worst.prompts is not None
        move = worst.prompts - own
        moves.append(move[~move.isnan()])
    lengths = torch.cat(moves)
    assert lengths.abs().max() <= 3 + 1e-5
    assert lengths.max() > 2.5
    assert lengths.min() < -2.5


def test_a_box_stays_a_box_however_far_its_sides_move() -> None:
    """Of an organ of one pixel two sides in three pass each other; points are in no order, and keep theirs."""
    own = torch.tensor([[5.0, 7.0], [5.0, 7.0]]).expand(500, 1, 2, 2)
    moved = own + 20 * draw(torch.rand, own, range(500)) - 10
    boxes, points = (policy.held(moved, (12, 30)) for policy in (Boxes(), Points(2)))
    assert (boxes[:, :, 0] <= boxes[:, :, 1]).all()
    assert (points[:, :, 0] > points[:, :, 1]).any()
    assert torch.equal(boxes, points.sort(2).values)
    assert points[..., 1].max() == 11
    absent = torch.full((1, 1, 2, 2), torch.nan)
    assert Boxes().held(absent, (12, 30)).isnan().all()


def test_a_picture_of_it_shows_the_answer_that_is_scored() -> None:
    of, attack = model(), WorstPrompt(prompts=6)
    drawn = _outcome(of, batch(), attack, None, Donors(Shelf(), ()), {"seed": 0})
    (outcome,) = attack_chunk(of, [batch()], [attack])
    assert drawn.prediction_attacked.flatten(2).sum(2).flatten().tolist() == [row.n_adv for row in outcome.rows]
    assert not torch.equal(drawn.prediction, drawn.prediction_attacked)


def test_a_case_has_its_prompts_in_any_batch() -> None:
    whole = result(WorstPrompt(prompts=4))
    of, cases = model(), batch()
    assert whole.prompts is not None
    for n, case in enumerate(cases.cases):
        one = Batch.of([case])
        setting = Setting(of.task, one.cases, stream="attack 0")
        alone = bind(WorstPrompt(prompts=4), setting)(bind(of, setting), one.image, one.target, SEEDS[n : n + 1])
        assert alone.prompts is not None
        assert torch.equal(alone.prompts.nan_to_num(-1), whole.prompts[n : n + 1].nan_to_num(-1))


def test_a_model_without_prompts_is_refused() -> None:
    of, cases = SegModel(blobs.SmallUNet().eval(), blobs.TASK), batch()
    with pytest.raises(InputError, match="expected a promptable model for worst_prompt, got another"):
        WorstPrompt()(of, cases.image, cases.target, SEEDS)


@pytest.mark.parametrize("text", ["worst_prompt(prompts=0)", "worst_prompt(jitter=-1)"])
def test_an_option_out_of_range_is_refused(text: str) -> None:
    with pytest.raises(InputError, match=r"expected (prompts|jitter) >= "):
        build(text, "attack")
