"""JSON and YAML that is damaged, hostile or of another shape: one sentence that names the file and the field."""

import json
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers.command import medattack

from medseg_attack.data.prepared.reading import open_prepared
from medseg_attack.errors import InputError
from medseg_attack.models.checkpoints import read_card
from medseg_attack.report.tables.comparison import compare_sheet
from medseg_attack.runs.pairs import pairs
from medseg_attack.runs.reading import read_runs
from medseg_attack.runs.rows import HEADER
from medseg_attack.runs.stored_files import read_config, read_header, read_stored_study
from medseg_attack.runs.study import read_study
from medseg_attack.stats.scores import summary
from medseg_attack.storage.json_files import read_json
from medseg_attack.storage.yaml_files import read_yaml

STORED = Path(__file__).parents[1] / "stored"
BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)
JSON = {
    "deep": '{"a": ' + "[" * 100_000 + "]" * 100_000 + "}",
    "digits": '{"a": ' + "9" * 5000 + "}",
    "nan": '{"a": NaN}',
    "infinite": '{"a": 1e999}',
    "cut": '{"a": [1, 2',
    "a list": "[1]",
    "no text": b"\xff\xfe\x00{",
    "empty": "",
    "zeros": b"\0" * 300,
}
YAML = {
    "bomb": BOMB,
    "alias in models": "models: &m [unet]\nattacks: *m\n",
    "recursive": "models: &m [*m]\n",
    "deep": "models: " + "[" * 5000 + "]" * 5000,
    "digits": "seed: " + "9" * 5000,
    "date": "models: 2024-99-99",
    "tag": "models: !!python/object/apply:os.mkdir [sprung]",
    "unhashable": "? [a]\n: b",
    "number as field": "1: 2",
    "cut": "models: [unet",
    "no text": b"\xff\xfe\x00{",
    "zeros": b"\0" * 300,
    "a list": "[a]",
    "field twice": "models: [unet]\nattacks: [fgsm]\nattacks: [pgd]\n",
}


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


@pytest.mark.parametrize("kind", JSON)
def test_json_is_refused_in_a_sentence(kind: str, tmp_path: Path) -> None:
    file = write(tmp_path / "card.json", JSON[kind])
    with pytest.raises(InputError, match=r"expected a JSON .* (at|in) .*card\.json, got .*; ") as refusal:
        read_json(file)
    assert len(str(refusal.value)) < len(str(file)) + 300


@pytest.mark.parametrize("kind", YAML)
def test_a_study_file_is_refused_in_a_sentence(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    start = time.monotonic()
    write(Path("study.yaml"), YAML[kind])
    sentence = medattack("attack", "--config", "study.yaml", code=2).stderr
    assert "study.yaml" in sentence
    assert len(sentence) < 500
    assert time.monotonic() - start < 5
    assert not Path("sprung").exists()


def test_a_field_that_stands_twice_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"got 'the field 'attacks' twice'; correct it"):
        read_yaml(write(tmp_path / "study.yaml", YAML["field twice"]))


def test_an_empty_study_file_has_no_fields(tmp_path: Path) -> None:
    assert read_yaml(write(tmp_path / "study.yaml", "# nothing yet\n")) == {}
    with pytest.raises(InputError, match="expected models, got none"):
        read_study(tmp_path / "study.yaml", {})


# every file that is written here and read again


@pytest.fixture
def stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(STORED, tmp_path / "stored")
    monkeypatch.chdir(tmp_path / "stored")
    return tmp_path / "stored"


def the_run(root: Path) -> Path:
    return next(root.glob("run/*/01_fgsm*"))


FILES: dict[str, tuple[Callable[[Path], Path], Callable[[Path], Any]]] = {
    "card": (lambda root: root / "model/card.json", lambda root: read_card(root / "model")),
    "header": (lambda root: the_run(root) / "run.json", lambda root: read_header(the_run(root))),
    "config": (lambda root: the_run(root) / "config.json", lambda root: read_config(the_run(root))),
    "study": (lambda root: root / "run/study.yaml", lambda root: read_stored_study(root / "run")),
    "data": (lambda root: root / "data/dataset.json", lambda root: open_prepared(root / "data")),
    "record": (lambda root: next(root.glob("data/scans/*.json")), lambda root: open_prepared(root / "data").records),
}
OTHERS: tuple[Any, ...] = (None, 7, -1, 10**400, 0.5, "text", [], [1], {}, {"a": [None]}, True)


@pytest.mark.parametrize("kind", FILES)
def test_a_field_of_another_type_is_named(kind: str, stored: Path) -> None:
    """Each field of each file in turn: absent, and with values of all types; what is not refused fits."""
    file, read = FILES[kind][0](stored), FILES[kind][1]
    text = file.read_text(encoding="utf-8")
    content = yaml.safe_load(text) if file.suffix == ".yaml" else json.loads(text)
    write_again = yaml.safe_dump if file.suffix == ".yaml" else json.dumps
    read(stored)
    sentences = []
    for field in content:
        for other in OTHERS:
            file.write_text(write_again(content | {field: other}), encoding="utf-8")
            sentences.append((field, other, refusal(read, stored)))
        file.write_text(write_again({key: old for key, old in content.items() if key != field}), encoding="utf-8")
        assert re.search(rf"^$|'{field}'.*{file.name}", refusal(read, stored))
    assert [one for one in sentences if not re.search(rf"^$|{file.name}", one[2])] == []
    assert [
        one for one in sentences if one[1] != 10**400 and one[0] not in one[2] and not re.search("^$|the scan", one[2])
    ] == []
    assert len([text for _, _, text in sentences if text]) > 2 * len(OTHERS)


def test_prepared_data_whose_options_lack_the_source_are_refused(stored: Path) -> None:
    file = stored / "data/options.json"
    content = json.loads(file.read_text(encoding="utf-8"))
    del content["source"]
    file.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(InputError, match=r"'source'.*options\.json"):
        open_prepared(stored / "data")


def refusal(read: Callable[..., Any], *args: Any) -> str:
    """The sentence of a reader; "" of one that takes what it reads."""
    try:
        read(*args)
    except InputError as error:
        return str(error).replace("\n", " ")
    return ""


def tabulate(root: Path) -> None:
    """What `compare` makes of all runs."""
    rows = read_runs([root])
    table = summary(rows, unit="volume", empty="one", header=HEADER)
    compare_sheet(table, ["model"], sort="by", unit="volume", empty="one", costs=False)


def test_runs_with_wrong_fields_end_no_command_in_a_traceback(stored: Path) -> None:
    run = the_run(stored)
    for name, readers in (("run.json", (tabulate,)), ("config.json", (read_runs_of, pairs_of))):
        text = (run / name).read_text(encoding="utf-8")
        content = json.loads(text)
        for read in readers:
            read(stored / "run")
        for field in content:
            for other in (None, "text", [1]) if name == "run.json" else OTHERS:
                (run / name).write_text(json.dumps(content | {field: other}), encoding="utf-8")
                for read in readers:
                    assert len(refusal(read, stored / "run")) < 1500
        (run / name).write_text(text, encoding="utf-8")


def read_runs_of(root: Path) -> None:
    read_runs([root])


def pairs_of(root: Path) -> None:
    pairs([root], root)


@pytest.mark.parametrize("read", [read_json, read_yaml])
def test_a_mark_of_the_order_of_bytes_is_no_damage(read: Callable[[Path], Any], tmp_path: Path) -> None:
    """Editors of Windows write one in front of UTF-8."""
    (tmp_path / "file").write_text('{"a": 1}', encoding="utf-8-sig")
    assert read(tmp_path / "file") == {"a": 1}


def test_what_is_not_there_is_not_to_be_prepared_again(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"got no file; put it back, or name another$"):
        read_json(tmp_path / "denoiser.json")
