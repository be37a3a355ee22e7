"""The same frames through Python, C, MRD, DICOM and OpenIGTLink: one answer, bit for bit."""

import cpp_kit
import igtl_peer
import numpy as np
import pytest

pytest.importorskip("ismrmrd")
pytest.importorskip("pynetdicom")
pytest.importorskip("highdicom")
import mrd_client
from dicom_files import Plane, slice_file
from dicom_peer import labels_of, node, results_of, store, wait_for

from edgeseg import Segmenter
from edgeseg.measure.bench import scanner_frames
from edgeseg.shipped import find

FRAMES = 4


@pytest.fixture(scope="module")
def segmenter():
    return Segmenter(find("cine"), precision="int8", threads=1)


@pytest.fixture(scope="module")
def frames(segmenter):
    """uint16 [FRAMES, 256, 216] as the bundle's frame graph takes them."""
    found, spacings, _ = scanner_frames(segmenter.bundle)
    seen = [f[0] for f in found if segmenter.segment(f[0], spacings[0]).labels.any()]  # not all of them show the heart
    return np.stack(seen[:FRAMES])


@pytest.fixture(scope="module")
def spacing(segmenter):
    return segmenter.bundle.manifest.frames[0].spacing


@pytest.fixture(scope="module")
def python(segmenter, frames, spacing):
    labels = np.stack([segmenter.segment(f, spacing).labels for f in frames])
    assert len(labels) == FRAMES
    assert all(label.any() for label in labels)
    return labels


def test_mrd_gives_what_python_gives(frames, spacing, python, tmp_path):
    with mrd_client.serving(tmp_path, "--precision", "int8", "--image-deadline", "60", bundle="cine") as server:
        sent = [mrd_client.image(f, spacing, slice=k, image_index=k) for k, f in enumerate(frames)]
        found = mrd_client.images(mrd_client.talk(server.port, *sent))
    np.testing.assert_array_equal(np.stack([f.data[0, 0] for f in found[1 : 2 * FRAMES : 2]]), python)


def test_openigtlink_gives_what_python_gives(frames, spacing, python, tmp_path):
    with igtl_peer.serving("cine", tmp_path, "--precision", "int8") as server, igtl_peer.Peer(server.port) as peer:
        found = [peer.ask(igtl_peer.image(f, spacing)).labels[0] for f in frames]
    np.testing.assert_array_equal(np.stack(found), python)


def test_dicom_gives_what_python_gives(segmenter, frames, spacing, python, tmp_path):
    data = [slice_file(f, Plane(spacing=spacing), k, 0, FRAMES) for k, f in enumerate(frames)]
    with node(segmenter, tmp_path) as served:
        assert store(served.address, data) == [0] * FRAMES
        segs = wait_for(lambda: not served.spool.incoming() and not served.spool.ready() and results_of(tmp_path))
    np.testing.assert_array_equal(labels_of(segs, data), python)


@pytest.mark.skipif(bool(cpp_kit.missing()), reason=cpp_kit.missing() or "the C kit can be built")
def test_c_gives_what_python_gives(segmenter, frames, spacing, python, tmp_path):
    kit = cpp_kit.build(tmp_path / "kit")
    found = cpp_kit.segment_file(kit, segmenter.bundle.path, frames[:, None], spacing, tmp_path, "--precision", "int8",
                                 "--threads", "1")
    np.testing.assert_array_equal(found, python)
