"""The DICOM node and programs that others wrote: dcmtk (storescu, echoscu, storescp) and Orthanc."""

import io
import shutil
import subprocess

import numpy as np
import pytest
import tiny_bundle

pytest.importorskip("pynetdicom")
pytest.importorskip("highdicom")
from dicom_files import ID, PERSON, oblique, write_series
from dicom_loops import write_loop
from dicom_peer import BEAT, IMAGES, Orthanc, cine, free_port, labels_of, node, results_of, store, wait_for
from pydicom import dcmread
from pydicom.pixels import get_decoder
from pydicom.uid import JPEGLosslessSV1

from edgeseg.runtime.segmenter import Segmenter
from edgeseg.serve.dicom_send import Receiver


def needs(*programs):
    missing = [p for p in programs if not shutil.which(p, path="/usr/bin:/usr/sbin:/bin:/usr/local/bin")]
    return pytest.mark.skipif(bool(missing), reason=f"not installed: {', '.join(missing)}")


@pytest.fixture(scope="module")
def segmenter(tmp_path_factory):
    return Segmenter(tiny_bundle.make_bundle(tmp_path_factory.mktemp("peers") / "tiny.edgeseg"), threads=1)


@pytest.fixture
def series(tmp_path):
    """Files of a cine series, and what they hold, in the order of BEAT."""
    files = write_series(tmp_path / "images", IMAGES, oblique())
    return [dcmread(f) for f in files]


def run(*arguments):
    return subprocess.run([*map(str, arguments)], capture_output=True, text=True, check=False, timeout=60)


def send(address, folder, *options):
    return run("storescu", "-v", "-aec", "EDGESEG", *options, "+sd", "+r", *address, folder)


@needs("echoscu")
def test_echoscu_is_answered(segmenter, tmp_path):
    with node(segmenter, tmp_path) as served:
        assert run("echoscu", "-aec", "EDGESEG", *served.address).returncode == 0
        assert run("echoscu", "-aec", "EDGESEG", "127.0.0.1", free_port()).returncode != 0


@needs("storescu", "storescp")
def test_a_series_goes_from_storescu_through_the_node_to_storescp(segmenter, tmp_path, series):
    port = free_port()
    (tmp_path / "got").mkdir()
    peer = subprocess.Popen(["storescp", "-od", tmp_path / "got", "+xa", str(port)], stdout=subprocess.DEVNULL,
                            stderr=subprocess.DEVNULL)
    try:
        with node(segmenter, tmp_path / "spool", send_to=Receiver("127.0.0.1", port)) as served:
            done = send(served.address, tmp_path / "images")
            assert done.returncode == 0, done.stderr
            wait_for(lambda: len(list((tmp_path / "got").iterdir())) == 2 and not served.spool.results())
    finally:
        peer.terminate()
        peer.wait()
    segs = [dcmread(p) for p in (tmp_path / "got").iterdir()]
    np.testing.assert_array_equal(labels_of(segs, series).reshape(BEAT.shape), BEAT)


@needs("Orthanc", "storescu")
def test_orthanc_has_the_segs_beside_their_images(segmenter, tmp_path, series):
    with Orthanc(tmp_path / "orthanc") as peer, node(segmenter, tmp_path / "spool", report=True,
                                                     send_to=Receiver("127.0.0.1", peer.port, "ORTHANC")) as served:
        assert send(served.address, tmp_path / "images").returncode == 0
        assert run("storescu", "-aec", "ORTHANC", "+sd", "+r", "127.0.0.1", peer.port, tmp_path / "images"
                   ).returncode == 0
        wait_for(lambda: len(peer.get("/instances")) == 9 and not served.spool.results())
        (study,) = peer.get("/studies")  # images, segmentations and report are of one study and patient
        found = {s["MainDicomTags"]["Modality"]: s for s in map(
            lambda s: peer.get(f"/series/{s}"), peer.get(f"/studies/{study}")["Series"])}
        assert {m: len(s["Instances"]) for m, s in found.items()} == {"MR": 6, "SEG": 2, "SR": 1}
        tags = peer.get(f"/instances/{found['SEG']['Instances'][0]}/simplified-tags")
        assert [s["SegmentLabel"] for s in tags["SegmentSequence"]] == ["RV", "MYO", "LV"]
        assert (tags["SegmentationType"], tags["PatientID"], tags["PatientName"]) == ("BINARY", ID, PERSON)
        segs = [dcmread(io.BytesIO(peer.get(f"/instances/{i}/file"))) for i in found["SEG"]["Instances"]]
    np.testing.assert_array_equal(labels_of(segs, series).reshape(BEAT.shape), BEAT)


@needs("Orthanc")
def test_orthanc_takes_a_label_map_or_it_stays_here_and_is_named(segmenter, tmp_path):
    with Orthanc(tmp_path / "orthanc") as peer, node(segmenter, tmp_path / "spool", kind="LABELMAP",
                                                     send_to=Receiver("127.0.0.1", peer.port)) as served:
        store(served.address, cine())
        line = wait_for(lambda: [x for x in served.lines if "delivered to" in x])[0]
        here, there = len(results_of(tmp_path / "spool")), len(peer.get("/instances"))
    assert (here, there) == ((2, 0) if "NOT delivered" in line else (0, 2))
    assert here == 0 or "it does not take this class of objects" in line


@needs("storescu", "dcmcjpeg", "dcmcrle")
@pytest.mark.parametrize(("how", "option"), [("dcmcjpeg", "-xs"), ("dcmcrle", "-xr")])
def test_losslessly_compressed_images_give_the_same_masks(segmenter, tmp_path, series, how, option):
    if how == "dcmcjpeg" and not get_decoder(JPEGLosslessSV1).is_available:
        pytest.skip("pydicom has no decoder for JPEG lossless here (pip install pylibjpeg-libjpeg, which is GPL)")
    (tmp_path / "packed").mkdir()
    for number, file in enumerate(sorted((tmp_path / "images").rglob("IM*"))):
        assert run(how, file, tmp_path / "packed" / str(number)).returncode == 0
    with node(segmenter, tmp_path / "spool") as served:
        done = send(served.address, tmp_path / "packed", option)
        assert done.returncode == 0, done.stderr
        wait_for(lambda: len(list(tmp_path.glob("spool/results/*/*.dcm"))) == 2)
    segs = results_of(tmp_path / "spool")
    assert labels_of(segs, series).sum() == BEAT.sum()
    np.testing.assert_array_equal(labels_of(segs, series).reshape(BEAT.shape), BEAT)


@needs("storescu", "dcmconv")
def test_a_transfer_syntax_that_is_not_received_is_named_and_the_sender_can_convert(segmenter, tmp_path, series):
    (tmp_path / "packed").mkdir()
    assert run("dcmconv", "+td", series[0].filename, tmp_path / "packed" / "a").returncode == 0
    with node(segmenter, tmp_path / "spool") as served:
        assert send(served.address, tmp_path / "packed", "-xd", "-R").returncode == 0
        assert any("refused MR Image Storage in Deflated Explicit VR Little Endian" in line for line in served.lines)
        assert sum(served.spool.incoming().values()) == 1


@needs("storescu")
def test_a_loop_of_an_ultrasound_machine_goes_through(segmenter, tmp_path):
    labels = np.where(BEAT[:, 0] == 3, 0, BEAT[:, 0])
    write_loop(tmp_path / "images" / "loop", tiny_bundle.LEVELS[labels].astype(np.uint8))
    with node(segmenter, tmp_path / "spool") as served:
        assert send(served.address, tmp_path / "images").returncode == 0
        (seg,) = wait_for(lambda: results_of(tmp_path / "spool"))
    found = np.zeros_like(labels)
    for group, frame in zip(seg.PerFrameFunctionalGroupsSequence, seg.pixel_array, strict=True):
        source = group.DerivationImageSequence[0].SourceImageSequence[0]
        segment = group.SegmentIdentificationSequence[0].ReferencedSegmentNumber
        found[source.ReferencedFrameNumber - 1] += frame * segment
    np.testing.assert_array_equal(found, labels)
