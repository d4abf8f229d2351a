"""PET in SUV by body weight, against values by hand, and what is said where a field is missing."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from dicom_series import STORED, macro, write_series

from napari_sam2.io import Volume
from napari_sam2.io.dicom import read_dicom_image

DATA = Path(__file__).parents[2] / "shared" / "data" / "io"
HALF_LIFE, DOSE, WEIGHT = 6586.2, 3.7e8, 70.0


def read_pet(folder: Path, tracer: dict[str, object] | None = None, **fields: object) -> Volume:
    """A series in Bq/ml: injected at 12:00, scanned at 13:00, decay corrected to the scan."""
    given: dict[str, object] = {
        "RadiopharmaceuticalStartTime": "120000",
        "RadionuclideTotalDose": DOSE,
        "RadionuclideHalfLife": HALF_LIFE,
    }
    given = {k: v for k, v in (given | (tracer or {})).items() if v is not None}
    usual: dict[str, object] = {
        "Modality": "PT",
        "Units": "BQML",
        "DecayCorrection": "START",
        "CorrectedImage": ["DECY", "ATTN", "SCAT"],
        "PatientWeight": WEIGHT,
        "SeriesDate": "20200301",
        "SeriesTime": "130000",
        "AcquisitionDate": "20200301",
        "AcquisitionTime": "130500",
        "RadiopharmaceuticalInformationSequence": macro(**given),
    }
    wanted = {k: v for k, v in (usual | fields).items() if v is not None}
    write_series(folder, slope=2.0, intercept=0, **wanted)
    return read_dicom_image(folder)


def suv(hours: float) -> np.ndarray:
    """By hand: Bq/ml times body weight in g over the dose that is left."""
    return STORED * 2.0 * WEIGHT * 1000 / (DOSE * math.exp(-math.log(2) * hours * 3600 / HALF_LIFE))


def test_decay_since_the_injection_counts(tmp_path: Path) -> None:
    volume = read_pet(tmp_path, WindowCenter=5000, WindowWidth=10000)
    np.testing.assert_allclose(volume.array, suv(hours=1), rtol=1e-6)
    assert volume.notes == ("The PET values are SUV by body weight (g/ml).",)
    _, high = volume.windows["window of the file"]
    assert high == pytest.approx(10000 * suv(hours=1)[0, 0, 0] / STORED[0, 0, 0] / 2)


@pytest.mark.parametrize(
    ("tracer", "fields", "hours"),
    [
        ({"RadiopharmaceuticalStartDateTime": "20200301113000"}, {}, 1.5),
        ({"RadiopharmaceuticalStartTime": "233000"},
         {"SeriesTime": "003000", "AcquisitionTime": "003000"}, 1),
        ({}, {"DecayCorrection": "ADMIN"}, 0),
        ({}, {"SeriesDate": None, "AcquisitionDate": None}, 1),
        ({"RadiopharmaceuticalStartDateTime": "20200301120000.0"},
         {"SeriesDate": None, "AcquisitionDate": None}, 1),
    ],
    ids=["date and time", "over midnight", "to administration", "no dates", "one date"],
)  # fmt: skip
def test_ways_to_give_the_times(
    tmp_path: Path, tracer: dict[str, object], fields: dict[str, object], hours: float
) -> None:
    volume = read_pet(tmp_path, tracer, **fields)
    np.testing.assert_allclose(volume.array, suv(hours), rtol=1e-6)


def test_a_series_made_afterwards_goes_by_its_frames(tmp_path: Path) -> None:
    """Its own time is later than the scan, which began 10 minutes before the second bed position:
    a frame of 2 minutes whose average activity is a bit before its middle."""
    decay = math.log(2) / HALF_LIFE
    average = math.log(decay * 120 / (1 - math.exp(-decay * 120))) / decay
    assert 59 < average < 60
    volume = read_pet(
        tmp_path,
        SeriesTime="180000",
        AcquisitionTime="131000",
        ActualFrameDuration=120000,
        FrameReferenceTime=f"{(600 + average) * 1000:.4f}",
    )
    np.testing.assert_allclose(volume.array, suv(hours=1), rtol=1e-6)


@pytest.mark.parametrize(
    ("tracer", "fields", "missing"),
    [
        ({}, {"PatientWeight": None}, "in Bq/ml, not SUV: the patient's weight is missing"),
        ({}, {"PatientWeight": 0}, "the patient's weight is missing"),
        ({"RadionuclideTotalDose": None}, {}, "the injected dose in Bq is missing"),
        ({"RadionuclideTotalDose": 370.0}, {}, "the injected dose in Bq is missing"),
        ({"RadionuclideHalfLife": None}, {}, "the half-life is missing"),
        ({"RadiopharmaceuticalStartTime": None}, {}, "the time of the injection is missing"),
        ({"RadiopharmaceuticalStartDateTime": "20200302120000"}, {}, "does not fit the scan's"),
        (
            {},
            {"RadiopharmaceuticalInformationSequence": None},
            "the radiopharmaceutical is missing",
        ),
        ({}, {"CorrectedImage": ["ATTN"]}, "not corrected for attenuation and decay"),
        ({}, {"DecayCorrection": "NONE"}, "do not say to which time the decay is corrected"),
        ({}, {"SeriesTime": "180000"}, "the time of the scan is missing"),
        ({}, {"AcquisitionTime": None}, "the time of the scan is missing"),
        ({}, {"Units": "CNTS"}, "in the file's units (CNTS), not SUV"),
        ({}, {"Units": None}, "in the file's units (not given), not SUV"),
        ({}, {"Units": "GML"}, "The values are SUV (g/ml), as the scanner stored them"),
    ],
)
def test_without_what_is_needed_values_stay(
    tmp_path: Path, tracer: dict[str, object], fields: dict[str, object], missing: str
) -> None:
    volume = read_pet(tmp_path, tracer, **fields)
    np.testing.assert_array_equal(volume.array, STORED * 2)
    assert missing in " ".join(volume.notes)
