"""Training: it learns, it is the same twice, and a kill changes nothing."""

import csv
import dataclasses
import functools
import json
import math
import re
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from helpers.discs import CPU, DISCS, LABELS, SMALL, Discs, trained
from helpers.killed import killed, training_killed_at_step
from torch.optim.optimizer import register_optimizer_step_pre_hook
from typer.testing import CliRunner

from medseg_attack import registry, runtime
from medseg_attack.cli import app
from medseg_attack.defences.training.base import TrainingDefence
from medseg_attack.errors import InputError
from medseg_attack.models import checkpoints
from medseg_attack.models.checkpoints import read_card
from medseg_attack.models.segmodel import SegModel
from medseg_attack.storage.files import is_checkpoint
from medseg_attack.storage.json_files import read_json
from medseg_attack.training import augment, loop
from medseg_attack.training.folder import STATE, finished_epochs
from medseg_attack.training.loop import train
from medseg_attack.training.losses import LOSSES, training_loss
from medseg_attack.training.options import Options, cases_of, folder_name, label, resolve, training_defences, warnings
from medseg_attack.training.validation import validated
from medseg_attack.types import Case, CaseRef, Window


def rows_of(folder):
    return list(csv.DictReader((folder / "history.csv").read_text().splitlines()))


@pytest.mark.parametrize("task", [DISCS, LABELS])
def test_it_learns_unseen_patients(tmp_path, task):
    data = Discs(task)
    options = dataclasses.replace(SMALL, model="unet_small(channels=(8, 16))", epochs=25)
    trained(tmp_path, data, options)
    model = checkpoints.load(tmp_path, task)
    dice = validated(model, data, data.refs("test"), 3, CPU)
    assert list(dice) == ["bright", "dim"]
    assert dice["bright"] > 0.9
    assert dice["dim"] > 0.6


def test_the_same_seed_gives_the_same_bits_and_leaves_the_callers_random_numbers_alone(tmp_path):
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    first = trained(tmp_path / "a")
    assert torch.equal(torch.random.get_rng_state(), before)
    assert not torch.are_deterministic_algorithms_enabled()
    torch.manual_seed(6)
    assert trained(tmp_path / "b") == first
    assert trained(tmp_path / "c", options=dataclasses.replace(SMALL, seed=1)) != first


@pytest.mark.parametrize("epochs", [1, 2, 3])
def test_a_training_that_stopped_after_an_epoch_goes_on_to_the_same_weights(tmp_path, epochs):
    whole = trained(tmp_path / "whole")
    assert trained(tmp_path / "cut", epochs=epochs) is None
    assert len(finished_epochs(tmp_path / "cut")) == epochs
    assert trained(tmp_path / "cut") == whole
    kept = [
        {name: value for name, value in row.items() if name != "seconds"}
        for folder in ("whole", "cut")
        for row in rows_of(tmp_path / folder)
    ]
    assert kept[:3] == kept[3:]


def test_kill_9_in_the_middle_of_an_epoch(tmp_path):
    folder = tmp_path / "killed"
    killed(training_killed_at_step, functools.partial(trained, folder), folder / STATE, 2)
    assert len(finished_epochs(folder)) == 1
    assert not is_checkpoint(folder)
    assert trained(folder) == trained(tmp_path / "whole")


def test_a_finished_training_is_not_repeated(tmp_path):
    trained(tmp_path)
    stamp = (tmp_path / "weights.safetensors").stat().st_mtime_ns
    assert list(train(resolve(SMALL, Discs()), Discs(), tmp_path, CPU)) == []
    assert (tmp_path / "weights.safetensors").stat().st_mtime_ns == stamp
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "card.json",
        "history.csv",
        "options.json",
        "weights.safetensors",
    ]


def test_a_folder_of_another_training_is_refused(tmp_path):
    trained(tmp_path, epochs=1)
    for data, options, says in [
        (Discs(), dataclasses.replace(SMALL, lr=0.1), "lr: there 0.01, here 0.1"),
        (Discs(fingerprint="b42"), SMALL, "data: there f00, here b42"),
    ]:
        with pytest.raises(InputError, match=says):
            trained(tmp_path, data, options)


def test_the_card_says_what_was_trained(tmp_path):
    data = Discs(LABELS, shapes=((24, 24), (20, 30)))
    options = dataclasses.replace(SMALL, epochs=1, size=(16, 16))
    trained(tmp_path, data, options)
    card = read_json(tmp_path / "card.json")
    assert card["label"] == "unet_small(channels=(4, 8))"
    assert card["spec"] == "unet_small(channels=(4, 8), size=(16, 16))"
    assert card["input_size"] == [16, 16]
    assert card["dataset"] == {"name": "discs", "fingerprint": "f00", "path": None}
    assert set(card["val_dice"]) == {"bright", "dim"}
    assert card["best_epoch"] == 1


def test_history_has_a_row_per_epoch(tmp_path):
    trained(tmp_path)
    rows = rows_of(tmp_path)
    assert [row["epoch"] for row in rows] == ["1", "2", "3"]
    assert set(rows[0]) == {"epoch", "loss", "lr", "dice_bright", "dice_dim", "mean_dice", "seconds"}


def test_the_learning_rate_falls_along_a_cosine_in_every_step(tmp_path):
    used = []
    hook = register_optimizer_step_pre_hook(lambda optimiser, *_: used.append(optimiser.param_groups[0]["lr"]))
    try:
        trained(tmp_path)
    finally:
        hook.remove()
    steps = 3 * 4  # 16 cases in fours
    assert used == pytest.approx([1e-2 * (1 + math.cos(math.pi * i / steps)) / 2 for i in range(steps)])
    assert [float(row["lr"]) for row in rows_of(tmp_path)] == pytest.approx([1e-2, 0.75e-2, 0.25e-2])


def test_a_plan_leaves_nothing_open():
    plan = resolve(Options(), Discs(shapes=((24, 24), (20, 30))))
    assert plan.model == "unet_small(size=(160, 160))"
    assert label(plan.model) == "unet_small"
    assert plan.epochs == 750
    assert resolve(Options(), Discs()).model == "unet_small"
    assert label("smp(encoder='resnet18', size=(64, 64), encoder_weights='imagenet')") == "smp(encoder='resnet18')"


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"loss": "dicefocal"}, "unknown training loss.*did you mean dice_focal"),
        ({"model": "unet_smal"}, "unknown model.*did you mean unet_small"),
        ({"epochs": -1}, "expected --epochs of at least 0, got -1"),
        ({"batch_size": 0}, "expected --batch-size of at least 1, got 0"),
        ({"lr": math.nan}, "expected --lr of at least"),
        ({"encoder_weights": "imagenet"}, "unet_small has no encoder_weights"),
        ({"model": "oracle"}, "expected a model with weights, got oracle"),
    ],
)
def test_options_that_cannot_be_trained_are_said(tmp_path, changed, says):
    with pytest.raises(InputError, match=says):
        trained(tmp_path / "model", options=dataclasses.replace(SMALL, **changed))
    assert not (tmp_path / "model").exists()


def test_a_loss_that_is_not_finite_stops_the_training(tmp_path):
    with pytest.raises(InputError, match=r"expected a finite training loss, got nan in epoch \d; lower --lr"):
        trained(tmp_path, options=dataclasses.replace(SMALL, lr=1e30, epochs=20))


@dataclasses.dataclass(frozen=True)
class _Rooted(TrainingDefence):
    """The loss, and 0 whose gradient by what the first layer answers is NaN, from some share of the training on."""

    begins: float = 0.0

    def loss(self, step, image, target):
        first, *_ = (layer for layer in step.model.modules() if isinstance(layer, torch.nn.Conv2d))
        kept = []
        with first.register_forward_hook(lambda layer, inputs, answer: kept.append(answer)):
            loss = step.loss(image, target)
        nothing = (kept[0] * 0).abs().sqrt().sum()
        return loss + nothing if step.progress >= self.begins else loss


@pytest.mark.parametrize("begins", [0.0, 0.85])  # at once; in the last step, after which no loss is computed
def test_a_gradient_that_is_not_finite_is_not_blamed_on_the_loss(tmp_path, begins, monkeypatch):
    monkeypatch.setattr(
        loop, "build", lambda text, kind: _Rooted(begins) if kind == "defence" else registry.build(text, kind)
    )
    options = dataclasses.replace(SMALL, epochs=2, defences=("gaussian",))
    with pytest.raises(InputError, match="expected a finite gradient of the training loss") as refused:
        trained(tmp_path / "model", options=options)
    when = "step 4 of epoch 2" if begins else "step 1 of epoch 1"
    assert f"from a finite loss in {when}; look behind that layer" in str(refused.value)
    assert re.search(r"by [12] of \d+ weights, the last of them net\S+, ", str(refused.value))
    assert not is_checkpoint(tmp_path / "model")


def test_nothing_to_train_on_and_classes_that_cannot_be_learnt():
    with pytest.raises(InputError, match="expected training cases in discs"):
        resolve(SMALL, Discs(slices=0))

    class Empty(Discs):
        def read(self, ref):
            case = super().read(ref)
            return dataclasses.replace(case, target=case.target & torch.tensor([True, False]).view(2, 1, 1))

    assert warnings(SMALL, Empty()) == ["no training case of discs has dim; the model cannot learn that"]
    assert warnings(SMALL, Discs()) == []


@pytest.mark.parametrize("task", [DISCS, LABELS])
@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_prefers_the_truth(name, task):
    data = Discs(task)
    target = torch.stack([data.read(ref).target for ref in data.refs("train")]).float()
    loss = training_loss(name, task)
    values = [float(loss(confidence * (2 * target - 1), target)) for confidence in (-4, 0, 4)]
    assert values == sorted(values, reverse=True)
    assert len(set(values)) == 3
    assert all(map(math.isfinite, values))


@pytest.mark.parametrize("task", [DISCS, LABELS])
def test_masks_survive_being_put_into_one_plane(task):
    target = Discs(task).read(CaseRef("p0_s0", "p0", "p0", (24, 30))).target
    assert torch.equal(augment.decoded(augment.encoded(target.float(), task), task), target)


def test_a_case_is_augmented_the_same_whatever_was_read_before(tmp_path, monkeypatch):
    data = Discs(LABELS)
    kept = augment.TrainingSet(data, data.refs("train"), (24, 24), seed=0)
    monkeypatch.setattr(augment, "CACHE_BYTES", 0)
    read = augment.TrainingSet(data, data.refs("train"), (24, 24), seed=0)
    assert (len(kept.cached), len(read.cached)) == (16, 0)
    for index in (3, 1, 3):
        (image, target), (other, other_target) = kept[3], read[index]
    assert torch.equal(image, other)
    assert torch.equal(target, other_target)
    assert image.shape == (1, 24, 24)
    assert (target.sum(0) == 1).all()
    assert image.min() >= 0
    assert image.max() <= 1
    kept.epoch = 1
    assert not torch.equal(kept[3][0], image)


@pytest.mark.parametrize("task", [DISCS, LABELS])
def test_a_case_that_is_not_augmented_is_as_it_was_read(task):
    data = Discs(task)
    cases = augment.TrainingSet(data, data.refs("train"), (24, 24), seed=0, augment=False)
    for epoch in (0, 1):
        cases.epoch = epoch
        for at, ref in enumerate(cases.refs):
            image, target = cases[at]
            assert torch.equal(image, data.read(ref).image.clamp(0, 1))
            assert torch.equal(target, data.read(ref).target.float())


def test_a_training_without_augmentation_is_another_one(tmp_path):
    plans = [dataclasses.replace(SMALL, epochs=1, augment=on) for on in (True, False)]
    assert len({folder_name(plan, Discs()) for plan in plans}) == 2
    assert trained(tmp_path / "a", options=plans[0]) != trained(tmp_path / "b", options=plans[1])


@dataclass(frozen=True)
class Counted(Discs):
    """Slices of four pixels: by patient, by scan and by slice, how many the truth has; all are predicted."""

    pixels: dict[str, list[list[int]]] = field(default_factory=dict)

    def refs(self, split, fold=0, dims=2):
        return [
            CaseRef(f"{group}_{scan}_{at}", f"{group}_{scan}", group, (2, 2))
            for group, scans in self.pixels.items()
            for scan, slices in enumerate(scans)
            for at in range(len(slices))
        ]

    def read(self, ref):
        group, scan, at = ref.id.split("_")
        organ = (torch.arange(4) < self.pixels[group][int(scan)][int(at)]).view(2, 2)
        target = torch.stack([organ, torch.zeros_like(organ)])
        return Case(ref.id, f"{group}_{scan}", group, torch.ones(1, 2, 2), target, (1.0, 1.0), Window(0, 1))


class Everywhere(torch.nn.Module):
    def forward(self, image):
        return torch.cat([image, -image], 1)


@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_dice_is_pooled_over_a_patients_slices_and_scans_and_then_averaged(batch_size):
    data = Counted(pixels={"p": [[4, 1], [0, 0, 0]], "q": [[2]], "r": [[3], [4]]})
    dice = validated(SegModel(Everywhere(), DISCS), data, data.refs("val"), batch_size, CPU)
    patients = [2 * 5 / (20 + 5), 2 * 2 / (4 + 2), 2 * 7 / (8 + 7)]
    assert dice == {"bright": pytest.approx(sum(patients) / 3), "dim": None}


def test_devices_are_known_and_there():
    assert runtime.pick_device("cpu") == CPU
    with pytest.raises(InputError, match=r"expected a device such as .* got 'gpu'"):
        runtime.pick_device("gpu")
    with pytest.raises(InputError, match="expected cuda:99 on this machine, got"):
        runtime.pick_device("cuda:99")
    assert runtime.versions()["torch"]


# the command


@pytest.mark.parametrize(
    ("arguments", "says"),
    [([], "expected a prepared data set in"), (["--data", "nowhere"], "expected a prepared data set in nowhere")],
)
def test_the_command_says_what_is_wrong(tmp_path, arguments, says):
    result = CliRunner().invoke(app, ["train", "--home", str(tmp_path), *arguments])
    assert result.exit_code == 2
    assert says in " ".join(result.stderr.split())
    assert "Traceback" not in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_help_has_an_example_and_imports_no_torch():
    code = (
        "import sys; from medseg_attack.cli import app; import medseg_attack.cli.train; print('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"
    result = CliRunner().invoke(app, ["train", "--help"])
    assert result.exit_code == 0
    assert "Example: medattack train" in " ".join(result.stdout.split())


def groups_of(options: Options, data: Discs) -> set[str]:
    return {ref.group for ref in cases_of(options, data, 2)}


def test_parts_of_the_patients_are_disjoint_whole_and_nested() -> None:
    data = Discs()
    halves = [groups_of(Options(patients=f"{k}/2"), data) for k in (0, 1)]
    assert [len(half) for half in halves] == [2, 2]
    assert not halves[0] & halves[1]
    assert halves[0] | halves[1] == groups_of(Options(), data) == {"p0", "p1", "p2", "p3"}
    assert groups_of(Options(patients="0/4"), data) < halves[0]
    assert len(cases_of(Options(patients="0/4"), data, 2)) == data.slices  # all slices of one patient


@pytest.mark.parametrize(
    ("patients", "sentence"),
    [
        ("half", "k/N with 0 <= k < N"),
        ("2/2", "k/N with 0 <= k < N"),
        ("-1/2", "k/N"),
        ("0/5", "4 parts at most, got 5"),
    ],
)
def test_a_part_that_is_none_is_refused(patients: str, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        resolve(Options(patients=patients), Discs())


def test_training_begins_with_the_weights_of_a_checkpoint(tmp_path: Path) -> None:
    """One step of a rate of nothing leaves the weights where they began; the last layer of other classes is its own."""
    still = dataclasses.replace(SMALL, epochs=1, lr=1e-12)
    trained(tmp_path / "first")
    trained(tmp_path / "second", options=dataclasses.replace(still, seed=5, init=str(tmp_path / "first")))
    trained(tmp_path / "other", Discs(task=LABELS), dataclasses.replace(still, seed=5, init=str(tmp_path / "first")))
    weights = {
        folder: {
            name: tensor
            for name, tensor in checkpoints.load_tensors(tmp_path / folder / checkpoints.WEIGHTS).items()
            if name.endswith("weight") and tensor.ndim > 1
        }
        for folder in ("first", "second", "other")
    }
    for name, tensor in weights["first"].items():
        torch.testing.assert_close(weights["second"][name], tensor, atol=1e-6, rtol=0)
        if weights["other"][name].shape == tensor.shape:
            torch.testing.assert_close(weights["other"][name], tensor, atol=1e-6, rtol=0)
    assert any(weights["other"][name].shape != tensor.shape for name, tensor in weights["first"].items())


def test_other_beginnings_are_other_trainings(tmp_path: Path) -> None:
    trained(tmp_path / "a")
    trained(tmp_path / "b", options=dataclasses.replace(SMALL, init=str(tmp_path / "a")))
    assert read_card(tmp_path / "b")["training"]["init"] == str(tmp_path / "a")
    stored = read_json(tmp_path / "b" / "options.json")
    assert stored["init_weights"] == read_card(tmp_path / "a")["weights_sha256"]
    with pytest.raises(InputError, match="init"):
        trained(tmp_path / "a", options=dataclasses.replace(SMALL, init=str(tmp_path / "b")))
    with pytest.raises(InputError, match="expected a checkpoint"):
        trained(tmp_path / "c", options=dataclasses.replace(SMALL, init=str(tmp_path / "absent")))
    other = dataclasses.replace(SMALL, model="unet_small(channels=(5, 7))", init=str(tmp_path / "a"))
    with pytest.raises(InputError, match="of the same architecture"):
        trained(tmp_path / "d", options=other)


def test_a_training_of_before_these_options_goes_on(tmp_path: Path) -> None:
    whole = trained(tmp_path / "whole")
    trained(tmp_path / "old", epochs=1)
    there = read_json(tmp_path / "old" / "options.json")
    (tmp_path / "old" / "options.json").write_text(
        json.dumps({k: v for k, v in there.items() if k not in ("patients", "init")})
    )
    assert trained(tmp_path / "old") == whole


def test_a_training_that_an_earlier_version_began_goes_on(tmp_path: Path) -> None:
    """Its options and its history lack what defences brought."""
    whole = trained(tmp_path / "whole")
    trained(tmp_path / "old", epochs=2)
    options = read_json(tmp_path / "old" / "options.json")
    later = {"defences", "robust_by", "augment"}
    text = json.dumps({name: value for name, value in options.items() if name not in later})
    (tmp_path / "old" / "options.json").write_text(text)
    state = tmp_path / "old" / STATE
    records = [dataclasses.asdict(record) for record in finished_epochs(tmp_path / "old")]
    known = ("epoch", "epochs", "loss", "lr", "dice", "mean_dice", "best", "seconds")
    history = json.dumps([{name: record[name] for name in known} for record in records])
    checkpoints.save_tensors(state, checkpoints.load_tensors(state), {"history": history})
    assert trained(tmp_path / "old") == whole


def test_a_defence_that_is_named_twice_is_taken_once() -> None:
    texts = ["gaussian", "trades(beta=6)", "gaussian()", "trades(beta=6.0)", "gaussian(sigma=0.2)"]
    assert [registry.spec(each) for each in training_defences(texts)] == [
        registry.spec(registry.build(text, "defence")) for text in ("gaussian", "trades(beta=6)", "gaussian(sigma=0.2)")
    ]
