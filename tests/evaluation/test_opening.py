"""What a finished run was made of, found again."""

from pathlib import Path

import pytest

from medseg_attack.errors import InputError
from medseg_attack.evaluation import opening
from medseg_attack.evaluation.opening import open_data_of
from medseg_attack.models.model_ref import ModelRef


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


def ref(folder: str, label: str = "unet") -> ModelRef:
    return ModelRef(folder, {"label": label})


def test_labels_that_models_share_are_followed_by_what_tells_their_folders_apart(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(opening, "is_checkpoint", lambda path: path.parts[0] == "models")
    refs = [ref("models/a"), ref("models/b"), ref("models/c/x"), ref("models/d/x"), ref("own(net)"), ref("e", "alone")]
    assert [each.label for each in opening.with_distinct_labels(refs)] == [
        "unet (a)",
        "unet (b)",
        "unet (models/c/x)",
        "unet (models/d/x)",
        "unet (own(net))",
        "alone",
    ]


def test_members_of_a_model_are_found_by_their_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def newest(workspace: Path, label: str) -> Path:
        if label not in ("unet", "attention"):
            raise InputError(f"expected a trained {label}, got none; train it")
        return workspace / "models" / label

    monkeypatch.setattr(opening, "newest_model", newest)
    monkeypatch.setattr(opening, "is_checkpoint", lambda path: path.parent == tmp_path / "models")
    spec = opening.find_model(tmp_path, "ensemble(['unet', 'attention'], fuse='votes')")
    first, second = (str(tmp_path / "models" / name) for name in ("unet", "attention"))
    assert spec == f"ensemble(models=['{first}', '{second}'], fuse='votes')" or first in spec
    assert spec.count(str(tmp_path)) == 2
    assert "votes" in spec
    assert opening.find_model(tmp_path, "unet") == first
    assert opening.surrogate_folder(tmp_path, "unet") == first
    assert opening.surrogate_folder(tmp_path, "some/where") == "some/where"
    with pytest.raises(InputError, match="expected a trained nothing"):
        opening.find_model(tmp_path, "ensemble(['unet', 'nothing'])")
