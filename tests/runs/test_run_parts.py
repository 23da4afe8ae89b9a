"""Parts of a run: what changed in one is noticed, column by column, also where a few columns are read."""

import json
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from medseg_attack.errors import InputError
from medseg_attack.runs import folder
from medseg_attack.runs.folder import COLUMNS, RunFolder, _content_digest

ROWS = pa.table(
    {
        "case": ["a_1", "a_2", "ä\N{ZERO WIDTH SPACE}", ""],
        "volume": ["a", "a", "b", "b"],
        "group": pa.array(["p", None, "q", "q"], pa.string()),
        "n_target": [1, 2, 3, 4],
        "n_target_adv": [1, 2, 3, 4],
        "n_adv": pa.array([1, None, 3, 4], pa.int64()),
        "hd95_mm_adv": [1.5, np.nan, 0.0, -0.0],
    }
)


def run_of(path: Path, table: pa.Table = ROWS) -> RunFolder:
    run = RunFolder.open(path, {"attack": "fgsm"})
    run.write_table(0, table, 1.0, 4)
    return run


def rewrite(run: RunFolder, table: pa.Table) -> None:
    """Writes other rows into a part, with the metadata that it has."""
    pq.write_table(table.replace_schema_metadata(pq.read_schema(run.part(0)).metadata), run.part(0))


def as_before(run: RunFolder) -> None:
    """Rewrites a part as it was before columns had hashes of their own."""
    table = pq.read_table(run.part(0))
    facts = {key.decode(): value.decode() for key, value in table.schema.metadata.items()}
    facts = {key: value for key, value in facts.items() if key not in (COLUMNS, "digest")}
    facts["digest"] = _content_digest(table, facts)
    pq.write_table(table.replace_schema_metadata(facts), run.part(0))


def changed(name: str) -> pa.Table:
    """The rows with another value in one column, or with the same text cut elsewhere."""
    column = ROWS.column(name)
    values = column.to_pylist()
    values[3] = "c" if pa.types.is_string(column.type) else values[3] + 1
    return ROWS.set_column(ROWS.column_names.index(name), name, pa.array(values, column.type))


@pytest.mark.parametrize("is_older", [False, True])
@pytest.mark.parametrize("name", ROWS.column_names)
def test_a_change_in_any_column_is_noticed(tmp_path: Path, name: str, is_older: bool) -> None:
    run = run_of(tmp_path)
    if is_older:
        as_before(run)
    assert repr(run.table().to_pydict()) == repr(ROWS.to_pydict())
    rewrite(run, changed(name))
    for needs in (lambda column: True, lambda column: column == name):
        with pytest.raises(InputError, match="expected the rows that were written"):
            run.table(needs)


def test_a_text_that_is_cut_elsewhere_is_another(tmp_path: Path) -> None:
    run = run_of(tmp_path)
    rewrite(run, ROWS.set_column(1, "volume", pa.array(["aa", "", "b", "b"])))
    with pytest.raises(InputError, match="expected the rows that were written"):
        run.table()


@pytest.mark.parametrize("is_older", [False, True])
def test_a_few_columns_are_read_alone(tmp_path: Path, is_older: bool) -> None:
    run = run_of(tmp_path)
    if is_older:
        as_before(run)
    assert run.table(lambda column: column in ("case", "n_adv")).column_names == ["case", "n_adv"]


@pytest.mark.parametrize("edit", ["rename", "drop"])
@pytest.mark.parametrize("lacking", [[], ["n_target_adv"]], ids=["of an attack", "of a certificate"])
def test_a_column_that_is_gone_is_noticed(tmp_path: Path, edit: str, lacking: list[str]) -> None:
    table = ROWS.drop_columns(lacking)
    run = run_of(tmp_path, table)
    other = table.drop_columns(["n_adv"])
    rewrite(run, other if edit == "drop" else other.append_column("n_adx", ROWS["n_adv"]))
    with pytest.raises(InputError, match="expected the rows that were written"):
        run.table()


def test_the_facts_of_a_part_are_among_what_is_looked_at(tmp_path: Path) -> None:
    run = run_of(tmp_path)
    metadata = pq.read_schema(run.part(0)).metadata
    hashes = json.loads(metadata[COLUMNS.encode()])
    for edit in ({b"batch_size": b"5"}, {COLUMNS.encode(): json.dumps({**hashes, "case": "0"}).encode()}):
        pq.write_table(ROWS.replace_schema_metadata(metadata | edit), run.part(0))
        with pytest.raises(InputError, match="expected the rows that were written"):
            run.table()


def test_parts_of_slices_of_a_table_and_of_chunks_are_read_again(tmp_path: Path) -> None:
    for number, table in enumerate((ROWS.slice(1, 2), pa.concat_tables([ROWS, ROWS]), ROWS.slice(0, 0))):
        run = run_of(tmp_path / str(number), table)
        assert repr(run.table().to_pydict()) == repr(table.to_pydict())


@pytest.mark.parametrize("together", [1, 2, 32])
def test_parts_are_put_into_few_pieces_in_their_order_and_a_column_that_some_lack_is_null_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, together: int
) -> None:
    monkeypatch.setattr(folder, "TOGETHER", together)
    run = run_of(tmp_path, ROWS.drop_columns("hd95_mm_adv"))
    for chunk in range(1, 5):
        run.write_table(chunk, ROWS.slice(chunk - 1, 1), 1.0, 4)
    table = run.table()
    assert {column.num_chunks for column in table.columns} == {-(-5 // together)}
    assert table["case"].to_pylist() == ROWS["case"].to_pylist() * 2
    assert table["n_adv"].to_pylist() == ROWS["n_adv"].to_pylist() * 2
    assert table["hd95_mm_adv"].null_count == 4


def test_images_that_changed_are_refused_and_named(tmp_path: Path) -> None:
    run = RunFolder.open(tmp_path, {"attack": "fgsm"})
    run.write_images(0, {"a_1": np.zeros((1, 4, 4), np.float32)})
    run.write_table(0, ROWS, 1.0, 4)
    assert run.images(["a_1"])[0].shape == (1, 4, 4)
    assert run.changed_images() == []
    file = tmp_path / "images" / "00000.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1  # a pixel
    file.write_bytes(content)
    os.utime(file, ns=(0, 1))  # whatever the clock's resolution
    assert run.changed_images() == [file]
    with pytest.raises(InputError, match="expected the images that were written in"):
        run.images(["a_1"])
