"""Pairs of pictures for human readers: a slice of a run untouched and altered, in 8 bits."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from medseg_attack.errors import InputError, plural
from medseg_attack.evaluation.pictures.attacked_scans import AttackedScan, Pixels, attacked_scans
from medseg_attack.runs.folder import RunFolder
from medseg_attack.runs.stored_files import read_header
from medseg_attack.runs.stored_specs import role_of

Kind: TypeAlias = Literal["attack", "catch", "noise"]
Picture: TypeAlias = NDArray[np.uint8]  # (rows, columns), in colour (rows, columns, 3)
CATCH = 8  # times the change: a reader who looks sees it
CONTROL_SHARE = 0.1  # of the trials, of either kind of control


@dataclass(frozen=True, eq=False)
class Trial:
    """A pair of pictures of one slice, of which a reader says which is altered.

    Attributes:
        kind: attack: what the run did. catch: 8 times that change. noise: the values of that change in random places.
        patient: number of the patient, from 1; no name.
        untouched, altered: the pictures.
    """

    kind: Kind
    patient: int
    untouched: Picture
    altered: Picture


def reader_trials(run: Path, n: int, seed: int, device: torch.device) -> list[Trial]:
    """Trials in random order, each on another slice. All scans get equally many, but for those with too few slices.

    A slice is used if its truth, or its segmentation under attack, holds something.

    Raises:
        InputError: the run is of no attack, its data or model are gone, or it has too few slices.
    """
    header = read_header(run)
    if role_of(header) != "attack":
        raise InputError(f"expected a run of an attack in {run}, got one of {header['attack']}; give another run")
    rng = np.random.default_rng(seed)
    kinds = _kinds(n, rng)
    patients = _scans(run, n, rng)
    names = sorted(set(patients.values()))
    numbers = dict(zip(names, rng.permutation(len(names)) + 1, strict=True))
    trials: list[Trial] = []
    for index, (name, patient) in enumerate(patients.items()):
        share = -(-(n - len(trials)) // (len(patients) - index))
        for scan in attacked_scans(run, [name], device):
            usable = np.flatnonzero(scan.truth.any((0, 2, 3)) | scan.prediction_attacked.any((0, 2, 3)))
            for place in rng.permutation(usable)[:share]:
                pictures = _pictures(kinds[len(trials)], *_shown(scan, int(place)), rng)
                trials.append(Trial(kinds[len(trials)], int(numbers[patient]), *pictures))
    if len(trials) < n:
        raise InputError(
            f"expected {plural(n, 'slice')} with a segmentation in {run}, got {len(trials)}; give "
            f"--trials {len(trials)} or a run of more scans"
        )
    return [trials[place] for place in rng.permutation(n)]


def _kinds(n: int, rng: np.random.Generator) -> list[Kind]:
    """The kind of each trial: a tenth of either control, at least one."""
    n_control = max(1, round(CONTROL_SHARE * n))
    numbers: dict[Kind, int] = {"catch": n_control, "noise": n_control, "attack": n - 2 * n_control}
    kinds = [kind for kind, number in numbers.items() for _ in range(number)]
    return [kinds[place] for place in rng.permutation(n)]


def _scans(run: Path, n: int, rng: np.random.Generator) -> dict[str, str]:
    """The patient of each scan that is shown, at most n scans of as many patients as possible.

    Scans of few slices come first: what they lack, others make up for.
    """
    rows = RunFolder(run).rows()
    slices = rows[(rows["n_target"] > 0) | (rows["n_adv"] > 0)].groupby("volume")["case"].nunique()
    scans = rows.drop_duplicates("volume").sample(frac=1, random_state=rng)
    scans = scans.assign(turn=scans.groupby("group").cumcount(), slices=scans["volume"].map(slices))
    chosen = scans.sort_values("turn", kind="stable").head(n).sort_values("slices", kind="stable")
    return dict(zip(chosen["volume"].astype(str), chosen["group"].astype(str), strict=True))


def _shown(scan: AttackedScan, place: int) -> tuple[Pixels, Pixels]:
    """The channels of a slice that a picture has: three in colour, otherwise the first."""
    channels = slice(None) if scan.is_colour else slice(0, 1)
    return scan.clean_channels[channels, place], scan.attacked_channels[channels, place]


def _pictures(kind: Kind, clean: Pixels, attacked: Pixels, rng: np.random.Generator) -> tuple[Picture, Picture]:
    """The untouched and the altered picture of a slice, (channels, rows, columns) in [0, 1]."""
    change = attacked - clean
    if kind == "catch":
        change = CATCH * change
    if kind == "noise":
        flat = change.reshape(len(change), -1)
        change = flat[:, rng.permutation(flat.shape[1])].reshape(change.shape)
    return _in_8_bits(clean), _in_8_bits(clean + change)


def _in_8_bits(image: Pixels) -> Picture:
    levels: Picture = np.rint(255 * np.clip(image, 0, 1)).astype(np.uint8)
    return levels[0] if len(levels) == 1 else np.moveaxis(levels, 0, -1)
