"""A study in this process, on a model that is a threshold: every column of its rows, its headers and its flags."""

import json
import math
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from helpers.bright import write_bright
from helpers.command import medattack
from helpers.runs import edit

from medseg_attack.attacks.controls.worst_prompt import WorstPrompt
from medseg_attack.checks import stored
from medseg_attack.detectors.combined.saved import Saved
from medseg_attack.errors import InputError
from medseg_attack.evaluation.costs.estimates import estimate
from medseg_attack.evaluation.opening import open_run, open_study
from medseg_attack.evaluation.studies import examining, refusals, running
from medseg_attack.evaluation.studies.headers import config_of, header_of
from medseg_attack.evaluation.studies.opened import OpenedStudy, RunOptions
from medseg_attack.evaluation.studies.refusals import refuse_unrunnable
from medseg_attack.evaluation.studies.running import claim_folder, run
from medseg_attack.metrics.surface import hd95_mm
from medseg_attack.metrics.visibility import visibility
from medseg_attack.models.trust import use_trust
from medseg_attack.numerics.noise import noise_of
from medseg_attack.runs.folder import RunFolder
from medseg_attack.runs.study import read_study
from medseg_attack.runtime import FIRST
from medseg_attack.types import Batch, CaseRef

CPU = torch.device("cpu")
SLICES = 3
Opener = Callable[..., OpenedStudy]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with six scans of 3 slices, three of them for testing; the first slice of each is constant."""
    home = tmp_path_factory.mktemp("running")
    write_bright(home / "scans", patients=6, slices=SLICES, flat_slice=True)
    medattack("prepare", home / "scans", "--format", "decathlon", "--home", home, "--test", "0.5", "--folds", "3")
    use_trust(home, True)
    return home


@pytest.fixture
def opened(home: Path, tmp_path: Path) -> Opener:
    def build(*nets: str, options: RunOptions | None = None, **settings: Any) -> OpenedStudy:
        models = [f"own('{home}/scans/nets.py:{net}')" for net in nets or ("Net",)]
        flags = {"attacks": ["fgsm"], "eps": ["15raw"], "control": False} | settings
        return open_study(
            read_study(None, {"models": models, **flags}), home, CPU, options or RunOptions(), tmp_path / "out"
        )

    return build


def rows_of(study: OpenedStudy, n: int = 0) -> pd.DataFrame:
    return RunFolder(study.run_folders[n]).rows()


@pytest.mark.parametrize(("eps", "n_values"), [("15raw", 15), ("0.25", None), ("22%window", None)])
def test_every_column_of_a_row_is_what_one_step_against_a_threshold_gives(
    opened: Opener, eps: str, n_values: int | None
) -> None:
    """One step takes all of the budget: down where there is an organ, up elsewhere, in whole stored values."""
    study = opened(eps=[eps])
    assert list(run(study)) == [9]
    rows = rows_of(study).set_index("case")
    refs = study.refs(study.models[0])
    assert sorted(rows.index) == sorted(ref.id for ref in refs)
    places = Counter[int]()
    for ref in refs:
        case, row = study.data.read(ref), rows.loc[ref.id]
        assert case.storage is not None
        assert case.stack is not None
        width = case.window.high - case.window.low  # type: ignore[operator]
        values = math.floor({"15raw": 15, "0.25": 0.25 * width, "22%window": 0.22 * width}[eps] + 1e-6)
        assert n_values in (None, values)
        organ = case.target[1]
        raw = case.storage.stored[0].double() * case.storage.slope + case.storage.inter  # type: ignore[operator]
        moved = torch.where(organ, raw - values, raw + values)
        threshold = case.window.low + 0.4 * width  # type: ignore[operator]
        clean, adv = raw > threshold, moved > threshold
        assert (row["volume"], row["group"], row["cls"]) == (ref.volume, ref.group, "organ")
        assert (row["n_target"], row["n_target_adv"]) == (organ.sum(), organ.sum())
        assert (row["n_clean"], row["hit_clean"]) == (clean.sum(), (clean & organ).sum())
        assert (row["n_adv"], row["hit_adv"]) == (adv.sum(), (adv & organ).sum())
        for name, mask in (("clean", clean), ("adv", adv)):
            y, x = mask.nonzero().sum(0).tolist()
            expected = [case.stack.index * int(mask.sum()), y, x]
            assert row[[f"z_{name}", f"y_{name}", f"x_{name}"]].tolist() == expected
        places[case.stack.index] += 1
        assert (row["forwards"], row["backwards"]) == (2, 1)
        assert row[["z_mm", "y_mm", "x_mm"]].tolist() == [5.0, 1.0, 1.0]
        assert row[["size", "linf"]].tolist() == pytest.approx([values / width] * 2, rel=1e-4)
        budget = {"15raw": 15 / width, "0.25": 0.25, "22%window": 0.22}[eps]
        assert row["budget"] == pytest.approx(budget)
        assert (row["width"], row["level"]) == (width, pytest.approx(1 / width))
        (noise,) = noise_of(case.image[None]).tolist()
        assert row["noise"] == pytest.approx(noise)
        image = ((moved - case.window.low) / width).clamp(0, 1).float()[None, None]  # type: ignore[operator]
        seen = visibility(image, case.image[None], [noise])[0]._asdict()
        assert row[list(seen)].tolist() == pytest.approx(list(seen.values()), rel=2e-2, abs=1e-4, nan_ok=True)
    assert places == {0: 3, 1: 3, 2: 3}
    assert rows["n_clean"].sum() < rows["n_adv"].sum()
    assert list(run(study)) == [9]  # what is done is counted and not done again


def test_a_run_that_stops_goes_on_and_its_rows_and_images_are_those_of_one(
    opened: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = RunOptions(batch_size=4, save="all")
    whole = opened(attacks=["noise", "pgd(steps=2)"], options=options, seed=3)
    assert list(run(whole)) == [18]
    assert whole.is_finished
    cut = replace(whole, out=whole.out.parent / "cut")
    finish = running._finish
    monkeypatch.setattr(running, "_finish", lambda *_: None)
    list(run(cut))
    assert not cut.is_finished
    kept = RunFolder(cut.run_folders[0]).part(0).stat().st_mtime_ns
    RunFolder(cut.run_folders[1]).part(0).unlink()
    monkeypatch.setattr(running, "_finish", finish)
    assert list(run(cut)) == [18]
    assert cut.is_finished
    assert RunFolder(cut.run_folders[0]).part(0).stat().st_mtime_ns == kept
    for n in range(2):
        pd.testing.assert_frame_equal(rows_of(whole, n), rows_of(cut, n), check_exact=True)
        ids = list(rows_of(whole, n)["case"])
        one, other = (RunFolder(study.run_folders[n]).images(ids) for study in (whole, cut))
        for name, a, b in zip(ids, one, other, strict=True):
            np.testing.assert_array_equal(a, b)
            (ref,) = [ref for ref in whole.refs(whole.models[0]) if ref.id == name]
            storage = whole.data.read(ref).storage
            assert storage is not None
            change = np.abs(a.astype(int) - storage.stored.numpy().astype(int)).max()
            assert name.endswith("0") or 0 < change <= 15
        assert len(list((cut.run_folders[n] / "adversarial").rglob("*.nii.gz"))) >= 3


def test_images_are_kept_and_segmented_again_where_they_are_asked_for(
    opened: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    segmented: list[Path] = []
    monkeypatch.setattr(running, "write_segmentations", lambda run, *_: segmented.append(run))
    study = opened()
    list(run(study))
    assert segmented == []
    assert not (study.run_folders[0] / "images").exists()
    assert not (study.run_folders[0] / "adversarial").exists()
    kept = opened(options=RunOptions(save="worst:1"))
    kept = replace(kept, out=kept.out.parent / "kept")
    list(run(kept))
    assert segmented == kept.run_folders
    assert len(list((kept.run_folders[0] / "adversarial").rglob("*.nii.gz"))) == 1


def test_parts_of_a_study_are_those_of_its_models_and_shards(opened: Opener) -> None:
    study = opened("Net", "Sigmoid", attacks=["fgsm", "noise"], options=RunOptions(shard=(1, 2)))
    assert list(run(study, study.models[1:])) == [9]
    assert [RunFolder(folder).has_rows for folder in study.run_folders] == [False, False, False, True]
    assert [(folder / "run.json").exists() for folder in study.run_folders] == [False, False, False, True]
    assert list(run(replace(study, options=RunOptions()))) == [18, 18]
    assert study.is_finished
    assert not list(study.out.rglob("workers/*"))


def test_the_header_of_a_run_says_what_it_is_of_and_how_it_was_computed(opened: Opener) -> None:
    study = opened(attacks=["pgd(steps=2)"], split="test", options=RunOptions(batch_size=5))
    list(run(study))
    (folder,) = study.run_folders
    header = json.loads((folder / "run.json").read_text())
    rows = rows_of(study)
    config = json.loads((folder / "config.json").read_text())
    model_ref, refs = study.models[0], study.refs(study.models[0])
    assert config == config_of(study, model_ref, study.cells(model_ref)[0], refs)
    assert config_of(study, model_ref, study.cells(model_ref)[0], refs[::-1]) == config
    assert {name: config[name] for name in ("data", "weights", "budget", "metrics", "seed")} == {
        "data": study.data.fingerprint,
        "weights": model_ref.weights_hash,
        "budget": "15raw",
        "metrics": [],
        "seed": 0,
    }
    expected = {
        "model": model_ref.label,
        "dims": 2,
        "n_parameters": 1,
        "val_dice": None,
        "attack": "pgd(steps=2) 15raw",
        "role": "attack",
        "loss": "bce",
        "eps": float(f"{rows['budget'].mean():.3g}"),
        "eps_unit": "",
        "split": "test",
        "cases": 9,
        "partial": False,
        "device": "cpu",
        "batch_size": 5,
        "checks": False,
    }
    assert {name: header[name] for name in expected} == expected
    assert header["seconds"] == RunFolder(folder).seconds
    assert not {"fit_seconds", "queries", "prompt", "knowledge", "flags"} & set(header)
    assert header["versions"]
    assert header["provenance"]
    assert not (study.folder(model_ref) / stored.FILE).exists()
    elsewhere = {"device": "cuda:7", "batch_size": 9, "versions": {"torch": "1"}, "provenance": {"host": "h"}}
    edit(folder / "run.json", model="another", **elsewhere)
    list(run(replace(study, options=RunOptions(batch_size=2))))  # what it says of the computation stays true
    later = json.loads((folder / "run.json").read_text())
    assert later == header | elsewhere | {"digest": later["digest"]}


def test_the_header_of_a_run_that_knows_a_defence_asks_or_is_of_part_of_the_cases_says_so(opened: Opener) -> None:
    study = opened("Net", attacks=["square(queries=2)"], limit=4)
    random = replace(study.models[0], card=dict(study.models[0].card) | {"is_random": True, "prompt": "a box"})
    random = replace(random, card=dict(random.card) | {"val_dice": {"a": 0.5, "b": None, "c": 0.7}})
    folder = RunFolder.open(study.out / "run", {"seed": 0})
    cell = replace(study.grid[0], budget=None, eps=0.5, knowledge="adaptive")
    header = header_of(study, random, cell, folder, study.refs(random))
    assert (header["knowledge"], header["queries"], header["prompt"]) == ("adaptive", True, "a box")
    assert (header["eps"], header["partial"], header["cases"]) == (0.5, True, 4)
    assert header["val_dice"] == pytest.approx(0.6)
    assert (header["batch_size"], header["seconds"]) == (16, 0)
    nameless = replace(random, card={key: value for key, value in random.card.items() if key != "n_parameters"})
    assert header_of(study, nameless, cell, folder, study.refs(random))["n_parameters"] == 0
    automatic = replace(study, options=RunOptions(batch_size=None))
    assert header_of(automatic, random, cell, folder, study.refs(random))["batch_size"] == FIRST


def test_shards_share_a_folder_and_its_study_has_its_fields_in_their_order_and_no_worker_in_the_end(
    opened: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    locks: list[bool] = []
    real = running.locked
    monkeypatch.setattr(
        running, "locked", lambda folder, *, shared: (locks.append(shared), real(folder, shared=shared))[1]
    )
    study = opened()
    claim_folder(study)
    assert list(yaml.safe_load((study.out / "study.yaml").read_text())) == list(study.study.model_dump())
    list(run(study))
    assert locks == [True, True]
    assert {file.name for file in study.out.iterdir() if file.is_file()} == {"identity.json", "study.yaml"}
    assert not (study.out / "workers").exists()


def test_flags_stand_in_the_header_of_a_run_that_is_checked(opened: Opener) -> None:
    study = opened(options=RunOptions(checks=True))
    list(run(study))
    header = json.loads((study.run_folders[0] / "run.json").read_text())
    assert header["checks"] is True
    assert isinstance(header["flags"], list)
    list(run(replace(study, options=RunOptions())))
    later = json.loads((study.run_folders[0] / "run.json").read_text())
    assert (later["flags"], later["checks"]) == (header["flags"], True)


@pytest.mark.parametrize("when", ["before", "between"])
def test_what_fails_before_any_row_leaves_nothing_behind_unless_the_folder_was_there(
    opened: Opener, when: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = opened("NanAnswer")
    study.out.mkdir()
    if when == "between":
        claim_folder(study)
        assert yaml.safe_load((study.out / "study.yaml").read_text())["attacks"] == ["fgsm"]
        assert (study.out / "identity.json").exists()
    with pytest.raises(InputError, match="expected finite log-odds"):
        list(run(study))
    assert (study.out / "study.yaml").exists() == (when == "between")
    assert study.folder(study.models[0]).exists() == (when == "between")

    def part(*_: Any, **__: Any) -> Iterator[int]:
        (study.run_folders[0] / "parts").mkdir(parents=True, exist_ok=True)
        (study.run_folders[0] / "parts" / "00000.parquet").write_bytes(b"rows")
        yield 1
        raise InputError("expected a, got b; do c")

    monkeypatch.setattr(running, "run_attacks", part)
    with pytest.raises(InputError, match="expected a"):
        list(run(study))
    assert (study.out / "study.yaml").exists()  # some rows are there
    assert study.run_folders[0].exists()


def test_what_fails_beside_another_process_leaves_all_as_it_is(opened: Opener) -> None:
    from medseg_attack.storage.locks import locked

    study = opened("NanAnswer")
    study.out.mkdir()
    with locked(study.out, shared=True), pytest.raises(InputError, match="expected finite log-odds"):
        list(run(study))
    assert (study.out / "study.yaml").exists()


def test_scans_are_measured_by_the_metrics_of_the_study(opened: Opener) -> None:
    study = opened(metrics=["hd95_mm"], seed=1)
    assert set(refuse_unrunnable(study)) == {"hd95_mm"}
    list(run(study))
    rows = rows_of(study)
    network = study.models[0].load(study.data.task, CPU)
    for scan, of_scan in rows.groupby("volume"):
        refs = sorted(
            (ref for ref in study.refs(study.models[0]) if ref.volume == scan), key=lambda ref: ref.index or 0
        )
        batch = Batch.of([study.data.read(ref) for ref in refs])
        with torch.no_grad():
            pred = network.decide(network(batch.image))
        whole = [mask.transpose(0, 1)[None] for mask in (pred, batch.target)]
        distance = hd95_mm(*whole, [(5.0, 1.0, 1.0)])[0, 1].item()
        assert of_scan["hd95_mm_clean"].tolist() == pytest.approx([distance] * SLICES, nan_ok=True)
        assert of_scan["diagonal_mm"].tolist() == pytest.approx([math.hypot(3 * 5, 40, 40)] * SLICES)
    assert "hd95_mm_adv" in rows


def test_a_fault_is_counted_on_the_cases_that_met_it(opened: Opener) -> None:
    """The gradient of the first slice of each scan is NaN, as it is constant."""
    study = opened("NanGradient")
    list(run(study))
    rows = rows_of(study)
    assert rows["without_gradient"].tolist() == [float(case.endswith("0")) for case in rows["case"]]
    assert "without_answer" not in rows


def test_patients_that_an_attack_is_fitted_on_are_refused_before_it_runs(opened: Opener) -> None:
    study = opened(attacks=["uap(epochs=1)"], eps=["0.05"], split="train")
    with pytest.raises(InputError, match="on other patients than it is fitted on"):
        refuse_unrunnable(study)
    with pytest.raises(InputError, match="one perturbation for all scans"):
        refuse_unrunnable(opened(attacks=["uap(epochs=1)"]))
    with pytest.raises(InputError, match="expected an organ of this data set in --region outside:spleen"):
        refuse_unrunnable(opened(region="outside:spleen"))
    with pytest.raises(InputError, match="leave anatomy where it is"):
        refuse_unrunnable(opened(attacks=["deformation"], eps=["2"], options=RunOptions(save="all")))
    refuse_unrunnable(opened(attacks=["deformation"], eps=["2"]))
    with pytest.raises(InputError, match="expected a promptable model for worst_prompt"):
        refuse_unrunnable(opened(attacks=["worst_prompt"], eps=[]))


@pytest.mark.parametrize("begin", [estimate, claim_folder, lambda study: list(run(study))])
def test_what_cannot_be_run_is_refused_whatever_is_to_be_done_with_it(
    opened: Opener, begin: Callable[[OpenedStudy], Any]
) -> None:
    study = opened(attacks=["uap(epochs=1)"], eps=["0.05"], split="train")
    with pytest.raises(InputError, match="on other patients than it is fitted on"):
        begin(study)
    assert not study.out.exists()


def test_a_saved_detector_of_an_attack_is_held_to_the_model_that_is_attacked(
    opened: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved, study = Mock(Saved, file="detector"), opened()
    monkeypatch.setattr(refusals, "walk", lambda attack: [attack, saved])
    refuse_unrunnable(study)
    saved.loaded.require.assert_called_once_with(Path("detector"), study.models[0].weights_hash, study.data.task)


def test_code_that_a_study_file_names_is_not_run_before_it_is_trusted(home: Path, tmp_path: Path) -> None:
    file = tmp_path / "study.yaml"
    file.write_text(yaml.safe_dump({"models": [f"own('{home}/scans/nets.py:Net')"], "attacks": ["fgsm"]}))
    use_trust(tmp_path, False)
    try:
        with pytest.raises(InputError, match=r"expected no code in .*study\.yaml but what you trusted"):
            open_study(read_study(file, {}), home, CPU, RunOptions())
    finally:
        use_trust(home, True)
    assert open_study(read_study(file, {}), home, CPU, RunOptions()).models


def test_what_cannot_be_written_back_is_refused_for_each_scan_once(
    opened: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(refusals, "require_copies", lambda data, scan, **more: asked.append((scan, more)))
    study = opened(options=RunOptions(save="all", keep_headers=True))
    refuse_unrunnable(study)
    scans = sorted({ref.volume for ref in study.refs(study.models[0])})
    assert sorted(scan for scan, _ in asked) == scans
    assert all(more == {"keep_headers": True} for _, more in asked)
    asked.clear()
    refuse_unrunnable(opened())
    assert asked == []
    (cell,) = study.grid
    prompting = replace(study, grid=(replace(cell, attack=WorstPrompt(), label="worst_prompt"),))
    with pytest.raises(InputError, match="expected attacks on images beside --save-adversarial, got worst_prompt"):
        refusals._check_storable(prompting, study.refs(study.models[0]))


def test_the_fit_of_a_run_is_of_its_training_cases_and_stands_in_its_header(opened: Opener) -> None:
    study = opened(attacks=["uap(epochs=1)"], eps=["0.05"], fold=1)
    list(run(study))
    (folder,) = study.run_folders
    header, config = (json.loads((folder / name).read_text()) for name in ("run.json", "config.json"))
    assert config["fitted_on"]
    assert header["fit_seconds"] > 0
    assert header["seconds"] == pytest.approx(RunFolder(folder).seconds + header["fit_seconds"])
    assert config["budget"] is None
    assert header["eps"] == 0.05
    other = opened(attacks=["uap(epochs=1)"], eps=["0.05"], fold=2)
    cell = other.cells(other.models[0])[0]
    assert config_of(other, other.models[0], cell, other.refs(other.models[0]))["fitted_on"] != config["fitted_on"]


def test_a_model_is_examined_once_and_a_batch_size_is_kept_where_answers_depend_on_it(opened: Opener) -> None:
    study = opened("OfBatch", options=RunOptions(batch_size=4, checks=True))
    list(run(study))
    file = study.folder(study.models[0]) / stored.FILE
    findings, written = stored.read_before(file.parent), file.stat().st_mtime_ns
    assert examining.CASE_ALONE in {finding.code for finding in findings}
    list(run(study))
    assert file.stat().st_mtime_ns == written
    for size, sentence in ((2, "expected --batch-size 4, with which"), (None, "got auto, while the answers")):
        other = replace(study, options=RunOptions(batch_size=size, checks=True))
        with pytest.raises(InputError, match=sentence) as error:
            list(run(other))
        assert "use --batch-size 4" in str(error.value) or size


def test_a_model_without_a_gradient_is_refused_for_attacks_that_climb_alone(
    opened: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, dict[str, Any]]] = []

    def noting(name: str) -> Callable[..., Any]:
        real = getattr(examining, name)
        return lambda *words, **more: (asked.append((name, more)), real(*words, **more))[1]

    for name in ("check_model", "preflight"):
        monkeypatch.setattr(examining, name, noting(name))
    blocked = "Blocked(Net):\n    def forward(self, x):\n        return super().forward(x.detach())\n"
    file = Path(opened().models[0].name.split("'")[1].split(":")[0])
    if "class Blocked" not in file.read_text():
        file.write_text(f"{file.read_text()}\n\nclass {blocked}")
    checks = RunOptions(checks=True)
    with pytest.raises(InputError, match="expected a gradient of the output of"):
        list(run(opened("Blocked", attacks=["clean", "fgsm"], options=checks)))
    assert [name for name, _ in asked] == ["preflight"]
    noise = opened("Blocked", attacks=["noise"], options=checks)
    assert list(run(noise)) == [9]
    (asked_of_noise,) = asked[1:]
    assert asked_of_noise[0] == "check_model"
    assert asked_of_noise[1]["gradient"] is False


def test_the_probes_see_an_attack_at_the_mean_of_its_budgets(opened: Opener) -> None:
    study = opened(eps=["15raw"])
    refs: list[CaseRef] = study.refs(study.models[0])
    batch = Batch.of([study.data.read(ref) for ref in refs])
    widths = [case.window.high - case.window.low for case in batch.cases]  # type: ignore[operator]
    assert len(set(widths)) > 1
    (cell,) = study.cells(study.models[0])
    attack = examining._at_budget(cell, batch)
    assert attack.ball.eps == pytest.approx(np.mean([15 / width for width in widths]))
    plain = opened(eps=["0.1"])
    assert examining._at_budget(plain.cells(plain.models[0])[0], batch).ball.eps == 0.1


def test_a_finished_run_opens_its_own_model_and_data(opened: Opener, home: Path) -> None:
    study = opened("Net", "Blind")
    list(run(study))
    data, model, model_ref = open_run(study.run_folders[1], CPU)
    assert model_ref.weights_hash == study.models[1].weights_hash
    assert data.fingerprint == study.data.fingerprint
    image = torch.full((1, 1, 8, 8), 0.9)
    with torch.no_grad():
        assert not model.decide(model(image))[:, 1].any()
    use_trust(study.out, False)
    try:
        with pytest.raises(InputError, match=r"expected no code in .*study\.yaml but what you trusted"):
            open_run(study.run_folders[0], CPU)
    finally:
        use_trust(home, True)
    config = study.run_folders[0] / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"weights": "0" * 64}))
    with pytest.raises(InputError, match=r"got others; restore what changed since \(.*nets.py\)"):
        open_run(study.run_folders[0], CPU)


SPELT = {
    "spaces": {"attacks": ["pgd( steps = 2 )"]},
    "a default": {"attacks": ["pgd(steps=2, restarts=1)"]},
    "a field of the study": {"attacks": ["pgd"], "steps": 2, "norm": "linf"},
    "the loss in the attack": {"attacks": ["pgd(objective=soft_dice, steps=2)"], "losses": []},
    "brackets after a loss": {"losses": ["soft_dice()"]},
    "a longer number": {"eps": ["15.0raw", "5raw"]},
    "another order": {"eps": ["5raw", "15raw"], "metrics": ["hd95_mm", "nsd"]},
    "the default of a metric": {"metrics": ["nsd(tolerance_mm=2)", "hd95_mm()"]},
}


@pytest.mark.parametrize("words", SPELT.values(), ids=SPELT)
def test_a_study_goes_on_in_its_folder_however_it_is_spelt(opened: Opener, words: dict[str, Any]) -> None:
    settings: dict[str, Any] = {"attacks": ["pgd(steps=2)"], "losses": ["soft_dice"], "eps": ["15raw", "5raw"]}
    settings |= {"metrics": ["nsd", "hd95_mm"], "control": True}
    begun = opened(**settings)
    claim_folder(begun)
    again = opened(**settings | words)
    claim_folder(again)
    assert again.run_folders == begun.run_folders


@pytest.mark.parametrize(
    "words", [{"attacks": ["pgd(steps=3)"]}, {"eps": ["15raw"]}, {"metrics": ["nsd(tolerance_mm=1)"]}]
)
def test_another_study_is_refused_in_a_folder(opened: Opener, words: dict[str, Any]) -> None:
    settings: dict[str, Any] = {"attacks": ["pgd(steps=2)"], "eps": ["15raw", "5raw"], "metrics": ["nsd"]}
    claim_folder(opened(**settings))
    with pytest.raises(InputError, match=f"was begun with, got others \\({next(iter(words))}: "):
        claim_folder(opened(**settings | words))


def test_a_budget_that_is_typed_twice_is_one_run(opened: Opener) -> None:
    assert len(opened(eps=["15raw", "15.0raw"]).run_folders) == 1
