"""Labels as NIfTI: the array goes back to the file's X, Y, Z, as it was.

Names and colours are kept in a header extension, the label table of Connectome Workbench, which
TotalSegmentator and others write too.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import nibabel
import numpy as np
from nibabel.nifti1 import Nifti1Extension

from napari_sam2.io.legend import Legend, LegendEntry
from napari_sam2.io.volume import Volume, label_dtype, spacing_of

_CARET = 30  # the code of the extension


def write_nifti(path: Path, labels: Volume, legend: Legend) -> None:
    """Write labels so that they lie on their image voxel by voxel in any program.

    From NIfTI the source's header is kept: affine, qform and sform with their codes, units,
    spacing. From DICOM the affine is RAS. Images without orientation (TIFF) get x to the left and y
    to the back, as ITK reads TIFF. A time-lapse of pictures has its frames along z.
    """
    data = labels.array.astype(label_dtype(labels.array), copy=False).T
    if labels.nifti_header is not None:
        header = labels.nifti_header.copy()
        header.extensions.clear()
        if len(header.get_data_shape()) == 2:
            data = data[..., 0]
        kind = (
            nibabel.Nifti2Image if isinstance(header, nibabel.Nifti2Header) else nibabel.Nifti1Image
        )
        header.set_data_shape(data.shape)
        header.set_data_dtype(data.dtype)
        header.set_slope_inter(1, 0)
        header["cal_min"] = header["cal_max"] = 0
        image = kind(data, header.get_best_affine(), header)
    else:
        affine = labels.affine
        if affine is None:
            z, y, x = (n * (1e-3 if labels.unit == "um" else 1.0) for n in labels.spacing[-3:])
            affine = np.diag([-x, -y, z, 1.0])
        kind = nibabel.Nifti1Image if max(data.shape) < 2**15 else nibabel.Nifti2Image
        image = kind(data, affine, dtype=data.dtype)  # nibabel asks to be told of 64 bits
        is_long = labels.axes == "tzyx"
        if is_long:
            image.header.set_zooms((*spacing_of(affine)[::-1], labels.spacing[0]))
        space = "unknown" if labels.unit == "pixel" else "mm"
        image.header.set_xyzt_units(space, "sec" if is_long else None)
        image.set_sform(affine, code="scanner")
        image.set_qform(affine, code="scanner")
        if not np.allclose(image.get_qform(), affine, atol=1e-3 * min(spacing_of(affine))):
            image.set_qform(None, code="unknown")  # a quaternion cannot hold shear (gantry tilt)
    image.header.set_intent("label")
    image.header["descrip"] = b"labels by napari-sam2"
    if legend:
        image.header.extensions.append(Nifti1Extension(_CARET, _label_table(legend)))
    nibabel.save(image, path)


def nifti_legend(path: Path) -> Legend:
    """Names and colours in a NIfTI file's label table; none where it has no such table."""
    found = []
    header: Any = nibabel.load(path).header
    for extension in header.extensions:
        file = io.BytesIO()
        extension.write_to(file, byteswap=False)
        content = file.getvalue()[8:].strip(b"\0 \n")  # behind its length and its code
        if b"<LabelTable" not in content:
            continue
        for label in ElementTree.fromstring(content).iter("Label"):
            red, green, blue = (float(label.get(part, 0)) for part in ("Red", "Green", "Blue"))
            has_colour = float(label.get("Alpha", 1)) > 0
            colour = (red, green, blue) if has_colour else None
            found.append(LegendEntry(int(label.get("Key", 0)), label.text or "", colour))
    return tuple(entry for entry in found if entry.id > 0)


def _label_table(legend: Legend) -> bytes:
    """The extension's XML; an object without a colour of its own is transparent in it."""
    root = ElementTree.Element("CaretExtension")
    volume = ElementTree.SubElement(root, "VolumeInformation", Index="0")
    table = ElementTree.SubElement(volume, "LabelTable")
    for entry in legend:
        red, green, blue = (f"{part:.6g}" for part in entry.colour or (0, 0, 0))
        alpha = "0" if entry.colour is None else "1"
        label = ElementTree.SubElement(
            table, "Label", Key=str(entry.id), Red=red, Green=green, Blue=blue, Alpha=alpha
        )
        label.text = entry.name
    ElementTree.SubElement(volume, "VolumeType").text = "Label"
    return ElementTree.tostring(root, encoding="utf-8", xml_declaration=True)
