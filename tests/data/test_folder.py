"""Folders of pictures: which mask is whose, what its pixels mean, whose patient it is, and what is refused."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.command import medattack
from PIL import Image

from medseg_attack import registry
from medseg_attack.data.datasets.source import open_source
from medseg_attack.data.prepared.reading import Prepared, open_prepared
from medseg_attack.data.prepared.splits import split
from medseg_attack.errors import InputError
from medseg_attack.metrics.scans import by_scan, packed
from medseg_attack.models.checkpoints import save

ROWS, COLUMNS = 16, 12


def disc(radius: float = 4) -> np.ndarray:
    y, x = np.ogrid[:ROWS, :COLUMNS]
    return (y - 8) ** 2 + (x - 6) ** 2 < radius**2


def picture(number: int, colour: bool = False) -> np.ndarray:
    rng = np.random.default_rng(number)
    return rng.integers(20, 235, (ROWS, COLUMNS, 3) if colour else (ROWS, COLUMNS)).astype(np.uint8)


def put(path: Path, pixels: np.ndarray, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)
    return path


def write(
    root: Path,
    *,
    n: int = 4,
    image: str = "{}.png",
    mask: str = "{}.png",
    colour: bool = False,
    marks: Callable[[int], np.ndarray] = lambda _: disc().astype(np.uint8) * 255,
) -> Path:
    for number in range(n):
        put(root / "images" / image.format(f"p{number}"), picture(number, colour))
        put(root / "masks" / mask.format(f"p{number}"), marks(number))
    return root


def scans(root: Path, form: str = "folder", **options: Any) -> dict[str, np.ndarray]:
    return {file.id: file.read().labels[0] for file in open_source(form, root, options).scans}


def prepared(root: Path, *words: object) -> Prepared:
    medattack("prepare", root, "--format", "folder", *words, "--out", root.parent / "out")
    return open_prepared(root.parent / "out")


def test_a_picture_is_a_case_in_the_window_of_its_type(tmp_path: Path) -> None:
    data = prepared(write(tmp_path / "set"))
    assert data.task.classes == ("foreground",)
    assert (data.task.channels, data.task.exclusive) == (1, False)
    case = data.read(data.refs("all")[0])
    assert (case.window.low, case.window.high) == (0, 255)
    assert torch.equal(case.image[0], torch.from_numpy((picture(0) / 255.0).astype(np.float32)))
    assert np.array_equal(case.target[0].numpy(), disc())
    assert (case.id, case.volume, case.group, case.stack) == ("p0", "p0", "p0", None)


def test_colours_are_three_channels(tmp_path: Path) -> None:
    data = prepared(write(tmp_path / "set", colour=True))
    assert (data.task.channels, data.task.channel_names) == (3, ("red", "green", "blue"))
    case = data.read(data.refs("all")[1])
    assert np.array_equal(case.storage.stored.numpy(), np.moveaxis(picture(1, True), 2, 0))  # type: ignore[union-attr]
    assert (case.window.low, case.window.high, case.window.width) == (0, 255, 255)


def test_grey_in_three_channels_is_one(tmp_path: Path) -> None:
    root = write(tmp_path / "set")
    for path in (root / "images").iterdir():
        put(path, np.repeat(np.array(Image.open(path).convert("L"))[..., None], 3, axis=2))
    assert open_source("folder", root).task.channels == 1
    put(root / "images" / "p2.png", picture(2, True))
    assert open_source("folder", root).task.channels == 3  # one in colour: the others have three equal channels


def test_sixteen_bits_are_shown_by_percentile_or_in_colour_in_full(tmp_path: Path) -> None:
    root = write(tmp_path / "set")
    for number in range(4):
        put(root / "images" / f"p{number}.png", picture(number).astype(np.uint16) * 40)
    assert open_source("folder", root).window == "percentile"
    low, high = np.percentile(picture(0).astype(np.uint16) * 40, (0.5, 99.5))
    case = (data := prepared(root)).read(data.refs("all")[0])
    assert (case.window.low, case.window.high) == (low, high)


def test_images_are_of_one_patient_if_a_pattern_says_so(tmp_path: Path) -> None:
    root = write(tmp_path / "set", image="{}-IM-7.png", mask="{}-IM-7.png")
    put(root / "images" / "p0-IM-8.png", picture(9))
    put(root / "masks" / "p0-IM-8.png", disc().astype(np.uint8))
    (root / "masks" / "p0-IM-8.png").unlink()
    put(root / "masks" / "p0-IM-8.png", disc().astype(np.uint8) * 255)
    source = open_source("folder", root, {"patient": r"(p\d+)-IM"})
    assert {scan.id: scan.group for scan in source.scans}["p0-IM-8"] == "p0"
    assert not any("patient of its own" in note for note in source.notes)
    assert any("patient of its own" in note for note in open_source("folder", root).notes)
    said = medattack("prepare", root, "--format", "folder", "--patient", "x(", "--out", tmp_path / "out", code=2).stderr
    assert "expected a regular expression" in " ".join(said.split())
    said = medattack("prepare", root, "--format", "folder", "--patient", r"q\d", "--out", tmp_path / "out", code=2)
    assert "in every file's name, got p0-IM-7.png" in " ".join(said.stderr.split())


def test_values_and_colours_are_classes(tmp_path: Path) -> None:
    rings = disc(5).astype(np.uint8) + disc(3)
    grey = write(tmp_path / "grey", marks=lambda _: np.choose(rings, [255, 128, 0]).astype(np.uint8))
    task = open_source("folder(labels='disc=128,cup=0,background=255')", grey).task
    assert (task.classes, task.exclusive) == (("background", "disc", "cup"), True)
    assert np.array_equal(scans(grey, labels="disc=128,cup=0,background=255")["p1"], rings)
    assert np.array_equal(scans(grey, labels="head=128|0,background=255")["p1"], rings > 0)
    palette = np.array([[0, 0, 0], [255, 0, 0], [0, 128, 0]], np.uint8)
    colours = write(tmp_path / "colours", marks=lambda _: palette[rings])
    assert np.array_equal(scans(colours, labels="disc=#ff0000,cup=#008000")["p2"], rings)
    indices = write(tmp_path / "palette")
    for number in range(4):
        image = Image.fromarray(rings).convert("P")
        image.putpalette(palette.ravel().tolist())
        image.save(indices / "masks" / f"p{number}.png")
    assert np.array_equal(scans(indices, labels="disc=1,cup=2")["p3"], rings)


def test_a_class_is_named_without_a_value(tmp_path: Path) -> None:
    root = write(tmp_path / "set", marks=lambda _: disc().astype(np.uint8))
    assert open_source("folder", root, {"labels": "polyp=*"}).task.classes == ("polyp",)
    assert np.array_equal(scans(root, labels="polyp=1")["p0"], disc())


@pytest.mark.parametrize("ending", ["_mask", "-segmentation", " label"])
def test_masks_of_one_ending_are_the_images_own(tmp_path: Path, ending: str) -> None:
    root = write(tmp_path / "set", mask="{}" + ending + ".png")
    assert open_source("folder", root).task.classes == ("foreground",)
    assert scans(root).keys() == {"p0", "p1", "p2", "p3"}


@pytest.mark.parametrize("folders", [True, False])
def test_a_file_per_class_may_overlap(tmp_path: Path, folders: bool) -> None:
    mask = "{cls}/{name}.png" if folders else "{name}_{cls}.png"
    root = tmp_path / "set"
    for number in range(4):
        put(root / "images" / f"p{number}.png", picture(number))
        for cls, radius in (("disc", 5), ("cup", 3)):
            if (number, cls) != (2, "cup"):
                put(root / "masks" / mask.format(cls=cls, name=f"p{number}"), disc(radius).astype(np.uint8) * 255)
    source = open_source("folder", root)
    assert (source.task.classes, source.task.exclusive) == (("cup", "disc"), False)
    assert np.array_equal(scans(root)["p0"], 2 * disc(5) + disc(3))
    assert np.array_equal(scans(root)["p2"], 2 * disc(5))  # no file: the class is absent
    assert np.array_equal(scans(root, labels="head=disc")["p0"], disc(5))
    with pytest.raises(InputError, match=r"expected a label fovea.*; choose among them with --labels CLASS=NAME$"):
        open_source("folder", root, {"labels": "fovea=fovea"})


@pytest.mark.parametrize("mask", ["{name}_{n}.png", "{name}/{n}.png"])
def test_objects_in_files_of_their_own_are_one_class(tmp_path: Path, mask: str) -> None:
    root, halves = tmp_path / "set", (disc() & (np.arange(COLUMNS) < 6), disc() & (np.arange(COLUMNS) >= 6))
    for number in range(4):
        put(root / "images" / f"p{number}.png", picture(number))
        for n, half in enumerate(halves[: 1 + number % 2]):
            put(root / "masks" / mask.format(name=f"p{number}", n=n), half.astype(np.uint8) * 255)
    assert open_source("folder", root).task.classes == ("foreground",)
    assert np.array_equal(scans(root)["p1"], disc())
    assert np.array_equal(scans(root)["p0"], halves[0])


def smooth() -> np.ndarray:
    y, x = np.ogrid[:ROWS, :COLUMNS]
    return (255 / (1 + np.exp(np.hypot(y - 8, x - 6) - 4))).astype(np.uint8)


def test_smoothed_and_jpeg_masks_need_a_threshold(tmp_path: Path) -> None:
    root = write(tmp_path / "set", marks=lambda _: smooth())
    assert np.array_equal(scans(root, threshold=128.0)["p0"], smooth() >= 128)
    data = prepared(root, "--threshold", 100, "--labels", "polyp=*")
    assert data.task.classes == ("polyp",)
    assert np.array_equal(data.read(data.refs("all")[0]).target[0].numpy(), smooth() >= 100)
    jpeg = write(tmp_path / "jpeg", mask="{}.jpg")
    got = scans(jpeg, threshold=128.0)["p0"]
    assert (got != disc()).mean() < 0.05


def test_a_threshold_above_all_masks_is_refused(tmp_path: Path) -> None:
    root = write(tmp_path / "set", marks=lambda _: disc().astype(np.uint8))
    said = refused(root, "--threshold", 128)
    assert "expected foreground in at least one mask" in said
    assert "got none from 128 on" in said
    assert prepared(root, "--threshold", 1).notes == open_source("folder(threshold=1.0)", root).notes


def test_a_class_that_no_mask_shows_is_noted(tmp_path: Path) -> None:
    root = write(tmp_path / "set", marks=lambda _: disc().astype(np.uint8))
    words = ("prepare", root, "--format", "folder", "--labels", "disc=1,cup=2", "--out", tmp_path / "out")
    assert "note: no scan has cup" in medattack(*words).stderr
    assert any("no scan has cup" in note for note in open_prepared(tmp_path / "out").notes)


def test_the_data_set_s_own_split_is_kept(tmp_path: Path) -> None:
    for part, names in (("Train", ("a1", "a2", "b1", "c1")), ("Test", ("a1", "d2"))):
        for name in names:
            put(tmp_path / "set" / part / "images" / f"{name}.png", picture(0))
            put(tmp_path / "set" / part / "masks" / f"{name}.png", disc().astype(np.uint8))
    data = prepared(tmp_path / "set")
    assert {ref.id for ref in data.refs("test")} == {"Test_a1", "Test_d2"}
    root = tmp_path / "set"
    said = medattack(
        "prepare", root, "--format", "folder", "--patient", "[a-z]", "--out", tmp_path / "x", code=2
    ).stderr
    assert "expected each patient in one part, got a in" in " ".join(said.split())


def test_patients_for_validation_are_the_first_fold() -> None:
    groups = [f"p{i}" for i in range(10)]
    parts = {"p1": "test", "p2": "test", "p3": "val", "p4": "train"}
    part_of = split(groups, folds=3, test_fraction=0.5, seed=0, parts=parts)
    assert {name for name, part in part_of.items() if part == "test"} == {"p1", "p2"}
    assert {name for name, part in part_of.items() if part == 0} == {"p3"}
    assert {part for name, part in part_of.items() if name not in ("p1", "p2", "p3")} == {1, 2}
    drawn = split(groups, folds=3, test_fraction=0.2, seed=0, parts={"p3": "val"})
    assert sum(part == "test" for part in drawn.values()) == 2
    assert drawn["p3"] == 0
    assert split(groups, folds=3, test_fraction=0.2, seed=0, parts={}) == split(
        groups, folds=3, test_fraction=0.2, seed=0
    )
    with pytest.raises(InputError, match="to train and to validate on, got 1"):
        split(groups[:3], folds=3, test_fraction=0.2, seed=0, parts={"p0": "test", "p1": "test"})


def test_what_has_no_partner_is_left_out_and_named(tmp_path: Path) -> None:
    root = write(tmp_path / "set", n=5)
    (root / "masks" / "p1.png").unlink()
    (root / "images" / "p3.png").unlink()
    (root / "images" / "Thumbs.db").write_bytes(b"")
    source = open_source("folder", root)
    assert [scan.id for scan in source.scans] == ["p0", "p2", "p4"]
    assert "p1 is left out: it has an image but no mask" in source.notes
    assert any("p3.png is left out: it has no image" in note for note in source.notes)


def test_a_picture_has_no_thickness_and_its_distances_are_told_to_be_in_pixels(tmp_path: Path) -> None:
    root = write(tmp_path / "set")
    assert any("distances are in pixels" in note for note in open_source("folder", root).notes)
    data = prepared(root)
    case = data.read(data.refs("all")[0])
    bits = packed(case.target[None])
    metric = {"hd95_mm": registry.build("hd95_mm", "metric")}
    measured = by_scan(metric, [case], bits, bits, ("foreground",))
    assert measured["p0", "foreground"]["hd95_mm"] == 0
    (scan, *_), notes = (found := open_source("folder(spacing_mm=(0.5, 0.25))", root)).scans, found.notes
    assert scan.read().spacing_mm == (0, 0.5, 0.25)
    assert not any("pixels" in note for note in notes)


def refused(root: Path, *words: object) -> str:
    result = medattack("prepare", root, "--format", "folder", *words, "--out", root.parent / "out", code=2)
    assert not (root.parent / "out").exists()
    said = " ".join(result.stderr.split())
    assert "Traceback" not in said
    sentence = said[said.index("error:") :]
    for part in ("expected", "got", ";"):
        assert part in sentence, sentence
    return sentence


def test_masks_that_hold_more_than_they_say_are_refused(tmp_path: Path) -> None:
    said = refused(write(tmp_path / "smooth", marks=lambda _: smooth()))
    assert "expected one value beside 0 in the masks" in said
    assert "--threshold 128" in said
    jpeg = write(tmp_path / "jpeg", mask="{}.jpg")
    for words in ((), ("--labels", "disc=255")):
        said = refused(jpeg, *words)
        assert "got the JPEG" in said
        assert "--labels 'polyp=*'" in said
        assert "values as --labels" not in said
    prepared(jpeg, "--threshold", 128, "--labels", "polyp=*")
    shutil.rmtree(tmp_path / "out")
    rings = disc(5).astype(np.uint8) + disc(3)
    colours = np.array([[0, 0, 0], [0, 255, 0], [255, 0, 0]], np.uint8)[rings]
    said = refused(write(tmp_path / "colours", marks=lambda _: colours))
    assert "got 2 from #00ff00 to #ff0000" in said
    assert "--labels 'disc=#00ff00,cup=#ff0000'" in said
    root = write(tmp_path / "two", marks=lambda number: disc().astype(np.uint8) * (1 + number % 2))
    assert "got 2 from 1 to 2" in refused(root)
    assert "got 1 other (2)" in refused(root, "--labels", "lv=1")
    assert "got values; write --labels as 'disc=128'" in refused(root, "--labels", "lv=#ff0000")
    assert "expected values or colours" in refused(root, "--labels", "a=1,b=#ff0000")
    said = refused(root, "--labels", "a=1|2,b=2")
    assert "expected each value once" in said
    assert "masks of its own, as masks/disc/" in said
    assert "write 'disc=128,cup=255'" in refused(root, "--labels", "a=one")
    assert "--threshold: expected one class" in refused(root, "--labels", "a=1,b=2", "--threshold", 9)
    assert "a class beside the background" in refused(root, "--labels", "background=1")


def test_a_mask_of_another_size_is_refused(tmp_path: Path) -> None:
    root = write(tmp_path / "set")
    path = put(root / "masks" / "p2.png", disc().astype(np.uint8).T * 255)
    said = refused(root)
    assert f"expected image and mask of one size, got 16 x 12 in {root / 'images' / 'p2.png'} and 12 x 16" in said
    assert str(path) in said


def test_no_pairs_at_all_are_refused(tmp_path: Path) -> None:
    assert "got no pair" in refused(write(tmp_path / "set", mask="other-{}.png"))
    (tmp_path / "empty" / "pictures").mkdir(parents=True)
    assert "expected images/ and masks/ in" in refused(tmp_path / "empty")
    root = write(tmp_path / "nomasks")
    for path in (root / "masks").iterdir():
        path.unlink()
    (root / "masks").rmdir()
    assert "expected masks in the folder" in refused(root)


def test_a_picture_that_is_there_no_more(tmp_path: Path) -> None:
    scan = open_source("folder", write(tmp_path / "set")).scans[0]
    scan.path.unlink()
    with pytest.raises(InputError, match=r"expected a picture at .*p0\.png, got no file; put it back"):
        scan.read()


def test_names_that_are_not_clear_are_refused(tmp_path: Path) -> None:
    root = write(tmp_path / "set")
    put(root / "images" / "p1.tif", picture(1))
    assert "expected one picture of each name" in refused(root)
    (root / "images" / "p1.tif").unlink()
    put(root / "masks" / "p1.gif", disc().astype(np.uint8))
    assert "expected one mask of each name" in refused(root)
    (root / "masks" / "p1.gif").unlink()
    put(root / "masks" / "p1_cup.png", disc().astype(np.uint8))
    assert "expected for every image one mask, or one for each of cup" in refused(root)
    put(root / "masks" / "cup" / "p1.png", disc().astype(np.uint8))
    assert "got both (cup/)" in refused(root)


def test_colours_among_grey_levels_are_refused(tmp_path: Path) -> None:
    root = write(tmp_path / "set")
    put(root / "images" / "p1.png", picture(1, True))
    said = refused(root)
    assert "expected pictures of one number of channels, got colours in" in said
    assert "3 pictures of grey levels" in said


def test_options_of_other_formats_are_refused(tmp_path: Path) -> None:
    root = write(tmp_path / "set")
    result = medattack("prepare", root, "--format", "acdc", "--threshold", 9, "--out", tmp_path / "out", code=2)
    assert "--threshold: expected an option of acdc" in " ".join(result.stderr.split())
    assert "above 0" in refused(root, "--threshold", -1)
    with pytest.raises(InputError, match="two positive lengths"):
        open_source("folder(spacing_mm=(1.0, 0.0))", root)


KINDS = {
    "grey.png": ("{}.png", False),
    "rgb.png": ("{}.png", True),
    "rgb.tif": ("{}.tif", True),
    "grey.gif": ("{}.gif", False),
    "rgb.jpg": ("{}.jpg", True),
}


@pytest.mark.parametrize("kind", KINDS)
def test_pictures_are_attacked_written_and_verified(tmp_path: Path, kind: str) -> None:
    image, colour = KINDS[kind]
    root = write(tmp_path / "set", image=image, colour=colour)
    data = prepared(root)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = registry.build("unet_small(channels=(4, 8))", "model")(data.task)
    save(tmp_path / "model", model, {"label": "tiny", "spec": "unet_small(channels=(4, 8))"})
    words = ("attack", "--data", tmp_path / "out", "-m", tmp_path / "model", "--split", "all", "--no-checks")
    medattack(*words, "--attack", "fgsm", "--eps", "4raw", "--save-adversarial", "all", "--out", tmp_path / "runs")
    results = json.loads(medattack("verify", tmp_path / "runs", "--json").stdout)
    assert results
    assert all(one["verified"] for one in results), results
    run = next(file.parent for file in tmp_path.rglob("run.json") if "fgsm" in file.parent.name)
    for number in range(4):
        name = image.format(f"p{number}") + (".png" if kind == "rgb.jpg" else "")
        copy = run / "adversarial" / "images" / name
        with Image.open(copy) as after, Image.open(root / "images" / image.format(f"p{number}")) as before:
            assert after.format == ("PNG" if kind == "rgb.jpg" else before.format)
            mode = "RGB" if colour else "L"
            change = np.abs(np.array(after.convert(mode), int) - np.array(before.convert(mode), int))
        assert change.max() == 4
        sidecar = json.loads((copy.parent / f"{name}.json").read_text())
        assert ("format" in sidecar) == (kind == "rgb.jpg")


@pytest.mark.data
def test_real_sunnybrook(real_data: Callable[[str], Path], tmp_path: Path) -> None:
    root = real_data("sunnybrook")
    source = open_source("folder", root, {"labels": "lv=255", "patient": r"(SC-.+?-\d+)-IM"})
    assert (source.task.classes, source.task.channels, source.window) == (("lv",), 1, "0,255")
    assert (len(source.scans), len({scan.group for scan in source.scans})) == (140, 30)
    assert {part: sum(scan.part == part for scan in source.scans) for part in ("train", "test")} == {
        "train": 100,
        "test": 40,
    }
    scan = source.scans[0].read()
    with Image.open(source.scans[0].path) as image:
        assert np.array_equal(scan.stored[0], np.array(image)[..., 2])
    with Image.open(source.scans[0].sources[1]) as mask:
        assert np.array_equal(scan.labels[0], np.array(mask)[..., 0] == 255)
    assert sum(int(one.read().labels.sum()) for one in source.scans) == 159_981
