"""A plan: counted passes times one measured pass, of the shard that is asked for; and how shards divide the work."""

import json
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers.bright import write_bright
from helpers.command import medattack

from medseg_attack import registry
from medseg_attack.data.prepared.reading import open_prepared
from medseg_attack.errors import InputError
from medseg_attack.evaluation.costs import counting, estimates
from medseg_attack.evaluation.studies import examining
from medseg_attack.models import sliding_window
from medseg_attack.models.segmodel import SegModel
from medseg_attack.runs.chunks import in_shard
from medseg_attack.types import Batch, Case, Image, Setting, Storage, Task, Window

TASK = Task("toy", ("a", "b"))
ATTACKS = ["clean", "fgsm", "pgd(steps=3)", "pgd(steps=2, restarts=2)", "apgd(steps=5)", "bias_field(steps=3)"]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with three scans of 15 slices together: one chunk."""
    home = tmp_path_factory.mktemp("plan")
    write_bright(home / "scans")
    medattack("prepare", home / "scans", "--format", "decathlon", "--home", home, "--test", "1")
    return home


def words(home: Path, attacks: list[str], *more: Any) -> list[Any]:
    network = f"own('{home}/scans/nets.py:Net')"
    named = [word for attack in attacks for word in ("--attack", attack)]
    return ["attack", "--home", home, "--model", network, *named, "--eps", "0.1", "--no-checks", *more]


def plan(home: Path, attacks: list[str], *more: Any) -> Any:
    return json.loads(medattack(*words(home, attacks, *more), "--plan", "--json").stdout)


def test_the_passes_of_a_plan_are_those_that_the_run_takes(home: Path, tmp_path: Path) -> None:
    planned = {run["attack"]: run for run in plan(home, ATTACKS)["runs"]}
    medattack(*words(home, ATTACKS, "--out", tmp_path / "run"))
    runs = json.loads(medattack("compare", tmp_path / "run", "--costs", "--json").stdout)["runs"]
    assert len(runs) == len(planned)
    for run in runs:
        cost = planned[run["attack"]]
        assert (cost["case_forwards"], cost["case_backwards"]) == (run["forwards"], run["backwards"])
        assert cost["forwards"] == (run["forwards"] + 2) * 15


@pytest.mark.parametrize("attack", ["strongest", "cw", "square", "for_organ(pgd, organ='organ')"])
def test_a_plan_asks_the_model_for_a_few_passes_alone(home: Path, monkeypatch: pytest.MonkeyPatch, attack: str) -> None:
    real, passes = SegModel.forward, []
    monkeypatch.setattr(SegModel, "forward", lambda self, image: (passes.append(1), real(self, image))[1])
    costs = plan(home, [attack], "--no-control")
    assert costs["runs"][0]["case_forwards"] >= 1
    assert len(passes) <= 4  # two forward, two with a gradient


@pytest.mark.parametrize("attack", ["clean", "fgsm", "pgd(steps=6)", "square(queries=20)", "bias_field(steps=3)"])
def test_the_checks_before_the_runs_are_in_the_plan(
    home: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, attack: str
) -> None:
    monkeypatch.setattr(estimates, "_pass_seconds", lambda *_: (1.0, 1.0))
    command = [word for word in words(home, [attack], "--no-control") if word != "--no-checks"]
    planned = json.loads(medattack(*command, "--plan", "--json").stdout)
    passes, taken = count(), list[int]()
    real_findings, real_forward = examining.findings_before, SegModel.forward

    def findings_before(model: SegModel, batch: Batch, cells: Any, donors: Any, *, black_box: bool) -> Any:
        start = next(passes)
        findings = real_findings(model, batch, cells, donors, black_box=black_box)
        taken.append(len(batch.cases) * (next(passes) - start - 1))
        return findings

    def forward(self: SegModel, image: Image) -> Any:
        next(passes)
        log_odds = real_forward(self, image)
        if log_odds.requires_grad:
            log_odds.register_hook(lambda grad: (next(passes), None)[1])
        return log_odds

    monkeypatch.setattr(examining, "findings_before", findings_before)
    monkeypatch.setattr(SegModel, "forward", forward)
    medattack(*command, "--out", tmp_path / "run")
    assert taken[0] <= planned["check_seconds"] <= 1.5 * taken[0]  # a model that no attack moves is tried some more
    assert planned["seconds"] == planned["check_seconds"] + sum(run["seconds"] for run in planned["runs"])


HUGE = {
    "pgd(steps=1000000)": (1000002, 1000000),
    "pgd(steps=1000, restarts=1000)": (1002000, 1000000),
    "best_of((pgd(steps=1000003), fgsm))": (1000009, 1000004),
    "strongest(gradients=10000000)": (10000003, 10000000),
    "square(queries=1000000)": (1000000, 0),
    "for_organ(apgd(steps=1000000), organ='organ')": (1000002, 1000000),
    "contrast(bisections=1000000)": (1000002, 0),
}


SLOWEST = "pgd(steps=1000, restarts=1000)"


@pytest.mark.parametrize(
    "attack", [name if name != SLOWEST else pytest.param(name, marks=pytest.mark.slow) for name in HUGE]
)
def test_a_plan_of_a_million_steps_counts_a_few_thousand(
    home: Path, monkeypatch: pytest.MonkeyPatch, attack: str
) -> None:
    real, counted = counting.Unmoved.__call__, count()

    def asked(self: Any, image: Any) -> Any:
        assert next(counted) < 25_000
        return real(self, image)

    monkeypatch.setattr(counting.Unmoved, "__call__", asked)
    planned = plan(home, [attack], "--no-control")["runs"][0]
    got = planned["case_forwards"], planned["case_backwards"]
    assert got == pytest.approx(HUGE[attack], abs=5)
    assert planned["backwards"] == 15 * got[1]


@pytest.mark.parametrize(
    "attack", ["pgd(steps=50, restarts=3)", "apgd(steps=70)", "rog(steps=45)", "spsa(queries=200)"]
)
def test_passes_that_follow_in_proportion_are_those_counted_in_full(
    home: Path, monkeypatch: pytest.MonkeyPatch, attack: str
) -> None:
    in_full = plan(home, [attack], "--no-control")["runs"][0]
    monkeypatch.setattr(counting, "MOST", 40)
    monkeypatch.setattr(counting, "MOST_PASSES", 1000)
    followed = plan(home, [attack], "--no-control")["runs"][0]
    for name in ("case_forwards", "case_backwards", "forwards", "backwards"):
        assert followed[name] == pytest.approx(in_full[name], rel=0.02)


@pytest.mark.parametrize(
    "attack", ["adv_sbf(order={}, steps=3)", "best_of((adv_sbf(order={}, steps=3), bias_field(steps=3)))"]
)
def test_a_number_that_no_pass_depends_on_takes_no_time(home: Path, attack: str) -> None:
    small, large = (plan(home, [attack.format(n)], "--no-control")["runs"][0] for n in (2, 10**6))  # 10**12 weights
    for name in ("case_forwards", "case_backwards"):
        assert large[name] == small[name] > 0


@pytest.mark.parametrize(("long", "n_passes"), [(1e9, 4), (0.0, 2)])
def test_a_long_pass_is_measured_once_and_each_run_of_a_plan_advances_it(
    home: Path, monkeypatch: pytest.MonkeyPatch, long: float, n_passes: int
) -> None:
    real, passes = SegModel.forward, []
    monkeypatch.setattr(SegModel, "forward", lambda self, image: (passes.append(1), real(self, image))[1])
    monkeypatch.setattr(estimates, "LONG", long)
    shown: list[int] = []
    attack_module = sys.modules["medseg_attack.cli.attack"]  # the package names the command so
    real_progress = attack_module.progress_bar

    @contextmanager
    def progress(title: str, total: int, **options: Any) -> Iterator[Any]:
        shown.append(total)
        with real_progress(title, total, **options):
            yield lambda n=1: shown.append(n)

    monkeypatch.setattr(attack_module, "progress_bar", progress)
    plan(home, ["fgsm", "pgd(steps=3)"], "--no-control")
    assert len(passes) == n_passes
    assert shown == [2, 1, 1]


def test_of_a_pass_through_windows_one_is_computed_and_its_time_counts_for_each(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, outputs, ticks = sliding_window._output, [], count()
    monkeypatch.setattr(sliding_window, "_output", lambda *words: (outputs.append(1), real(*words))[1])
    monkeypatch.setattr(sliding_window, "time", SimpleNamespace(perf_counter=lambda: float(next(ticks))))
    monkeypatch.setattr(estimates, "time", SimpleNamespace(perf_counter=lambda: 0.0))
    model = f"own('{home}/scans/nets.py:Net', window=(16, 16), overlap=0.5)"
    attack = ["attack", "--home", home, "--model", model, "--attack", "fgsm", "--no-checks", "--no-control", "--plan"]
    run = json.loads(medattack(*attack, "--json").stdout)["runs"][0]
    assert len(outputs) == 6  # two passes forward, two more with their gradients: of 16 windows each
    assert run["seconds"] == pytest.approx((run["forwards"] + run["backwards"]) * 15 / 15)  # 15 windows, 15 cases


def test_seconds_are_passes_times_those_of_one_case_and_disk_is_rows_and_images(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a clock that ticks once whenever it is read, so that one pass of the 15 slices takes a second."""
    ticks = count()
    monkeypatch.setattr(estimates, "time", SimpleNamespace(perf_counter=lambda: float(next(ticks))))
    whole = plan(home, ATTACKS, "--no-control")
    runs = whole["runs"]
    assert [run["cases"] for run in runs] == [15] * len(ATTACKS)
    assert whole["cases"] == 15
    for run in runs:
        passes = run["forwards"] + run["backwards"]
        assert run["forwards"] == 15 * (run["case_forwards"] + 2)
        assert run["backwards"] == 15 * run["case_backwards"]
        assert run["seconds"] == pytest.approx(passes / 15)
    assert whole["seconds"] == pytest.approx(sum(run["seconds"] for run in runs))
    assert whole["memory_mb"] == max(run["peak_mb"] for run in runs)
    n_rows = 15 * len(ATTACKS)  # of 100 bytes each, as the data have one organ
    assert whole["disk_mb"] == pytest.approx(100 * n_rows / 1e6)
    kept = plan(home, ATTACKS, "--no-control", "--save-adversarial", "all")
    assert kept["disk_mb"] == pytest.approx((100 + 8 * 40 * 40) * n_rows / 1e6)


def test_the_middle_chunk_is_measured_until_a_gpu_is_done_and_twice_where_a_pass_is_short(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a clock that ticks when it is read, and when a GPU is waited for."""
    ticks, asked = count(), list[list[str]]()
    monkeypatch.setattr(estimates, "time", SimpleNamespace(perf_counter=lambda: float(next(ticks))))
    monkeypatch.setattr(estimates, "wait_for", lambda device: next(ticks))
    monkeypatch.setattr(estimates, "chunks", lambda refs: [[ref] for ref in refs[:5]])
    real = estimates._pass_seconds

    def measured(model: SegModel, batch: Batch, rehearsal: Any) -> tuple[float, float]:
        start = next(ticks)
        seconds = real(model, batch, rehearsal)
        asked.append([*(case.id for case in batch.cases), str(next(ticks) - start - 1)])
        return seconds

    monkeypatch.setattr(estimates, "_pass_seconds", measured)
    ids = sorted(ref.id for ref in open_prepared(next((home / "data").iterdir())).refs("test"))
    for long, n_ticks in ((2.0, 6), (2.5, 12)):  # a pass takes two ticks: to be waited for, and to be over
        monkeypatch.setattr(estimates, "LONG", long)
        (run,) = plan(home, ["fgsm"], "--no-control")["runs"]
        assert asked.pop() == [ids[2], str(n_ticks)]
        assert run["seconds"] == pytest.approx(2 * (run["forwards"] + run["backwards"]))


def test_what_the_first_pass_of_each_kind_pays_counts_for_no_window(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a clock that a network moves by what it takes: 1 forward and 2 back, and 1000 more the first time of each."""
    clock, slow = [0.0], {"forward", "backward"}
    monkeypatch.setattr(sliding_window, "time", SimpleNamespace(perf_counter=lambda: clock[0]))
    monkeypatch.setattr(estimates, "time", SimpleNamespace(perf_counter=lambda: clock[0]))
    monkeypatch.setattr(estimates, "LONG", 1e9)
    real = sliding_window._output

    def take(kind: str, seconds: float) -> None:
        clock[0] += seconds + (1000.0 if kind in slow else 0.0)
        slow.discard(kind)

    def output(net: Any, window: Any, flip: Any) -> Any:
        logits = real(net, window, flip)
        take("backward" if logits.requires_grad else "forward", 2.0 if logits.requires_grad else 1.0)
        return logits

    monkeypatch.setattr(sliding_window, "_output", output)
    model = f"own('{home}/scans/nets.py:Net', window=(16, 16), overlap=0.5)"
    attack = ["attack", "--home", home, "--model", model, "--attack", "fgsm", "--no-checks", "--no-control", "--plan"]
    run = json.loads(medattack(*attack, "--json").stdout)["runs"][0]
    assert run["seconds"] == pytest.approx((run["forwards"] + 2 * run["backwards"]) * 16 / 15)  # 16 windows, 15 cases


@pytest.mark.parametrize("others", [1, 2])
def test_the_time_of_a_plan_has_the_passes_on_surrogates(
    home: Path, monkeypatch: pytest.MonkeyPatch, others: int
) -> None:
    """On a clock that ticks once whenever it is read, so that one pass of the 15 slices takes a second."""
    ticks = count()
    monkeypatch.setattr(estimates, "time", SimpleNamespace(perf_counter=lambda: float(next(ticks))))
    network = f"own('{home}/scans/nets.py:Net')"
    surrogate = network if others == 1 else f"({network}, {network})"
    (run,) = plan(home, [f"transfer(surrogate={surrogate}, attack=pgd(steps=9))"], "--no-control")["runs"]
    (direct,) = plan(home, ["pgd(steps=9)"], "--no-control")["runs"]
    assert (run["case_forwards"], run["case_backwards"]) == (1, 0)
    on_surrogates = direct["case_forwards"] + direct["case_backwards"]
    assert run["seconds"] == pytest.approx(run["forwards"] / 15 + on_surrogates)


def test_two_estimates_are_added() -> None:
    def of(cases: int, seconds: float, disk: float, memory: float) -> estimates.Estimate:
        return estimates.Estimate(cases, (), seconds, seconds / 2, disk, memory)

    assert estimates.added([of(3, 1.0, 8.0, 50.0), of(5, 2.0, 4.0, 40.0)]) == of(5, 3.0, 12.0, 50.0)


def test_the_middle_of_a_case_is_counted_on_and_one_that_is_small_is_counted_whole() -> None:
    image = torch.arange(50.0 * 7).view(1, 50, 7)
    storage = Storage(image.short(), 1.0, 0.0)
    case = Case("c", "v", "p", image, image > 0, (1.0, 1.0), Window(0, 1), storage=storage)
    part = counting.part_of(case)
    for tensor in (part.image, part.target, part.storage.stored):  # type: ignore[union-attr]
        assert tensor.shape == (1, 32, 7)
    assert torch.equal(part.image, image[:, 9:41])
    assert torch.equal(part.target, image[:, 9:41] > 0)
    assert torch.equal(part.storage.stored, image[:, 9:41].short())  # type: ignore[union-attr]


def test_attacks_are_counted_against_a_model_that_answers_the_truth_and_leads_nowhere() -> None:
    target = torch.tensor([[[[True, False]], [[False, False]]]])
    image = torch.tensor([[[[0.2, 0.6]], [[0.4, 0.2]]]], requires_grad=True)  # of two channels
    model = counting.Unmoved(TASK, target)
    assert torch.equal(model.decide(model(image)), target)
    expected = torch.tensor([[[[4.0, -4.0]], [[-4.0, -4.0]]]]) + 1e-3 * torch.tensor([0.3, 0.4])
    torch.testing.assert_close(model(image), expected)
    (slope,) = torch.autograd.grad(model(image).sum(), image)
    torch.testing.assert_close(slope, torch.full_like(slope, 1e-3))  # two classes, half of each channel's
    random = counting.Unmoved(TASK, target, is_random=True, numbers=count(998))
    torch.testing.assert_close([random(image) for _ in range(3)], [expected + n for n in (0.0998, 0.0999, 0.0)])
    case = Case("c", "v", "p", image[0].detach(), ~target[0], (1.0, 1.0), Window(0, 1))
    assert torch.equal(model.bind(Setting(TASK, (case,))).target, ~target)
    assert model.bind(Setting(TASK)) is model


@pytest.mark.parametrize("refused", [32, 50])
def test_an_attack_that_takes_no_part_of_a_case_is_counted_on_all_of_it(
    monkeypatch: pytest.MonkeyPatch, refused: int
) -> None:
    sides: list[int] = []

    def attacked(model: Any, batches: Any, attacks: Any, **options: Any) -> Any:
        sides.append(batches[0].image.shape[-1])
        if sides[-1] <= refused:
            raise InputError("expected a whole scan")
        return [SimpleNamespace(rows=[SimpleNamespace(forwards=3, backwards=2)])]

    monkeypatch.setattr(counting, "attack_chunk", attacked)
    case = Case("c", "v", "p", torch.zeros(1, 50, 50), torch.zeros(2, 50, 50).bool(), (1.0, 1.0), Window(0, 1))
    opened: Any = SimpleNamespace(device="cpu", data=SimpleNamespace(task=TASK), donors=lambda ref: None)
    cell: Any = SimpleNamespace(attack=registry.build("fgsm", "attack"), budget=None)
    model_ref: Any = SimpleNamespace(is_random=False)
    if refused == 50:
        with pytest.raises(InputError, match="expected a whole scan"):
            counting.count_passes_on_case(opened, model_ref, cell, case, 0, cell.attack)
    else:
        assert counting.count_passes_on_case(opened, model_ref, cell, case, 0, cell.attack) == counting.Passes(
            3, 2, 0, 0
        )
    assert sides == [32, 50]


def test_a_plan_of_a_shard_is_a_part_of_the_plan(home: Path) -> None:
    whole = plan(home, ATTACKS)["runs"]
    parts = [plan(home, ATTACKS, "--shard", f"{k}/4")["runs"] for k in range(4)]
    assert [sum(part[n]["cases"] for part in parts) for n in range(len(whole))] == [15] * len(whole)
    assert all(any(run["cases"] for run in part) for part in parts)  # no shard is idle


def test_shards_of_one_chunk_divide_its_runs(home: Path, tmp_path: Path) -> None:
    for k in (1, 0):
        medattack(*words(home, ["fgsm"], "--out", tmp_path / "run", "--shard", f"{k}/2"))
        assert len(list((tmp_path / "run").rglob("*.parquet"))) == 2 - k
    assert len(list((tmp_path / "run").rglob("run.json"))) == 2


@pytest.mark.parametrize(("n_chunks", "n_runs", "n_shards"), [(1, 7, 3), (2, 3, 4), (5, 2, 4), (8, 1, 8), (1, 1, 2)])
def test_every_pair_belongs_to_one_shard(n_chunks: int, n_runs: int, n_shards: int) -> None:
    sizes = [0] * n_shards
    for run in range(n_runs):
        for chunk in range(n_chunks):
            (k,) = [k for k in range(n_shards) if in_shard(chunk, run, n_chunks, (k, n_shards))]
            sizes[k] += 1
    assert sum(sizes) == n_chunks * n_runs
    assert min(sizes) > 0 or n_chunks * n_runs < n_shards


def test_a_plan_of_a_budget_with_a_unit_is_printed_without_a_number_that_is_none(home: Path) -> None:
    network = f"own('{home}/scans/nets.py:Net')"
    printed = medattack("attack", "--home", home, "--model", network, "--eps", "3raw", "--plan").stdout
    assert len(re.findall(r"\b3raw\b", printed)) == 2  # once in each row, not in the name of its attack, too
    assert "nan" not in printed
    assert "\\n" not in printed
    assert printed.splitlines()[-1].startswith("2 runs of 15 cases: about ")


@pytest.mark.parametrize(
    ("eps", "value", "unit"),
    [("2%window", 2.0, "%window"), ("3raw", 3.0, "raw"), ("0.5sigma", 0.5, "sigma"), ("4/255", 4 / 255, "")],
)
def test_a_budget_of_a_plan_is_a_number_and_its_unit(home: Path, eps: str, value: float, unit: str) -> None:
    network = f"own('{home}/scans/nets.py:Net')"
    printed = medattack("attack", "--home", home, "--model", network, "--eps", eps, "--plan", "--json").stdout
    runs = json.loads(printed)["runs"]
    assert {(run["eps"], run["eps_unit"]) for run in runs} == {(value, unit)}
    assert [run["attack"] for run in runs] == ["noise", "fgsm"]


def test_names_in_a_plan_break_between_words_alone(home: Path) -> None:
    attack = "best_of((pgd(steps=4, objective=soft_dice), apgd(steps=10, objective=margin), square(queries=50)))"
    printed = medattack(*words(home, [attack], "--plan")).stdout.partition("Passes:")[0]
    whole = f"own {home} scans nets.py Net net attacks noise best_of {attack}"
    heads = "model attack loss eps cases forward passes backward passes time"
    assert set(re.findall("[a-z]+", printed)) <= set(re.findall("[a-z]+", f"{whole} {heads} h min s ms"))


@pytest.mark.parametrize("around", ["voted({}, draws={})", "ensemble((voted({}, draws={}),))"])
def test_a_plan_of_a_model_that_is_asked_very_often_asks_it_a_few_times(
    home: Path, monkeypatch: pytest.MonkeyPatch, around: str
) -> None:
    network = f"own('{home}/scans/nets.py:Net')"
    real, passes = SegModel.forward, []
    monkeypatch.setattr(SegModel, "forward", lambda self, image: (passes.append(1), real(self, image))[1])
    monkeypatch.setattr(
        estimates, "_pass_seconds", lambda model, batch, rehearsal: (float(model(batch.image).ndim), 0.0)
    )
    seconds = []
    for draws in (16, 10**7):
        passes.clear()
        named = ["attack", "--home", home, "--model", around.format(network, draws), "--attack", "fgsm", "--no-control"]
        seconds.append(json.loads(medattack(*named, "--no-checks", "--plan", "--json").stdout)["seconds"])
        assert 16 < len(passes) < 20
    assert seconds[1] / seconds[0] == pytest.approx(10**7 / 16)
