"""DICOM on discs and in archives, files that are damaged or hostile, and patients' data."""

from __future__ import annotations

import io
import logging
import re
import sys
import time
import tracemalloc
import warnings
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pydicom
import pytest
from dicom_series import BIRTH, ID, STORED, macro, write_series
from pydicom.data import get_testdata_file
from pydicom.uid import JPEGLSLossless, RLELossless, generate_uid

from napari_sam2.cli import main
from napari_sam2.io import ReadError, read_volume
from napari_sam2.io.dicom import find_series, list_series, read_dicom_image
from napari_sam2.io.readers import get_reader

HU = STORED.astype(int) - 1024
DISC = Path(get_testdata_file("DICOMDIR", read=False)).parent


# ---- discs and archives


def test_a_dicomdir_lists_its_series() -> None:
    """pydicom's test disc: patients with CT, MR and radiographs."""
    series = list_series(DISC / "DICOMDIR")
    assert {(s.kind, s.shape) for s in series} == {
        ("CT", (5, 16, 16)), ("CT", (4, 16, 16)), ("CT", (1, 16, 16)),
        ("MR", (1, 16, 16)), ("CR", (1, 16, 16)),
    }  # fmt: skip
    volume = read_dicom_image(DISC / "DICOMDIR", series[0].series)
    assert {path.parent.parent.name for path in volume.files} <= {
        "77654033",
        "98892001",
        "98892003",
    }
    with pytest.raises(ReadError, match="choose one with --series: 1 "):
        read_dicom_image(DISC / "DICOMDIR")


def write_dicomdir(folder: Path, *names: list[str]) -> Path:
    """A table of contents that lists these files."""
    path = folder / "DICOMDIR"
    dataset = pydicom.dcmread(DISC / "DICOMDIR")
    records = []
    for parts in names:
        record = pydicom.Dataset()
        record.DirectoryRecordType, record.ReferencedFileID = "IMAGE", parts
        records.append(record)
    dataset.DirectoryRecordSequence = pydicom.Sequence(records)
    pydicom.dcmwrite(path, pydicom.Dataset(dataset), enforce_file_format=False,
                     implicit_vr=False, little_endian=True)  # fmt: skip
    path.write_bytes(_file_meta(dataset) + path.read_bytes())
    return path


def _file_meta(dataset: pydicom.Dataset) -> bytes:
    buffer = pydicom.filebase.DicomBytesIO()
    buffer.is_little_endian, buffer.is_implicit_VR = True, False
    pydicom.filewriter.write_file_meta_info(buffer, dataset.file_meta)
    return bytes(128) + b"DICM" + buffer.getvalue()


@pytest.mark.filterwarnings("ignore:Invalid value for VR CS")  # while the test writes it
def test_a_dicomdir_is_followed_within_its_folder_only(tmp_path: Path) -> None:
    (tmp_path / "disc").mkdir()
    outside = write_series(tmp_path / "other", STORED[:1])[0]
    inside = write_series(tmp_path / "disc" / "images", STORED[:2])
    for n, path in enumerate(inside):  # names as on a disc, in lower case as some systems copy them
        path.rename(path.with_name(f"im{n}"))
    disc = tmp_path / "disc"
    volume = read_dicom_image(write_dicomdir(disc, ["IMAGES", "IM0"], ["IMAGES", "IM1"]))
    np.testing.assert_array_equal(volume.array, HU[:2])
    whole = read_dicom_image(disc)  # the disc's folder, in which the table is no image
    assert whole.shape == volume.shape and whole.notes == volume.notes
    with pytest.raises(ReadError, match=r"not safe: it lists the file \.\./other/"):
        read_dicom_image(write_dicomdir(disc, ["..", "other", outside.name]))
    with pytest.raises(ReadError, match=r"None of the files that .* lists is there"):
        read_dicom_image(write_dicomdir(disc, ["IMAGES", "IM7"]))


def write_zip(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def test_a_zip_is_read_without_unpacking(tmp_path: Path) -> None:
    scan = {f"scan/{p.name}": p.read_bytes() for p in write_series(tmp_path / "scan")}
    archive = write_zip(tmp_path / "scan.zip", scan | {"scan/readme.txt": b"no image"})
    before = sorted(tmp_path.rglob("*"))
    volume = read_dicom_image(archive)
    np.testing.assert_array_equal(volume.array, HU)
    assert volume.files == () and volume.spacing == pytest.approx((2.5, 0.8, 0.6))
    assert sorted(tmp_path.rglob("*")) == before

    other = {f"other/{p.name}": p.read_bytes() for p in write_series(tmp_path / "b", STORED[:3])}
    with pytest.raises(ReadError, match="holds 2 series"):
        read_volume(write_zip(tmp_path / "two.zip", scan | other))
    assert {s.shape[0] for s in list_series(tmp_path / "two.zip")} == {3, 6}


def test_hostile_and_damaged_zips_are_refused(tmp_path: Path) -> None:
    one = write_series(tmp_path / "scan", STORED[:1])[0].read_bytes()
    up = write_zip(tmp_path / "up.zip", {"../../escape.dcm": one})
    absolute = write_zip(tmp_path / "absolute.zip", {"/etc/escape.dcm": one})
    bomb = write_zip(tmp_path / "bomb.zip", {"a.dcm": one + bytes(80 << 20)})
    text = tmp_path / "text.zip"
    text.write_text("this is no archive")
    cut = tmp_path / "cut.zip"
    cut.write_bytes(up.read_bytes()[:-30])
    encrypted = write_zip(tmp_path / "encrypted.zip", {"a.dcm": one})
    content = bytearray(encrypted.read_bytes())
    for mark, offset in ((b"PK\x01\x02", 8), (b"PK\x03\x04", 6)):
        content[content.index(mark) + offset] |= 1
    encrypted.write_bytes(content)
    empty = write_zip(tmp_path / "empty.zip", {})
    notes = write_zip(tmp_path / "notes.zip", {"notes.txt": b"no image here"})
    before = sorted(tmp_path.rglob("*"))
    for path, message in [
        (up, "leads out of the archive's own folder"),
        (absolute, "leads out of the archive's own folder"),
        (bomb, "would unpack to more than 200 times its size"),
        (text, "cannot be unpacked"),
        (cut, "cannot be unpacked"),
        (encrypted, "is encrypted; unpack it"),
        (empty, "holds no DICOM images"),
        (notes, "holds no DICOM images"),
    ]:
        tracemalloc.start()
        with pytest.raises(ReadError, match=message):
            read_volume(path)
        assert tracemalloc.get_traced_memory()[1] < 50 << 20
        tracemalloc.stop()
    assert sorted(tmp_path.rglob("*")) == before


# ---- what cannot be read


def test_files_that_are_no_images(tmp_path: Path) -> None:
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "notes.txt").write_text("no image here")
    with pytest.raises(ReadError, match=r"holds no DICOM images, but 1 other file; give one"):
        read_volume(tmp_path / "none")
    for name in ("Secret.nii.gz", "b.nii.gz", "c.json"):
        (tmp_path / "none" / name).write_text("many files")
    with pytest.raises(ReadError, match=r"but 2 \.nii\.gz and 2 other files; give one of them"):
        read_volume(tmp_path / "none")
    plan = Path(get_testdata_file("rtplan.dcm", read=False))
    with zipfile.ZipFile(tmp_path / "plan.zip", "w") as archive:
        archive.write(plan, "plan.dcm")
    with pytest.raises(ReadError, match=r"only 1 DICOM RTPLAN; give the folder with the images"):
        read_volume(tmp_path / "plan.zip")
    with pytest.raises(ReadError, match="is a DICOM RTPLAN, not an image; give the image's folder"):
        read_volume(get_testdata_file("rtplan.dcm", read=False))
    text = tmp_path / "text.dcm"
    text.write_text("this is not an image\n" * 50)
    with pytest.raises(ReadError, match="is damaged"):
        read_volume(text)
    slide = write_series(tmp_path / "slide", STORED[:1], TotalPixelMatrixColumns=4096)[0]
    with pytest.raises(ReadError, match="whole-slide image in tiles"):
        read_volume(slide)


def test_damaged_pixels_are_named_when_they_are_looked_at(tmp_path: Path) -> None:
    paths = write_series(tmp_path, np.tile(STORED, (1, 8, 8)))
    whole = read_volume(tmp_path)
    pictures = np.asarray(whole.array)
    for path, size in ((paths[1], 4000), (paths[4], 40)):  # of 7168 bytes; the end is padding
        path.write_bytes(path.read_bytes()[:-size])
    volume = read_volume(tmp_path)
    assert volume.shape == whole.shape and volume.files == whole.files
    np.testing.assert_array_equal(volume.affine, whole.affine)
    for z in (0, 2, 3, 5):
        np.testing.assert_array_equal(volume.array[z], pictures[z])
    for z, said in ((1, "is truncated or damaged"), (4, "pixels of .* cannot be read")):
        with pytest.raises(ReadError, match=said) as caught:
            np.asarray(volume.array[z])
        assert paths[z].name in str(caught.value)
    said = rf"1 of 6 slices cannot be read.*\({paths[1].name}\)"
    assert re.match(said, list_series(tmp_path)[0].notes[-1]), "the header of 4 does not tell"
    paths[0].write_bytes(paths[1].read_bytes())
    for path in paths[1:]:
        path.unlink()
    with pytest.raises(ReadError, match="is truncated or damaged"):
        read_volume(tmp_path)


def test_a_file_with_a_damaged_header_is_left_out_and_named(tmp_path: Path) -> None:
    paths = write_series(tmp_path / "scan")
    write_series(tmp_path / "other")
    affine = read_volume(tmp_path / "scan").affine
    whole = paths[1].read_bytes()

    def without(*keywords: str) -> None:
        dataset = pydicom.dcmread(paths[1])
        for keyword in keywords:
            delattr(dataset, keyword)
        dataset.save_as(paths[1])

    for damage in (
        lambda: paths[1].write_bytes(whole[:140]),
        lambda: paths[1].write_bytes(whole[:200] + bytes(400) + whole[600:]),
        lambda: paths[1].write_bytes(b"not a header"),
        lambda: without("Rows", "SeriesInstanceUID"),
        lambda: without("ImagePositionPatient"),
    ):
        damage()
        for place in (tmp_path / "scan", paths[3]):
            image = read_volume(place)
            np.testing.assert_array_equal(image.array, np.delete(STORED, 1, 0) - 1024.0)
            np.testing.assert_allclose(image.affine, affine)
            notes = " ".join(image.notes)
            assert "1 slice is missing: 5.00 mm lie between z = 0 and 1" in notes
            assert "eft out" in notes and paths[1].name in notes
        paths[1].write_bytes(whole)
    paths[0].write_bytes(whole[:140])  # at an end there is no gap
    told = {one.shape[0]: " ".join(one.notes) for one in list_series(tmp_path)}
    assert paths[0].name in told[5] and told[6] == ""
    (tmp_path / "other" / "README").write_text("on every disc")
    for path in (tmp_path / "other").glob("*.dcm"):
        garbage = path.rename(path.with_suffix(""))
    garbage.write_bytes(bytes(len(whole)))  # nothing tells that it was DICOM
    (series,) = list_series(tmp_path / "other")
    assert f"Left out as damaged: {garbage.name}." in " ".join(series.notes)
    with pytest.raises(ReadError, match=f"{paths[0].name} is damaged .*; copy or export it again"):
        read_volume(paths[0])
    for path in paths:
        path.write_bytes(whole[:140])
    with pytest.raises(ReadError, match="is damaged"):
        read_volume(tmp_path / "scan")


@pytest.mark.parametrize(
    "fields",
    [
        {"Rows": 65535, "Columns": 65535},
        {"NumberOfFrames": 2_000_000_000},
        {"Rows": 1, "Columns": 1, "NumberOfFrames": 2_000_000_000},
        {"SamplesPerPixel": 60000},
        {"BitsAllocated": 65528, "BitsStored": 65528},
        {"Rows": 0},
    ],
)
@pytest.mark.parametrize("syntax", [None, RLELossless])
def test_huge_claims_are_refused_before_anything_is_allocated(
    tmp_path: Path, fields: dict[str, object], syntax: pydicom.uid.UID | None
) -> None:
    path = write_series(tmp_path, STORED[:1], **fields)[0]
    if syntax is not None:
        dataset = pydicom.dcmread(path)
        dataset.file_meta.TransferSyntaxUID = syntax
        dataset.PixelData = pydicom.encaps.encapsulate([bytes(64)])
        dataset.save_as(path)
    tracemalloc.start()
    start = time.perf_counter()
    with pytest.raises(ReadError, match="damaged"):
        list_series(path)
    assert tracemalloc.get_traced_memory()[1] < 20 << 20
    assert time.perf_counter() - start < 5
    tracemalloc.stop()


def test_a_deflated_bomb_is_refused(tmp_path: Path) -> None:
    source = Path(get_testdata_file("image_dfl.dcm", read=False))
    good = tmp_path / "good.dcm"
    good.write_bytes(source.read_bytes())
    np.testing.assert_array_equal(read_volume(good).array[0], pydicom.dcmread(source).pixel_array)
    whole = source.read_bytes()
    start = 144 + int.from_bytes(whole[140:144], "little")
    packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    bomb = tmp_path / "bomb.dcm"
    bomb.write_bytes(whole[:start] + packer.compress(bytes(64 << 20)) + packer.flush())
    tracemalloc.start()
    with pytest.raises(ReadError, match="would unpack to more than 200 times its size"):
        list_series(bomb)
    assert tracemalloc.get_traced_memory()[1] < 20 << 20
    tracemalloc.stop()


def test_a_missing_decoder_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_series(tmp_path, STORED[:1])[0]
    dataset = pydicom.dcmread(path)
    dataset.PixelData = pydicom.encaps.encapsulate([b"\xff\xd8\xff\xf7" + bytes(60)])
    dataset["PixelData"].VR = "OB"
    dataset.file_meta.TransferSyntaxUID = JPEGLSLossless
    dataset.save_as(path)
    with monkeypatch.context() as patch:
        decoder = pydicom.pixels.get_decoder(JPEGLSLossless)
        patch.setattr(decoder, "_available", {})
        with pytest.raises(
            ReadError, match=r"compressed with JPEG-LS.*needs a decoder: pip install pyjpegls"
        ):
            read_dicom_image(path)
    with pytest.raises(ReadError, match=r"cannot be read .*; copy or export the file again"):
        np.asarray(read_volume(path).array)  # the decoder is there, the pixels are damaged
    twelve_bits = tmp_path / "twelve_bits.dcm"
    twelve_bits.write_bytes(Path(get_testdata_file("JPGExtended.dcm", read=False)).read_bytes())
    monkeypatch.setitem(sys.modules, "libjpeg", None)
    with pytest.raises(ReadError, match=r"all kinds of JPEG .*pip install .*pylibjpeg-libjpeg"):
        np.asarray(read_volume(twelve_bits).array)


@pytest.mark.parametrize("seed", range(4))
def test_flipped_bytes_give_a_volume_or_a_read_error(tmp_path: Path, seed: int) -> None:
    whole = write_series(tmp_path / "scan", STORED[:1])[0].read_bytes()
    rng = np.random.default_rng(seed)
    path = tmp_path / "flipped.dcm"
    for _ in range(60):
        content = bytearray(whole)
        for at in rng.integers(132, len(whole) - STORED[0].nbytes, rng.integers(1, 5)):
            content[at] = rng.integers(256)
        path.write_bytes(
            content[: rng.integers(132, len(whole))] if rng.random() < 0.2 else content
        )
        try:
            for series in find_series(path):
                np.asarray(series.read().array)
        except ReadError as error:
            assert "\n" not in str(error)


# ---- patients' data


@pytest.mark.filterwarnings("ignore::UserWarning:pydicom")  # while the test writes it
def test_patients_are_told_to_nobody(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """Name, id and birthday turn up in no volume, layer, list, message, log or warning, also when
    fields are so damaged that pydicom would quote them."""
    name, uid = "Secret^Name^Verylong" * 20, generate_uid()
    folder = tmp_path / "scan"
    write_series(folder / "a", uid=uid, description="Head of Mr. SECRET")
    window = {"WindowCenter": 40, "WindowWidth": 400, "WindowCenterWidthExplanation": "for Secret"}
    write_series(folder / "b", STORED[:2], PatientName=name, PatientID=ID * 30, **window)
    dose = macro(RadionuclideTotalDose="1e8")
    pet = {"Modality": "PT", "Units": "BQML", "RadiopharmaceuticalInformationSequence": dose}
    write_series(folder / "c", STORED[:3], description="knee", **pet)
    broken = write_series(folder / "d", STORED[:1])[0]
    broken.write_bytes(
        broken.read_bytes()
        .replace(BIRTH.encode(), b"1961XX31")
        .replace(b"Secret^N", b"\xffecret^N")
    )
    told: list[str] = []
    with caplog.at_level(logging.DEBUG), warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        series = list_series(folder)
        told += [repr(s) for s in series]
        for one in series:
            volume = read_dicom_image(folder, one.series)
            np.asarray(volume.array)
            told.append(repr(volume))
        reader = get_reader(str(folder))
        assert reader is not None
        told += [repr(options) for _, options, _ in reader(str(folder))]
        for wrong in (None, "9", uid + ".1"):
            with pytest.raises(ReadError) as caught:
                read_volume(folder, series=wrong)
            told.append(str(caught.value))
        broken.write_bytes(broken.read_bytes()[:-40])
        with pytest.raises(ReadError) as caught:
            np.asarray(read_volume(broken).array)
        told.append(str(caught.value))
        command = ["segment", str(folder), "-o", str(tmp_path / "o.nii.gz"), "--point", "0:1,1"]
        assert main(command) != 0
    assert len(series) == 4 and "knee" in told[2]
    told += [*capfd.readouterr(), caplog.text, *(str(w.message) for w in warned)]
    everything = io.StringIO("\n".join(told)).read().lower()
    everything = re.sub(r"\d+(\.\d+){3,}", "UID", everything)  # any year is in one of them at times
    for secret in ("secret", "verylong", ID.lower(), BIRTH, "1961"):
        assert secret not in everything.replace(str(tmp_path).lower(), "")
