"""Single changed bytes in arrays, rows and stored images: found by every command that looks at them, and healed."""

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from helpers.command import medattack
from helpers.dicoms import tiny_model
from helpers.runs import dice_of, write_run
from helpers.sources import LABELS, SPECS, WRITERS, opened

from medseg_attack.data.prepared.reading import open_prepared
from medseg_attack.data.prepared.writing import prepare
from medseg_attack.errors import InputError
from medseg_attack.runs.folder import RunFolder


def flip(path: Path, place: int, bit: int = 0) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1 << bit
    path.write_bytes(content)


@pytest.mark.parametrize("form", WRITERS)
def test_a_flipped_bit_in_an_array_is_found_and_healed(form: str, tmp_path: Path) -> None:
    root = WRITERS[form](tmp_path / "source")
    list(prepare(opened(form, root), tmp_path / "data"))
    data = open_prepared(tmp_path / "data")
    assert data.damages(data.scans) == []
    for folder in ("images", "labels"):
        path = max((tmp_path / "data" / folder).glob("*.npy"))
        whole = path.read_bytes()
        for place in (len(whole) - 1, len(whole) // 2 + 40):
            flip(path, place)
            assert [path.name in text for text in data.damages(data.scans)] == [True]
            assert sum(not scan.reused for scan in prepare(opened(form, root), tmp_path / "data")) == 1
            assert path.read_bytes() == whole


def test_a_changed_window_in_a_record_is_found(tmp_path: Path) -> None:
    root = WRITERS["folder"](tmp_path / "source")
    list(prepare(opened("folder", root), tmp_path / "data"))
    path = min((tmp_path / "data" / "scans").glob("*.json"))
    path.write_text(json.dumps(json.loads(path.read_text()) | {"spacing_mm": [0.0, 2.0, 1.0]}))
    data = open_prepared(tmp_path / "data")
    assert len(data.damages(data.scans)) == 1


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("damage")
    WRITERS["uw_madison"](root / "source")
    medattack("prepare", root / "source", "--format", SPECS["uw_madison"], "--out", root / "data")
    tiny_model(root / "model", open_prepared(root / "data"))
    medattack(*attack(root), "--out", root / "out")
    return root


def attack(root: Path) -> tuple[object, ...]:
    words = "attack", "--data", root / "data", "-m", root / "model", "--split", "all", "--no-control", "--no-checks"
    return *words, "--save-adversarial", "all"


def test_doctor_and_verify_find_a_flipped_pixel(workspace: Path) -> None:
    assert LABELS  # every format has its labels
    path = max((workspace / "data" / "images").glob("*.npy"))
    medattack("doctor", "--data", workspace / "data")
    medattack("verify", workspace / "out")
    flip(path, 300)
    assert path.name in medattack("doctor", "--data", workspace / "data", code=1).stderr.replace("\n", "")
    assert path.name in medattack("verify", workspace / "out", code=1).stdout.replace("\n", "")
    flip(path, 300)
    medattack("verify", workspace / "out")


def test_a_flipped_bit_in_rows_is_found_or_changes_nothing(tmp_path: Path) -> None:
    run = RunFolder(write_run(tmp_path, dice_of(0, 4)))
    path, rows = run.part(0), run.rows()
    whole, accepted = path.read_bytes(), 0
    rng = np.random.default_rng(0)
    for place in rng.choice(len(whole), 150, replace=False):
        flip(path, int(place), int(rng.integers(8)))
        try:
            read = run.rows()
        except InputError as error:
            assert path.name in str(error)  # noqa: PT017
        else:
            accepted += 1
            assert read.equals(rows)
        path.write_bytes(whole)
    assert accepted < 140  # most bytes of so small a file describe it


@pytest.mark.parametrize("kind", ["rows", "images"])
def test_damaged_rows_and_stored_images_are_written_again(workspace: Path, tmp_path: Path, kind: str) -> None:
    out = shutil.copytree(workspace / "out", tmp_path / "out")
    (path,) = out.rglob("00000.parquet" if kind == "rows" else "00000.safetensors")
    whole, rows = path.read_bytes(), pq.read_table(min(out.rglob("00000.parquet"))).to_pydict()
    flip(path, len(whole) // 3)
    medattack(*attack(workspace), "--out", out)
    again = pq.read_table(min(out.rglob("00000.parquet"))).to_pydict()
    assert repr(again) == repr(rows)
    assert kind == "rows" or path.read_bytes() == whole
    medattack("verify", out)
