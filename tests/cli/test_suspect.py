"""The model that `compare --suspect` means: its name in the table, its folder, or that of its runs."""

from pathlib import Path

import pandas as pd
import pytest

from medseg_attack.cli.side_tables import model_of
from medseg_attack.errors import InputError
from medseg_attack.storage.json_files import write_json

IDS = ("unet_small-111111", "unet_small-222222", "unet-333333")


@pytest.fixture
def rows(tmp_path: Path) -> pd.DataFrame:
    """Runs of three models; the first two have one spec, so that they are called by their ids."""
    runs = [str(tmp_path / "runs" / name / f"0{n}_trigger") for name in IDS for n in range(2)]
    for run in runs:
        Path(run).mkdir(parents=True)
    ids = [name for name in IDS for _ in range(2)]
    names = [*ids[:4], "unet", "unet"]
    return pd.DataFrame({"run": runs, "model_id": ids, "model": names, "n_taken": 1.0})


def test_a_suspect_is_named_by_its_name_its_folder_or_that_of_its_runs(rows: pd.DataFrame, tmp_path: Path) -> None:
    for number, (name, model_id) in enumerate(zip((*IDS[:2], "unet"), IDS, strict=True), start=1):
        write_json(tmp_path / name / "card.json", {"weights_sha256": str(number) * 64})
        assert model_of(name, rows) == name
        assert model_of(str(tmp_path / name), rows) == name
        assert model_of(str(tmp_path / "runs" / model_id), rows) == name
        assert model_of(str(tmp_path / "runs" / model_id / "01_trigger"), rows) == name


def test_a_suspect_of_no_model_or_of_several_is_refused_with_the_names(rows: pd.DataFrame, tmp_path: Path) -> None:
    write_json(tmp_path / "other" / "card.json", {"weights_sha256": "9" * 64})
    for suspect in ("unet_small", str(tmp_path / "other"), str(tmp_path / "nowhere")):
        with pytest.raises(InputError, match=r"its folder or that of its runs, got .*unet_small-2222"):
            model_of(suspect, rows)
    with pytest.raises(InputError, match="which is of unet_small-111111, unet_small-222222, unet; "):
        model_of(str(tmp_path / "runs"), rows)
