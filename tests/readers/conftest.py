from pathlib import Path

import numpy as np
import pytest

from edgeseg.case import Case
from edgeseg.labels import LabelScheme
from edgeseg.readers import CaseRef, Dataset

HEART = LabelScheme(("background", "RV", "MYO", "LV"))


def toy_case(patient: str, phase: str | None, seed: int, scheme: LabelScheme = HEART, channels: int = 1) -> Case:
    """3 slices of 12 x 9 pixels, every label present, no two pixels alike."""
    rng = np.random.default_rng(seed)
    labels = np.asarray(scheme.values, np.uint8)[rng.integers(0, len(scheme.values), (3, 12, 9))]
    frames = rng.integers(0, 2000, (3, channels, 12, 9)).astype(np.float32)
    frame = {"ED": 1, "ES": 7}.get(phase or "", 4)
    return Case(id=f"{patient}_frame{frame:02d}", patient=patient, frames=frames, spacing=(1.25, 1.5),
                slice_spacing=8.0, labels=labels, scheme=scheme, phase=phase, group="DCM", vendor="B")


def toy_data(patients: int = 4, phases=("ED", "ES"), **kwargs) -> Dataset:
    cases = [toy_case(f"p{p:02d}", phase, 10 * p + i, **kwargs) for p in range(patients)
             for i, phase in enumerate(phases)]
    splits = ("train", "dev", "val")
    refs = tuple(CaseRef(c.id, c.patient, splits[int(c.patient[1:]) % 3], c.phase, c.group, c.vendor, lambda c=c: c)
                 for c in cases)
    return Dataset("toy", "toy:", refs, cases[0].scheme, "none")


@pytest.fixture
def data() -> Dataset:
    return toy_data()


@pytest.fixture
def make_data():
    return toy_data


@pytest.fixture
def acdc(tmp_path: Path, data: Dataset) -> Path:
    from edgeseg.phantoms.write import write_acdc

    return write_acdc(data, tmp_path / "with space" / "acdc")


@pytest.fixture
def mnms(tmp_path: Path, make_data) -> Path:
    from edgeseg.phantoms.write import write_mnms

    return write_mnms(make_data(phases=("ED", None, "ES")), tmp_path / "with space" / "mnms")


@pytest.fixture
def real_acdc() -> Path:
    folder = Path(__file__).parents[3] / "shared" / "data" / "acdc"
    if not folder.is_dir():
        pytest.skip("the real ACDC data (../shared/data/acdc) is not here")
    return folder
