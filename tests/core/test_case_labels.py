"""Case and LabelScheme: what they accept, what they refuse, and mapping by name."""

import numpy as np
import pytest

from edgeseg.case import Case
from edgeseg.errors import EdgesegError
from edgeseg.labels import IGNORE, LabelScheme

ACDC = LabelScheme(("background", "RV", "MYO", "LV"), (0, 1, 2, 3))
MNMS = LabelScheme(("background", "LV", "MYO", "RV"), (0, 1, 2, 3))


def frames(value: float = 1.0) -> np.ndarray:
    out = np.zeros((2, 1, 4, 5), np.float32)
    out[0, 0, 1, 1] = value
    return out


def test_labels_map_by_name_never_by_number():
    labels = np.array([[[0, 1, 2, 3]]], np.uint8)
    assert ACDC.encode(labels, MNMS).tolist() == [[[0, 3, 2, 1]]]
    assert MNMS.decode(MNMS.encode(labels, MNMS)).tolist() == labels.tolist()


def test_nnunet_names_of_the_heart_mean_the_same_structures():
    assert LabelScheme(("background", "RV", "MLV", "LVC")).names == ACDC.names


def test_extra_structures_become_background_and_ignore_is_kept():
    wide = LabelScheme(("background", "RV", "MYO", "LV", "scar"), (0, 1, 2, 3, 9))
    labels = np.array([9, 3, 7, IGNORE], np.uint8)
    assert ACDC.encode(labels, wide, ignore=7).tolist() == [0, 3, IGNORE, IGNORE]


def test_a_missing_structure_or_an_unknown_value_is_refused():
    with pytest.raises(EdgesegError, match="needs RV"):
        ACDC.encode(np.zeros(1, np.uint8), LabelScheme(("background", "LV", "MYO")))
    with pytest.raises(EdgesegError, match="label value 4 is outside"):
        ACDC.encode(np.array([4], np.uint8), MNMS)


@pytest.mark.parametrize("names", [("RV", "LV"), ("background",), ("background", "a", "a")])
def test_a_scheme_without_background_or_with_doubles_is_refused(names):
    with pytest.raises(EdgesegError):
        LabelScheme(names)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"frames": frames(np.nan)}, "NaN"),
        ({"frames": frames(np.inf)}, "NaN or infinite"),
        ({"frames": frames(0.0)}, "constant"),
        ({"spacing": (0.0, 1.0)}, "must be positive"),
        ({"spacing": (1.0, -1.0)}, "must be positive"),
        ({"slice_spacing": 0.0}, "must be positive"),
        ({"frames": frames()[0]}, "expected frames"),
        ({"labels": np.zeros((2, 4, 4), np.uint8), "scheme": ACDC}, "does not match"),
        ({"labels": np.zeros((2, 4, 5), np.uint8)}, "without a label scheme"),
    ],
)
def test_a_bad_case_is_one_line_that_names_the_file(change, message):
    good = {"id": "a", "patient": "a", "frames": frames(), "spacing": (1.0, 1.0), "source": "folder/a.nii.gz"}
    with pytest.raises(EdgesegError, match=message) as caught:
        Case(**(good | change))
    assert "folder/a.nii.gz" in str(caught.value)
    assert "\n" not in str(caught.value)
