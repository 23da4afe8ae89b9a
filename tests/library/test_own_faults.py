"""Parts of a program's own that fail, leave the program, or return what they should not: no number has any of it."""

import json
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import typer
from helpers import own_parts as own
from helpers.command import medattack
from helpers.own_parts import MASKS, Work
from helpers.own_parts import restored as restored
from torch import Tensor, nn

import medseg_attack as ma
from medseg_attack.errors import InputError
from medseg_attack.registry.foreign import foreign_errors_named
from medseg_attack.types import Task

pytestmark = pytest.mark.usefixtures("restored")


def key_error(*_: object) -> None:
    raise KeyError("absent")


def leave(*_: object) -> None:
    sys.exit(0)


def stop(*_: object) -> None:
    next(iter(()))


def end_typer(*_: object) -> None:
    raise typer.Exit(0)


def break_pipe(*_: object) -> None:
    raise BrokenPipeError


def open_nothing(*_: object) -> None:
    Path("/nowhere/at/all").read_text()


FAULTS: dict[type[BaseException], Work] = {
    KeyError: key_error,
    SystemExit: leave,
    StopIteration: stop,
    typer.Exit: end_typer,
    BrokenPipeError: break_pipe,
    FileNotFoundError: open_nothing,
}
IN_LIBRARY: dict[str, Callable[[Work], Any]] = {
    "attack": own.attack,
    "objective": own.objective,
    "ball": own.ball,
    "metric": own.metric,
    "goal": own.goal,
    "criterion": own.criterion,
    "detector": own.detector,
    "certificate": own.certificate,
    "defence": own.input_defence,
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("own")
    (root / "scans").mkdir()
    medattack("prepare", root / "scans", "--format", "phantom(patients=5, slices=2, side=24)", "--out", root / "data")
    return root / "data"


@pytest.fixture
def files(tmp_path: Path) -> Path:
    folder = tmp_path / "files"
    folder.mkdir()
    for n in range(4):
        (folder / f"p{n}").write_bytes(b"x")
    return folder


def to_attack(data: Path, files: Path) -> Sequence[object]:
    return "attack", "--data", data, "--model", "oracle", "--attack", "mine", "--eps", "4/255"


def to_poison(data: Path, files: Path) -> Sequence[object]:
    return "poison", data, "mine", "--rho", 0.5


def to_train(data: Path, files: Path) -> Sequence[object]:
    return "train", "--data", data, "--model", "unet_small", "--epochs", 1, "--batch-size", 4, "--defence", "mine"


def to_prepare(data: Path, files: Path) -> Sequence[object]:
    return "prepare", files, "--format", "mine", "--jobs", 1


def late_reader(work: Work) -> None:
    own.listing(lambda root: own.source(root, lambda n: work() if n == 2 else own.scan(n)))


def late_defence(work: Work) -> None:
    own.training_defence(lambda step, x, y: step.loss(x, y), end_epoch=lambda self, *_: work())


IN_COMMANDS: dict[str, tuple[Callable[[Work], None], Callable[[Path, Path], Sequence[object]], str]] = {
    "attack": (own.new_attack, to_attack, "the attack mine"),
    "poison": (own.poison, to_poison, "the poison mine"),
    "backdoor": (own.backdoor, to_poison, "the poison mine"),
    "training defence": (own.training_defence, to_train, "the defence mine"),
    "training defence, after an epoch": (late_defence, to_train, "the defence mine"),
    "format": (own.listing, to_prepare, "the dataset mine"),
    "reader of a scan": (late_reader, to_prepare, "the reader of .*p2"),
}


def refused(words: Sequence[object], out: Path) -> str:
    """The sentence of a command that is refused and leaves nothing."""
    message = medattack(*words, "--out", out, code=2).stderr
    assert "defect" not in message
    assert not out.exists() or [path.name for path in out.iterdir() if path.name != ".lock"] == []
    return " ".join(message.split())


@pytest.mark.parametrize("error", FAULTS)
@pytest.mark.parametrize("kind", IN_LIBRARY)
def test_what_a_part_raises_names_it_and_its_line_and_is_the_cause(kind: str, error: type[BaseException]) -> None:
    says = rf"expected the {kind} mine to come to its end, got {error.__name__}.* in test_own_faults.py, line \d+"
    with pytest.raises(InputError, match=says) as caught:
        IN_LIBRARY[kind](FAULTS[error])
    cause = caught.value.__cause__
    assert isinstance(cause, error) or (cause is not None and isinstance(cause.__cause__, error))


@pytest.mark.parametrize("error", [KeyError, SystemExit, StopIteration, typer.Exit])
@pytest.mark.parametrize("kind", IN_COMMANDS)
def test_a_part_that_fails_ends_a_command_with_one_sentence_and_leaves_nothing(
    kind: str, error: type[BaseException], data: Path, files: Path, tmp_path: Path
) -> None:
    register, words, part = IN_COMMANDS[kind]
    register(FAULTS[error])
    message = refused(words(data, files), tmp_path / "out")
    line = rf"error: expected {part} to come to its end, got {error.__name__}.* in test_own_faults.py, line \d+; repair"
    assert re.search(line, message), message


def test_a_defect_of_the_package_is_not_laid_on_a_part() -> None:
    scope: dict[str, Any] = {"__name__": "medseg_attack.broken", "named": foreign_errors_named}
    exec("def broken():\n    with named():\n        {}['absent']", scope)
    with pytest.raises(KeyError):
        scope["broken"]()


def tasks_of_three() -> tuple[Any, Tensor]:
    """A model of three classes that exclude each other, and masks."""
    net = nn.Conv2d(1, 3, 1).eval()
    masks = torch.cat((~MASKS, MASKS, torch.zeros_like(MASKS)), 1)
    return ma.wrap(net, classes=("background", "a", "b"), exclusive=True), masks


def share(pred: Tensor, truth: Tensor) -> Tensor:
    return (pred != truth).flatten(1).double().mean(1)


def spread(model: Any, image: Tensor) -> tuple[Tensor, Tensor]:
    log_odds = model(image)
    return log_odds, log_odds.flatten(1).std(1)[:, None]


def nothing(*_: object) -> None:
    return None


WRONG: dict[str, tuple[Callable[[], Any], str]] = {
    "goal of numbers": (lambda: own.goal(lambda t: t.byte()), r"expected masks from the goal mine as a Tensor .*uint8"),
    "goal of other classes": (lambda: own.goal(lambda t: torch.cat((t, t), 1)), r"got a Tensor \(2, 2, 16, 16\)"),
    "goal of nothing": (lambda: own.goal(nothing), "got a NoneType"),
    "goal of two classes in a pixel": (
        lambda: own.goal(torch.ones_like, *tasks_of_three()),
        "expected the goal mine to want one class per pixel, got several in one",
    ),
    "goal that draws": (lambda: own.goal(lambda t: torch.rand(t.shape) > 0.5), "to want the same mask each time"),
    "criterion of nan": (lambda: own.criterion(lambda p, t: share(p, t) * torch.nan), r"got \[nan, nan\]"),
    "criterion above 1": (lambda: own.criterion(lambda p, t: share(p, t) + 1), "expected a number from 0 to 1"),
    "criterion below 0": (lambda: own.criterion(lambda p, t: -share(p, t)), "expected a number from 0 to 1"),
    "criterion of a batch": (lambda: own.criterion(lambda p, t: share(p, t).mean()), r"got a Tensor \(\)"),
    "criterion of classes": (lambda: own.criterion(lambda p, t: share(p, t)[:, None]), r"got a Tensor \(2, 1\)"),
    "detector without rows": (lambda: own.detector(lambda m, x: (m(x), x.flatten(1).std(1))), r"got a Tensor \(20,\)"),
    "detector of fewer": (lambda: own.detector(lambda m, x: (m(x), spread(m, x)[1][:1])), r"got a Tensor \(1, 1\)"),
    "detector of one thing": (lambda: own.detector(lambda m, x: None), "got a NoneType"),
    "detector that draws": (lambda: own.detector(lambda m, x: (m(x), torch.rand(len(x), 1))), "when it is asked again"),
    "detector of a mean": (
        lambda: own.detector(spread, lambda s: s[:, 0] - s.mean(), spec="mine"),
        "each case by itself",
    ),
    "detector that learns no tensors": (
        lambda: own.detector(spread, learn=lambda t: {"level": 1.0}),
        r"expected a dict of tensors from learn\(\) of the detector mine, got a float",
    ),
    "detector that learns nothing": (lambda: own.detector(spread, learn=nothing), "got a NoneType"),
    "certificate of one radius": (
        lambda: own.certificate(nothing, lambda scan, radii: own.bound(scan, radii[:1])),
        "expected one bound for each class and each radius of 0.1, 0.2 .* got lesion at 0.1;",
    ),
    "certificate of two bounds": (
        lambda: own.certificate(nothing, lambda scan, radii: own.bound(scan, radii) * 2),
        "expected one bound for each class",
    ),
    "certificate of no bounds": (lambda: own.certificate(nothing, lambda scan, radii: []), "list of Bound .* got none"),
    "certificate of a tensor": (
        lambda: own.certificate(nothing, lambda scan, radii: own.bound(scan, radii, value=torch.ones(()))),
        "expected numbers in the bounds of the certificate mine, got a Tensor",
    ),
    "certificate that checks nothing": (
        lambda: own.certificate(nothing, changed=lambda scan: iter(())),
        "expected changed scans to check the bounds of the certificate mine, got none",
    ),
    "certificate that checks nan": (
        lambda: own.certificate(nothing, changed=lambda scan: iter([scan.image * torch.nan])),
        "expected a finite changed scan",
    ),
    "certificate that checks another scan": (
        lambda: own.certificate(nothing, changed=lambda scan: iter([scan.image[..., :8]])),
        r"got a Tensor \(1, 1, 16, 8\)",
    ),
    "layer of another type": (lambda: own.input_defence(lambda x: x.double()), "from the defence mine .* torch.float"),
    "layer of nothing": (lambda: own.input_defence(nothing), "got a NoneType"),
    "layer of nan": (lambda: own.input_defence(lambda x: x * torch.nan), "finite images from the defence mine"),
    "layer beyond [0, 1]": (
        lambda: own.input_defence(lambda x: 9 * x - 4),
        r"expected images in \[0, 1\] from the defence mine, got values from -",
    ),
    "layer that centres the batch": (
        lambda: own.input_defence(lambda x: (x - x.mean(0) + 0.5).clamp(0, 1)),
        "expected the defence mine to change each image by itself",
    ),
    "layer of the neighbour": (lambda: own.input_defence(lambda x: x.roll(1, 0)), "change each image by itself"),
    "layer of the one before": (
        lambda: own.input_defence(lambda x: torch.cat((x[:1], (x[1:] + x[:-1]) / 2))),
        "change each image by itself",
    ),
    "layer that draws": (lambda: own.input_defence(torch.rand_like), "by its own seed"),
    "warp of the neighbour": (lambda: own.input_defence(lambda x: x.roll(1, 0), lambda z: z), "each image by itself"),
    "layer that carries back nan": (
        lambda: own.input_defence(lambda x: x, lambda z: z * torch.nan),
        r"expected finite numbers from back\(\) of the defence mine",
    ),
    "layer that carries back too few": (lambda: own.input_defence(lambda x: x, lambda z: z[:1]), "the images' grid"),
    "layer that carries back masks": (lambda: own.input_defence(lambda x: x, lambda z: z > 0), "in torch.bool"),
}


@pytest.mark.parametrize(("run", "sentence"), WRONG.values(), ids=WRONG)
def test_what_a_part_returns_is_looked_at_before_it_counts(run: Callable[[], Any], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        run()


def test_a_goal_and_a_criterion_that_change_their_masks_change_no_number() -> None:
    def changing(pred: Tensor, truth: Tensor) -> Tensor:
        result = share(pred, truth)
        pred.logical_not_()
        truth.data.fill_(True)
        return result

    expected = own.criterion(share)
    del own.entries["mine"]
    assert own.criterion(changing).rows.equals(expected.rows)
    del own.entries["mine"]
    expected = own.goal(torch.logical_not)
    del own.entries["mine"]
    assert own.goal(lambda truth: truth.logical_not_()).rows.equals(expected.rows)


@pytest.mark.parametrize("change", [lambda x: x.mul_(0.5), lambda x: x.data.mul_(0.5), lambda x: x.numpy().fill(0)])
def test_a_detector_and_a_certificate_that_change_their_images_change_no_answer(change: Work) -> None:
    def changing(model: Any, image: Tensor) -> tuple[Tensor, Tensor]:
        result = spread(model, image)
        change(image)
        return -result[0], result[1]  # nor do they say what the model answers

    expected = own.detector(spread)
    del own.entries["mine"]
    assert own.detector(changing).equals(expected)
    del own.entries["mine"]
    own.certificate(change)


def test_a_bound_that_the_untouched_scan_contradicts_is_refuted() -> None:
    table = own.certificate(nothing, lambda scan, radii: own.bound(scan, radii, low=0.95))
    assert table.refuted.tolist() == ["the untouched scan has 0.8, outside of 0.95 to nan"] * 4


POISONS: dict[str, tuple[Callable[[Work], None], Work, str]] = {
    "nan": (own.poison, lambda x, y: (x * torch.nan, y), "got values from nan to nan"),
    "outside": (own.poison, lambda x, y: (9 * x - 3, y), r"expected images in \[0, 1\] from the poison mine"),
    "soft masks": (own.poison, lambda x, y: (x, 0.7 * y), "expected masks from the poison mine .* in torch.float32"),
    "class numbers": (own.poison, lambda x, y: (x, 3 * y.long()), "in torch.int64"),
    "other classes": (own.poison, lambda x, y: (x, torch.cat((y, y), 1)), r"got a Tensor \(2, 6, 24, 24\)"),
    "another grid": (own.poison, lambda x, y: (x, y[..., :5]), r"got a Tensor \(2, 3, 24, 5\)"),
    "images alone": (own.poison, lambda x, y: x, "expected images and masks from the poison mine"),
    "fewer": (own.poison, lambda x, y: (x[:1], y[:1]), r"got a Tensor \(1, 1, 24, 24\)"),
    "a mark of nan": (own.backdoor, lambda x: x * torch.nan, "got values from nan to nan"),
    "a mark of fewer": (own.backdoor, lambda x: x[:1], r"expected images from the poison mine .* got a Tensor \(1, 1,"),
    "a mark of bytes": (own.backdoor, lambda x: (255 * x).byte(), "in torch.uint8"),
}


@pytest.mark.parametrize(("register", "work", "sentence"), POISONS.values(), ids=POISONS)
def test_a_poison_writes_images_and_masks_alone(
    register: Callable[[Work], None], work: Work, sentence: str, data: Path, tmp_path: Path
) -> None:
    register(work)
    assert re.search(sentence, refused(to_poison(data, tmp_path), tmp_path / "out"))


def test_a_poison_that_changes_its_images_in_place_is_put_on(data: Path, tmp_path: Path) -> None:
    own.poison(lambda x, y: (x.mul_(0.5), y))
    medattack(*to_poison(data, tmp_path), "--out", tmp_path / "out")
    before, after = (sorted((root / "images").iterdir()) for root in (data, tmp_path / "out"))
    assert any(not np.array_equal(np.load(one), np.load(other)) for one, other in zip(before, after, strict=True))


def loss(step: Any, image: Tensor, target: Tensor) -> Tensor:
    result: Tensor = step.loss(image, target)
    return result


def keeping(step: Any, image: Tensor, target: Tensor) -> Tensor:
    step.state["n"] = 1.0
    return loss(step, image, target)


def in_eval(step: Any, image: Tensor, target: Tensor) -> Tensor:
    step.model.eval()
    return loss(step, image, target)


RULES: dict[str, tuple[Work, dict[str, Any], str]] = {
    "of each sample": (lambda s, x, y: torch.stack([loss(s, x, y)] * 2), {}, r"as the loss of the defence mine, got a"),
    "of nothing": (nothing, {}, "got a NoneType"),
    "of nan": (lambda s, x, y: loss(s, x, y) * torch.nan, {}, "expected a finite loss from the defence mine"),
    "without gradient": (lambda s, x, y: loss(s, x, y).detach(), {}, "in torch.float32 without one"),
    "of other things": (lambda s, x, y: torch.ones((), requires_grad=True) * 2, {}, "got one of other things"),
    "that leaves the model in eval mode": (in_eval, {}, "in the mode that it was in from the defence mine"),
    "with a state of numbers": (keeping, {}, "expected tensors in the state that the defence mine keeps, got a float"),
    "of no steps": (loss, {"replays": 0}, "expected replays of 1 or more from the defence mine, got 0"),
    "of half a step": (loss, {"replays": 1.5}, "got 1.5"),
    "of no model": (loss, {"architecture": nothing}, r"expected the spec of a model from architecture\(\)"),
    "of another model": (loss, {"architecture": lambda *_: "unnet"}, "unknown model"),
    "watched by a text": (loss, {"monitor": "pgd"}, "expected an attack as the monitor of the defence mine"),
}


@pytest.mark.parametrize(("work", "more", "sentence"), RULES.values(), ids=RULES)
def test_a_training_defence_is_tried_before_anything_is_written(
    work: Work, more: dict[str, Any], sentence: str, data: Path, tmp_path: Path
) -> None:
    own.training_defence(work, **more)
    assert re.search(sentence, refused(to_train(data, tmp_path), tmp_path / "out"))


def reading(**facts: Any) -> Callable[[Path], Any]:
    """A listing whose scans have other facts; a function gets the scan as it should be."""

    def read(n: int) -> Any:
        right = own.scan(n)
        return own.scan(n, **{name: value(right) if callable(value) else value for name, value in facts.items()})

    return lambda root: own.source(root, read)


def listing(**facts: Any) -> Callable[[Path], Any]:
    return lambda root: own.source(root, own.scan, **facts)


FORMATS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no listing": (nothing, "expected a Source in the listing of .*files, got a NoneType"),
    "a list": (lambda root: [], "got a list"),
    "an id that leads out": (listing(scan={"id": lambda n: f"../p{n}"}), "an id that can be the name of a file for"),
    "an id of no text": (listing(scan={"id": lambda n: n}), "the field 'id' of each ScanFile"),
    "one id twice": (listing(scan={"id": "p"}), "expected one scan of each name"),
    "no patient": (listing(scan={"group": ""}), "expected the name of a patient as group"),
    "files elsewhere": (listing(scan={"sources": (Path("/etc/hosts"),)}), "expected sources below"),
    "more images than files": (listing(scan={"n_images": 5}), "expected n_images of 1 or more, among its sources"),
    "an unknown part": (listing(scan={"part": "both"}), "expected train, val, test or '' as part"),
    "an unknown phase": (listing(scan={"phase": "XX"}), "the field 'phase' of each ScanFile"),
    "another format": (listing(format="acdc"), "to say the format mine, got 'acdc'"),
    "no rule of patients": (listing(patient_rule=None), "the field 'patient_rule' of each Source"),
    "no window": (listing(window=None), "the field 'window' of each Source"),
    "no classes": (listing(task=Task("own", ())), "expected classes with names and channels"),
    "classes without names": (listing(task=Task("own", ("",))), "expected classes with names and channels"),
    "no background": (listing(task=Task("own", ("a", "b"), True)), "expected 'background' as the first of classes"),
    "no scan": (lambda root: own.source(root, nothing), "expected a Scan of .*p0, got a NoneType"),
    "names of slices twice": (reading(case_ids=("a", "a")), "a name of its own for each slice of .*p0, got 'a' twice"),
    "names in two scans": (reading(case_ids=("a", "b")), "got 'a' in the scans p0 and p1"),
    "numbers as names": (reading(case_ids=(1, 2)), "got 1; repair its reader"),
    "a name that leads out": (reading(case_ids=("../a", "b")), "the field 'case_ids.0' of the scan in .*p0"),
    "a larger mask": (reading(labels=lambda s: np.pad(s.labels, ((0, 0), (0, 3), (0, 0)))), "image and mask of one"),
    "soft labels": (reading(labels=lambda s: 0.5 * s.labels), r"labels of .*p0 as a NumPy array of whole numb"),
    "true and false": (reading(labels=lambda s: s.labels > 0), "in bool; repair its reader"),
    "objects": (reading(labels=lambda s: s.labels.astype(object)), "in object; repair its reader"),
    "labels below 0": (reading(labels=lambda s: -s.labels.astype(np.int16)), "expected labels of lesion, got -1"),
    "masked values": (reading(stored=lambda s: np.ma.masked_greater(s.stored, 100)), "got a MaskedArray"),
    "a tensor": (reading(stored=lambda s: torch.from_numpy(s.stored)), "got a Tensor"),
    "complex values": (reading(stored=lambda s: s.stored * 1j), "in complex128"),
    "an axis of one channel": (reading(stored=lambda s: s.stored[None]), r"got \(1, 2, 12, 12\)"),
    "no voxels": (reading(stored=lambda s: s.stored[..., :0], labels=lambda s: s.labels[..., :0]), r"\(2, 12, 0\)"),
    "two lengths": (reading(spacing_mm=(1.0, 1.0)), r"expected 3 finite numbers as spacing_mm of .* got \(1.0, 1.0\)"),
    "lengths as text": (reading(spacing_mm=("1", "1", "1")), "expected 3 finite numbers as spacing_mm"),
    "a slope of nan": (reading(slope=np.nan), "expected 1 finite number as slope"),
    "slopes of channels that are not there": (reading(slope=(1.0, 2.0)), "expected 1 finite number as slope"),
    "one scale for two slices": (reading(scales=((1.0, 0.0),)), "expected 4 finite numbers as scales"),
    "a matrix of 3 x 3": (reading(affine=np.eye(3)), "expected 16 finite numbers as affine"),
    "a matrix of nan": (reading(affine=np.eye(4) * np.nan), "expected 16 finite numbers as affine"),
    "limits the other way": (reading(limits=(10, 0)), "expected limits of .*p0 in rising order"),
    "no unit": (reading(unit=None), "the field 'unit' of the scan in .*p0"),
}


@pytest.mark.parametrize(("work", "sentence"), FORMATS.values(), ids=FORMATS)
def test_a_format_that_reads_what_no_data_set_holds_is_refused(
    work: Callable[[Path], Any], sentence: str, files: Path, tmp_path: Path
) -> None:
    own.listing(work)
    message = refused(to_prepare(tmp_path, files), tmp_path / "out")
    assert re.search(sentence, message), message


def test_a_format_that_is_as_it_should_be_is_prepared(files: Path, tmp_path: Path) -> None:
    own.listing(lambda root: own.source(root, own.scan, {"group": lambda n: f"../{n}"}))
    medattack(*to_prepare(tmp_path, files), "--out", tmp_path / "out")
    table = ma.open_data(tmp_path / "out").table()
    assert table.case.tolist() == [f"p{n}{slice_}" for n in range(4) for slice_ in "ab"]
    assert set(table.group) == {f"../{n}" for n in range(4)}
    assert json.loads((tmp_path / "out" / "options.json").read_text())["format"] == "mine"


@pytest.mark.parametrize("known", [None, "yes", ["native"]])
def test_a_training_defence_says_of_a_backdoor_what_tables_print(known: Any, data: Path, tmp_path: Path) -> None:
    words = ["train", "--data", data, "--model", "unet_small(channels=(4, 8))", "--epochs", 1, "--batch-size", 4]
    medattack(*words, "--out", tmp_path / "first")
    own.training_defence(loss, knowledge=lambda *_: known)
    message = refused([*words, "--init", tmp_path / "first", "--defence", "mine"], tmp_path / "out")
    assert "expected 'native', 'adaptive' or '' from knowledge() of the defence mine, got" in message


FACTORS: dict[str, tuple[Work, str]] = {
    "nothing": (nothing, "from the factor mine, a number for each class, got a NoneType"),
    "one number": (lambda scan: torch.tensor(1.0), r"got a Tensor \(\)"),
    "other classes": (lambda scan: torch.zeros(7), r"got a Tensor \(7,\)"),
    "texts": (lambda scan: ["a", "b"], "got a list"),
    "infinity": (lambda scan: torch.full((3,), torch.inf), "expected finite numbers, or NaN, from the factor mine"),
    "an error": (lambda scan: {}["absent"], "expected the factor mine to come to its end, got KeyError"),
}


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run") / "run"
    medattack(
        "attack",
        "--data",
        data,
        "--model",
        "oracle",
        "--attack",
        "fgsm",
        "--no-control",
        "--split",
        "all",
        "--out",
        out,
    )
    return out


@pytest.mark.parametrize(("work", "sentence"), FACTORS.values(), ids=FACTORS)
def test_a_factor_is_a_number_for_each_class(work: Work, sentence: str, run: Path) -> None:
    own.factor(work)
    message = " ".join(medattack("compare", run, "--factor", "mine", code=2).stderr.split())
    assert "defect" not in message
    assert re.search(sentence, message), message


def test_a_factor_that_changes_its_scan_changes_no_other(run: Path) -> None:
    words = ["compare", run, "--factor", "luminosity", "--json"]
    expected = json.loads(medattack(*words).stdout)
    own.factor(lambda scan: scan.image.data.fill_(0).flatten()[:3])
    words[2:2] = ["--factor", "mine"]
    changed = json.loads(medattack(*words).stdout)
    assert [each for each in changed["factors"] if each["factor"] == "luminosity"] == expected["factors"]
