import subprocess
import sys

import numpy as np
import pytest
import tiny_bundle

from edgeseg.measure.surface import hd95, surface

SPACING = (8.0, 1.5, 1.25)


def brute_surface(mask):
    """Voxels with a face neighbour outside the mask or outside the image, one by one."""
    found = []
    for at in np.argwhere(mask):
        for axis in range(mask.ndim):
            for step in (-1, 1):
                near = at.copy()
                near[axis] += step
                if not 0 <= near[axis] < mask.shape[axis] or not mask[tuple(near)]:
                    found.append(tuple(at))
    return np.array(sorted(set(found)))


def brute_hd95(a, b, spacing):
    pa, pb = brute_surface(a) * np.array(spacing), brute_surface(b) * np.array(spacing)
    distances = np.sqrt(((pa[:, None] - pb[None]) ** 2).sum(-1))
    return np.percentile(np.concatenate([distances.min(1), distances.min(0)]), 95)


@pytest.mark.parametrize("seed", range(8))
def test_agrees_with_brute_force_on_random_volumes(seed):
    rng = np.random.default_rng(seed)
    a, b = (rng.random((3, 9, 8)) < share for share in (0.5, 0.2))
    assert hd95(a, b, SPACING) == pytest.approx(brute_hd95(a, b, SPACING))


def test_a_shifted_square_lies_its_shift_away():
    a, b = np.zeros((40, 40), bool), np.zeros((40, 40), bool)
    a[5:25, 5:25], b[5:25, 9:29] = True, True
    assert hd95(a, b, (1.0, 2.0)) == 8.0  # 4 columns of 2 mm


def test_spacing_between_slices_counts():
    a, b = np.zeros((4, 6, 6), bool), np.zeros((4, 6, 6), bool)
    a[0], b[3] = True, True
    assert hd95(a, b, SPACING) == 24.0


def test_the_distances_are_pooled_not_the_larger_direction():
    # 1 far voxel among 30 of `a`: 3 % of the directed set, 1.6 % of the pooled set
    a = np.zeros((1, 200), bool)
    a[0, :29], a[0, 150] = True, True
    b = np.zeros((1, 200), bool)
    b[0, :29] = True
    assert hd95(a, b, (1, 1)) == 0.0
    a[0, 100:105] = True  # 6 of 35 far: 17 % of one direction, 9 % of the pool
    directed = np.array([0.0] * 29 + [72, 73, 74, 75, 76, 122])
    assert hd95(a, b, (1, 1)) == pytest.approx(np.percentile(np.concatenate([directed, np.zeros(29)]), 95))
    assert hd95(a, b, (1, 1)) < np.percentile(directed, 95)


def test_it_is_symmetric_and_zero_for_equal_masks():
    rng = np.random.default_rng(0)
    a, b = rng.random((3, 7, 7)) < 0.3, rng.random((3, 7, 7)) < 0.3
    assert hd95(a, b, SPACING) == hd95(b, a, SPACING)
    assert hd95(a, a, SPACING) == 0.0


def test_empty_masks_agree_and_one_empty_mask_has_no_distance():
    a, empty = np.ones((2, 3, 3), bool), np.zeros((2, 3, 3), bool)
    assert hd95(empty, empty, SPACING) == 0.0
    assert np.isnan(hd95(a, empty, SPACING))
    assert np.isnan(hd95(empty, a, SPACING))


def test_the_border_of_the_image_is_surface():
    assert surface(np.ones((3, 3), bool)).sum() == 8  # all but the middle one


def test_it_works_after_a_runtime_has_made_denormals_zero(tmp_path):
    # both runtimes do so in the thread that loads them; scipy's cKDTree then overflows the stack
    network = tiny_bundle.write_network(tmp_path / "net.onnx")
    code = f"""
import numpy as np
from pathlib import Path
from edgeseg.runtime.backends import load_backend
from edgeseg.measure.surface import hd95
network = load_backend("openvino", Path({str(network)!r}))
rng = np.random.default_rng(0)
print(hd95(rng.random((6, 120, 120)) < 0.5, rng.random((6, 120, 120)) < 0.02, (10.0, 1.5625, 1.5625)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) > 0


def test_wrong_number_of_spacings_is_refused():
    with pytest.raises(ValueError, match="spacing"):
        hd95(np.ones((2, 2), bool), np.ones((2, 2), bool), (1, 1, 1))
