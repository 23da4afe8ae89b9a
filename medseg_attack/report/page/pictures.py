"""Pictures of the worst cases: slices as PNG inside the page, outlines as vectors above them. No torch in here."""

import base64
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from medseg_attack.errors import plural
from medseg_attack.report.sheet import number
from medseg_attack.report.tables.summaries import budget
from medseg_attack.stats.scores import pooled, scored

if TYPE_CHECKING:
    from medseg_attack.evaluation.pictures.attacked_scans import AttackedScan
    from medseg_attack.metrics.empty import Empty

SIDE = 256  # pixels of a picture's longer side, at most
BYTES = 9_000_000  # of all pictures of a page: a mail with it still passes
LEVELS = 15  # of a difference, on either side of 0; so few make a small file
ENDS = (np.array([33, 102, 172]), np.array([245, 245, 245]), np.array([178, 88, 6]))  # less, the same, more
WORDS = {"clean": "untouched", "attacked": "under attack", "difference": "the difference between the two"}

Pixels = NDArray[np.float32]
Masks = NDArray[np.bool_]


@dataclass(frozen=True)
class WorstScan:
    """A scan and the run that harmed it most.

    Attributes:
        run: its folder; `name` is what tables call it.
        clean, adv: mean Dice over organs.
        lost: organs that were met on the clean image, and of which nothing is predicted under attack.
        n_adv: predicted pixels under attack, by organ.
    """

    run: str
    name: str
    scan: str
    patient: str
    clean: float
    adv: float
    lost: Sequence[str]
    n_adv: Mapping[str, int]


def worst_scans(rows: pd.DataFrame, summary: pd.DataFrame, n: int, *, empty: "Empty") -> list[WorstScan]:
    """The scans that lost most Dice on the mean over organs, each under the attack that took most of it.

    Args:
        summary: of `stats.scores.summary`.
    """
    attacks = summary[summary["role"] == "attack"].set_index("run")
    cases = scored(pooled(rows[rows["run"].isin(attacks.index)], "volume"), empty)
    if cases.empty:
        return []
    dice = cases.groupby(["run", "group", "unit"], sort=False)[["dice_clean", "dice_adv"]].mean().reset_index()
    dice = dice.assign(drop=dice["dice_clean"] - dice["dice_adv"]).sort_values("drop", ascending=False, kind="stable")
    result = []
    for _, row in dice.drop_duplicates("unit").head(n).iterrows():
        of_scan = cases[(cases["run"] == row["run"]) & (cases["unit"] == row["unit"])]
        is_lost = (of_scan["hit_clean"] > 0) & (of_scan["n_adv"] == 0)
        run = attacks.loc[row["run"]]
        words = [f"{run['model']}:", str(run["attack"]), str(run["loss"]), budget(run)]
        result.append(
            WorstScan(
                run=str(row["run"]),
                name=" ".join(filter(None, words)),
                scan=str(row["unit"]),
                patient=str(row["group"]),
                clean=float(row["dice_clean"]),
                adv=float(row["dice_adv"]),
                lost=[str(organ) for organ in of_scan.loc[is_lost, "cls"]],
                n_adv=dict(zip(of_scan["cls"], of_scan["n_adv"], strict=True)),
            )
        )
    return result


@dataclass(frozen=True)
class Slice:
    """One slice: three pictures as data URIs, and outlines by organ as paths of SVG."""

    name: str
    clean: str
    attacked: str
    difference: str
    outlines: Mapping[str, Mapping[str, str]]

    @property
    def size(self) -> int:
        """Bytes in the page."""
        paths = sum(len(path) for of_view in self.outlines.values() for path in of_view.values())
        return len(self.clean) + len(self.attacked) + len(self.difference) + paths


@dataclass(frozen=True)
class Picture:
    """A scan on the page.

    Attributes:
        width, height: of a slice in pixels of the scan.
        aspect: width of a slice over its height, in mm.
        scale: how far the difference is amplified, in words.
        remark: what differs from the run; "" if nothing does.
        is_stored: whether the run kept the attacked image.
        first: place of the slice with most pixels changed, which is shown first.
    """

    scan: WorstScan
    slices: Sequence[Slice]
    first: int
    width: int
    height: int
    aspect: float
    scale: str
    remark: str
    is_stored: bool

    @property
    def title(self) -> str:
        """The scan, and its patient where the scan's name is another."""
        patient = self.scan.patient
        return self.scan.scan if patient == self.scan.scan else f"{self.scan.scan} of {patient}"

    def alt(self, view: str) -> str:
        """The text in place of one of its pictures."""
        text = f"{self.title}, {self.slices[self.first].name}, {WORDS[view]}"
        if view == "difference":
            return f"{text}: {self.scale}"
        dice = self.scan.clean if view == "clean" else self.scan.adv
        return f"{text}, with the outlines of truth and prediction; Dice of the scan {number(dice)}"


def picture(worst: WorstScan, scan: "AttackedScan", organs: Sequence[str], limit: int) -> Picture:
    """The picture of a scan, with as many slices as `limit` bytes hold, at least the one with most pixels changed.

    Args:
        organs: names of the scored classes, in their order.
    """
    change = scan.attacked - scan.clean
    most = max(float(np.abs(change).max()), 1e-6)
    moved = (scan.prediction != scan.prediction_attacked).sum((0, 2, 3))
    masks = (scan.truth, scan.prediction, scan.prediction_attacked)
    present = sum(mask.any((0, 2, 3)).astype(int) for mask in masks)
    main = int(moved.argmax())
    first = _slice(scan, main, organs, most)
    room = max(1, limit // (first.size + 1))
    candidates = [int(n) for n in np.flatnonzero(present) if n != main]
    kept = candidates if len(candidates) < room else candidates[:: -(-len(candidates) // max(1, room - 1))][: room - 1]
    places = sorted([main, *kept])
    slices = [first if n == main else _slice(scan, n, organs, most) for n in places]
    height, width = scan.clean.shape[1:]
    row_mm, column_mm = scan.pixel_mm
    return Picture(
        worst,
        slices,
        places.index(main),
        width,
        height,
        width * column_mm / (height * row_mm),
        _scale(most, scan),
        _remark(worst, scan, organs),
        scan.is_stored,
    )


def _scale(most: float, scan: "AttackedScan") -> str:
    native = f", {most * scan.width:.3g} {scan.unit}" if scan.unit and scan.width == scan.width else ""
    return f"amplified {0.5 / most:.3g} times; full colour is {most:.3g} of the window{native}; blue less, brown more"


def _remark(worst: WorstScan, scan: "AttackedScan", organs: Sequence[str]) -> str:
    """The difference between the picture and the run in a sentence; "" if the model answers the same in both."""
    pixels = dict(zip(organs, scan.prediction_attacked.sum((1, 2, 3)).tolist(), strict=True))
    difference = sum(abs(pixels[organ] - worst.n_adv.get(organ, 0)) for organ in organs)
    return f"The picture differs from the run in {plural(difference, 'predicted pixel')}." if difference else ""


def _slice(scan: "AttackedScan", n: int, organs: Sequence[str], most: float) -> Slice:
    def outlines(masks: Masks) -> dict[str, str]:
        each = {organ: outline(mask[n]) for organ, mask in zip(organs, masks, strict=True)}
        return {organ: path for organ, path in each.items() if path}

    return Slice(
        f"slice {scan.indices[n] + 1} of {scan.n_slices}",
        grey_png(scan.clean[n]),
        grey_png(scan.attacked[n]),
        difference_png(scan.attacked[n] - scan.clean[n], most),
        {
            "truth_clean": outlines(scan.truth),
            "truth_attacked": outlines(scan.truth_attacked),
            "clean": outlines(scan.prediction),
            "attacked": outlines(scan.prediction_attacked),
        },
    )


def outline(mask: Masks) -> str:
    """The border of a mask as a path of SVG, in pixels of the mask; "" of an empty one.

    >>> outline(np.array([[False, False], [False, True]]))
    'M1 1.5l.5-.5 .5 .5-.5 .5Z'
    """
    if not mask.any():
        return ""
    from contourpy import contour_generator

    lines = contour_generator(z=np.pad(mask, 1).astype(float)).lines(0.5)
    return "".join(_path(np.asarray(line) - 0.5) for line in lines)


def _path(line: NDArray[np.float64]) -> str:
    """A closed line as a path of steps, one for each straight part: a ragged mask has thousands of them."""
    steps = np.diff(line, axis=0)
    starts = np.flatnonzero(np.append(True, (steps[1:] != steps[:-1]).any(1)))
    parts = np.add.reduceat(steps, starts)[:-1].ravel().tolist()  # Z draws the last
    x, y = line[0].tolist()
    moves = re.sub(r"(?<!\d)0[.]", ".", " ".join(f"{part:g}" for part in parts)).replace(" -", "-")
    return f"M{x:g} {y:g}l{moves}Z"


def grey_png(image: Pixels) -> str:
    """An image in [0, 1] as a data URI."""
    from PIL import Image

    return _data_uri(Image.fromarray(np.round(image.clip(0, 1) * 255).astype(np.uint8)), smooth=True)


def difference_png(change: Pixels, most: float) -> str:
    """A difference as a data URI: blue where the image has less, brown where it has more, in steps of `most` / 15."""
    from PIL import Image

    levels = np.round(change / most * LEVELS).clip(-LEVELS, LEVELS).astype(int) + LEVELS
    image = Image.fromarray(levels.astype(np.uint8), mode="P")
    image.putpalette(np.concatenate([_colour(level) for level in range(-LEVELS, LEVELS + 1)]).tolist())
    return _data_uri(image, smooth=False)


def _colour(level: int) -> NDArray[np.uint8]:
    less, same, more = ENDS
    share = abs(level) / LEVELS
    colour: NDArray[np.uint8] = np.round(same + share * ((more if level > 0 else less) - same)).astype(np.uint8)
    return colour


def _data_uri(image: Any, *, smooth: bool) -> str:
    from PIL import Image

    if max(image.size) > SIDE:
        share = SIDE / max(image.size)
        size = tuple(max(1, round(side * share)) for side in image.size)
        image = image.resize(size, Image.Resampling.LANCZOS if smooth else Image.Resampling.NEAREST)
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
