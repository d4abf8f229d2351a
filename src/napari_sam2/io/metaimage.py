"""MetaImage in (.mha, .mhd), through ITK."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import SimpleITK as sitk

from napari_sam2.io.volume import ReadError, Volume, check_memory, spacing_of, unread

_MAX_RATIO = 1100  # deflate cannot pack more than 1032 : 1


def read_metaimage(path: Path, pixels: bool = True) -> Volume:
    """Read an image into memory: (z, y, x), with time (t, z, y, x), colours or channels.

    pixels: False leaves the values out.

    Raises: ReadError for damaged files, and data files that lie elsewhere than beside the header.
    """
    data_file, is_packed = _data_file(path)
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    reader = sitk.ImageFileReader()
    reader.SetImageIO("MetaImageIO")
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        raise ReadError(f"The header of {path} is damaged, or none that ITK can read.") from error
    shape = tuple(int(n) for n in reader.GetSize()[::-1])
    components = int(reader.GetNumberOfComponents())
    dtype = sitk.GetArrayViewFromImage(
        sitk.Image([1] * max(2, min(3, len(shape))), reader.GetPixelID())
    ).dtype
    needed = int(np.prod(shape, dtype=object)) * components * dtype.itemsize
    if needed > data_file.stat().st_size * (_MAX_RATIO if is_packed else 1):
        raise ReadError(
            f"{path} is truncated or damaged: its header gives the shape {shape}, but its values "
            "are fewer; copy or download it again."
        )
    if dtype.kind not in "uif":
        raise ReadError(f"{path} holds values of type {dtype}; save their magnitude and read that.")
    if not 2 <= len(shape) <= 4:
        raise ReadError(f"{path} has {len(shape)} axes; two to four can be read.")
    affine = _affine(reader)
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-12:
        raise ReadError(
            f"The header of {path} gives no usable orientation (NaN, or a spacing of zero)."
        )
    full = (*shape, components) if components > 1 else shape
    if pixels:
        check_memory(path, needed)
        try:
            array = sitk.GetArrayFromImage(reader.Execute())
        except RuntimeError as error:
            raise ReadError(
                f"The values of {path} are damaged; copy or download it again."
            ) from error
    else:
        array = unread(full, dtype)
    axes = "tzyx"[4 - len(shape) :]
    if axes == "yx":
        array = array[np.newaxis]
    if components == 2 or components > 4:
        array = np.moveaxis(array, -1, -4)
        axes = axes.replace("yx" if axes == "yx" else "zyx", "czyx")
    elif components > 1:
        array = array[..., :3]
    spacing: tuple[float, ...] = spacing_of(affine)
    if "t" in axes:
        spacing = (float(reader.GetSpacing()[3]), *spacing)
    return Volume(
        array=array,
        spacing=spacing,
        unit="mm",
        affine=affine,
        source=path.name,
        axes=axes,
    )


def _affine(reader: sitk.ImageFileReader) -> np.ndarray:
    """(4, 4) voxel (x, y, z) -> RAS mm."""
    ndim = reader.GetDimension()
    used = min(3, ndim)
    direction = np.reshape(reader.GetDirection(), (ndim, ndim))[:used, :used]
    affine = np.eye(4)
    affine[:used, :used] = direction * np.array(reader.GetSpacing()[:used])
    affine[:used, 3] = reader.GetOrigin()[:used]
    return np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine


def _data_file(path: Path) -> tuple[Path, bool]:
    """The file that holds the values, which must be this one or lie beside it; whether packed."""
    is_packed = False
    with path.open("rb") as file:
        head = file.read(1 << 16)
    for line in head.split(b"\n"):
        key, _, value = line.partition(b"=")
        if key.strip().lower() == b"compresseddata":
            is_packed = value.strip().lower() == b"true"
        if key.strip().lower() == b"elementdatafile":
            name = value.strip().decode(errors="replace")
            if name.upper() == "LOCAL":
                return path, is_packed
            if not name or Path(name).name != name or "%" in name or name.upper() == "LIST":
                raise ReadError(
                    f"{path} keeps its values in {name!r}; only one data file beside the header "
                    "can be read."
                )
            if not (path.parent / name).is_file():
                raise ReadError(f"{path} keeps its values in {name!r}, which is not beside it.")
            return path.parent / name, is_packed
    raise ReadError(f"{path} is not a MetaImage file: it does not say where its values are.")
