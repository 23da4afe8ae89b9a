"""BibTeX of runs: the data set's, the attacks', the models', each once; what is unknown is named."""

import json
import re
from pathlib import Path

import pytest
import yaml
from helpers.command import medattack
from helpers.runs import dice_of, edit, write_run

from medseg_attack import registry
from medseg_attack.registry.table import entries
from medseg_attack.report.citing import bibliography, references


def run_of(root: Path, attack: str, *, data: str = "acdc", model: str = "unet", defences: tuple[str, ...] = ()) -> Path:
    """A run whose study names a prepared data set and a trained model."""
    run = write_run(root, dice_of(0, 4), config={"attack": attack})
    edit(run / "run.json", attack=attack)
    for folder, files in {
        "data": {"options.json": {"format": data, "source": "x"}},
        "model": {"card.json": {"spec": model}, "options.json": {"defences": list(defences)}},
    }.items():
        (root / folder).mkdir()
        for name, content in files.items():
            (root / folder / name).write_text(json.dumps(content))
    study = {"data": str(root / "data"), "models": [str(root / "model")]}
    (run.parent.parent / "study.yaml").write_text(yaml.safe_dump(study))
    return run


def keys(text: str) -> list[str]:
    return re.findall(r"^@\w+\{([^,]+),", text, re.M)


def test_data_attack_model_and_defence_are_cited_each_once(tmp_path: Path) -> None:
    attack = "best_of((pgd(ball=linf(eps=4/255)), apgd))"
    run = run_of(tmp_path, attack, model="unet_small", defences=("trades(beta=6)",))
    text, _ = bibliography([run, run])
    assert {"medattack", "bernard2018acdc", "madry2017towards", "croce2020autoattack"} <= {*keys(text)}
    assert {"zhang2019trades", "cardoso2022monai", "ronneberger2015unet"} <= {*keys(text)}
    assert len(keys(text)) == len(set(keys(text)))
    assert "keywords" not in text


def test_a_budget_with_a_unit_is_no_obstacle(tmp_path: Path) -> None:
    run = run_of(tmp_path, "pgd(ball=linf(eps=5HU), steps=1)")  # as it is stored
    edit(run / "config.json", budget="5HU")
    edit(run / "run.json", attack="fgsm 5HU within ring:10mm", loss="focal")
    cited = keys(bibliography([run])[0])
    assert {"goodfellow2014explaining", "arxiv1708.02002"} <= {*cited}
    assert "madry2017towards" not in cited


def test_a_paper_without_its_title_is_cited_by_its_number(tmp_path: Path) -> None:
    text, _ = bibliography([run_of(tmp_path, "asma")])
    assert "@misc{arxiv1907.13124," in text
    assert "url = {https://arxiv.org/abs/1907.13124}" in text
    assert "year = {2019}" in text


def test_the_command_prints_bibtex_and_names_what_is_unknown(tmp_path: Path) -> None:
    result = medattack("cite", run_of(tmp_path, "noise", data="folder"))
    assert result.stdout.startswith("@software{medattack,")
    assert "nothing is known to cite for folder;" in result.stderr


def test_a_folder_that_is_gone_is_named(tmp_path: Path) -> None:
    run = run_of(tmp_path, "pgd")
    for file in [*(tmp_path / "data").iterdir(), *(tmp_path / "model").iterdir()]:
        file.unlink()
    text, uncited = bibliography([run])
    assert keys(text) == ["medattack", "madry2017towards"]
    assert uncited == [str(tmp_path / "data"), str(tmp_path / "model")]


@pytest.mark.parametrize("reference", references(), ids=lambda reference: reference.key)
def test_every_entry_is_whole_and_of_something_registered(reference) -> None:
    assert reference.text.count("{") == reference.text.count("}")
    assert {"author", "title", "year"} <= {*re.findall(r"^  (\w+) = ", reference.text, re.M)}
    registry.names("attack")
    assert set(reference.names) <= {*entries}
    papers = " ".join(f"{entry.paper} {entry.doc}" for entry in entries.values())
    assert reference.names or reference.eprint in papers


def test_keys_and_numbers_are_distinct() -> None:
    numbers = [reference.eprint for reference in references() if reference.eprint]
    assert len(numbers) == len(set(numbers))
    assert len({reference.key for reference in references()}) == len(references())


def test_the_citation_file_says_the_version_of_the_package() -> None:
    import medseg_attack

    file = Path(medseg_attack.__file__).parents[1] / "CITATION.cff"
    content = yaml.safe_load(file.read_text())
    assert content["version"] == medseg_attack.__version__
    assert {"cff-version", "message", "title", "authors", "license"} <= {*content}
