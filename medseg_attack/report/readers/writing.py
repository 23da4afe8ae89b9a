"""The folder of a study with readers.

OUT/key.json                 which picture of each trial is altered, and how; it stays with who runs the study
OUT/for_readers/index.html   the page that asks, offline
OUT/for_readers/*.png        the pictures; their names, sizes and dates say nothing
"""

import base64
import hashlib
import itertools
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from PIL import Image as Picture
from pydantic import Field

from medseg_attack.errors import InputError, plural
from medseg_attack.storage.files import file_hash, whole
from medseg_attack.storage.forms import Form
from medseg_attack.storage.json_files import digest, read_json, write_json
from medseg_attack.storage.locks import locked

if TYPE_CHECKING:
    from medseg_attack.evaluation.pictures.reader_trials import Trial

KEY, FOLDER, PAGE = "key.json", "for_readers", "index.html"
SIDES = ("left", "right")
TEMPLATES = Path(__file__).parent
POLICY = "default-src 'none'; img-src 'self' file:; style-src 'unsafe-inline'; script-src {}"


class KeyTrial(Form):
    """A trial in the key."""

    trial: int = Field(ge=1)
    kind: Literal["attack", "catch", "noise"]
    altered: Literal["left", "right"]
    patient: int = Field(ge=1)
    block: int = Field(default=1, ge=1)
    sha256: dict[str, str]


class Key(Form):
    """The key of a study."""

    study: str
    trials: list[KeyTrial] = Field(min_length=1)


def require_new(folder: Path) -> None:
    """Refuses a folder that holds something.

    Raises:
        InputError: it does, or is no folder.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"expected a new folder for the study, got {folder}, which is in use; give another --out")


def write_study(trials: "Sequence[Trial]", folder: Path, seed: int, blocks: int = 1) -> Path:
    """Writes the pictures, the page and, last, the key; returns the page.

    Args:
        seed: of the sides on which the altered pictures stand.
        blocks: parts of about as many trials each, between which the page pauses.

    Raises:
        InputError: the folder is in use, or there are more blocks than trials.
    """
    require_new(folder)
    require_blocks(blocks, len(trials))
    with locked(folder):
        try:
            return _written(trials, folder, seed, blocks)
        except BaseException:  # part of a study is of no use, and the next call would refuse a folder in use
            shutil.rmtree(folder / FOLDER, ignore_errors=True)
            raise


def _written(trials: "Sequence[Trial]", folder: Path, seed: int, blocks: int) -> Path:
    sides = np.random.default_rng((seed, 1)).integers(0, 2, len(trials))
    readers = folder / FOLDER
    readers.mkdir(parents=True, exist_ok=True)
    listed = []
    block_of = [1 + number * blocks // len(trials) for number in range(len(trials))]
    for number, (trial, side) in enumerate(zip(trials, sides, strict=True), start=1):
        pair = [trial.untouched, trial.altered] if side else [trial.altered, trial.untouched]
        files = {name: readers / f"{number:04d}_{name}.png" for name in SIDES}
        for file, pixels in zip(files.values(), pair, strict=True):
            with whole(file) as part:  # uncompressed: noise would make the altered file the longer one
                Picture.fromarray(pixels).save(part, format="png", compress_level=0)
        hashes = {name: file_hash(file) for name, file in files.items()}
        facts = {"trial": number, "kind": trial.kind, "altered": SIDES[side], "patient": trial.patient}
        listed.append({**facts, "block": block_of[number - 1], "sha256": hashes})
    study = digest([each["sha256"] for each in listed])[:12]
    with whole(readers / PAGE) as part:
        part.write_text(_page(study, block_of), encoding="utf-8")
    write_json(folder / KEY, {"study": study, "trials": listed})
    return readers / PAGE


def require_blocks(blocks: int, trials: int) -> None:
    """Refuses more blocks than trials, and fewer than one."""
    if not 1 <= blocks <= max(trials, 1):
        raise InputError(f"expected 1 to {trials} blocks of {plural(trials, 'trial')}, got {blocks}; lower --blocks")


def _page(study: str, block_of: Sequence[int]) -> str:
    """The page that shows the trials one after the other and saves the answers; it asks no network for anything.

    Args:
        block_of: the block of each trial; the page pauses after the last trial of each but the last.
    """
    pauses = [n for n, (block, after) in enumerate(itertools.pairwise(block_of), start=1) if block != after]
    facts = json.dumps({"study": study, "trials": len(block_of), "pauses": pauses})
    script = (TEMPLATES / "page.js").read_text(encoding="utf-8").replace('"FACTS"', facts)
    hashed = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    page = (TEMPLATES / "page.html").read_text(encoding="utf-8")
    return page.replace("POLICY", POLICY.format(f"'sha256-{hashed}'")).replace("SCRIPT", script)


def read_key(folder: Path) -> Key:
    """The key of a study.

    Raises:
        InputError: there is none, or a field of it is not what it should be.
    """
    return Key.model_validate(read_json(folder / KEY, Key))
