"""Extraction: linear victims are recovered exactly, answers hold what they say, queries are counted."""

import itertools
import json
from pathlib import Path

import pytest
import torch
from helpers.command import medattack
from helpers.killed import command_killed_at_file, killed
from torch import Tensor, nn

from medseg_attack.data.prepared.reading import open_prepared
from medseg_attack.errors import InputError
from medseg_attack.evaluation.extracting import worth
from medseg_attack.models.checkpoints import build_model
from medseg_attack.models.segmodel import SegModel
from medseg_attack.training.extraction import loop
from medseg_attack.training.extraction.answers import answered, hard, poisoned_probabilities, turned_probabilities
from medseg_attack.training.extraction.options import Answers, Extraction
from medseg_attack.training.extraction.selection import k_centres, refs_of
from medseg_attack.training.extraction.student import PIECES, soft_disagreement
from medseg_attack.types import Task

ORGAN = Task("square", ("organ",))
W, B = 7.25, -3.5
SMALL = "unet_small(channels=(4, 8))"


class Linear(nn.Module):
    """Every pixel by itself: l = w x + b."""

    def __init__(self) -> None:
        super().__init__()
        self.w, self.b = nn.Parameter(torch.tensor(W)), nn.Parameter(torch.tensor(B))

    def forward(self, x: Tensor) -> Tensor:
        return self.w * x + self.b


@pytest.fixture
def victim() -> SegModel:
    return SegModel(Linear(), ORGAN).double().eval()


def pixel(x: float) -> Tensor:
    return torch.full((1, 1, 1, 1), x, dtype=torch.float64)


def test_two_intensities_determine_a_linear_victim_exactly(victim: SegModel) -> None:
    low, high = (answered(Extraction(answers="probabilities"), victim, pixel(x)).item() for x in (0.25, 0.75))
    slope = (high - low) / 0.5
    assert slope == pytest.approx(W, abs=1e-12)
    assert low - slope * 0.25 == pytest.approx(B, abs=1e-12)


@pytest.mark.parametrize("queries", [4, 10, 20])
def test_masks_find_the_threshold_to_half_as_much_with_each_query(victim: SegModel, queries: int) -> None:
    low, high = 0.0, 1.0
    for _ in range(queries):
        middle = (low + high) / 2
        inside = answered(Extraction(answers="masks"), victim, pixel(middle)).item() == 1
        low, high = (low, middle) if inside else (middle, high)
    assert high - low == 2**-queries
    assert low <= -B / W <= high


def test_answers_hold_no_more_than_they_say(victim: SegModel) -> None:
    image = torch.rand(3, 1, 6, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    with torch.no_grad():
        log_odds = victim(image)
    masks = answered(Extraction(answers="masks"), victim, image)
    assert masks.unique().tolist() == [0, 1]
    assert torch.equal(masks, (log_odds >= 0).double())
    assert torch.equal(answered(Extraction(answers="volumes"), victim, image), masks.flatten(2).sum(2))
    torch.testing.assert_close(answered(Extraction(answers="probabilities"), victim, image), log_odds)
    rounded = answered(Extraction(answers="probabilities", digits=1), victim, image).sigmoid()
    torch.testing.assert_close(rounded, (log_odds.sigmoid() * 10).round() / 10, atol=2e-7, rtol=0)


def test_certain_answers_stay_finite(victim: SegModel) -> None:
    with torch.no_grad():
        victim.net.w.fill_(1e6)  # type: ignore[union-attr, operator]
    assert torch.isfinite(answered(Extraction(answers="probabilities"), victim, pixel(1.0))).all()
    assert torch.isfinite(answered(Extraction(answers="probabilities", digits=2), victim, pixel(1.0))).all()


@pytest.mark.parametrize("exclusive", [False, True])
@pytest.mark.parametrize("strength", [0.3, 0.7, 0.99])
def test_poisoned_probabilities_decide_as_before_and_a_thief_who_hardens_them_has_the_masks(
    exclusive: bool, strength: float
) -> None:
    log_odds = 6 * torch.randn(2, 4, 30, 30, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    p = log_odds.softmax(1) if exclusive else log_odds.sigmoid()
    q = poisoned_probabilities(p, strength, exclusive)
    assert q.min() >= 0
    assert q.max() <= 1
    assert (q - p).abs().max() > 0.1
    if exclusive:
        torch.testing.assert_close(q.sum(1), torch.ones_like(q[:, 0]))
    masks = hard(p.logit(), exclusive)
    assert torch.equal(hard(q.logit(), exclusive), masks)
    assert torch.equal(masks.sum(1) == 1, torch.ones_like(masks[:, 0]) > 0) or not exclusive


def test_what_is_nearly_certain_looks_less_so_than_what_is_likely() -> None:
    """The reverse sigmoid by hand: p - 0.7 (sigmoid(0.2 logit p) - 0.5), which falls towards certainty."""
    p = torch.tensor([0.95, 0.9999], dtype=torch.float64).view(1, 1, 2)
    likely, certain = poisoned_probabilities(p, 0.7, False).flatten().tolist()
    assert likely == pytest.approx(0.95 - 0.7 * (1 / (1 + (0.05 / 0.95) ** 0.2) - 0.5), abs=1e-12)
    assert certain < likely


def turned(p: list[float], guess: list[float], budget: float) -> list[float]:
    """The answer of one pixel whose classes exclude each other."""
    one = [torch.tensor(q, dtype=torch.float64).view(1, -1, 1, 1) for q in (p, guess)]
    return turned_probabilities(*one, budget, True).flatten().tolist()


def test_a_turned_answer_of_two_classes_lies_beyond_the_thief_s_own_where_the_ball_allows_it() -> None:
    """On a line a direction is a sign: beyond the guess the gradient is reversed, before it nothing is turned."""
    assert turned([0.8, 0.2], [0.7, 0.3], 0.4) == pytest.approx([0.6, 0.4])
    assert turned([0.8, 0.2], [0.7, 0.3], 0.19) == [0.8, 0.2]
    assert turned([0.8, 0.2], [0.5, 0.5], 2.0) == [0.8, 0.2]  # beyond it the decision changes
    assert turned([0.8, 0.2], [0.9, 0.1], 0.3) == pytest.approx([0.95, 0.05])
    assert turned([0.8, 0.2], [0.7, 0.3], 0.0) == [0.8, 0.2]


def test_the_direction_that_is_turned_is_that_of_the_gradient_by_the_last_layer() -> None:
    rng = torch.Generator().manual_seed(0)
    features = torch.rand(5, generator=rng, dtype=torch.float64)
    weights = torch.randn(3, 5, generator=rng, dtype=torch.float64, requires_grad=True)
    guess = (weights @ features).softmax(0)
    p = torch.tensor([0.6, 0.3, 0.1], dtype=torch.float64)
    q = torch.tensor(turned(p.tolist(), guess.tolist(), 0.5), dtype=torch.float64)
    gradients = []
    for answer in (p, q):
        loss = -(answer * (weights @ features).log_softmax(0)).sum()
        gradients.append(torch.autograd.grad(loss, weights)[0].flatten())
    expected = torch.cosine_similarity(p - guess.detach(), q - guess.detach(), dim=0)
    torch.testing.assert_close(torch.cosine_similarity(*gradients, dim=0), expected)
    assert expected < 0.99


@pytest.mark.parametrize("exclusive", [False, True])
@pytest.mark.parametrize("budget", [0.1, 0.5, 2.0])
def test_turned_answers_stay_in_their_ball_and_decide_as_before_and_no_corner_turns_further(
    exclusive: bool, budget: float
) -> None:
    rng = torch.Generator().manual_seed(0)
    log_odds, other = 3 * torch.randn(2, 2, 4, 20, 20, generator=rng, dtype=torch.float64)
    p, guess = (x.softmax(1) if exclusive else x.sigmoid() for x in (log_odds, other))
    q = turned_probabilities(p, guess, budget, exclusive)
    assert torch.equal(hard(q.logit(), exclusive), hard(p.logit(), exclusive))
    assert q.min() >= 0
    assert q.max() <= 1
    if not exclusive:
        assert 2 * (q - p).abs().max() <= budget + 1e-12
        return
    torch.testing.assert_close(q.sum(1), torch.ones_like(q[:, 0]))
    assert (q - p).abs().sum(1).max() <= budget + 1e-12

    def turn(answer: Tensor) -> Tensor:
        return 1 - torch.cosine_similarity(answer - guess, p - guess, dim=1)

    for k in range(4):
        corner = torch.nn.functional.one_hot(torch.tensor(k), 4).view(1, 4, 1, 1).to(p)
        for share in (0.01, 0.1, 0.3):
            mixed = p + share * (corner - p)
            allowed = ((mixed - p).abs().sum(1) <= budget) & (mixed.argmax(1) == p.argmax(1))
            assert (turn(q) >= turn(mixed) - 1e-3)[allowed].all()


def test_a_thief_who_hardens_poisoned_answers_has_the_copy_of_one_who_is_given_masks(
    data: Path, tmp_path: Path
) -> None:
    prepared = open_prepared(data)
    victim = build_model("oracle", prepared.task)
    weights = []
    for name, plan in (
        ("masks", Extraction(queries=4, answers="masks", steps=4)),
        ("hardened", Extraction(queries=4, steps=4, poisoning=0.7, hardened=True)),
        ("turned", Extraction(queries=4, steps=4, mad=0.5, hardened=True)),
    ):
        list(loop.extract(plan, victim, "hash", prepared, tmp_path / name, torch.device("cpu")))
        weights.append(json.loads((tmp_path / name / "card.json").read_text())["weights_sha256"])
    assert weights[0] == weights[1] == weights[2]


def test_soft_answers_disagree_as_much_however_much_background_is_around_them() -> None:
    """One organ's pixel of 1 by the victim and 1/2 by the copy: 1 - (2/2 + 1) / (1/4 + 1 + 1); background adds none."""
    far = 40.0
    for n in (0, 10, 10000):
        answer = torch.cat((torch.tensor([far]), torch.full((n,), -far))).view(1, 1, -1).double()
        log_odds = answer.clone()
        log_odds[..., 0] = 0
        assert soft_disagreement(log_odds, answer).item() == pytest.approx(1 - 2 / 2.25, abs=1e-9)


def test_soft_answers_between_0_and_1_are_where_the_disagreement_is_least() -> None:
    answer = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    log_odds = answer.clone().requires_grad_()
    loss = soft_disagreement(log_odds, answer)
    (gradient,) = torch.autograd.grad(loss, log_odds)
    assert loss.item() == pytest.approx(0, abs=1e-12)
    assert gradient.abs().max() < 1e-12
    harder = soft_disagreement(2 * answer, answer)
    assert harder > 1e-3


def test_centres_cover_all_points_within_twice_the_least_radius() -> None:
    points = torch.rand(9, 2, generator=torch.Generator().manual_seed(3))
    distance = torch.cdist(points, points)
    least = min(float(distance[:, list(centres)].amin(1).max()) for centres in itertools.combinations(range(9), 3))
    chosen = k_centres(points, 3, 0)
    assert float(distance[:, chosen].amin(1).max()) <= 2 * least
    assert sorted(k_centres(torch.zeros(4, 2), 4, 2)) == [0, 1, 2, 3]


@pytest.mark.parametrize("fields", [{"queries": 0}, {"steps": 0}, {"digits": -1}, {"batch_size": 1}, {"lr": 0.0}])
def test_means_that_are_none_are_refused(fields: dict[str, int]) -> None:
    with pytest.raises(InputError):
        Extraction(**fields)  # type: ignore[arg-type]


def test_digits_of_masks_are_refused() -> None:
    with pytest.raises(InputError, match="drop one of them"):
        Extraction(answers="masks", digits=1)


DEFENCES = (("--digits", "1"), ("--poisoning", "0.7"), ("--mad", "0.5"))
TAKEN = (((), "native"), (("--hardened",), "adaptive"))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("extraction")
    options = ["--size", "32,32"]
    medattack("prepare", root / "scans", "--format", "phantom", "--out", root / "data", *options)
    return root / "data"


def extract(data: Path, out: Path, *words: object, code: int = 0) -> object:
    options = ["--data", data, "--out", out, "--home", data.parent / "home", "--victim", "oracle", *words]
    return medattack("extract", *options, code=code)


@pytest.mark.parametrize("answers", ["probabilities", "masks", "volumes"])
def test_every_kind_of_answer_is_learned_from(answers: Answers, data: Path, tmp_path: Path) -> None:
    prepared = open_prepared(data)
    plan = Extraction(queries=8, answers=answers, steps=40, lr=1e-2)
    model = build_model("oracle", prepared.task)
    losses = list(loop.extract(plan, model, "hash", prepared, tmp_path / "copy", torch.device("cpu")))
    assert len(losses) == PIECES
    assert losses[-1] < 0.9 * losses[0]


@pytest.mark.parametrize(
    ("words", "knowledge"),
    [((), ""), (("--hardened",), ""), *[((*rule, *taken), known) for rule in DEFENCES for taken, known in TAKEN]],
)
def test_a_thief_who_does_not_know_a_defence_of_answers_is_non_adaptive(
    words: tuple[str, ...], knowledge: str, data: Path, tmp_path: Path
) -> None:
    few = ("--queries", 2, "--steps", 1, "--batch-size", 2, "--model", SMALL, *words)
    assert json.loads(extract(data, tmp_path / "copy", *few, "--json").stdout)["knowledge"] == knowledge  # type: ignore[attr-defined]
    shown = extract(data, tmp_path / "copy", *few).stdout  # type: ignore[attr-defined]
    assert ("non_adaptive" in shown) == (knowledge == "native")


@pytest.mark.parametrize("answers", ["probabilities", "masks"])
def test_a_copy_of_a_threshold_agrees_with_it(answers: Answers, data: Path, tmp_path: Path) -> None:
    """A few steps suffice to know bright from dark."""
    options = ["--queries", 30, "--steps", 60, "--lr", 1e-2, "--answers", answers, "--json"]
    result = json.loads(extract(data, tmp_path / "copy", *options).stdout)  # type: ignore[attr-defined]
    assert result["fidelity"] > 0.7
    assert result["queries"] == 30
    assert result["label"] == "oracle"
    assert 0 < result["victim"] <= 1
    queries = json.loads((tmp_path / "copy" / "queries.json").read_text())
    assert queries["count"] == len(set(queries["cases"])) == 30
    assert json.loads((tmp_path / "copy" / "card.json").read_text())["extraction"]["answers"] == answers


def test_the_same_weights_have_fidelity_1_and_transfer_all(data: Path) -> None:
    prepared = open_prepared(data)
    model = build_model("oracle", prepared.task)
    measured = worth(model, model, prepared, 0.05, torch.device("cpu"))
    assert measured["fidelity"] == 1
    assert measured["transfer"] == 1
    assert measured["student"] == measured["victim"] > measured["own"] == measured["transferred"]


def test_a_copy_is_a_model_like_any_other_and_is_made_once(data: Path, tmp_path: Path) -> None:
    options = ["--queries", 5, "--steps", 4]
    first = extract(data, tmp_path / "copy", *options).stdout  # type: ignore[attr-defined]
    weights = (tmp_path / "copy" / "weights.safetensors").read_bytes()
    assert extract(data, tmp_path / "copy", *options).stdout == first  # type: ignore[attr-defined]
    assert (tmp_path / "copy" / "weights.safetensors").read_bytes() == weights
    medattack("evaluate", "--data", data, "--model", tmp_path / "copy", "--home", tmp_path / "home", "--limit", 2)
    refused = extract(data, tmp_path / "copy", "--queries", 6, "--steps", 4, code=2)
    assert "queries: there 5, here 6" in " ".join(refused.stderr.split())  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--queries", 100000], "to ask about, got"),
        (["--queries", 0], "expected queries"),
        (["--answers", "masks", "--digits", 2], "drop one of them"),
        (["--answers", "masks", "--poisoning", 0.5], "expected probabilities for --poisoning"),
        (["--poisoning", 1.0], "expected a strength from 0 to below 1, got 1"),
        (["--mad", 2.5], "expected an L1 distance from 0 to 2, got 2.5"),
        (["--answers", "masks", "--mad", 0.5], "expected probabilities for --mad, got --answers masks"),
        (["--mad", 0.5, "--poisoning", 0.5], "got --poisoning and --mad; drop one"),
        (["--eps", "5HU"], "expected a fraction of the window, got 5HU"),
        (["--model", "oracle"], "weights"),
    ],
)
def test_what_cannot_be_stolen_leaves_nothing(words: list[object], sentence: str, data: Path, tmp_path: Path) -> None:
    result = extract(data, tmp_path / "copy", *words, code=2)
    assert result.stderr.startswith("error: ")  # type: ignore[attr-defined]
    assert sentence in " ".join(result.stderr.split())  # type: ignore[attr-defined]
    assert not (tmp_path / "copy" / "card.json").exists()


def test_a_victim_with_other_classes_is_refused(data: Path, tmp_path: Path) -> None:
    """Its checkpoint knows its task; the proxy has another."""
    extract(data, tmp_path / "copy", "--queries", 4, "--steps", 2)
    card = json.loads((tmp_path / "copy" / "card.json").read_text())
    card["task"]["classes"] = ["liver", "spleen"]
    (tmp_path / "copy" / "card.json").write_text(json.dumps(card))
    options = ["--data", data, "--out", tmp_path / "second", "--home", tmp_path / "home", "--queries", 4]
    result = medattack("extract", "--victim", tmp_path / "copy", *options, code=2)
    assert "was trained for" in " ".join(result.stderr.split())
    assert not (tmp_path / "second").exists()


@pytest.mark.parametrize(("file", "n", "asked"), [("answers.safetensors", 2, 5), ("weights.safetensors", 1, 0)])
def test_kill_9_costs_no_query_twice_and_changes_no_weight(
    file: str, n: int, asked: int, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the victim answers, after the first 25 of 30 queries; and at the end of the copy's training."""
    options = ["--queries", 30, "--steps", 10, "--selection", "k_centre", "--model", SMALL]
    words = [
        "extract",
        "--data",
        data,
        "--out",
        tmp_path / "killed",
        "--home",
        tmp_path,
        "--victim",
        "oracle",
        *options,
    ]
    killed(command_killed_at_file, list(map(str, words)), n, file)
    questions = []
    monkeypatch.setattr(loop, "answered", lambda *args: questions.append(1) or answered(*args))
    resumed, whole = (extract(data, tmp_path / out, *options, "--json").stdout for out in ("killed", "whole"))  # type: ignore[attr-defined]
    assert len(questions) == asked + 30
    killed_weights, weights = ((tmp_path / out / "weights.safetensors").read_bytes() for out in ("killed", "whole"))
    assert killed_weights == weights
    assert not (tmp_path / "killed" / "answers.safetensors").exists()
    assert json.loads(resumed) | {"folder": ""} == json.loads(whole) | {"folder": ""}
    random = Extraction(queries=30, steps=10)
    prepared = open_prepared(data)
    student = build_model("unet_small", prepared.task)
    others = {ref.id for ref in refs_of(random, prepared, student)}
    assert others != set(json.loads((tmp_path / "whole" / "queries.json").read_text())["cases"])
