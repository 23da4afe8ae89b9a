"""What a finished run was made of, found again."""

from pathlib import Path

import pytest

from medseg_attack.errors import InputError
from medseg_attack.evaluation.opening import open_data_of


@pytest.mark.parametrize(
    ("is_relative", "sentence"),
    [
        (True, "got no such folder here; type this command in the folder that the attack was started in"),
        (False, "run medattack prepare"),
    ],
)
def test_a_path_that_was_typed_in_another_folder_is_told_apart(
    tmp_path: Path, is_relative: bool, sentence: str
) -> None:
    run = tmp_path / "study" / "unet" / "00_noise"
    run.mkdir(parents=True)
    (run / "run.json").write_text("{}")
    data = "away/data" if is_relative else tmp_path / "data"
    (tmp_path / "study" / "study.yaml").write_text(f"models: [unet]\ndata: {data}\n")
    with pytest.raises(InputError) as error:
        open_data_of(run)
    assert sentence in str(error.value)
