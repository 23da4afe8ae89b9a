"""A prepared data set: what it holds, what it survives, and what its fingerprint depends on."""

import errno
import json
import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.scans import acdc_paths, first_png, write_acdc, write_pair, write_uw
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from medseg_attack.data.datasets.source import open_source
from medseg_attack.data.prepared.reading import Prepared, open_prepared
from medseg_attack.data.prepared.splits import split
from medseg_attack.data.prepared.windows import Fixed, SliceMax, window_rule
from medseg_attack.data.prepared.writing import Options, prepare
from medseg_attack.errors import InputError


def prepared(form: str, root: Path, out: Path, options: Options | None = None) -> Prepared:
    list(prepare(open_source(form, root), out, options or Options()))
    return open_prepared(out)


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_case_is_what_the_png_and_the_csv_say(tmp_path: Path) -> None:
    root = write_uw(tmp_path / "uw")
    data = prepared("uw_madison", root, tmp_path / "out", Options(window=Fixed(1000, 3000)))
    case = data.read(next(ref for ref in data.refs("all") if ref.id == "case1_day0_slice_0001"))
    pixels = np.array(Image.open(first_png(root))).astype(np.float64)
    assert np.array_equal(case.image[0].numpy(), np.clip((pixels - 1000) / 2000, 0, 1).astype(np.float32))
    assert (case.volume, case.group, case.spacing_mm) == ("case1_day0", "case1", (1.63, 1.5))
    assert case.target.shape == (3, 12, 16)
    assert case.target.dtype == torch.bool
    assert case.target.sum(dim=(1, 2)).tolist() == [24, 0, 28]
    assert (case.target[0] & case.target[2]).any()
    assert (case.window.low, case.window.high) == (1000, 3000)


def test_an_exclusive_case_is_one_hot(tmp_path: Path) -> None:
    data = prepared("acdc", write_acdc(tmp_path / "acdc"), tmp_path / "out")
    case = data.read(data.refs("all")[0])
    assert data.task.exclusive
    assert (case.target.sum(dim=0) == 1).all()
    assert (case.image >= 0).all()
    assert (case.image <= 1).all()


def test_stored_values_and_their_scale_are_kept(tmp_path: Path) -> None:
    image = np.random.default_rng(3).integers(0, 1000, (8, 10, 5)).astype(np.int16)
    for number in range(1, 4):
        write_pair(*acdc_paths(tmp_path / "acdc", number), image=image, slope=2.0, inter=-1024.0)
    data = prepared("acdc", tmp_path / "acdc", tmp_path / "out", Options(window=Fixed(-1024, 976)))
    stored = np.load(tmp_path / "out" / "images" / "patient001_frame01.npy")
    assert stored.dtype == np.int16
    assert np.array_equal(np.sort(stored.ravel()), np.sort(image.ravel()))
    assert data.summary["intensity"] == [image.min() * 2.0 - 1024, image.max() * 2.0 - 1024]
    case = data.read(data.refs("all")[0])
    assert torch.allclose(case.image[0], torch.from_numpy(stored[0] / 1000.0).float())


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="only Linux lists what is mapped")
def test_a_whole_scan_maps_its_values_alone_and_as_long_as_it_is_used(tmp_path: Path) -> None:
    def is_mapped(kind: str) -> bool:
        return f"{out / kind / 'patient001_frame01'}.npy" in Path("/proc/self/maps").read_text(encoding="utf-8")

    out = tmp_path.resolve() / "out"
    data = prepared("acdc", write_acdc(tmp_path / "acdc"), out)
    case = data.read(next(ref for ref in data.refs("all", dims=3) if ref.id == "patient001_frame01"))
    assert case.storage is not None
    assert (case.storage.stored.shape, is_mapped("images"), is_mapped("labels")) == (case.image.shape, True, False)
    del case
    assert not is_mapped("images")


def test_slice_max_shows_each_slice_up_to_its_maximum(tmp_path: Path) -> None:
    root = write_uw(tmp_path / "uw")
    Image.fromarray(np.zeros((12, 16), dtype=np.uint16)).save(first_png(root))
    data = prepared("uw_madison", root, tmp_path / "out", Options(window=SliceMax()))
    empty, other = (data.read(ref) for ref in data.refs("all")[:2])
    assert (empty.window.low, empty.window.high, float(empty.image.max())) == (0, 1, 0)
    assert (other.window.low, float(other.image.max())) == (0, 1)


def test_another_size_is_resampled_and_recorded(tmp_path: Path) -> None:
    root = write_uw(tmp_path / "uw")
    data = prepared("uw_madison", root, tmp_path / "out", Options(size=(24, 8)))
    case = data.read(data.refs("all")[0])
    assert case.image.shape == (1, 24, 8)
    assert case.spacing_mm == pytest.approx((1.63 / 2, 1.5 * 2))
    # columns 3 to 8 of 16 become 1.5 to 4.5 of 8: the half covered ends count
    assert case.target[0].any(dim=0).nonzero().flatten().tolist() == [1, 2, 3, 4]
    assert case.target[0].any(dim=1).nonzero().flatten().tolist() == list(range(4, 12))
    record = data.records["case1_day0"]
    assert (record.shape_before, record.lattice) == ((2, 12, 16), None)


def test_a_killed_run_goes_on_to_the_same_files(tmp_path: Path) -> None:
    root, out = write_acdc(tmp_path / "acdc"), tmp_path / "out"
    prepared("acdc", root, out)
    undisturbed = files(out)
    shutil.rmtree(out)
    killed = prepare(open_source("acdc", root), out)
    next(killed), next(killed)
    killed.close()
    (out / "images" / ".patient003_frame01.npy.1.part").write_bytes(b"cut off")
    with pytest.raises(InputError, match="not finished"):
        open_prepared(out)
    done = list(prepare(open_source("acdc", root), out))
    assert [d.reused for d in done] == [True, True, False, False]
    assert files(out) == undisturbed
    assert all(d.reused for d in prepare(open_source("acdc", root), out))
    assert files(out) == undisturbed


def test_a_changed_source_is_read_again(tmp_path: Path) -> None:
    root, out = write_acdc(tmp_path / "acdc", patients=5), tmp_path / "out"
    before = prepared("acdc", root, out).fingerprint
    shutil.rmtree(acdc_paths(root, 5)[0].parent)
    write_pair(*acdc_paths(root, 2), slope=3.0)
    after = prepared("acdc", root, out)
    assert after.fingerprint != before
    assert after.fingerprint == prepared("acdc", root, tmp_path / "other").fingerprint
    assert not (out / "images" / "patient005_frame01.npy").exists()


@pytest.mark.parametrize("jobs", [1, 2])
@pytest.mark.parametrize("broken", [0, 2, 7])
def test_a_new_scan_that_cannot_be_read_leaves_a_finished_data_set_as_it_was(
    tmp_path: Path, broken: int, jobs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether it comes before the other scans, is one of them that was replaced, or comes after new ones."""
    monkeypatch.setattr("medseg_attack.data.prepared.writing.PATIENCE", 0.0)
    root, out = write_acdc(tmp_path / "acdc"), tmp_path / "out"
    prepared("acdc", root, out)
    undisturbed = files(out)
    for number in (6, broken):
        write_pair(*acdc_paths(root, number))
    image, _ = acdc_paths(root, broken)
    image.write_bytes(image.read_bytes()[:-99])  # its header is whole
    with pytest.raises(InputError, match=f"patient{broken:03d}.*--leave-out"):
        list(prepare(open_source("acdc", root), out, jobs=jobs))
    assert files(out) == undisturbed


@pytest.mark.parametrize("text", ["{", "{}", '{"task": 3}', "[]"])
def test_a_damaged_description_hides_no_error(tmp_path: Path, text: str) -> None:
    root, out = write_acdc(tmp_path / "acdc"), tmp_path / "out"
    prepared("acdc", root, out)
    (out / "dataset.json").write_text(text)
    write_pair(*acdc_paths(root, 2), slope=3.0)
    image, _ = acdc_paths(root, 3)
    image.write_bytes(image.read_bytes()[:-99])  # its header is whole
    with pytest.raises(InputError, match="patient003"):
        list(prepare(open_source("acdc", root), out))


def test_a_data_set_of_which_a_scan_was_rewritten_before_the_error_is_not_finished(tmp_path: Path) -> None:
    root, out = write_acdc(tmp_path / "acdc"), tmp_path / "out"
    prepared("acdc", root, out)
    write_pair(*acdc_paths(root, 2), slope=3.0)
    image, _ = acdc_paths(root, 3)
    image.write_bytes(image.read_bytes()[:-99])  # its header is whole
    with pytest.raises(InputError, match="patient003"):
        list(prepare(open_source("acdc", root), out))
    with pytest.raises(InputError, match="not finished"):
        open_prepared(out)


def test_an_array_that_was_cut_off_is_told_and_written_again(tmp_path: Path) -> None:
    root, out = write_acdc(tmp_path / "acdc"), tmp_path / "out"
    data = prepared("acdc", root, out)
    path = out / "images" / "patient001_frame01.npy"
    whole = path.read_bytes()
    path.write_bytes(whole[:-7])
    with pytest.raises(InputError, match=r"expected an array in .*patient001_frame01\.npy"):
        [data.read(ref) for ref in data.refs("all")]
    prepared("acdc", root, out)
    assert path.read_bytes() == whole
    path.unlink()
    with pytest.raises(InputError, match="patient001_frame01"):
        [open_prepared(out).read(ref) for ref in data.refs("all")]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (Options(folds=3), "folds: there 5, here 3"),
        (Options(size=(8, 8)), "size"),
        (Options(window=SliceMax()), "window: there percentile, here slice_max"),
        (Options(seed=1), "seed"),
        (Options(test_fraction=0.5), "test_fraction"),
    ],
)
def test_other_options_in_the_same_folder_are_told(tmp_path: Path, options: Options, sentence: str) -> None:
    root, out = write_acdc(tmp_path / "acdc"), tmp_path / "out"
    prepared("acdc", root, out)
    before = files(out)
    with pytest.raises(InputError, match="give another --out") as error:
        prepared("acdc", root, out, options)
    assert sentence in str(error.value)
    assert files(out) == before


def test_a_folder_of_other_things_is_left_alone(tmp_path: Path) -> None:
    root = write_acdc(tmp_path / "acdc")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(InputError, match="mine"):
        prepared("acdc", root, tmp_path / "mine")
    with pytest.raises(InputError, match="outside of"):
        prepared("acdc", root, root / "out")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.txt"]
    assert not (root / "out").exists()


def test_a_full_disk_is_told_and_what_was_finished_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, out = write_acdc(tmp_path / "acdc"), tmp_path / "out"
    replace = os.replace

    def full(source: str, target: Path) -> None:
        if "patient003" in str(target):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        with pytest.raises(InputError, match="room on the disk"):
            prepared("acdc", root, out)
    assert not (out / "dataset.json").exists()
    assert not list(out.rglob("*.part"))
    assert [d.reused for d in prepare(open_source("acdc", root), out)] == [True, True, False, False]


def test_the_fingerprint_is_of_the_content_alone(tmp_path: Path) -> None:
    root = write_acdc(tmp_path / "here")
    here = prepared("acdc", root, tmp_path / "a").fingerprint
    moved = tmp_path / "elsewhere"
    shutil.copytree(root, moved)
    for path in moved.rglob("*.nii.gz"):
        os.utime(path, (1, 1))
    assert prepared("acdc", moved / "training", tmp_path / "b").fingerprint == here
    image, mask = acdc_paths(moved)
    write_pair(image, mask, mask=np.zeros((8, 10, 5)))
    relabelled = prepared("acdc", moved, tmp_path / "c").fingerprint
    write_pair(image, mask, affine=np.diag((1.0, 1.0, 5.0, 1.0)))
    stretched = prepared("acdc", moved, tmp_path / "d").fingerprint
    write_pair(image, mask, image=np.arange(400).reshape(8, 10, 5).astype(np.int16))
    repainted = prepared("acdc", moved, tmp_path / "e").fingerprint
    shown = prepared("acdc", root, tmp_path / "f", Options(window=Fixed(0, 100))).fingerprint
    assert len({here, relabelled, stretched, repainted, shown}) == 5


def test_nothing_of_a_header_is_kept(tmp_path: Path) -> None:
    import nibabel

    root = write_acdc(tmp_path / "acdc")
    for path in root.rglob("*.nii.gz"):
        file = nibabel.load(path)
        file.header["descrip"] = b"JOHN DOE 1950"
        nibabel.save(nibabel.Nifti1Image(np.asarray(file.dataobj), file.affine, file.header), path)
    prepared("acdc", root, tmp_path / "out")
    assert not any(b"DOE" in content for content in files(tmp_path / "out").values())


def test_refs_are_split_by_patient_and_sorted_by_shape(tmp_path: Path) -> None:
    root = write_acdc(tmp_path / "acdc", patients=6)
    for number in (2, 5):
        write_pair(*acdc_paths(root, number), image=np.random.default_rng(0).random((6, 10, 5)).astype(np.float32))
    data = prepared("acdc", root, tmp_path / "out")
    everything = data.refs("all")
    assert list(everything) == sorted(everything, key=lambda ref: (ref.shape, ref.id))
    assert len({ref.shape for ref in everything}) == 2
    held_out = {ref.group for ref in data.refs("test")}
    for fold in range(data.folds):
        train, val = ({ref.group for ref in data.refs(part, fold)} for part in ("train", "val"))
        assert train
        assert val
        assert not train & val
        assert not (train | val) & held_out
        assert train | val | held_out == {ref.group for ref in everything}
    with pytest.raises(InputError, match="fold"):
        data.refs("val", fold=data.folds)


def test_a_prepared_data_set_travels_to_another_process(tmp_path: Path) -> None:
    data = prepared("acdc", write_acdc(tmp_path / "acdc"), tmp_path / "out")
    ref = data.refs("all")[3]
    here = data.read(ref)
    sent = pickle.dumps(data)
    assert len(sent) < 1000
    assert torch.equal(pickle.loads(sent).read(ref).image, here.image)


def test_a_folder_that_is_no_prepared_data_set_is_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="expected a prepared data set"):
        open_prepared(tmp_path)
    (tmp_path / "dataset.json").write_text(json.dumps({"task": {}}))
    with pytest.raises(InputError, match=r"dataset\.json"):
        open_prepared(tmp_path)


@given(st.sets(st.text(min_size=1), min_size=3), st.integers(2, 9), st.floats(0.01, 0.99), st.integers(0, 99))
def test_every_patient_is_in_one_part(patients: set[str], folds: int, fraction: float, seed: int) -> None:
    parts = split(patients, folds=folds, test_fraction=fraction, seed=seed)
    assert set(parts) == patients
    assert "test" in parts.values()
    assert len(set(parts.values()) - {"test"}) >= 2
    assert parts == split(sorted(patients, reverse=True), folds=folds, test_fraction=fraction, seed=seed)


@pytest.mark.parametrize("text", ["percentile", "slice_max", "-160,240", "0,1e-3"])
def test_a_window_rule_is_its_text(text: str) -> None:
    assert window_rule(str(window_rule(text))) == window_rule(text)


@pytest.mark.parametrize("text", ["best", "1", "2,1", "nan,1", "0,inf", "1,2,3", ""])
def test_what_is_no_window_is_told(text: str) -> None:
    with pytest.raises(InputError, match="LOW,HIGH"):
        window_rule(text)
