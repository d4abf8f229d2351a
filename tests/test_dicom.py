"""DICOM series: where slices lie, what their values mean, and which belong together.

Geometry and values are checked with SimpleITK, a second reader.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from dicom_series import STORED, itk_series, macro, write_enhanced, write_series
from pydicom.data import get_testdata_file
from pydicom.uid import generate_uid

from napari_sam2.io import ReadError, Volume, read_volume
from napari_sam2.io.dicom import list_series, read_dicom_image
from napari_sam2.io.readers import layers_of

DATA = Path(__file__).parents[2] / "shared" / "data" / "io"
needs_data = pytest.mark.skipif(not DATA.exists(), reason="no ../shared/data")
HU = STORED.astype(int) - 1024


def assert_lies_as_in(image: sitk.Image, volume: Volume, atol: float = 1e-3) -> None:
    """The voxels at all corners lie, in mm, where SimpleITK sees them, and have the same values.

    Where the gantry is tilted, SimpleITK's grid cannot follow; give it untilted series only.
    """
    array = np.asarray(volume.array)
    np.testing.assert_allclose(sitk.GetArrayFromImage(image), array, rtol=1e-5)
    assert volume.affine is not None
    for corner in np.ndindex(2, 2, 2):
        z, y, x = (int(end * (n - 1)) for end, n in zip(corner, array.shape, strict=False))
        ours = volume.affine @ [x, y, z, 1]
        theirs = image.TransformIndexToPhysicalPoint((x, y, z))
        np.testing.assert_allclose(ours[:3] * [-1, -1, 1], theirs, atol=atol)


# ---- where slices lie


@pytest.mark.parametrize("direction", [1, -1], ids=["ascending", "descending"])
@pytest.mark.parametrize(
    "orientation",
    [
        (1, 0, 0, 0, 1, 0),
        (1, 0, 0, 0, 0, -1),
        (0, 1, 0, 0, 0, -1),
        (-1, 0, 0, 0, -1, 0),
        (0.8, 0.6, 0, -0.36, 0.48, 0.8),
    ],
    ids=["axial", "coronal", "sagittal", "feet up", "oblique"],
)
def test_a_series_lies_where_itk_sees_it(
    tmp_path: Path, orientation: tuple[float, ...], direction: int
) -> None:
    """Whichever way slices were numbered, z grows along their normal."""
    normal = np.cross(orientation[:3], orientation[3:])
    write_series(tmp_path / "scan", orientation=orientation, step=tuple(direction * 2.5 * normal))
    volume = read_dicom_image(tmp_path / "scan")
    np.testing.assert_array_equal(volume.array, HU[::direction])
    assert volume.spacing == pytest.approx((2.5, 0.8, 0.6))
    assert (volume.axes, volume.unit, volume.notes) == ("zyx", "mm", ())
    assert_lies_as_in(itk_series(tmp_path / "scan"), volume)


def test_a_tilted_gantry_is_shear_in_the_affine(tmp_path: Path) -> None:
    paths = write_series(tmp_path, step=(0.0, 0.5, 2.5))
    volume = read_dicom_image(tmp_path)
    assert "tilted by 11.3 degrees" in " ".join(volume.notes)
    assert volume.affine is not None
    for z, path in enumerate(paths):
        there = volume.affine @ [0, 0, z, 1] * [-1, -1, 1, 1]
        np.testing.assert_allclose(there[:3], pydicom.dcmread(path).ImagePositionPatient)
        np.testing.assert_allclose(there[:3], sitk.ReadImage(path).GetOrigin())


def test_missing_slices_are_told(tmp_path: Path) -> None:
    write_series(tmp_path, skip=(3,))
    volume = read_dicom_image(tmp_path)
    assert volume.shape == (5, 8, 7)
    assert volume.notes[0].startswith("1 slice is missing: 5.00 mm lie between z = 2 and 3")
    assert volume.spacing[0] == pytest.approx(2.5)


def test_unequally_spaced_slices_are_told(tmp_path: Path) -> None:
    positions = {z: {"ImagePositionPatient": [-50, -60, 20 + 2.5 * z]} for z in range(5)}
    write_series(tmp_path, tweak=positions | {5: {"ImagePositionPatient": [-50, -60, 33.5]}})
    volume = read_dicom_image(tmp_path)
    assert volume.notes[0].startswith(
        "Slices are unequally spaced: 3.50 mm lie between z = 4 and 5"
    )


def test_shifted_slices_are_told(tmp_path: Path) -> None:
    write_series(tmp_path, tweak={2: {"ImagePositionPatient": [-48, -60, 25]}})
    assert "shifted against each other by up to 2.0 mm" in read_dicom_image(tmp_path).notes[0]


def test_doubled_slices_are_left_out_and_told(tmp_path: Path) -> None:
    uid = generate_uid()
    write_series(tmp_path, uid=uid)
    write_series(tmp_path, STORED[:2] + 1, uid=uid)
    volume = read_dicom_image(tmp_path)
    np.testing.assert_array_equal(volume.array[2:], HU[2:])
    assert volume.notes == ("2 doubled slices left out: their positions occur twice.",)


def test_copies_of_files_are_left_out_and_told(tmp_path: Path) -> None:
    for path in write_series(tmp_path):
        path.with_name(f"copy of {path.name}").write_bytes(path.read_bytes())
    volume = read_dicom_image(tmp_path)
    np.testing.assert_array_equal(volume.array, HU)
    assert volume.notes == ("6 doubled slices left out: they are copies of others.",)


def test_without_positions_slices_keep_their_numbers_order(tmp_path: Path) -> None:
    write_series(tmp_path, ImagePositionPatient=None)
    volume = read_dicom_image(tmp_path)
    np.testing.assert_array_equal(volume.array, HU[::-1])  # InstanceNumber falls along z
    assert volume.affine is None
    assert (volume.spacing, volume.unit) == ((2.5, 0.8, 0.6), "mm")
    assert "do not say where the slices lie" in volume.notes[0]


def test_an_orientation_that_is_none_is_not_believed(tmp_path: Path) -> None:
    write_series(tmp_path, ImageOrientationPatient=[1, 1, 0, 0, 0, 1])
    assert read_dicom_image(tmp_path).affine is None


# ---- what values mean


def test_values_are_in_modality_units_and_small_types(tmp_path: Path) -> None:
    write_series(tmp_path / "ct", BitsStored=12, HighBit=11)
    assert read_dicom_image(tmp_path / "ct").array.dtype == np.int16
    write_series(tmp_path / "signed", STORED.astype(np.int16) - 1500, intercept=0)
    assert read_dicom_image(tmp_path / "signed").array.dtype == np.int16
    write_series(
        tmp_path / "each", slope=0.5, intercept=0, tweak={2: {"RescaleSlope": 0.125}}
    )  # PET scales each slice by itself
    expected = STORED * np.array([0.5, 0.5, 0.125, 0.5, 0.5, 0.5])[:, None, None]
    np.testing.assert_allclose(read_dicom_image(tmp_path / "each").array, expected)


def test_colour_and_palettes(tmp_path: Path) -> None:
    colours = np.random.default_rng(1).integers(0, 255, (2, 4, 5, 3)).astype(np.uint8)
    write_series(tmp_path, colours)
    volume = read_dicom_image(tmp_path)
    np.testing.assert_array_equal(volume.array, colours)
    assert volume.shape == (2, 4, 5)
    palette = read_volume(get_testdata_file("examples_palette.dcm", read=False))
    assert palette.array.shape == (1, 350, 800, 3) and palette.array.dtype == np.uint8


def test_a_ct_without_rescale_is_told(tmp_path: Path) -> None:
    write_series(tmp_path / "ct", RescaleSlope=None, RescaleIntercept=None)
    assert "may not be Hounsfield units" in " ".join(read_volume(tmp_path / "ct").notes)
    write_series(tmp_path / "mr", RescaleSlope=None, RescaleIntercept=None, Modality="MR")
    assert read_volume(tmp_path / "mr").notes == ()


def test_small_values_that_are_bright_are_shown_so_and_kept(tmp_path: Path) -> None:
    write_series(tmp_path, PhotometricInterpretation="MONOCHROME1")
    volume = read_dicom_image(tmp_path)
    np.testing.assert_array_equal(volume.array, HU)
    assert "MONOCHROME1" in volume.notes[0]
    ((_, options, _),) = layers_of(volume)
    assert options["colormap"] == "gray_r"


def test_windows_come_from_the_file(tmp_path: Path) -> None:
    write_series(
        tmp_path / "named",
        WindowCenter=[40, -600],
        WindowWidth=[400, 1500],
        WindowCenterWidthExplanation=["SOFT TISSUE", "LUNG"],
    )
    assert read_dicom_image(tmp_path / "named").windows == {
        "SOFT TISSUE": (-160, 240),
        "LUNG": (-1350, 150),
    }
    write_series(tmp_path / "plain", WindowCenter=40, WindowWidth=400)
    assert read_dicom_image(tmp_path / "plain").windows == {"window of the file": (-160, 240)}


@pytest.mark.parametrize(
    "name",
    ["MR_small_RLE.dcm", "MR_small_jp2klossless.dcm", "MR_small_jpeg_ls_lossless.dcm",
     "MR_small_bigendian.dcm", "MR_small_implicit.dcm", "MR_small_expb.dcm"],
)  # fmt: skip
def test_transfer_syntaxes_give_the_same_pixels(tmp_path: Path, name: str) -> None:
    for one in (name, "MR_small.dcm"):
        (tmp_path / one).mkdir()
        (tmp_path / one / one).write_bytes(Path(get_testdata_file(one, read=False)).read_bytes())
    expected = sitk.GetArrayFromImage(sitk.ReadImage(tmp_path / "MR_small.dcm" / "MR_small.dcm"))
    np.testing.assert_array_equal(read_dicom_image(tmp_path / name).array, expected)


# ---- which slices belong together


def test_a_file_stands_for_its_series(tmp_path: Path) -> None:
    paths = write_series(tmp_path)
    write_series(tmp_path, STORED[:3, :4] + 1, description="other")
    volume = read_dicom_image(paths[2])
    assert volume.shape == (6, 8, 7)
    assert volume.files == tuple(paths)


def test_several_series_need_a_choice(tmp_path: Path) -> None:
    uid = generate_uid()
    write_series(tmp_path / "a", uid=uid, description="arterial", SeriesNumber=2)
    write_series(tmp_path / "b", STORED[:4] + 7, description="venous", SeriesNumber=10)
    with pytest.raises(
        ReadError,
        match=r"2 series: choose one with --series: 1 \(CT 'arterial', 6 x 8 x 7\), 2 .*venous",
    ):
        read_dicom_image(tmp_path)
    assert read_dicom_image(tmp_path, uid).shape == (6, 8, 7)
    assert [read_dicom_image(tmp_path, n).shape[0] for n in ("1", 2)] == [6, 4]
    with pytest.raises(ReadError, match="there is no series 3"):
        read_dicom_image(tmp_path, "3")

    first, second = list_series(tmp_path)
    assert (first.series, first.uid, first.kind) == ("1", uid, "CT")
    assert (first.shape, first.axes, first.dtype) == ((6, 8, 7), "zyx", "int32")
    assert first.spacing == pytest.approx((2.5, 0.8, 0.6)) and first.unit == "mm"
    assert (first.orientation, first.volumes, first.files) == ("LPS", 1, 6)
    assert second.description == "venous"


def test_a_localizer_in_the_series_is_offered_apart(tmp_path: Path) -> None:
    paths = write_series(tmp_path, tweak={0: {"ImageOrientationPatient": [1, 0, 0, 0, 0, -1]}})
    scan, localizer = sorted(list_series(tmp_path), key=lambda s: -s.files)
    assert (scan.shape, localizer.shape) == ((5, 8, 7), (1, 8, 7))
    assert read_dicom_image(paths[3]).shape == (5, 8, 7)
    assert read_dicom_image(tmp_path, localizer.series).shape == (1, 8, 7)


def write_phases(folder: Path, fields: list[dict[str, object]]) -> None:
    """The same slices several times, with these fields in each volume, and values that tell."""
    uid = generate_uid()
    for n, own in enumerate(fields):
        write_series(folder / str(9 - n), STORED + n, uid=uid, **own)


@pytest.mark.parametrize(
    ("fields", "interval"),
    [
        ([{"TemporalPositionIdentifier": n + 1, "AcquisitionTime": f"1200{n * 3:02d}"}
          for n in range(3)], 3.0),
        ([{"TriggerTime": n * 40.0} for n in range(3)], 0.04),
        ([{"AcquisitionTime": f"12{n * 5:02d}00.5"} for n in range(3)], 300.0),
        ([{"AcquisitionDateTime": f"202001012359{n + 57:02d}"} for n in range(3)], 1.0),
        ([{"FrameReferenceTime": 1000.0 * n} for n in range(3)], 1.0),
        ([{"AcquisitionNumber": n} for n in range(3)], 1.0),
    ],
    ids=["position", "trigger", "time", "date and time", "reference time", "number"],
)  # fmt: skip
def test_time_points_are_split(
    tmp_path: Path, fields: list[dict[str, object]], interval: float
) -> None:
    write_phases(tmp_path, fields)
    volume = read_dicom_image(tmp_path)
    np.testing.assert_array_equal(volume.array, np.stack([HU, HU + 1, HU + 2]))
    assert volume.axes == "tzyx" and volume.notes == ()
    assert volume.spacing == pytest.approx((interval, 2.5, 0.8, 0.6))
    assert len(volume.files) == 18 and volume.files[0].parent.name == "9"

    with pytest.raises(ReadError, match=r"3 volumes at the same place.*--volume 0 to --volume 2"):
        read_volume(tmp_path)
    one = read_volume(tmp_path, volume=2)
    np.testing.assert_array_equal(one.array, HU + 2)
    assert {path.parent.name for path in one.files} == {"7"} and one.axes == "zyx"
    with pytest.raises(ReadError, match="there is no --volume 3"):
        read_volume(tmp_path, volume=3)


def test_slices_with_times_of_their_own_are_split_by_rank(tmp_path: Path) -> None:
    """In an interleaved scan, every slice of a volume has another time."""
    uid = generate_uid()
    for n in range(3):
        times = {z: {"AcquisitionTime": f"1200{10 * n + z * 5 % 6:02d}"} for z in range(6)}
        write_series(tmp_path, STORED + n, uid=uid, tweak=times)
    volume = read_dicom_image(tmp_path)
    np.testing.assert_array_equal(volume.array, np.stack([HU, HU + 1, HU + 2]))
    assert volume.spacing[0] == pytest.approx(10) and volume.notes == ()


def test_a_volume_that_is_not_complete_is_left_out(tmp_path: Path) -> None:
    uid = generate_uid()
    for n in range(3):
        skip = (1, 2) if n == 1 else ()
        write_series(tmp_path, STORED + n, uid=uid, skip=skip, TemporalPositionIdentifier=n + 1)
    volume = read_dicom_image(tmp_path)
    np.testing.assert_array_equal(volume.array, np.stack([HU, HU + 2]))
    assert volume.notes == ("4 slices left out: their volumes are not complete.",)


def test_echoes_and_b_values_are_channels(tmp_path: Path) -> None:
    write_phases(tmp_path / "echoes", [{"EchoTime": t, "Modality": "MR"} for t in (4.6, 30, 80)])
    volume = read_dicom_image(tmp_path / "echoes")
    assert (volume.axes, volume.channels) == ("czyx", ("TE 4.6 ms", "TE 30 ms", "TE 80 ms"))
    assert volume.spacing == pytest.approx((2.5, 0.8, 0.6))
    np.testing.assert_array_equal(volume.array[2], HU + 2)
    one = read_volume(tmp_path / "echoes", channel=1)
    assert (one.axes, one.channels) == ("zyx", ())
    np.testing.assert_array_equal(one.array, HU + 1)
    for wrong in ({}, {"volume": 1}):  # as with the channels of every other format
        with pytest.raises(ReadError, match=r"TE 30 ms, TE 80 ms\); choose one with --channel 0"):
            read_volume(tmp_path / "echoes", **wrong)
    with pytest.raises(ReadError, match="there is no --channel 3"):
        read_volume(tmp_path / "echoes", channel=3)
    write_phases(tmp_path / "b", [{"DiffusionBValue": b, "Modality": "MR"} for b in (0.0, 800.0)])
    assert read_dicom_image(tmp_path / "b").channels == ("b 0 s/mm2", "b 800 s/mm2")


def test_magnitude_and_phase_are_channels(tmp_path: Path) -> None:
    kinds = ("M", "P")
    write_phases(tmp_path, [{"ImageType": ["ORIGINAL", "PRIMARY", k, "ND"]} for k in kinds])
    volume = read_dicom_image(tmp_path)
    assert (volume.axes, volume.channels) == ("czyx", kinds)


def test_trigger_times_that_differ_between_slices_are_ranked(tmp_path: Path) -> None:
    """Only the first is the same everywhere; the others follow each slice's own heart rate."""
    uid = generate_uid()
    for n in range(3):
        times = {z: {"TriggerTime": n * (40.0 + z)} for z in range(6)}
        write_series(tmp_path, STORED + n, uid=uid, tweak=times)
    volume = read_dicom_image(tmp_path)
    np.testing.assert_array_equal(volume.array, np.stack([HU, HU + 1, HU + 2]))
    assert volume.spacing[0] == pytest.approx(0.0425)


def test_time_points_of_one_slice_are_a_time_lapse(tmp_path: Path) -> None:
    """A cine of the heart: to be followed in time, without a choice."""
    uid = generate_uid()
    for n in range(4):
        write_series(tmp_path, STORED[:1] + n, uid=uid, TriggerTime=25.0 * n)
    assert read_dicom_image(tmp_path).axes == "tzyx"
    movie = read_volume(tmp_path)
    assert (movie.axes, movie.shape) == ("tyx", (4, 8, 7))
    assert movie.spacing == pytest.approx((0.025, 0.8, 0.6))
    np.testing.assert_array_equal(movie.array[:, 0, 0] - movie.array[0, 0, 0], range(4))


# ---- multi-frame files


def test_enhanced_multi_frame(tmp_path: Path) -> None:
    """All frames in one file, out of order, each with its own position and scaling."""
    order = [2, 0, 1, 3]
    groups: list[dict[str, object]] = [
        {
            "PlanePositionSequence": macro(ImagePositionPatient=[-50, -60, 20 + 3.0 * z]),
            "PixelValueTransformationSequence": macro(RescaleSlope=z + 1, RescaleIntercept=-5),
            "FrameVOILUTSequence": macro(WindowCenter=10, WindowWidth=20),
        }
        for z in order
    ]
    path = write_enhanced(tmp_path, STORED[order], groups)
    volume = read_dicom_image(path)
    scale = np.arange(1, 5)[:, None, None]
    np.testing.assert_array_equal(volume.array, STORED[:4].astype(int) * scale - 5)
    assert volume.spacing == pytest.approx((3.0, 0.8, 0.6))
    assert volume.affine is not None
    np.testing.assert_allclose(volume.affine[:3, 3], [50, 60, 20])
    assert volume.windows == {"window of the file": (0, 20)}
    assert volume.files == (path,) * 4


def test_enhanced_time_series(tmp_path: Path) -> None:
    groups: list[dict[str, object]] = [
        {
            "PlanePositionSequence": macro(ImagePositionPatient=[-50, -60, 20 + 3.0 * z]),
            "FrameContentSequence": macro(TemporalPositionIndex=t + 1),
            "TemporalPositionSequence": macro(TemporalPositionTimeOffset=1.5 * t),
        }
        for z in range(3)
        for t in range(2)
    ]
    volume = read_dicom_image(write_enhanced(tmp_path, STORED, groups))
    expected = STORED.reshape(3, 2, 8, 7).swapaxes(0, 1)
    np.testing.assert_array_equal(volume.array, expected)
    assert volume.axes == "tzyx" and volume.spacing[0] == pytest.approx(1.5)


def test_a_multi_frame_file_that_changes_is_read_anew(tmp_path: Path) -> None:
    groups: list[dict[str, object]] = [
        {"PlanePositionSequence": macro(ImagePositionPatient=[0, 0, z])} for z in range(3)
    ]
    path = write_enhanced(tmp_path, STORED[:3], groups)
    volume = read_dicom_image(path)
    np.testing.assert_array_equal(volume.array[1], STORED[1])
    dataset = pydicom.dcmread(path)
    dataset.PixelData = STORED[3:].tobytes()
    dataset.save_as(path)
    np.testing.assert_array_equal(volume.array[1], STORED[4])


def test_multi_frame_without_positions(tmp_path: Path) -> None:
    """A cine loop says how fast it runs; else frames are a stack."""
    colours = Path(get_testdata_file("SC_rgb_rle_2frame.dcm", read=False))
    loop = read_dicom_image(_copy(colours, tmp_path / "loop", FrameTime=40))
    assert (loop.axes, loop.shape, loop.array.shape) == ("tyx", (2, 100, 100), (2, 100, 100, 3))
    assert loop.spacing[0] == pytest.approx(0.04)
    np.testing.assert_array_equal(loop.array, pydicom.dcmread(colours).pixel_array)
    stack = read_dicom_image(_copy(colours, tmp_path / "stack"))
    assert (stack.axes, stack.shape) == ("zyx", (2, 100, 100))


def _copy(source: Path, folder: Path, **fields: object) -> Path:
    folder.mkdir()
    dataset = pydicom.dcmread(source)
    for keyword, value in fields.items():
        setattr(dataset, keyword, value)
    dataset.save_as(folder / "copy.dcm")
    return folder / "copy.dcm"


# ---- lazily


def test_slices_are_read_when_they_are_looked_at(tmp_path: Path) -> None:
    paths = write_series(tmp_path)
    volume = read_dicom_image(tmp_path)
    assert volume.array.chunks[0] == (1,) * 6
    for path in paths[1:]:
        path.unlink()
    np.testing.assert_array_equal(volume.array[0], HU[0])
    with pytest.raises(ReadError, match=f"pixels of .*{paths[3].name} cannot be read"):
        np.asarray(volume.array[3])


# ---- real series


@needs_data
@pytest.mark.parametrize(
    "name",
    [
        "dicom_mr_three_studies/Study1/13_HCropVolume",
        "dicom_mr_three_studies/Study2/14_HCropVolume",
        "dicom_mr_three_studies/Study3/11_HCropVolume",
        "dicom_ct_mr_pet_with_rtstruct/STS_002/CT/image",
        "dicom_ct_mr_pet_with_rtstruct/STS_002/MR_T1/image",
        "dicom_ct_mr_pet_with_rtstruct/STS_002/PET/image",
        "dicom_ct_with_seg/ct-3slice",
    ],
)
def test_real_series_lie_where_itk_sees_them(name: str) -> None:
    assert_lies_as_in(itk_series(DATA / name), read_dicom_image(DATA / name))


@needs_data
def test_real_compressed_ct_without_series_uid() -> None:
    volume = read_dicom_image(DATA / "dicom_ct_20_slices")
    assert volume.shape == (20, 512, 512)
    assert volume.spacing == pytest.approx((2.0, 0.9765625, 0.9765625))
    assert volume.windows == {"WINDOW1": (-110, 190), "WINDOW2": (-450, 1050)}
    for path, picture in zip(volume.files[::7], volume.array[::7], strict=True):
        np.testing.assert_array_equal(
            sitk.GetArrayFromImage(sitk.ReadImage(path))[0], np.asarray(picture)
        )
