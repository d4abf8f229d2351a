"""Damaged and odd files of every format, each with a part of the message that it must give."""

from __future__ import annotations

import gzip
import json
import os
import struct
import zipfile
import zlib
from pathlib import Path

import nibabel
import nrrd
import numpy as np
import pydicom
import SimpleITK as sitk
import tifffile
import zarr
from dicom_series import write_series
from ome_zarr.format import FormatV04
from ome_zarr.writer import write_image

RNG = np.random.default_rng(0)
TEXT = b"this is not an image\n" * 50
DATA = RNG.integers(0, 99, (20, 20, 20)).astype(np.int16)


def make_all(folder: Path) -> dict[Path, str]:
    """Make the files; returns what to say of each."""
    made: dict[Path, str] = {}
    for make in (general, nifti, tiff, tiff_folders, nrrds, metaimages, zarrs, dicom, archives):
        place = folder / make.__name__
        place.mkdir()
        made |= {place / name: message for name, message in make(place).items()}
    return made


def general(place: Path) -> dict[str, str]:
    for name in ("empty.nii", "empty.nii.gz", "empty.tif", "empty.dcm", "empty.nrrd", "empty.mha"):
        (place / name).touch()
    for name in ("text.nii", "text.nii.gz", "text.tif", "text.dcm", "text.nrrd", "text.mha"):
        (place / name).write_bytes(TEXT)
    (place / "text.zip").write_bytes(TEXT)
    (place / "text.png").write_bytes(TEXT)
    (place / "text.xyz").write_bytes(TEXT)
    os.mkfifo(place / "pipe.nii")
    (place / "loop.nii").symlink_to(place / "loop.nii")
    (place / "nothing").mkdir()
    (place / "notes").mkdir()
    (place / "notes" / "readme.txt").write_bytes(TEXT)
    said = {name.name: "empty" for name in place.glob("empty.*")}
    said |= {name.name: "damaged" for name in place.glob("text.*")}
    return said | {
        "text.dcm": "",
        "text.mha": "not a MetaImage",
        "text.xyz": "NIfTI",
        "text.zip": "",
        "missing.nii.gz": "no file",
        "pipe.nii": "neither a file nor a folder",
        "loop.nii": "",
        "nothing": "no DICOM",
        "notes": "no DICOM",
    }


def nifti(place: Path) -> dict[str, str]:
    image = nibabel.Nifti1Image(DATA, np.eye(4))
    plain, packed = image.to_bytes(), gzip.compress(image.to_bytes())

    def header(**fields: object) -> bytes:
        changed = nibabel.Nifti1Header(plain[:348], check=False)
        for name, value in fields.items():
            changed[name] = value
        return changed.binaryblock + plain[348:]

    nan = np.array([np.nan, 0, 0, 0], np.float32)
    garbled = bytearray(packed)
    garbled[len(packed) // 2 : len(packed) // 2 + 40] = bytes(40)
    made = {
        "cut.nii.gz": (packed[: len(packed) // 2], "damaged"),
        "garbled.nii.gz": (bytes(garbled), "damaged"),
        "cut.nii": (plain[: len(plain) // 2], "truncated"),
        "stub.nii": (plain[:100], "damaged"),
        "packed_text.nii.gz": (gzip.compress(TEXT), "damaged"),
        "huge.nii": (header(dim=[3, 30000, 30000, 30000, 1, 1, 1, 1]), "truncated"),
        "huge.nii.gz": (gzip.compress(header(dim=[3, 9999, 9999, 9999, 1, 1, 1, 1])), "truncated"),
        "negative.nii": (header(dim=[3, -5, 20, 20, 1, 1, 1, 1]), "no voxels"),
        "flat.nii": (header(dim=[3, 20, 0, 20, 1, 1, 1, 1]), "no voxels"),
        "six_axes.nii": (header(dim=[6, 5, 4, 5, 4, 5, 4, 1]), "shape"),
        "nan_affine.nii": (header(sform_code=1, srow_x=nan), "orientation"),
        "zero_affine.nii": (header(sform_code=1, srow_x=nan * 0), "orientation"),
        "zero_spacing.nii": (
            header(sform_code=0, qform_code=1, pixdim=[1, 0, 1, 1, 0, 0, 0, 0]),
            "spacing",
        ),
        "wrong_bits.nii": (header(datatype=64, bitpix=64), "truncated"),
        "no_type.nii": (header(datatype=999), "damaged"),
        "far_offset.nii": (header(vox_offset=1e9), "damaged"),
        "nan_offset.nii": (header(vox_offset=np.nan), "damaged"),
        "complex.nii": (
            nibabel.Nifti1Image(np.ones((3, 3, 3), np.complex64), np.eye(4)).to_bytes(),
            "complex",
        ),
    }
    return _written(place, made)


def tiff(place: Path) -> dict[str, str]:
    stack = RNG.integers(0, 999, (9, 30, 30)).astype(np.uint16)
    tifffile.imwrite(place / "cut.tif", stack)
    tifffile.imwrite(place / "cut_zlib.tif", stack, compression="zlib")
    for name in ("cut.tif", "cut_zlib.tif"):
        content = (place / name).read_bytes()
        (place / name).write_bytes(content[: len(content) * 2 // 3])
    tifffile.imwrite(place / "huge.tif", stack[0])
    with tifffile.TiffFile(place / "huge.tif", mode="r+b") as tif:
        for tag in ("ImageWidth", "ImageLength", "RowsPerStrip"):
            tif.pages[0].tags[tag].overwrite(60_000)
    tifffile.imwrite(place / "complex.tif", stack[0].astype(np.complex64))
    entry = struct.pack("<HHHII", 1, 256, 4, 1, 30)
    start = struct.pack("<2sHI", b"II", 42, 8)
    (place / "loop.tif").write_bytes(start + entry + bytes([8, 0, 0, 0]))
    (place / "no_pages.tif").write_bytes(struct.pack("<2sHI", b"II", 42, 0))
    (place / "far.tif").write_bytes(struct.pack("<2sHI", b"II", 42, 2**31))
    tifffile.imwrite(place / "two_images.tif", stack[0])
    tifffile.imwrite(place / "two_images.tif", stack[0, :9], append=True)
    return {
        "cut.tif": "",
        "cut_zlib.tif": "",
        "huge.tif": "damaged",
        "complex.tif": "complex64",
        "loop.tif": "",
        "no_pages.tif": "",
        "far.tif": "no pages",
        "two_images.tif": "--series",
    }


def tiff_folders(place: Path) -> dict[str, str]:
    picture = np.zeros((9, 9), np.uint8)
    for name, files in {
        "mixed_bits": {"a1.tif": picture, "a2.tif": picture.astype(np.uint16)},
        "mixed_sizes": {"a1.tif": picture, "a2.tif": picture[:5]},
        "unnumbered": {"liver.tif": picture, "spleen.tif": picture},
    }.items():
        (place / name).mkdir()
        for file, pixels in files.items():
            tifffile.imwrite(place / name / file, pixels)
    (place / "one_is_text").mkdir()
    tifffile.imwrite(place / "one_is_text" / "a1.tif", picture)
    (place / "one_is_text" / "a2.tif").write_bytes(TEXT)
    return {
        "mixed_bits": "in type",
        "mixed_sizes": "in size",
        "unnumbered": "not numbered alike",
        "one_is_text": "a2.tif is damaged",
    }


def nrrds(place: Path) -> dict[str, str]:
    good = {"space": "LPS", "space directions": np.eye(3), "space origin": [0, 0, 0]}
    made = {}
    for encoding in ("raw", "gzip"):
        nrrd.write(str(place / "good.nrrd"), DATA, good | {"encoding": encoding})
        content = (place / "good.nrrd").read_bytes()
        made[f"cut_{encoding}.nrrd"] = (content[: len(content) * 2 // 3], "")
    for name, old, new, said in (
        ("huge", b"sizes: 20 20 20", b"sizes: 90000 90000 90000", "truncated"),
        ("negative", b"sizes: 20 20 20", b"sizes: -20 20 20", "no voxels"),
        ("nan", b"(1,0,0)", b"(nan,0,0)", "orientation"),
        ("zero", b"(1,0,0)", b"(0,0,0)", "orientation"),
        ("no_type", b"type: int16", b"type: chars", "damaged"),
        ("no_encoding", b"encoding: gzip", b"encoding: secret", ""),
        ("escape", b"encoding: gzip", b"data file: ../../etc/passwd\nencoding: raw", "beside"),
        ("absolute", b"encoding: gzip", b"data file: /dev/zero\nencoding: raw", "beside"),
        ("lost", b"encoding: gzip", b"data file: other.raw\nencoding: raw", "not beside"),
    ):
        directions = content.replace(b"(1.0,0.0,0.0)", b"(1,0,0)")
        assert old in directions, (name, directions[:300])
        made[f"{name}.nrrd"] = (directions.replace(old, new), said)
    (place / "good.nrrd").unlink()
    return _written(place, made)


def metaimages(place: Path) -> dict[str, str]:
    sitk.WriteImage(sitk.GetImageFromArray(DATA), str(place / "good.mha"))
    content = (place / "good.mha").read_bytes()
    made = {"cut.mha": (content[: len(content) // 2], "truncated")}
    for name, old, new, said in (
        ("huge", b"DimSize = 20 20 20", b"DimSize = 90000 90000 90000", "truncated"),
        ("zero", b"ElementSpacing = 1 1 1", b"ElementSpacing = 1 0 1", ""),
        ("escape", b"ElementDataFile = LOCAL", b"ElementDataFile = ../../secret", "beside"),
        ("lost", b"ElementDataFile = LOCAL", b"ElementDataFile = other.raw", "not beside"),
        ("no_type", b"ElementType = MET_SHORT", b"ElementType = MET_WORDS", ""),
    ):
        assert old in content
        made[f"{name}.mha"] = (content.replace(old, new), said)
    (place / "good.mha").unlink()
    return _written(place, made)


def zarrs(place: Path) -> dict[str, str]:
    for name in ("plain", "no_array", "odd_axes", "damaged_chunk", "plate"):
        group = zarr.open_group(place / f"{name}.zarr", mode="w", zarr_format=2)
        if name not in ("plain", "plate"):
            write_image(DATA, group, axes="zyx", fmt=FormatV04(), scale_factors=[])
    attributes = place / "odd_axes.zarr" / ".zattrs"
    described = json.loads(attributes.read_text())
    described["multiscales"][0]["axes"] = [{"name": "u", "type": "space"}] * 3
    attributes.write_text(json.dumps(described))
    for path in (place / "no_array.zarr").rglob(".zarray"):
        path.unlink()
    for path in (place / "damaged_chunk.zarr").rglob("*"):
        if path.is_file() and not path.name.startswith("."):
            path.write_bytes(TEXT)
    plate = {"wells": [{"path": "A/1"}, {"path": "../../A/2"}, 7]}
    (place / "plate.zarr" / ".zattrs").write_text(json.dumps({"plate": plate}))
    (place / "plate.zarr" / "A" / "1").mkdir(parents=True)
    (place / "bad_json.zarr").mkdir()
    (place / "bad_json.zarr" / ".zgroup").write_text("{not json")
    (place / "empty.zarr").mkdir()
    return {
        "plain.zarr": "no OME-Zarr image",
        "no_array.zarr": "",
        "odd_axes.zarr": "",
        "damaged_chunk.zarr": "damaged",
        "plate.zarr": "a plate of 1 well (A/1)",
        "bad_json.zarr": "",
        "empty.zarr": "no OME-Zarr image",
    }


def dicom(place: Path) -> dict[str, str]:
    values = RNG.integers(0, 999, (3, 16, 16)).astype(np.uint16)
    write_series(place / "mixed_sizes", values, uid="1.2.3")
    write_series(place / "mixed_series", values)
    write_series(place / "mixed_series", values + 1, description="other")
    (path,) = write_series(place / "cut", values[:1])
    path.write_bytes(path.read_bytes()[:-200])
    for name, fields in {
        "huge": {"Rows": 65_000, "Columns": 65_000},
        "no_rows": {"Rows": 0},
        "zero_spacing": {"PixelSpacing": [0, 0]},
        "many_frames": {"NumberOfFrames": 2**31 - 1},
        "odd_bits": {"BitsAllocated": 7},
        "structure": {"Modality": "RTSTRUCT"},
    }.items():
        (path,) = write_series(place / name, values[:1], **fields)
    (path,) = write_series(place / "no_pixels", values[:1])
    dataset = pydicom.dcmread(path)
    del dataset.PixelData
    dataset.save_as(path)
    (path,) = write_series(place / "unknown_compression", values[:1])
    content = path.read_bytes().replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.9.9.9\0")
    path.write_bytes(content)
    (place / "directory").mkdir()
    (place / "directory" / "DICOMDIR").write_bytes(bytes(128) + b"DICM" + TEXT)
    said = dict.fromkeys((path.name for path in place.iterdir()), "")
    # A volume of pixels without a known spacing can still be read, and so can slices of one size.
    for readable in ("zero_spacing", "mixed_sizes"):
        del said[readable]
    return said | {"mixed_series": "--series", "structure": "no DICOM images"}


def archives(place: Path) -> dict[str, str]:
    (path,) = write_series(place / "scan", np.ones((1, 16, 16), np.uint16))
    with zipfile.ZipFile(place / "escape.zip", "w") as archive:
        archive.write(path, "../../outside.dcm")
    with zipfile.ZipFile(place / "no_images.zip", "w") as archive:
        archive.writestr("readme.txt", TEXT)
    with zipfile.ZipFile(place / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.dcm", bytes(2**28))
    content = bytearray((place / "no_images.zip").read_bytes())
    (place / "cut.zip").write_bytes(content[: len(content) // 2])
    squeezed = pydicom.dcmread(path)
    squeezed.file_meta.TransferSyntaxUID = pydicom.uid.DeflatedExplicitVRLittleEndian
    squeezed.save_as(place / "deflated.dcm")
    whole = (place / "deflated.dcm").read_bytes()
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    bomb = packer.compress(bytes(2**28)) + packer.flush()
    start = whole[: whole.index(b"1.2.840.10008.1.2.1.99") + 24]
    (place / "deflated.dcm").write_bytes(start + bomb)
    bad = ("escape.zip", "no_images.zip", "bomb.zip", "cut.zip", "deflated.dcm")
    return dict.fromkeys(bad, "")


def _written(place: Path, made: dict[str, tuple[bytes, str]]) -> dict[str, str]:
    for name, (content, _) in made.items():
        (place / name).write_bytes(content)
    return {name: said for name, (_, said) in made.items()}
