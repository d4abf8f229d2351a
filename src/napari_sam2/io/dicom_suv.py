"""PET values as standardized uptake values by body weight (SUVbw), where the files allow it."""

from __future__ import annotations

import math

import pydicom

from napari_sam2.io import dicom_header as read

_SMALLEST_DOSE = 1e5  # Bq; a smaller number is in another unit, such as MBq


def suv_factor(headers: list[pydicom.Dataset]) -> tuple[float, str]:
    """What the values of a PET series, after rescaling, must be multiplied with to be SUVbw in
    g/ml; and a sentence that says what the values are then.

    The factor is 1 where the files hold SUV already or do not say all that is needed; then the
    sentence says what is missing. Follows the vendor-neutral computation of the Quantitative
    Imaging Biomarkers Alliance: weight over the dose that is left at the time to which the scanner
    corrected the decay.
    """
    header = headers[0]
    units = read.text(header, "Units").upper()
    if units == "GML":
        return 1.0, "The values are SUV (g/ml), as the scanner stored them."
    if units != "BQML":
        return 1.0, f"The PET values are in the file's units ({units or 'not given'}), not SUV."
    factor, missing = _factor(headers)
    if factor is None:
        return 1.0, f"The PET values are in Bq/ml, not SUV: {missing}."
    return factor, "The PET values are SUV by body weight (g/ml)."


def _factor(headers: list[pydicom.Dataset]) -> tuple[float | None, str]:
    """The factor from Bq/ml, or None and what is missing."""
    header = headers[0]
    weight = read.number(header, "PatientWeight") or 0
    if weight <= 0:
        return None, "the patient's weight is missing"
    tracer = next(iter(read.items(header, "RadiopharmaceuticalInformationSequence")), None)
    if tracer is None:
        return None, "the radiopharmaceutical is missing"
    dose = read.number(tracer, "RadionuclideTotalDose") or 0
    if dose < _SMALLEST_DOSE:
        return None, "the injected dose in Bq is missing"
    corrections = {value.upper() for value in read.strings(header, "CorrectedImage")}
    reference = read.text(header, "DecayCorrection").upper()
    if "ATTN" not in corrections or not corrections & {"DECY", "DECAY"}:
        return None, "the images are not corrected for attenuation and decay"
    if reference == "ADMIN":
        return weight * 1000 / dose, ""
    if reference != "START":
        return None, "the files do not say to which time the decay is corrected"
    half_life = read.number(tracer, "RadionuclideHalfLife") or 0
    if half_life <= 0:
        return None, "the half-life is missing"
    start = _scan_start(headers, half_life)
    if start is None:
        return None, "the time of the scan is missing"
    injection = _injection(tracer, header, start)
    if injection is None or not 0 <= start - injection <= 10 * half_life:
        return None, "the time of the injection is missing or does not fit the scan's"
    return weight * 1000 / (dose * 2 ** (-(start - injection) / half_life)), ""


def _scan_start(headers: list[pydicom.Dataset], half_life: float) -> float | None:
    """The time to which the decay is corrected, in seconds.

    It is the series' time; in a series that was made afterwards, whose time lies behind the
    acquisitions, it follows from an image's time and its distance to the start of the scan.
    """
    series = read.seconds(headers[0], "SeriesDate", "SeriesTime")
    times = [read.seconds(h, "AcquisitionDate", "AcquisitionTime") for h in headers]
    known = [(t, h) for t, h in zip(times, headers, strict=True) if t is not None]
    if not known:
        return None
    acquired, first = min(known, key=lambda pair: pair[0])
    if series is not None and series <= acquired:
        return series
    duration = read.number(first, "ActualFrameDuration") or 0
    reference = read.number(first, "FrameReferenceTime") or 0
    if duration <= 0 or reference <= 0:
        return None
    decay = math.log(2) / half_life
    decayed = decay * duration / 1000  # during the frame
    average = math.log(decayed / -math.expm1(-decayed)) / decay  # DICOM PS3.3 C.8.9.4.1.5
    return acquired - (reference / 1000 - average)


def _injection(tracer: pydicom.Dataset, header: pydicom.Dataset, start: float) -> float | None:
    """When the tracer was given, in seconds; the last such time of day before the scan where the
    date is missing."""
    moment = read.date_seconds(tracer, "RadiopharmaceuticalStartDateTime")
    if moment is not None and start >= 86400:  # the scan has a date too
        return moment
    clock = read.seconds(tracer, "", "RadiopharmaceuticalStartTime")
    if clock is None:
        return None
    day = start - start % 86400
    return day + clock if day + clock <= start else day + clock - 86400
