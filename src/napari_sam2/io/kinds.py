"""What kind of image a file or folder is, judged by its name and its first bytes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from napari_sam2.io.volume import ReadError

SUFFIXES = {
    "NIfTI": (".nii", ".nii.gz", ".hdr", ".img"),
    "TIFF": (".tif", ".tiff"),
    "picture": (".png", ".jpg", ".jpeg"),
    "NRRD": (".nrrd", ".nhdr"),
    "MetaImage": (".mha", ".mhd"),
    "DICOM": (".dcm", ".ima", ".zip"),
}
_SINGLE = sorted((s for suffixes in SUFFIXES.values() for s in suffixes), key=len, reverse=True)
_LONGER = (".ome.tif", ".ome.tiff", ".seg.nrrd", ".ome.zarr", ".zarr")
"""What else names of images and labels end in; some of the others are the ends of these."""
_PAGES = (SUFFIXES["TIFF"], (".png",), (".jpg", ".jpeg"))
"""What numbered files of a sequence may be; where a folder holds several, the first counts."""
_READABLE = (
    "NIfTI (.nii, .nii.gz), DICOM (a folder, a file, a DICOMDIR or a zip), TIFF, PNG and JPEG (a "
    "file or a folder of numbered ones), OME-Zarr, NRRD and MHA can"
)


def image_kind(path: Path) -> str:
    """The format of a file or folder, judged by its name and its first bytes.

    Returns "NIfTI", "TIFF", "picture" (PNG, JPEG), "sequence" (a folder of numbered ones of these),
    "OME-Zarr", "NRRD", "MetaImage", "DICOM", "DICOM SEG" (a file with a segmentation) or
    "RTSTRUCT" (one with contours).
    Raises: ReadError for what is none of them, is empty or does not exist.
    """
    if not path.exists():
        raise ReadError(f"There is no file or folder {path}.")
    if path.is_dir():
        return _folder_kind(path)
    if not path.is_file():
        raise ReadError(f"{path} is neither a file nor a folder.")
    if path.stat().st_size == 0:
        raise ReadError(f"{path} is empty (0 bytes).")
    kind = _kind_of_name(path)
    if kind == "NIfTI" and path.suffix.lower() in (".hdr", ".img"):
        kind = kind if _is_pair(path) else None  # other programs use these endings, too
    if kind == "DICOM" or path.name.lower() == "dicomdir" or is_dicom(path):
        from napari_sam2.io.labels_dicom import labels_kind

        return labels_kind(path) or "DICOM"
    if kind is not None:
        return kind
    raise ReadError(f"{path} is not an image that can be read: {_READABLE}.")


def _folder_kind(path: Path) -> str:
    marks = ("zarr.json", ".zattrs", ".zgroup", ".zarray")
    if path.suffix == ".zarr" or any((path / name).is_file() for name in marks):
        return "OME-Zarr"
    pages = pages_of(path)
    others = [file for file in _files(path) if file not in pages]
    if not pages or any(is_dicom(file) for file in others):
        return "DICOM"
    # A picture beside scans shows what is in them, or how they were made.
    is_beside = _kind_of_name(pages[0]) == "picture" and any(
        _kind_of_name(file) not in (None, "picture") for file in others
    )
    return "DICOM" if is_beside else "sequence"


def pages_of(folder: Path) -> list[Path]:
    """The TIFFs of a folder; without any, its PNGs, or else its JPEGs."""
    files = _files(folder)
    for suffixes in _PAGES:
        found = [file for file in files if file.name.lower().endswith(suffixes)]
        if found:
            return found
    return []


def contents(names: Iterable[str]) -> str:
    """What files there are, for a message: "12 .nii.gz and 2 other files"; no other names, which
    may be patients'."""
    counts = Counter(_ending(name, _SINGLE) or "other" for name in names)
    texts = [f"{count} {what}" for what, count in counts.most_common()]
    texts.sort(key=lambda text: text.endswith("other"))
    plural = "s" if counts.total() != 1 else ""
    return f"{' and '.join(texts)} file{plural}"


def stem(name: str) -> str:
    """The name of an image or its labels without what says its kind: "scan" of "scan.nii.gz"."""
    return name[: len(name) - len(_ending(name, (*_LONGER, *_SINGLE)))] or name


def _ending(name: str, suffixes: Iterable[str]) -> str:
    """The first of these that a name ends in; empty for none."""
    return next((suffix for suffix in suffixes if name.lower().endswith(suffix)), "")


def _files(folder: Path) -> list[Path]:
    return [file for file in folder.iterdir() if file.is_file() and not file.name.startswith(".")]


def _kind_of_name(path: Path) -> str | None:
    name = path.name.lower()
    return next((kind for kind, suffixes in SUFFIXES.items() if name.endswith(suffixes)), None)


def _is_pair(path: Path) -> bool:
    """Whether the header of a pair .hdr, .img is that of a NIfTI file."""
    for header in (path.with_suffix(".hdr"), path.with_suffix(".HDR")):
        if header.is_file():
            with header.open("rb") as file:
                return file.read(348)[344:347] in (b"ni1", b"n+1")
    return False


def is_dicom(path: Path) -> bool:
    """Whether the file carries DICOM's mark after its 128-byte preamble."""
    with path.open("rb") as file:
        return is_marked(file.read(132))


def is_marked(start: bytes) -> bool:
    """Whether a file that starts with these 132 bytes carries DICOM's mark."""
    return start[128:132] == b"DICM"
