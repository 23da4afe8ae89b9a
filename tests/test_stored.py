"""What an earlier version stored is still read: prepared data, a checkpoint's card, runs and the table of them."""

import json
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from helpers.command import medattack
from safetensors.torch import save_file

from medseg_attack.data.prepared.reading import open_prepared
from medseg_attack.models import checkpoints
from medseg_attack.registry import build

STORED = Path(__file__).parent / "stored"


@pytest.fixture
def stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy, and the working folder: the runs name their data by a relative path."""
    shutil.copytree(STORED, tmp_path / "stored")
    monkeypatch.chdir(tmp_path / "stored")
    return tmp_path / "stored"


def test_prepared_data_is_read(stored: Path) -> None:
    data = open_prepared(stored / "data")
    assert data.task.classes == ("large_bowel", "small_bowel", "stomach")
    cases = [data.read(ref) for ref in data.refs("all")]
    assert len(cases) == 10
    assert all(case.image.shape == (1, 32, 32) and case.target.shape == (3, 32, 32) for case in cases)
    assert sum(int(case.target.sum()) for case in cases) == rows_of(stored)["n_target"].sum()


def rows_of(stored: Path) -> pd.DataFrame:
    """The rows of one run, which say how many pixels each organ has."""
    return pd.read_parquet(next(stored.glob("run/*/01_fgsm*/parts/*.parquet")))


def test_a_checkpoint_is_read(stored: Path) -> None:
    """Its card is the stored one; weights are none of this project's files, so that all of them are 0.01 here."""
    data, folder = open_prepared(stored / "data"), stored / "model"
    model = build("unet_small", "model")(data.task)
    weights = {name: torch.full_like(value, 0.01) for name, value in model.state_dict().items()}
    save_file({name: tensor.contiguous() for name, tensor in weights.items()}, folder / "weights.safetensors")
    card = json.loads((folder / "card.json").read_text(encoding="utf-8"))
    card["weights_sha256"] = checkpoints.fingerprint_of(weights)
    (folder / "card.json").write_text(json.dumps(card), encoding="utf-8")
    read = checkpoints.load(folder, data.task, "cpu")
    assert all(torch.equal(value, torch.full_like(value, 0.01)) for value in read.state_dict().values())


def test_runs_give_the_table_that_they_gave(stored: Path) -> None:
    before = json.loads((stored / "compare.json").read_text(encoding="utf-8"))
    _agree(before, json.loads(medattack("compare", "run", "--by", "attack,eps", "--json").stdout))


def _agree(before: Any, now: Any) -> None:
    """Every number and word of before is there; there may be more beside it. Intervals had another method."""
    if isinstance(before, dict):
        for name, value in before.items():
            if name in ("low", "high"):
                assert now["low"] <= now["mean_adv"] <= now["high"]
            else:
                _agree(value, now[name])
    elif isinstance(before, list):
        assert len(before) == len(now)
        for old, new in zip(before, now, strict=True):
            _agree(old, new)
    else:
        assert now == (pytest.approx(before, rel=1e-9, nan_ok=True) if isinstance(before, float) else before)
