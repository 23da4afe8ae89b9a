"""Parts of a trial: which attacks on which models, what nobody knows, and twins, read from the studies that result."""

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from helpers.bright import write_bright
from helpers.command import medattack

from medseg_attack import registry
from medseg_attack.errors import InputError
from medseg_attack.evaluation import trials
from medseg_attack.evaluation.studies.opened import OpenedStudy, RunOptions
from medseg_attack.evaluation.trials import Trial, group_by_twin, open_trials
from medseg_attack.models.trust import use_trust
from medseg_attack.runs.study import Study, read_study

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("trials")
    write_bright(home / "scans", patients=4, slices=3)
    medattack("prepare", home / "scans", "--format", "decathlon", "--home", home, "--test", "0.5", "--folds", "2")
    use_trust(home, True)
    return home


def net(home: Path, name: str = "Net") -> str:
    return f"own(net='{home}/scans/nets.py:{name}')"


def voted(home: Path, name: str = "Net") -> str:
    return f"voted(base={net(home, name)}, draws=2)"


def study(**settings: Any) -> Study:
    return read_study(
        None, {"models": ["all"], "attacks": ["pgd(steps=50)", "fgsm", "uap"], "eps": ["0.1"], "steps": None} | settings
    )


@pytest.fixture
def trial(home: Path, tmp_path: Path) -> Trial:
    by_twin = group_by_twin([voted(home)], None, home)
    (trial,) = open_trials(by_twin, study(), home, CPU, RunOptions(), tmp_path / "out")
    return trial


def test_models_are_grouped_by_the_model_within_them_or_the_one_that_is_named(home: Path) -> None:
    plain, other = net(home), net(home, "Sigmoid")
    assert group_by_twin([voted(home), voted(home), voted(home, "Sigmoid")], None, home) == {
        plain: [voted(home)],
        other: [voted(home, "Sigmoid")],
    }
    assert group_by_twin([voted(home), other], plain, home) == {plain: [voted(home), other]}
    for models, twin, sentence in (([plain], None, "got none"), ([plain], plain, "expected an undefended twin of")):
        with pytest.raises(InputError, match=sentence):
            group_by_twin(models, twin, home)


def test_each_part_has_its_attacks_models_and_folder(trial: Trial, home: Path, tmp_path: Path) -> None:
    plain, defended = net(home), voted(home)
    assert trial.twin == trial.parts["native"].models[0].label
    assert trial.defended == (trial.parts["native"].models[1].label,)
    assert trial.folder == tmp_path / "out"
    assert list(trial.parts) == ["native", "adaptive", "harder", "transfer", "queries"]
    assert {name: part.out for name, part in trial.parts.items()} == {
        name: tmp_path / "out" / name for name in trial.parts
    }
    assert trial.run_folders == {name: part.run_folders for name, part in trial.parts.items()}
    assert trial.total == sum(part.total for part in trial.parts.values()) > 0
    settings = {name: part.study for name, part in trial.parts.items()}
    models = {name: each.models for name, each in settings.items()}
    both = [plain, defended]
    assert models == {"native": both, "adaptive": [defended], "harder": both, "transfer": [defended], "queries": both}
    assert {name: (each.native, each.control, each.steps) for name, each in settings.items()} == {
        "native": (True, True, None),
        **dict.fromkeys(("adaptive", "harder", "transfer", "queries"), (False, False, None)),
    }
    assert settings["native"].attacks == ["pgd(steps=50)", "fgsm", "uap"]
    assert settings["adaptive"].attacks == ["pgd(steps=50)", "fgsm", "uap"]
    harder = [registry.build(text, "attack") for text in settings["harder"].attacks]
    assert [registry.spec(each.objective) for each in harder] == ["margin", "soft_dice"] * (len(harder) // 2)
    assert {(each.steps, each.restarts) for each in harder} == {(100, 2)}
    balls = list(dict.fromkeys(registry.spec(registry.build(a, "attack").ball) for a in settings["native"].attacks))
    assert [registry.spec(each.ball) for each in harder] == [ball for ball in balls for _ in range(2)]
    assert settings["transfer"].attacks == [
        f"transfer(surrogate={plain}, attack={text})" for text in ("pgd(steps=50)", "fgsm")
    ]
    first = registry.build("pgd(steps=50)", "attack").ball
    assert settings["queries"].attacks == [f"square(ball={registry.spec(first)})"]


@pytest.mark.parametrize(
    ("attacks", "steps", "n_steps"),
    [
        (["pgd(steps=30)"], None, 80),
        (["pgd(steps=41)"], None, 82),
        (["pgd(steps=30)"], 7, 7),
        (["deformation"], None, 0),
    ],
)
def test_twice_the_steps_of_the_suite_or_of_the_least_or_as_many_as_are_asked_for(
    attacks: list[str], steps: int | None, n_steps: int
) -> None:
    suite = [registry.build(text, "attack") for text in attacks]
    harder = [registry.build(text, "attack") for text in trials._harder(suite, study(attacks=attacks, steps=steps))]
    assert [each.steps for each in harder] == ([n_steps] * 2 if n_steps else [])


def test_a_search_is_in_a_plain_ball_with_as_many_queries_as_are_asked_for() -> None:
    linf, l2, other = (registry.build(text, "attack").ball for text in ("fgsm", "fgsm(l2(1))", "deformation"))
    assert trials._query(linf, None) == f"square(ball={registry.spec(linf)})"
    assert trials._query(l2, 5) == f"square(ball={registry.spec(l2)}, queries=5)"
    assert trials._query(other, 5) == "square(queries=5)"
    assert trials._query(other, None) == "square"


def test_a_suite_that_only_learns_is_transferred_as_pgd_and_what_declares_nothing_has_no_adaptive_part(
    home: Path, tmp_path: Path
) -> None:
    by_twin = group_by_twin([net(home, "Sigmoid")], net(home), home)
    (trial,) = open_trials(by_twin, study(attacks=["uap"]), home, CPU, RunOptions(), tmp_path / "out", queries=3)
    assert list(trial.parts) == ["native", "harder", "transfer", "queries"]
    assert trial.parts["transfer"].study.attacks == [f"transfer(surrogate={net(home)}, attack=pgd(steps=40))"]
    assert trial.parts["queries"].study.attacks[0].endswith("queries=3)")


def test_trials_of_several_twins_have_folders_of_their_own(home: Path, tmp_path: Path) -> None:
    by_twin = group_by_twin([voted(home), voted(home, "Sigmoid")], None, home)
    both = open_trials(by_twin, study(attacks=["fgsm"]), home, CPU, RunOptions(), tmp_path / "out")
    assert [each.folder for each in both] == [tmp_path / "out" / "twin-0", tmp_path / "out" / "twin-1"]
    named, again, other = (
        open_trials(by_twin, study(attacks=[attack]), home, CPU, RunOptions())[0].folder.parent
        for attack in ("fgsm", "fgsm", "pgd(steps=2)")
    )
    assert named == again != other
    assert named.parent == home / "runs"
    assert named.name.startswith("defend-scans-")
    assert len(named.name) == len("defend-scans-") + 8


def test_a_trial_runs_all_of_its_parts_and_says_what_it_is_of(trial: Trial, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []

    def run(part: OpenedStudy) -> Iterator[int]:
        order.append(part.out.name)
        yield from (2, 3)

    monkeypatch.setattr(trials, "run", run)
    trial.folder.mkdir()
    assert list(trial.run()) == [2, 3] * 5
    assert order == list(trial.parts)
    assert {folder.name for folder in trial.folder.iterdir()} == set(order)
    monkeypatch.setattr(Trial, "non_adaptive", {"a": "MA002"})
    trial.store()
    (file,) = trial.parts["native"].out.glob("*.json")
    facts = json.loads(file.read_text())
    assert (facts["twin"], facts["non_adaptive"]) == (trial.twin, {"a": "MA002"})
    assert set(facts["passes"]) == {trial.twin, *trial.defended}
    assert facts["passes"] == {trial.twin: 1, trial.defended[0]: 2}


@pytest.mark.parametrize(
    ("facts", "part", "codes", "text"),
    [
        ({}, "harder", [], None),
        ({"black_box": True}, "harder", [], "no gradient"),
        ({}, "harder", ["MA003", "MA002", "MA005"], "MA002, MA003"),
        ({"is_random": True}, "harder", ["MA003"], None),
        ({"is_random": True}, "adaptive", ["MA003", "MA002"], "MA002"),
        ({}, "harder", ["MA001", "MA020", "MA021"], "MA001, MA020, MA021"),
        ({"is_random": True}, "harder", ["MA001"], None),
        ({"base": "unet"}, "harder", ["MA001"], None),
        ({"base": "unet"}, "native", ["MA003"], "MA003"),
    ],
)
def test_a_model_that_no_attack_knows_is_named_with_the_flags_that_say_so(
    facts: dict[str, Any],
    part: str,
    codes: list[str],
    text: str | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    known = {"black_box": False, "is_random": False, "blocks_gradient": False, "known_by": (), "base": ""} | facts
    model, twin = SimpleNamespace(label="voted", **known), SimpleNamespace(label="unet", **known)
    flags = {tmp_path / part / "voted": codes, tmp_path / part / "unet": codes}
    monkeypatch.setattr(trials.stored, "read_before", lambda folder: [Mock(code=code) for code in flags[folder]])

    def of(name: str, models: tuple[Any, ...]) -> Any:
        folder = tmp_path / name
        return Mock(OpenedStudy, out=folder, models=models, folder=lambda each: folder / each.label)

    parts = {"native": of("native", (twin, model))}
    if part == "adaptive":
        parts["harder"] = of("harder", ())
    parts[part] = of(part, (twin, model))
    trial = Trial("unet", ("voted",), parts)
    assert trial.non_adaptive == ({} if text is None else {"voted": text})
