"""Labels whose grid is not the series' own, but made of its voxels: parts of it, axes turned round or changed."""

from pathlib import Path

import nibabel
import numpy as np
import pytest
from helpers.dicoms import COLUMNS, ROWS, medattack, values, write_seg, write_series

from medseg_attack.data.datasets.source import Source, open_source
from medseg_attack.errors import InputError

SLICES, CORNER, MM = 4, np.array([-50.0, -30.0, -20.0]), np.array([2.5, 0.8, 0.7])  # z, y, x as `write_series` has them
MASK = np.zeros((SLICES, ROWS, COLUMNS), bool)  # no symmetry
MASK[1, 3:7, 2:6] = MASK[2, 3, 2:6] = MASK[1:3, 3:9, 2] = True
NIFTI = "dicom(masks='*_seg.nii.gz', labels='liver=1')"


def seg_of(root: Path, mask: np.ndarray, axes: tuple[int, int, int], flips: tuple[int, ...], begin: list[int]) -> Path:
    """A SEG of (slices, rows, columns) from voxel `begin` on, whose frames lie along other axes or run backwards."""
    far = np.array([(n - 1) * (k in flips) for k, n in enumerate(mask.shape)])
    start = CORNER + (np.array(begin) + far) * MM
    sign = np.array([-1 if k in flips else 1 for k in range(3)])
    steps = np.diag(MM * sign)[list(axes)][:, ::-1]  # of each frame axis, in x, y, z
    frames = np.flip(mask, flips).transpose(axes)
    tags = {n: {"ImagePositionPatient": list(start[::-1] + n * steps[0])} for n in range(len(frames))}
    row, column = (steps[k] / np.linalg.norm(steps[k]) for k in (1, 2))
    images = write_series(
        root.parent / "elsewhere",
        np.zeros(frames.shape, int),
        tags=tags,
        ImageOrientationPatient=[*column, *row],
        PixelSpacing=[float(np.linalg.norm(steps[k])) for k in (1, 2)],
    )
    return write_seg(root / "seg.dcm", images, frames[..., None].astype(np.uint8), ["Liver"])


def nifti_of(path: Path, mask: np.ndarray, codes: str, begin: list[int], *, zoom: float = 1.0) -> Path:
    affine = np.diag([-MM[2], -MM[1], MM[0] * zoom, 1.0])
    affine[:3, 3] = (CORNER + np.array(begin) * MM)[::-1] * (-1, -1, 1)
    image = nibabel.Nifti1Image(mask.transpose(2, 1, 0).astype(np.uint8), affine)
    turn = nibabel.orientations.ornt_transform(
        nibabel.orientations.io_orientation(affine), nibabel.orientations.axcodes2ornt(tuple(codes))
    )
    nibabel.save(image.as_reoriented(turn), path)
    return path


def opened(root: Path, spec: str = "dicom") -> tuple[Source, np.ndarray]:
    source = open_source(spec, root)
    (scan,) = source.scans
    return source, scan.read().labels


@pytest.mark.parametrize("begin", [[0, 0, 0], [1, 2, 1]])
@pytest.mark.parametrize("flips", [(), (1,), (1, 2), (0, 2)])
@pytest.mark.parametrize("axes", [(0, 1, 2), (0, 2, 1), (2, 0, 1), (1, 2, 0)])
def test_a_seg_lies_where_its_frames_say(
    tmp_path: Path, axes: tuple[int, int, int], flips: tuple[int, ...], begin: list[int]
) -> None:
    write_series(tmp_path / "scans" / "ct", values(SLICES))
    a, b, c = begin
    seg_of(tmp_path / "scans", MASK[a : SLICES - a, b : ROWS - b, c:], axes, flips, begin)
    assert np.array_equal(opened(tmp_path / "scans")[1], MASK)


@pytest.mark.parametrize("codes", ["LPS", "RAS", "SAR", "IPL"])
@pytest.mark.parametrize("begin", [[0, 0, 0], [1, 0, 0], [1, 2, 1]])
def test_a_label_map_of_a_part_lies_where_its_affine_says(tmp_path: Path, codes: str, begin: list[int]) -> None:
    write_series(tmp_path / "ct", values(SLICES))
    a, b, c = begin
    nifti_of(tmp_path / "x_seg.nii.gz", MASK[a : SLICES - a, b : ROWS - b, c:], codes, begin)
    source, labels = opened(tmp_path, NIFTI)
    assert np.array_equal(labels, MASK)
    assert ("x_seg.nii.gz is a part of its series; the rest of that counts as background" in source.notes) == (a > 0)


def test_empty_voxels_beyond_the_series_do_not_matter_and_labelled_ones_do(tmp_path: Path) -> None:
    write_series(tmp_path / "ct", values(SLICES))
    larger = np.pad(MASK, ((2, 1), (0, 3), (1, 0)))
    nifti_of(tmp_path / "x_seg.nii.gz", larger, "RAS", [-2, 0, -1])
    assert np.array_equal(opened(tmp_path, NIFTI)[1], MASK)
    larger[0, 0, :3] = True
    nifti_of(tmp_path / "x_seg.nii.gz", larger, "RAS", [-2, 0, -1])
    with pytest.raises(InputError, match=r"got 3 labelled voxels beyond its 4 slices in .*gz; add the slices"):
        opened(tmp_path, NIFTI)


def test_a_label_map_that_lacks_rows_and_goes_beyond_counts_where_both_are(tmp_path: Path) -> None:
    write_series(tmp_path / "ct", values(SLICES))
    nifti_of(tmp_path / "x_seg.nii.gz", np.pad(MASK[:, 2:], ((0, 1), (0, 0), (0, 0))), "RAS", [0, 2, 0])
    source, labels = opened(tmp_path, NIFTI)
    assert np.array_equal(labels[:, 2:], MASK[:, 2:])
    assert not labels[:, :2].any()
    assert "x_seg.nii.gz is a part of its series; the rest of that counts as background" in source.notes
    nifti_of(tmp_path / "x_seg.nii.gz", MASK, "RAS", [SLICES, 0, 0])
    with pytest.raises(InputError, match="or elsewhere; resample it"):
        opened(tmp_path, NIFTI)


def test_segments_beyond_the_series_are_refused(tmp_path: Path) -> None:
    """A series that lost its last slices has fewer than its SEG."""
    write_series(tmp_path / "scans" / "ct", values(2))
    seg_of(tmp_path / "scans", MASK, (0, 1, 2), (), [0, 0, 0])
    n = int(MASK[2].sum())
    with pytest.raises(InputError, match=rf"got {n} pixels of frame \d beyond its 2 slices in .*dcm; add the slices"):
        opened(tmp_path / "scans")


def test_a_series_of_exactly_the_voxels_owns_a_label_map_before_one_of_more(tmp_path: Path) -> None:
    """Two series on one lattice, as two phases of a scan are."""
    write_series(tmp_path / "long", values(SLICES), series="long")
    write_series(tmp_path / "short", values(2), series="short")
    nifti_of(tmp_path / "x_seg.nii.gz", MASK[:2], "RAS", [0, 0, 0])
    source, labels = opened(tmp_path, NIFTI)
    assert source.scans[0].path == tmp_path / "short"
    assert np.array_equal(labels, MASK[:2])


def test_another_spacing_is_refused_with_both(tmp_path: Path) -> None:
    write_series(tmp_path / "scans" / "ct", values(SLICES))
    nifti_of(tmp_path / "scans" / "x_seg.nii.gz", MASK[::2], "RAS", [0, 0, 0], zoom=2.0)
    out = tmp_path / "out"
    said = " ".join(medattack("prepare", tmp_path / "scans", "--format", NIFTI, "--out", out, code=2).stderr.split())
    assert "(10 x 12 x 4 voxels of 0.7 x 0.8 x 2.5 mm), got" in said
    assert "x_seg.nii.gz of 10 x 12 x 2 voxels of 0.7 x 0.8 x 5 mm, or elsewhere; resample it" in said
    assert not out.exists()


def test_a_label_map_of_another_spacing_beside_others_is_named(tmp_path: Path) -> None:
    write_series(tmp_path / "ct", values(SLICES))
    nifti_of(tmp_path / "x_seg.nii.gz", MASK, "RAS", [0, 0, 0])
    nifti_of(tmp_path / "y_seg.nii.gz", MASK[::2], "RAS", [0, 0, 0], zoom=2.0)
    source, labels = opened(tmp_path, NIFTI)
    assert np.array_equal(labels, MASK)
    sentence = "y_seg.nii.gz is left out: its 10 x 12 x 2 voxels of 0.7 x 0.8 x 5 mm are voxels of no series"
    assert sentence in source.notes
