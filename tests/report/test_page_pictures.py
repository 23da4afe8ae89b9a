"""Pictures of the worst scans: the right scans, true to the run, small, and absent with a reason where they must be."""

import base64
import io
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from helpers.attacked import write_attacked
from helpers.command import medattack
from helpers.dicoms import attacked, write_hospital
from helpers.runs import write_run
from matplotlib.path import Path as Polygon
from PIL import Image

from medseg_attack.evaluation.pictures.attacked_scans import AttackedScan
from medseg_attack.report.page.pictures import LEVELS, SIDE, WorstScan, difference_png, grey_png, outline, picture
from medseg_attack.report.page.pictures import worst_scans as worst_of
from medseg_attack.runs.reading import read_runs
from medseg_attack.runs.rows import HEADER
from medseg_attack.stats.scores import summary

WORST = WorstScan("run", "fgsm", "scan", "patient", 0.9, 0.1, (), {"a": 0})


def decoded(uri: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))))


def scan(slices: int, side: int = 32) -> AttackedScan:
    """A scan with an organ on every slice but the first, whose prediction changes most on slice 2."""
    random = np.random.default_rng(0)
    clean = random.random((slices, side, side), np.float32)
    truth = np.zeros((1, slices, side, side), bool)
    truth[:, 1:, 4:9, 4:9] = True
    attacked = truth.copy()
    attacked[:, 2] = False
    change = np.float32(8 / 255) * np.sign(clean - 0.5)
    images = clean[None], (clean + change)[None]
    masks = truth, truth, truth, attacked
    return AttackedScan(
        "scan", *images, *masks, tuple(range(slices)), slices, (2.0, 1.0), 400.0, "HU", is_stored=True, before=clean
    )


def corners(path: str) -> list[list[tuple[float, float]]]:
    """The corners of each closed line of a path of SVG that is made of one M, one l and Z."""
    lines = []
    for start, moves in re.findall(r"M([\d. ]+)l([-\d. ]+)Z", path):
        x, y = map(float, start.split())
        line, numbers = [(x, y)], [float(number) for number in re.findall(r"-?\d*\.?\d+", moves)]
        for across, down in zip(numbers[::2], numbers[1::2], strict=True):
            x, y = x + across, y + down
            line.append((x, y))
        lines.append(line)
    return lines


@pytest.mark.parametrize("share", [0.05, 0.5, 0.95])
def test_an_outline_runs_around_every_piece_of_a_mask_and_its_holes(share: float) -> None:
    mask = np.random.default_rng(0).random((23, 121)) < share
    path = outline(mask)
    lines = corners(path)
    assert len(lines) == path.count("M") == path.count("Z")
    rows, columns = np.indices(mask.shape)
    centres = np.stack((columns.ravel(), rows.ravel()), 1) + 0.5
    inside = sum(Polygon(line, closed=False).contains_points(centres).astype(int) for line in lines)
    assert ((np.asarray(inside) % 2 == 1).reshape(mask.shape) == mask).all()


def test_straight_parts_of_an_outline_are_one_step() -> None:
    assert outline(np.ones((20, 10), bool)) == "M0 0.5l.5-.5 9 0 .5 .5 0 19-.5 .5-9 0-.5-.5Z"
    assert outline(np.zeros((4, 4), bool)) == ""


def test_a_picture_holds_the_image_and_the_difference_in_steps_of_its_scale() -> None:
    image = np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8)
    assert np.abs(decoded(grey_png(image)) / 255 - image).max() <= 0.5 / 255 + 1e-6
    change = np.array([[-0.1, 0.0, 0.1]], np.float32)
    assert decoded(difference_png(change, 0.1)).tolist() == [[0, LEVELS, 2 * LEVELS]]
    assert max(decoded(grey_png(np.zeros((900, 300), np.float32))).shape) == SIDE


def test_the_slice_that_changed_most_comes_first_and_the_others_as_far_as_there_is_room() -> None:
    whole, cut, least = (picture(WORST, scan(9), ["a"], limit) for limit in (10**6, 4 * 7000, 1))
    assert [one.name for one in whole.slices] == [f"slice {n} of 9" for n in range(2, 10)]
    assert whole.slices[whole.first].name == "slice 3 of 9"
    assert 1 < len(cut.slices) < 8
    assert sum(one.size for one in cut.slices) <= 4 * 7000
    assert [one.name for one in least.slices] == ["slice 3 of 9"]
    assert {one.slices[one.first].name for one in (whole, cut, least)} == {"slice 3 of 9"}


def test_the_scale_of_the_difference_is_stated_with_the_unit_of_the_scan() -> None:
    drawn = picture(WORST, scan(4), ["a"], 10**6)
    assert "amplified 15.9 times; full colour is 0.0314 of the window, 12.5 HU" in drawn.scale
    assert drawn.aspect == 0.5  # pixels twice as high as wide
    assert drawn.scale in drawn.alt("difference")
    assert "slice 3 of 4" in drawn.alt("attacked")


def test_the_worst_scans_are_those_that_lost_most_each_under_its_worst_run(tmp_path: Path) -> None:
    dice = np.full((3, 1, 2), 0.8)
    weak, strong = dice.copy(), dice.copy()
    weak[1], strong[2], strong[1] = 0.5, 0.3, 0.6
    strong[2, 0, 1] = 0.0
    write_run(tmp_path, weak, eps=0.01, organs=("a", "b"))
    write_run(tmp_path, strong, eps=0.02, organs=("a", "b"))
    write_run(tmp_path, dice - 0.7, eps=0.03, organs=("a", "b"), role="control")
    rows = read_runs([tmp_path])
    worst = worst_of(rows, summary(rows, unit="volume", empty="one", header=HEADER), 2, empty="one")
    assert [one.scan for one in worst] == ["p02_s0", "p01_s0"]
    assert [Path(one.run).name for one in worst] == ["fgsm_bce_0.02", "fgsm_bce_0.01"]
    assert worst[1].adv == pytest.approx(0.5)
    assert worst[1].clean == pytest.approx(0.9)


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a study of whole scans that kept no images."""
    root = tmp_path_factory.mktemp("study")
    write_attacked(root, dims=3)
    return root


def text_of(root: Path, out: Path, *words: object, runs: str = "runs") -> str:
    medattack("report", root / runs, "--out", out, "--home", root / "home", "--trust", *words)
    return (out / "index.html").read_text(encoding="utf-8")


def test_a_run_without_images_is_attacked_again_and_the_pictures_are_true_to_it(study: Path, tmp_path: Path) -> None:
    text = text_of(study, tmp_path)
    assert text.count('<article class="case"') == 3
    assert "Runs that kept no images were attacked again" in text
    assert "The picture differs from the run" not in text
    assert "HU" in re.findall(r'<p class="answer">(.*?)</p>', text)[0]
    (data,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', text)
    assert all(3 <= len(one["slices"]) <= 5 for one in json.loads(data)["pictures"])  # three have the organ


def test_as_many_scans_are_shown_as_were_asked_for(study: Path, tmp_path: Path) -> None:
    assert text_of(study, tmp_path, "--worst", 1).count('<article class="case"') == 1
    assert "No pictures were asked for." in text_of(study, tmp_path, "--worst", 0)


def test_a_page_is_made_where_the_data_are_gone_and_says_so(study: Path, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(study / "runs", moved / "runs")
    stored = moved / "runs" / "study.yaml"
    stored.write_text(stored.read_text().replace(str(study / "data"), str(moved / "data")))
    medattack("report", moved / "runs", "--out", tmp_path / "out", "--home", study / "home", "--trust")
    text = (tmp_path / "out" / "index.html").read_text(encoding="utf-8")
    assert "3 scans of 3 not pictured: expected" in text
    assert "<article class" in text or "attacked on 3 patients" in text


def test_no_code_of_a_study_runs_that_was_not_trusted(study: Path, tmp_path: Path) -> None:
    medattack("report", study / "runs", "--out", tmp_path / "out", "--home", tmp_path / "home")
    text = (tmp_path / "out" / "index.html").read_text(encoding="utf-8")
    assert "3 scans of 3 not pictured: expected no code in" in text


def test_kept_images_are_shown_as_they_are(tmp_path: Path) -> None:
    write_attacked(tmp_path, "--save-adversarial", "all", "--no-control")
    text = text_of(tmp_path, tmp_path / "out")
    assert text.count('<article class="case"') == 3
    assert "attacked again" not in text
    assert "The picture differs from the run" not in text


def test_nothing_of_a_patients_header_stands_on_pages_cards_entries_or_figures(tmp_path: Path) -> None:
    """The headers hold a name, a birth date, a study date, an accession number, a physician and a hospital."""
    source = write_hospital(tmp_path / "hospital", patients=3)
    attacked(tmp_path, source, labels="liver=Liver")
    out = tmp_path / "out"
    medattack("report", tmp_path / "runs", "--out", out)
    medattack("report", tmp_path / "runs", "--card", "--entry", "--out", out)
    medattack("leaderboard", out, "--out", out / "board")
    medattack("compare", tmp_path / "runs", "--html", out / "compared.html")
    for kind in ("curves", "profile", "gallery"):
        medattack("figure", kind, tmp_path / "runs", "--out", out / f"{kind}.svg")
    files = [file for file in sorted(out.rglob("*")) if file.is_file()]
    assert sorted(file.suffix for file in files) == [*[".html"] * 4, ".json", ".md", *[".svg"] * 3]
    page = (out / "index.html").read_text(encoding="utf-8")
    pictures = [base64.b64decode(uri) for uri in re.findall(r"data:image/png;base64,([\w+/=]+)", page)]
    assert page.count('<article class="case"') == 3
    canaries = ("Doe", "Jane", "Canary", "Roe^", "19700101", "1970-01-01", "20200101", "2020-01-01", "A77", "pat1")
    for canary in (*canaries, "1.2.826"):
        for file in files:
            text = re.sub(
                r"data:image/png;base64,[\w+/=]+|<script>.*?</script>", "", file.read_text("utf-8"), flags=re.DOTALL
            )
            assert canary not in text + file.name, file.name
        assert not any(canary.encode() in picture for picture in pictures)
