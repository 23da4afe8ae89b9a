"""The memory that the preparation of one volume takes: counted in sizes of its arrays."""

import json
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import nibabel
import numpy as np
import pytest

from medseg_attack.data.datasets.source import open_source
from medseg_attack.data.formats.nifti import label_values, read_nifti
from medseg_attack.data.prepared.writing import Options, prepare

SHAPE = (128, 128, 160)
VOXELS = 128 * 128 * 160


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A volume of 16 bits and its mask of 8, compressed, with the first two axes against those of slices."""
    root = tmp_path_factory.mktemp("volume")
    image = np.random.default_rng(0).integers(-1000, 1000, SHAPE, np.int16)
    mask = np.zeros(SHAPE, np.uint8)
    mask[40:80, 40:80, 20:90] = 1
    for folder, name, values in (("imagesTr", "a_0000", image), ("labelsTr", "a", mask)):
        (root / folder).mkdir()
        nifti = nibabel.Nifti1Image(values, np.diag([1.0, 1.0, 2.0, 1.0]))
        nifti.header.set_xyzt_units("mm")
        nibabel.save(nifti, root / folder / f"{name}.nii.gz")
    labels = {"background": 0, "organ": 1}
    description = {"channel_names": {"0": "CT"}, "labels": labels, "numTraining": 1, "file_ending": ".nii.gz"}
    (root / "dataset.json").write_text(json.dumps(description))
    return root


@pytest.fixture
def memory() -> Iterator[None]:
    """Memory is counted."""
    tracemalloc.start()
    yield
    tracemalloc.stop()


def peak_per_voxel() -> float:
    return tracemalloc.get_traced_memory()[1] / VOXELS


@pytest.mark.usefixtures("memory")
def test_a_compressed_volume_is_in_memory_once_while_it_is_read(source: Path) -> None:
    read_nifti(source / "imagesTr/a_0000.nii.gz")
    assert peak_per_voxel() < 1.5 * 2


@pytest.mark.usefixtures("memory")
def test_the_values_of_a_mask_are_looked_for_in_a_layer_at_a_time(source: Path) -> None:
    assert label_values(source / "labelsTr/a.nii.gz").tolist() == [0, 1]
    assert peak_per_voxel() < 2


def test_a_volume_is_prepared_in_twice_the_memory_of_its_image(source: Path, tmp_path: Path) -> None:
    """The image as the file has it and as slices, 2 bytes a voxel each; then that of slices, the mask and labels."""
    opened = open_source("decathlon", source)
    tracemalloc.start()
    list(prepare(opened, tmp_path / "data", Options(test_fraction=1.0)))
    peak = peak_per_voxel()
    tracemalloc.stop()
    assert peak < 1.25 * 2 * 2
