"""Header fields of DICOM images, SEG and RTSTRUCT that change values, places or identities: used, refused or noted."""

import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from helpers.dicoms import box, native, square, uid, values, write_enhanced, write_rtstruct, write_seg, write_series
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence as Items
from pydicom.uid import RLELossless

from medseg_attack.data.datasets.source import Source, open_source
from medseg_attack.data.formats.dicom import index as dicom_index
from medseg_attack.data.formats.scan import Scan
from medseg_attack.errors import InputError

DOCS = Path(__file__).parents[2] / "docs" / "scans.md"
Z = tuple(-50 + n * 2.5 for n in range(4))


def edit(path: Path, change: Callable[[Dataset], Any]) -> None:
    dataset = pydicom.dcmread(path)
    change(dataset)
    dataset.save_as(path)


def with_contours(root: Path, **options: Any) -> Path:
    """A series of four slices with an RTSTRUCT of a liver in all of them."""
    write_series(root / "ct", **options)
    write_rtstruct(root / "rs.dcm", {"Liver": [square(3, 2, 4, z) for z in Z]})
    return root


def listed(root: Path, spec: str = "dicom") -> Source:
    return open_source(spec, root)


def only_scan(root: Path, spec: str = "dicom") -> Scan:
    (scan,) = listed(root, spec).scans
    return scan.read()


def refusal(root: Path, spec: str = "dicom") -> str:
    with pytest.raises(InputError) as error:
        only_scan(root, spec)
    assert re.search(r"expected .*got .*; ", str(error.value))
    return str(error.value)


def test_every_field_that_is_read_stands_in_the_table_of_header_fields() -> None:
    table = DOCS.read_text(encoding="utf-8").partition("## Header fields")[2]
    assert [name for name in dicom_index._TAGS if f"`{name}`" not in table] == []


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("syntax", [None, RLELossless])
def test_values_in_the_upper_bits_are_read_from_there(tmp_path: Path, signed: bool, syntax: str | None) -> None:
    """HighBit 15 and BitsStored 12: the value is in the upper 12 of 16 bits, and noise lies below it."""
    low = -2048 if signed else 0
    truth = values(low=low, high=low + 4096)
    stored = (truth << 4) | np.random.default_rng(1).integers(0, 16, truth.shape)
    scan = only_scan(with_contours(tmp_path, stored=stored, signed=signed, HighBit=15, syntax=syntax))
    assert np.array_equal(scan.stored, truth)
    assert scan.limits == (low, low + 4095)


def lookup() -> Items:
    table = Dataset()
    table.LUTDescriptor, table.ModalityLUTType, table.LUTData = [4, 0, 16], "HU", [0, 10, 100, 1000]
    table["LUTDescriptor"].VR, table["LUTData"].VR = "US", "US"
    return Items([table])


REFUSED: Mapping[str, tuple[dict[str, Any], str]] = {
    "a table from stored values to units": ({"ModalityLUTSequence": lookup()}, "got a ModalityLUTSequence"),
    "the bits above the allocated ones": ({"HighBit": 16}, "BitsStored 12 and HighBit 16"),
    "no bits": ({"BitsStored": 0}, "BitsStored 0"),
    "fewer bits than it stores": ({"HighBit": 10}, "HighBit 10"),
    "a dose": ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.481.2"}, "got RT Dose Storage"),
    "a class that nobody knows": ({"SOPClassUID": "1.2.3.4"}, "a class of images that the standard does not have"),
    "colours": ({"PixelPresentation": "MIXED"}, "got PixelPresentation MIXED"),
    "a slope of nothing": ({"RescaleSlope": 0}, "a RescaleSlope other than 0"),
    "more frames than it describes": ({"NumberOfFrames": 2**31 - 1}, "NumberOfFrames 2147483647 and 0 descriptions"),
    "a palette": ({"PhotometricInterpretation": "PALETTE COLOR"}, "PALETTE COLOR pixels"),
    "directions that are no unit vectors": ({"ImageOrientationPatient": [2, 0, 0, 0, 1, 0]}, "two unit vectors"),
    "directions at another angle": ({"ImageOrientationPatient": [1, 0, 0, 0.6, 0.8, 0]}, "at a right angle"),
    "pixels of negative size": ({"PixelSpacing": [0.8, -0.7]}, "PixelSpacing above 0"),
}


@pytest.mark.parametrize("field", REFUSED)
def test_an_image_of_another_meaning_is_refused(tmp_path: Path, field: str) -> None:
    tags, sentence = REFUSED[field]
    assert sentence in refusal(with_contours(tmp_path, **tags))


MIXED = {
    "units": ({"RescaleType": "HU"}, {"RescaleType": "HU_MOD"}),
    "spaces": ({}, {"FrameOfReferenceUID": uid("another place")}),
    "patients": ({}, {"PatientID": "P2"}),
    "studies": ({}, {"StudyInstanceUID": uid("another study")}),
    "modalities": ({}, {"Modality": "MR"}),
    "scaled and unscaled slices": ({}, {"RescaleSlope": None, "RescaleIntercept": None}),
}


@pytest.mark.parametrize("what", MIXED)
def test_a_series_of_two_kinds_is_refused(tmp_path: Path, what: str) -> None:
    common, other = MIXED[what]
    sentence = refusal(with_contours(tmp_path, **common, tags={2: other}))
    assert "expected one " in sentence
    assert not any(secret in sentence for secret in ("P2", uid("another place"), uid("another study")))


NOTED = {
    "unscaled CT": ({"RescaleSlope": None, "RescaleIntercept": None}, "assumed to be HU", "HU (assumed)"),
    "empty scale": ({"RescaleSlope": "", "RescaleIntercept": ""}, "assumed to be HU", "HU (assumed)"),
    "text in pixels": ({"BurnedInAnnotation": "YES"}, "BurnedInAnnotation", "HU"),
    "lossy": ({"LossyImageCompression": "01"}, "compressed with loss", "HU"),
    "distance": ({"SpacingBetweenSlices": 5.0}, "positions are 2.5 mm apart: positions count", "HU"),
    "padding": ({"PixelPaddingValue": 63536}, "PixelPaddingValue 63536 is no value of 12 bits", "HU"),
}


@pytest.mark.parametrize("what", NOTED)
def test_a_field_that_leaves_a_doubt_is_noted(tmp_path: Path, what: str) -> None:
    tags, note, unit = NOTED[what]
    source = listed(with_contours(tmp_path, **tags))
    assert [note in one for one in source.notes].count(True) == 1
    assert source.scans[0].read().unit == unit


@pytest.mark.parametrize(
    ("modality", "tags", "unit"),
    [
        ("CT", {"RescaleType": "US"}, ""),
        ("CT", {"RescaleType": "Z_EFF"}, "Z_EFF"),
        ("CT", {"RescaleType": "John Doe"}, ""),
        ("PT", {"Units": "BQML"}, "BQML"),
        ("PT", {"Units": "JOHN DOE"}, ""),
        ("MR", {}, ""),
    ],
)
def test_a_unit_is_a_word_of_the_standard(tmp_path: Path, modality: str, tags: dict[str, str], unit: str) -> None:
    assert only_scan(with_contours(tmp_path, modality=modality, **tags)).unit == unit


def test_one_slice_without_a_thickness_and_leaning_slices_are_noted(tmp_path: Path) -> None:
    with_contours(tmp_path / "one", stored=values(1), SliceThickness=None)
    assert any("1 mm is assumed" in note for note in listed(tmp_path / "one").notes)
    tags = {n: {"ImagePositionPatient": [-20, -30 + n * 0.5, z]} for n, z in enumerate(Z)}
    with_contours(tmp_path / "tilted", tags=tags)
    assert any("stacked at 11.3 degrees" in note for note in listed(tmp_path / "tilted").notes)


@pytest.mark.parametrize("signed_as", [-2000, 0x0830, 0xF830])
def test_padding_counts_however_its_sign_is_written(tmp_path: Path, signed_as: int) -> None:
    """-2000 as a negative number, in the 12 stored bits, and in the 16 allocated ones."""
    stored = values(low=-1000, high=2000)
    stored[:, 0] = -2000

    def write(image: Dataset) -> None:
        image.add_new("PixelPaddingValue", "SS" if signed_as < 0 else "US", signed_as)

    with_contours(tmp_path, stored=stored, signed=True)
    for path in (tmp_path / "ct").iterdir():
        edit(path, write)
    assert np.isnan(native(only_scan(tmp_path))[:, 0]).all()


def test_functional_groups_that_all_frames_share_are_used_without_groups_of_their_own(tmp_path: Path) -> None:
    """A single frame whose scale and place stand in the shared groups alone."""
    path = write_enhanced(tmp_path / "mr.dcm", values(1), [(2.0, -5.0)], order=(0,))

    def share(image: Dataset) -> None:
        (frame,), (shared,) = image.PerFrameFunctionalGroupsSequence, image.SharedFunctionalGroupsSequence
        for element in frame:
            shared.add(element)
        del image.PerFrameFunctionalGroupsSequence

    edit(path, share)
    write_rtstruct(tmp_path / "rs.dcm", {"Liver": [square(3, 2, 4, -50)]}, refers_to="enhanced")
    assert np.array_equal(native(only_scan(tmp_path)), values(1) * 2.0 - 5.0)


def test_a_scale_outside_of_functional_groups_counts_where_these_have_none(tmp_path: Path) -> None:
    path = write_enhanced(tmp_path / "mr.dcm", values(2), [(1.0, 0.0)] * 2, order=(0, 1))

    def move(image: Dataset) -> None:
        for frame in image.PerFrameFunctionalGroupsSequence:
            del frame.PixelValueTransformationSequence
        image.RescaleSlope, image.RescaleIntercept = 3, -7

    edit(path, move)
    write_rtstruct(tmp_path / "rs.dcm", {"Liver": [square(3, 2, 4, -50)]}, refers_to="enhanced")
    assert np.array_equal(native(only_scan(tmp_path)), values(2) * 3.0 - 7.0)


def test_pixels_that_are_no_whole_numbers_are_refused(tmp_path: Path) -> None:
    def to_floats(image: Dataset) -> None:
        image.FloatPixelData = image.pixel_array.astype("<f4").tobytes()
        image.BitsAllocated = 32
        del image.PixelData

    with_contours(tmp_path)
    for path in (tmp_path / "ct").iterdir():
        edit(path, to_floats)
    assert "whole numbers in PixelData" in refusal(tmp_path)


def test_colour_images_are_left_out_with_a_note(tmp_path: Path) -> None:
    with_contours(tmp_path)
    write_series(tmp_path / "rgb", series="rgb", SamplesPerPixel=3, PhotometricInterpretation="RGB")
    assert any("4 images in rgb left out: in colour" in note for note in listed(tmp_path).notes)


# identity: what lies elsewhere or looks otherwise is another thing, whatever its identifier


def test_slices_that_share_an_identifier_are_all_read(tmp_path: Path) -> None:
    """An anonymiser that wrote one SOPInstanceUID into all files."""
    root = with_contours(tmp_path, SOPInstanceUID=uid("all"))
    source = listed(root)
    assert np.array_equal(source.scans[0].read().stored, values())
    assert any("3 images more than it has SOPInstanceUIDs" in note for note in source.notes)


def test_another_image_of_the_same_identifier_and_place_is_no_copy(tmp_path: Path) -> None:
    root = with_contours(tmp_path)
    path = next((root / "ct").iterdir())
    shutil.copy(path, root / "ct" / "other")
    edit(root / "ct" / "other", lambda image: setattr(image, "PixelData", values(1, seed=5)[0].astype("<u2").tobytes()))
    assert "one image at each position" in refusal(root)


def test_a_copy_in_another_compression_is_a_copy(tmp_path: Path) -> None:
    root = with_contours(tmp_path)
    path = next((root / "ct").iterdir())
    shutil.copy(path, root / "ct" / "other")
    edit(root / "ct" / "other", lambda image: image.compress(RLELossless, generate_instance_uid=False))
    source = listed(root)
    assert any("1 file left out" in note for note in source.notes)
    assert np.array_equal(source.scans[0].read().stored, values())


def test_labels_that_are_there_twice_byte_for_byte_are_one(tmp_path: Path) -> None:
    root = with_contours(tmp_path)
    shutil.copy(root / "rs.dcm", root / "rs (1).dcm")
    source = listed(root)
    assert any("1 file of labels left out" in note for note in source.notes)
    assert source.scans[0].read().labels.sum() == 4 * 16


# SEG


def with_segments(root: Path, change: Callable[[Dataset], Any] = lambda seg: None, **options: Any) -> Path:
    """Two segments on four slices, the second of which is empty."""
    images = write_series(root / "ct")
    masks = np.concatenate((box(4, 3, 7, 2, 6), 0 * box(4, 3, 7, 2, 6)), axis=3)
    write_seg(root / "seg.dcm", images, masks, ["Liver", "Spleen"], **options)
    edit(root / "seg.dcm", change)
    return root


def number(second: int) -> Callable[[Dataset], None]:
    def change(seg: Dataset) -> None:
        seg.SegmentSequence[1].SegmentNumber = second

    return change


def undescribed(seg: Dataset) -> None:
    del seg.SegmentSequence[0]


def many_frames(seg: Dataset) -> None:
    seg.NumberOfFrames = 2**31 - 1


@pytest.mark.parametrize(
    ("change", "options", "sentence"),
    [
        (lambda seg: setattr(seg, "Rows", 0), {}, "Rows and Columns above 0, got 0 and 10"),
        (lambda seg: setattr(seg, "MaximumFractionalValue", 0), {"kind": "FRACTIONAL"}, "from 1 to 255, got 0"),
        (lambda seg: setattr(seg, "SegmentationType", "DOE"), {}, "BINARY, FRACTIONAL or LABELMAP, got another"),
        (many_frames, {}, "a description of each frame"),
        (number(1), {}, "one segment of each number, got several of number 1"),
        (undescribed, {}, "segments that SegmentSequence describes, got frames of [1]"),
    ],
)
def test_a_seg_that_contradicts_itself_is_refused(
    tmp_path: Path, change: Callable[[Dataset], Any], options: dict[str, Any], sentence: str
) -> None:
    assert sentence in refusal(with_segments(tmp_path, change, **options))


def test_gaps_in_segment_numbers_do_not_matter(tmp_path: Path) -> None:
    source = listed(with_segments(tmp_path, number(7)))
    assert source.task.classes == ("Liver", "Spleen")
    assert source.scans[0].read().labels.sum() == 4 * 16


def test_two_frames_of_a_segment_in_one_place_that_differ_are_refused(tmp_path: Path) -> None:
    """Three frames of four lie where the first lies; as copies of one another they are one."""

    def stack(seg: Dataset) -> None:
        for frame in seg.PerFrameFunctionalGroupsSequence:
            frame.PlanePositionSequence = seg.PerFrameFunctionalGroupsSequence[0].PlanePositionSequence

    assert only_scan(with_segments(tmp_path, stack)).labels.sum() == 16
    images = sorted((tmp_path / "ct").iterdir())
    masks = box(4, 3, 7, 2, 6)
    masks[2, 3] = 0
    write_seg(tmp_path / "seg.dcm", images, masks, ["Liver"])
    edit(tmp_path / "seg.dcm", stack)
    assert "one frame of a segment in each place" in refusal(tmp_path)


def test_slices_of_a_seg_at_another_distance_are_noted(tmp_path: Path) -> None:
    def spread(seg: Dataset) -> None:
        seg.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].SpacingBetweenSlices = 5.0

    notes = listed(with_segments(tmp_path, spread)).notes
    assert any("slices 5 mm apart, its series 2.5 mm" in note for note in notes)


# RTSTRUCT


def drawn(root: Path, *contours: list[float], kind: str = "CLOSED_PLANAR") -> np.ndarray:
    """The first slice of the region."""
    write_series(root / "ct", values(2))
    write_rtstruct(root / "rs.dcm", {"Liver": list(contours)}, kind=kind)
    return only_scan(root).labels[0].astype(int)


OUTER, INNER, BESIDE = square(1, 1, 6, -50.0), square(3, 3, 2, -50.0), square(4, 4, 5, -50.0)


def area(*bounds: int) -> np.ndarray:
    return box(1, *bounds)[0, ..., 0].astype(int)


def test_contours_that_overlap_are_united_and_only_xor_says_otherwise(tmp_path: Path) -> None:
    outer, beside = area(1, 7, 1, 7), area(4, 9, 4, 9)
    assert np.array_equal(drawn(tmp_path / "a", OUTER, BESIDE), outer | beside)
    assert np.array_equal(drawn(tmp_path / "b", OUTER, BESIDE, kind="CLOSEDPLANAR_XOR"), outer ^ beside)


@pytest.mark.parametrize("kind", ["CLOSED_PLANAR", "CLOSEDPLANAR_XOR"])
def test_a_contour_within_another_is_a_hole(tmp_path: Path, kind: str) -> None:
    assert np.array_equal(drawn(tmp_path, INNER, OUTER, kind=kind), area(1, 7, 1, 7) - area(3, 5, 3, 5))


def test_a_hole_may_be_a_keyhole_and_may_touch_the_edge(tmp_path: Path) -> None:
    hole = np.array(INNER).reshape(-1, 3)[[0, 3, 2, 1, 0]]  # the other way round, and closed
    outline = np.array(OUTER).reshape(-1, 3)[[0, 1, 2, 3, 0]]
    keyhole = [*np.concatenate((outline, hole)).ravel()]
    truth = area(1, 7, 1, 7) - area(3, 5, 3, 5)
    assert np.array_equal(drawn(tmp_path / "keyhole", keyhole), truth)
    touching = area(1, 7, 1, 7) - area(1, 3, 1, 3)
    assert np.array_equal(drawn(tmp_path / "touching", OUTER, square(1, 1, 2, -50.0)), touching)


def test_a_contour_that_is_there_twice_is_one(tmp_path: Path) -> None:
    turned = [*np.array(OUTER).reshape(-1, 3)[[2, 3, 0, 1]].ravel()]  # it begins at another corner
    backwards = [*np.array(OUTER).reshape(-1, 3)[::-1].ravel()]
    assert np.array_equal(drawn(tmp_path / "a", OUTER, OUTER), area(1, 7, 1, 7))
    assert np.array_equal(drawn(tmp_path / "b", OUTER, turned, backwards), area(1, 7, 1, 7))
    assert np.array_equal(drawn(tmp_path / "c", OUTER, turned, INNER, INNER), area(1, 7, 1, 7) - area(3, 5, 3, 5))


def rtstruct(root: Path, change: Callable[[Dataset], Any], names: tuple[str, ...] = ("Liver",)) -> Path:
    write_series(root / "ct")
    contours = {name: [square(3, 2 + n, 4, z) for z in Z] for n, name in enumerate(names)}
    write_rtstruct(root / "rs.dcm", contours)
    edit(root / "rs.dcm", change)
    return root


def shifted(rt: Dataset) -> None:
    rt.ROIContourSequence[0].ContourSequence[0].ContourOffsetVector = [0, 0, 3]


def short(rt: Dataset) -> None:
    rt.ROIContourSequence[0].ContourSequence[0].NumberOfContourPoints = 9


def renumbered(rt: Dataset) -> None:
    rt.StructureSetROISequence[1].ROINumber = rt.ROIContourSequence[1].ReferencedROINumber = 1


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (shifted, "a ContourOffsetVector"),
        (short, "got 12 for 9 points"),
        (renumbered, "one region of each number, got several of number 1"),
    ],
)
def test_an_rtstruct_that_contradicts_itself_is_refused(
    tmp_path: Path, change: Callable[[Dataset], Any], sentence: str
) -> None:
    assert sentence in refusal(rtstruct(tmp_path, change, ("Liver", "Spleen")))


@pytest.mark.parametrize("kind", ["POINT", "OPEN_PLANAR", "CLOSED_PLANAR"])
def test_points_and_lines_are_no_region(tmp_path: Path, kind: str) -> None:
    """An isocentre beside the organ, some of which are written as a contour of one point."""

    def point(rt: Dataset) -> None:
        contour = rt.ROIContourSequence[1].ContourSequence[0]
        rt.ROIContourSequence[1].ContourSequence = Items([contour])
        n = 2 if kind == "OPEN_PLANAR" else 1
        contour.ContourGeometricType, contour.NumberOfContourPoints = kind, n
        contour.ContourData = contour.ContourData[: 3 * n]

    source = listed(rtstruct(tmp_path, point, ("Liver", "ISO")))
    assert source.task.classes == ("Liver",)
    assert any("ISO is left out: points or lines" in note for note in source.notes)


def undrawn(rt: Dataset) -> None:
    del rt.ROIContourSequence[1]


@pytest.mark.parametrize("kind", ["SEG", "RTSTRUCT"])
def test_a_label_without_a_frame_or_contour_is_an_absent_organ(tmp_path: Path, kind: str) -> None:
    root = with_segments(tmp_path) if kind == "SEG" else rtstruct(tmp_path, undrawn, ("Liver", "Spleen"))
    source = listed(root)
    assert source.task.classes == ("Liver", "Spleen")
    assert [note.partition(": ")[2] for note in source.notes if "absent" in note] == [
        "Spleen without a contour or frame: absent in this scan"
    ]
    labels = source.scans[0].read().labels
    assert (int((labels & 1).sum()), int((labels >> 1).sum())) == (4 * 16, 0)


def _orphaned(rt: Dataset) -> None:
    rt.ROIContourSequence[1].ReferencedROINumber = 77


def _two_numbers(rt: Dataset) -> None:
    rt.ROIContourSequence[0].ContourSequence[0].ContourData = [1.0, 2.0]


def _one_point_short(rt: Dataset) -> None:
    contour = rt.ROIContourSequence[0].ContourSequence[0]
    contour.NumberOfContourPoints, contour.ContourData = 4, list(contour.ContourData)[:6]


def _far_away(rt: Dataset) -> None:
    contour = rt.ROIContourSequence[0].ContourSequence[0]
    contour.ContourData = ["1e300", *list(contour.ContourData)[1:]]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (_orphaned, "expected contours of regions, got some of number 77, which no region has"),
        (_two_numbers, "expected three numbers for each point of a contour, got 2 for"),
        (_one_point_short, "expected three numbers for each point of a contour, got 6 for 4 points"),
        (_far_away, r"expected points of contours within 100 m of the origin, got 1e\+300 mm"),
    ],
)
def test_contours_that_cannot_be_what_they_say_are_refused(
    change: Callable[[Dataset], None], sentence: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=sentence):
        only_scan(rtstruct(tmp_path, change, ("Liver", "Spleen")))


def test_two_regions_of_one_name_are_united_and_noted(tmp_path: Path) -> None:
    def rename(rt: Dataset) -> None:
        rt.StructureSetROISequence[1].ROIName = "Liver"

    source = listed(rtstruct(tmp_path, rename, ("Liver", "Spleen")))
    assert any("2 labels are called Liver: they are united" in note for note in source.notes)
    assert source.scans[0].read().labels.sum() == 4 * 20


def test_a_region_in_another_frame_of_reference_does_not_lie_on_the_series(tmp_path: Path) -> None:
    def elsewhere(rt: Dataset) -> None:
        first, second = rt.StructureSetROISequence
        first.ReferencedFrameOfReferenceUID = uid("P1", "place")
        second.ReferencedFrameOfReferenceUID = uid("place of the MR")

    source = listed(rtstruct(tmp_path, elsewhere, ("Liver", "Spleen")))
    assert source.task.classes == ("Liver",)
    assert any("1 region left out: in another frame of reference" in note for note in source.notes)


def test_contours_that_name_no_image_are_noted(tmp_path: Path) -> None:
    with_contours(tmp_path)
    write_rtstruct(tmp_path / "rs.dcm", {"Liver": [square(3, 2, 4, z) for z in Z]}, refers_to=None)
    assert any("it is matched by its patient alone" in note for note in listed(tmp_path).notes)


def test_contours_beside_the_slices_are_told_with_their_distance_and_taken_within_a_tolerance(tmp_path: Path) -> None:
    write_series(tmp_path / "ct")
    write_rtstruct(tmp_path / "rs.dcm", {"Liver": [square(3, 2, 4, z + 0.4) for z in Z]})
    sentence = refusal(tmp_path)
    assert "4 contours 0.4 mm or more beside the nearest slice" in sentence
    assert "dicom(off_mm=0.4)" in sentence
    source = listed(tmp_path, "dicom(off_mm=0.4)")
    assert any("lie up to 0.4 mm beside their slices" in note for note in source.notes)
    assert source.scans[0].read().labels.sum() == 4 * 16
    write_rtstruct(tmp_path / "rs.dcm", {"Liver": [square(3, 2, 4, z + 0.4 * n) for n, z in enumerate(Z)]})
    assert any("3 contours of Liver in rs.dcm left out: 0.4 mm or more" in note for note in listed(tmp_path).notes)
    with pytest.raises(InputError, match=r"dicom.off_mm: expected a length in mm, got -1"):
        listed(tmp_path, "dicom(off_mm=-1.0)")


@pytest.mark.parametrize(("contour", "noted"), [(square(1, 1, 6, -50.0), 0), (square(-1, 1, 6, -50.0), 1)])
def test_contours_that_leave_the_image_are_noted(tmp_path: Path, contour: list[float], noted: int) -> None:
    truth = area(1, 7, 1, 7) if not noted else area(0, 5, 1, 7)
    assert np.array_equal(drawn(tmp_path, contour), truth)
    notes = [note for note in listed(tmp_path).notes if "beyond the edge of the image" in note]
    assert notes == ["1 contour of Liver in rs.dcm beyond the edge of the image: only what lies in it counts"] * noted


@pytest.mark.parametrize(
    ("field", "value", "note"),
    [
        ("RescaleSlope", "3e38", "values of 3e+38 x stored"),
        ("RescaleSlope", "1e-30", "values of 1e-30 x stored"),
        ("RescaleIntercept", "-1e20", "values of 1 x stored -1e+20"),
        ("PixelSpacing", ["1e-6", "0.7"], "a spacing of 2.5 x 1e-06 x 0.7 mm"),
        ("PixelSpacing", ["1e6", "0.7"], "a spacing of 2.5 x 1e+06 x 0.7 mm"),
    ],
)
def test_lengths_and_scales_that_no_scanner_has_are_noted(tmp_path: Path, field: str, value: Any, note: str) -> None:
    images = write_series(tmp_path / "ct")
    write_seg(tmp_path / "seg.dcm", images, box(4, 3, 7, 2, 6), ["Liver"])
    for path in [*images, tmp_path / "seg.dcm"]:
        edit(path, lambda header: setattr(header, field, value) if field in header else None)
    seg = tmp_path / "seg.dcm"
    if field == "PixelSpacing":

        def spread(header: Dataset) -> None:
            header.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].PixelSpacing = value

        edit(seg, spread)
    scan = only_scan(tmp_path)
    assert any(doubt.startswith(note) and doubt.endswith("which no scanner has") for doubt in scan.doubts), scan.doubts
