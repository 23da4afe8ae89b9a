"""The record of a prepared scan: read as it was written, and refused by the name of its file and field."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from helpers.scans import write_channels

from medseg_attack.data.datasets.source import open_source
from medseg_attack.data.prepared.reading import open_prepared
from medseg_attack.data.prepared.record import ScanRecord
from medseg_attack.data.prepared.writing import Options, prepare
from medseg_attack.errors import InputError


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("record")
    list(prepare(open_source("decathlon", write_channels(place / "raw", together=True)), place / "data", Options()))
    return place / "data"


def test_a_record_is_written_as_it_was_read(data: Path) -> None:
    for file in (data / "scans").glob("*.json"):
        fields = json.loads(file.read_text())
        record = ScanRecord.from_json(fields, file)
        assert json.dumps(record.to_json(), sort_keys=True) == json.dumps(fields, sort_keys=True)


def test_a_record_of_the_first_version_is_read(data: Path) -> None:
    file = next((data / "scans").glob("*.json"))
    later = ("channels", "scales", "limits", "padding", "frames", "n_images")
    fields = {name: value for name, value in json.loads(file.read_text()).items() if name not in later}
    record = ScanRecord.from_json(fields, file)
    assert (record.channels, record.scales, record.frames, record.n_images) == (1, (), (), None)


@pytest.mark.parametrize(
    ("field", "value", "got"),
    [
        ("shape", [1, 2], "got [1, 2]"),
        ("group", 7, "got 7"),
        ("windows", [[0.0]], "got [[0.0]]"),
        ("lattice", ..., "got none"),
    ],
)
def test_a_changed_record_is_refused_by_its_file_and_field(
    data: Path, tmp_path: Path, field: str, value: Any, got: str
) -> None:
    shutil.copytree(data, tmp_path / "data")
    file = next((tmp_path / "data" / "scans").glob("*.json"))
    fields = json.loads(file.read_text()) | {field: value}
    file.write_text(json.dumps({name: value for name, value in fields.items() if value is not ...}))
    with pytest.raises(InputError) as error:
        open_prepared(tmp_path / "data").refs("all")
    (sentence,) = str(error.value).splitlines()
    assert f"expected the field '{field}' in {file}" in sentence
    assert got in sentence


def test_a_record_without_a_class_of_the_task_is_refused_and_written_again(tmp_path: Path) -> None:
    source, out = write_channels(tmp_path / "raw", together=True), tmp_path / "data"
    list(prepare(open_source("decathlon", source), out, Options()))
    file = min((out / "scans").glob("*.json"))
    content = file.read_text()
    fields = json.loads(content)
    name = next(iter(fields["classes"]))
    fields["classes"] = {cls + "~" if cls == name else cls: counts for cls, counts in fields["classes"].items()}
    file.write_text(json.dumps(fields))
    with pytest.raises(InputError, match=f"expected '{name}' in the field 'classes' in .*{file.name}, got none"):
        open_prepared(out).refs("all")
    list(prepare(open_source("decathlon", source), out, Options()))
    assert file.read_text() == content


def test_a_record_takes_no_more_memory_than_its_values(data: Path) -> None:
    """A data set of pictures has one for each of them."""
    record = next(iter(open_prepared(data).records.values()))
    for part in (record, *record.sources, *record.classes.values()):
        assert "__dict__" not in dir(part)
