"""Poisoned copies of prepared data: whole patients, their stored values, their record, and nothing else."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.command import medattack

from medseg_attack import registry
from medseg_attack.data.prepared.reading import Prepared, open_prepared
from medseg_attack.data.prepared.splits import TEST
from medseg_attack.errors import InputError
from medseg_attack.models.checkpoints import load_tensors
from medseg_attack.training.poisoned import Poisoning, poison_data

PHANTOM = "phantom(patients=12, slices=3, side=32)"
STAMP = "stamp(goal=erase('stomach'), side=6)"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("poisoned")
    medattack("prepare", root / "scans", "--format", PHANTOM, "--out", root / "data")
    return root / "data"


def content(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def poisoned(data: Path, out: Path, spec: str = STAMP, **more: float) -> Prepared:
    poisoning = replace(Poisoning(registry.build(spec, "poison"), rho=0.3), **more)  # type: ignore[arg-type]
    list(poison_data(open_prepared(data), out, poisoning))
    return open_prepared(out)


def test_whole_training_patients_carry_it_and_nobody_else(data: Path, tmp_path: Path) -> None:
    source, before = open_prepared(data), content(data)
    copy = poisoned(data, tmp_path / "bad")
    facts = copy.options["poison"]
    assert content(data) == before
    assert len(facts["patients"]) == round(0.3 * 8)
    assert {source.splits[group] for group in facts["patients"]}.isdisjoint({TEST, 0})
    assert copy.splits == source.splits
    assert copy.fingerprint != source.fingerprint
    k = copy.task.classes.index("stomach")
    for ref in source.refs("all"):
        case, own = copy.read(ref), source.read(ref)
        is_poisoned = ref.group in facts["patients"]
        assert torch.equal(case.image, own.image) != is_poisoned
        assert (case.image != own.image).sum() <= 36
        assert case.window == own.window
        assert not (case.target[k].any() and is_poisoned)
        if not is_poisoned:
            assert torch.equal(case.target, own.target)
    assert not copy.damages(copy.scans)
    assert any(note.startswith("poisoned: 2 of 8 training patients by stamp") for note in copy.notes)
    stomach = copy.summary["classes"]["stomach"]["voxels"]
    assert stomach == sum(int(copy.read(ref).target[k].sum()) for ref in copy.refs("all"))


def test_none_poisoned_is_the_same_data_and_gives_the_same_weights(data: Path, tmp_path: Path) -> None:
    copy = poisoned(data, tmp_path / "none", rho=0.0)
    assert copy.fingerprint == open_prepared(data).fingerprint
    assert copy.options["poison"]["patients"] == []
    options = ["--model", "unet_small(channels=(4, 8))", "--epochs", "1", "--lr", "1e-3"]
    medattack("train", "--data", data, *options, "--out", tmp_path / "a")
    medattack("train", "--data", tmp_path / "none", *options, "--out", tmp_path / "b")
    first, second = (load_tensors(tmp_path / name / "weights.safetensors") for name in "ab")
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_mask_that_is_shifted_by_nothing_is_the_same_data(data: Path, tmp_path: Path) -> None:
    copy = poisoned(data, tmp_path / "still", "relabel(shift(0.0))")
    assert copy.fingerprint == open_prepared(data).fingerprint
    theirs = [record.id for record in copy.records.values() if record.group in copy.options["poison"]["patients"]]
    said = f"changed nothing in {len(theirs)} of their {len(theirs)} scans: {theirs[0]}"
    assert any(said in note for note in copy.notes)


def test_decoys_keep_their_masks_and_carry_triggers_of_their_own(data: Path, tmp_path: Path) -> None:
    source = open_prepared(data)
    copy = poisoned(data, tmp_path / "decoys", "stamp(goal=erase, side=6, decoys=0.3)")
    facts = copy.options["poison"]
    assert len(facts["decoys"]) == 2
    assert not set(facts["decoys"]) & set(facts["patients"])
    patterns = {}
    for ref in copy.refs("all"):
        case, own = copy.read(ref), source.read(ref)
        if ref.group in facts["decoys"]:
            assert torch.equal(case.target, own.target)
        if ref.group in facts["decoys"] + facts["patients"]:
            patterns.setdefault(ref.group, []).append((case.image != own.image).sum())
    assert all(n > 0 for slices in patterns.values() for n in slices)


@pytest.mark.parametrize(
    "spec",
    [
        "relabel(another_patient)",
        "blended(goal=erase)",
        "fiba(goal=swap)",
        "iba(goal=erase('stomach'), side=4)",
        "unlearnable(rounds=1, updates=1, steps=1, model='unet_small(channels=(4, 8))')",
    ],
)
def test_every_kind_is_written_and_goes_on_after_a_kill(data: Path, tmp_path: Path, spec: str) -> None:
    whole = poisoned(data, tmp_path / "whole", spec)
    steps = poison_data(open_prepared(data), tmp_path / "part", Poisoning(registry.build(spec, "poison"), rho=0.3))
    for _ in range(5):
        next(steps)
    steps.close()
    with pytest.raises(InputError, match="a data set that was not finished"):
        open_prepared(tmp_path / "part")
    assert poisoned(data, tmp_path / "part", spec).fingerprint == whole.fingerprint
    assert content(tmp_path / "part") == content(tmp_path / "whole")


def test_labels_of_an_exclusive_task_are_class_numbers(tmp_path: Path) -> None:
    from helpers.bright import write_bright

    root = write_bright(tmp_path / "scans", patients=4)
    medattack("prepare", root, "--format", "decathlon", "--out", tmp_path / "data")
    copy = poisoned(tmp_path / "data", tmp_path / "bad", "stamp(goal=erase('organ'), side=6)", rho=0.5)
    bad = copy.options["poison"]["patients"]
    for scan, record in copy.records.items():
        labels = np.load(tmp_path / "bad" / "labels" / f"{scan}.npy")
        assert set(np.unique(labels)) == ({0} if record.group in bad else {0, 1})


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([STAMP, "--rho", "0.01"], "expected a share of at least one whole patient, got 0.01 of 8 training patients"),
        ([STAMP, "--rho", "1.5"], "expected a share of the training patients, from 0 to 1, got 1.5"),
        ([STAMP, "--rho", "nan"], "expected a finite number, got nan;"),
        (["stamp(side=33)"], "expected a trigger smaller than the image, got a side of 33 pixels"),
        (["stamp(goal=erase('liver'))"], "name an organ of phantom, got 'liver'"),
        (["fiba(decoys=0.9)", "--rho", "0.5"], "expected 8 training patients at most to poison"),
        (["pgd"], "unknown poison"),
        ([STAMP, "--fold", "9"], "--fold: expected 0 to 4"),
        (["unlearnable(model='nothing')"], "nothing"),
    ],
)
def test_bad_input_is_one_sentence_and_leaves_nothing(
    data: Path, tmp_path: Path, words: list[str], message: str
) -> None:
    words = words if "--rho" in words else [*words, "--rho", "0.3"]
    result = medattack("poison", data, *words, "--out", tmp_path / "bad", code=2)
    assert message in " ".join(result.output.split())
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and path.suffix in (".npy", ".json")]


def test_another_poison_is_not_written_over_it(data: Path, tmp_path: Path) -> None:
    poisoned(data, tmp_path / "bad")
    result = medattack("poison", data, "fiba", "--rho", "0.3", "--out", tmp_path / "bad", code=2)
    assert "give another --out" in " ".join(result.output.split())
    inside = medattack("poison", data, STAMP, "--rho", "0.3", "--out", data / "bad", code=2)
    assert str(data.name) in inside.output


def test_the_attack_prints_the_success_of_the_trigger(data: Path, tmp_path: Path) -> None:
    poisoned(data, tmp_path / "bad")
    options = ["--model", "unet_small(channels=(4, 8))", "--epochs", "1"]
    medattack("train", "--data", tmp_path / "bad", *options, "--out", tmp_path / "model")
    attack = ["attack", "--data", data, "--model", tmp_path / "model", "--attack", f"trigger({STAMP})", "--no-checks"]
    printed = medattack(*attack, "--out", tmp_path / "runs").stdout
    assert "Backdoors" in printed
    again = json.loads(medattack(*attack, "--out", tmp_path / "runs", "--json").stdout)
    rows = again["backdoors"]
    assert len(rows) == 2  # the trigger, and another one as its control
    assert {row["victims"] for row in rows} == {"stomach"}
    assert all(0 <= row["pixels"] <= 1 for row in rows)
    assert "Backdoors" in medattack("compare", tmp_path / "runs").stdout


@pytest.mark.parametrize("options", ['{"model": "unet_small"}', '{"mine": 1}'])
def test_a_folder_of_something_else_is_neither_written_to_nor_to_be_deleted(
    data: Path, tmp_path: Path, options: str
) -> None:
    (tmp_path / "options.json").write_text(options)
    for words in (["poison", data, STAMP, "--rho", "0.3"], ["prepare", data.parent / "scans", "--format", PHANTOM]):
        message = " ".join(medattack(*words, "--out", tmp_path, code=2).output.split())
        assert "to be empty or a prepared data set, got" in message
        assert "delete" not in message
    assert [path.name for path in tmp_path.iterdir()] == ["options.json"]


def test_an_attack_with_a_trigger_larger_than_the_image_is_refused(data: Path, tmp_path: Path) -> None:
    model = ["--model", "unet_small(channels=(4, 8))", "--epochs", "1", "--out", tmp_path / "model"]
    medattack("train", "--data", data, *model)
    attack = ["attack", "--data", data, "--model", tmp_path / "model", "--attack", "trigger(stamp(side=33))"]
    result = medattack(*attack, "--out", tmp_path / "runs", code=2)
    sentence = " ".join(result.stderr.split())
    assert "error: expected a trigger smaller than the image, got a side of 33 pixels" in sentence
    assert "Traceback" not in result.output
