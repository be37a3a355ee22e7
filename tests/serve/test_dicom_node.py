"""The DICOM node with pynetdicom as client and receiver: what comes in, what goes out, who may."""

import errno
import itertools
import shutil
import signal
import socket
import ssl
import subprocess
import threading
import time

import numpy as np
import pytest
import tiny_bundle

pytest.importorskip("pynetdicom")
pytest.importorskip("highdicom")
from dicom_files import ID, PERSON, Plane, slice_file, write_enhanced
from dicom_loops import loop_file
from dicom_peer import (
    BEAT,
    IMAGES,
    associate,
    cine,
    echo,
    free_port,
    labels_of,
    node,
    process,
    receiver,
    results_of,
    store,
    wait_for,
)
from pydicom import dcmread

from edgeseg.errors import EdgesegError
from edgeseg.measure.bench import golden_frames
from edgeseg.runtime.frame_graph import bring
from edgeseg.runtime.segmenter import Segmenter
from edgeseg.serve.dicom_network import Budget, client_context, server_context
from edgeseg.serve.dicom_node import Node, Settings
from edgeseg.serve.dicom_send import Receiver


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return tiny_bundle.make_bundle(tmp_path_factory.mktemp("node") / "tiny.edgeseg")


@pytest.fixture(scope="module")
def segmenter(bundle):
    return Segmenter(bundle, threads=1)


def test_a_released_series_comes_back_as_segs_and_leaves_nothing_behind(segmenter, tmp_path):
    data = cine()
    with receiver() as (place, got), node(segmenter, tmp_path, send_to=place) as served:
        assert store(served.address, data) == [0] * 6
        wait_for(lambda: len(got) == 2 and not served.spool.results())
        assert served.spool.incoming() == {}
        assert served.spool.ready() == []
        said = " ".join(served.lines)
    np.testing.assert_array_equal(labels_of(got, data).reshape(BEAT.shape), BEAT)
    assert {g.SeriesInstanceUID for g in got} == {got[0].SeriesInstanceUID}
    assert not list(tmp_path.glob("*/*"))
    for word in (PERSON, ID, "1.2.3.4", data[0].SOPInstanceUID):
        assert word not in said


def test_a_loop_and_an_enhanced_file_are_taken_too_and_keep_their_series_apart(segmenter, tmp_path):
    labels = np.where(BEAT[:, 0] == 3, 0, BEAT[:, 0])
    enhanced = dcmread(write_enhanced(tmp_path / "enhanced.dcm", IMAGES))
    loop = loop_file(tiny_bundle.LEVELS[labels].astype(np.uint8))
    with node(segmenter, tmp_path / "spool", quiet=1.0) as served:
        assert store(served.address, [loop, enhanced]) == [0, 0]
        segs = wait_for(lambda: len(found := results_of(tmp_path / "spool")) == 3 and found)
    by_series = {s.SeriesNumber: s for s in segs}
    assert set(by_series) == {1005, 1008}
    assert by_series[1008].SourceImageSequence[0].ReferencedSOPInstanceUID == loop.SOPInstanceUID


@pytest.mark.parametrize("how", ["one association an image", "expected count", "aborted"])
def test_a_series_is_whole_however_it_is_sent(segmenter, tmp_path, how):
    data = cine()
    with node(segmenter, tmp_path, quiet=60.0 if how == "expected count" else 3.0) as served:
        if how == "expected count":
            for d in data:
                d.NumberOfSeriesRelatedInstances = 6
        if how == "aborted":
            association = associate(served.address, data)
            assert all(association.send_c_store(d).Status == 0 for d in data)
            association.abort()
        else:
            for part in ([[d] for d in data] if how.startswith("one") else [data[:3], data[3:]]):
                assert set(store(served.address, part)) == {0}
        segs = wait_for(lambda: not served.spool.incoming() and not served.spool.ready() and results_of(tmp_path))
    assert len(segs) == 2
    np.testing.assert_array_equal(labels_of(segs, data).reshape(BEAT.shape), BEAT)


def test_patients_that_share_a_series_uid_are_never_one_series(segmenter, tmp_path):
    data, other = cine(), cine()
    for d in other:
        d.PatientID = "another"
    with node(segmenter, tmp_path) as served:
        assert set(store(served.address, [*data, *other])) == {0}
        segs = wait_for(lambda: len(found := results_of(tmp_path)) == 4 and found)
    assert sorted(s.PatientID for s in segs) == sorted(2 * [ID, "another"])


def test_an_object_that_came_twice_counts_once_and_an_impostor_is_set_aside(segmenter, tmp_path):
    data = cine()
    impostor = slice_file(IMAGES[0, 0] + 50, Plane(), 0, 0, 3, phases=2)
    impostor.SOPInstanceUID = impostor.file_meta.MediaStorageSOPInstanceUID = data[0].SOPInstanceUID
    with node(segmenter, tmp_path) as served:
        assert store(served.address, [*data, data[0], impostor]) == [*[0] * 7, 0x0111]
        segs = wait_for(lambda: len(found := results_of(tmp_path)) == 2 and found)
    np.testing.assert_array_equal(labels_of(segs, data).reshape(BEAT.shape), BEAT)
    (aside,) = (tmp_path / "quarantine").glob("*.dcm")
    np.testing.assert_array_equal(dcmread(aside).pixel_array, impostor.pixel_array)
    assert "already there" in aside.with_suffix(".txt").read_text()


def test_results_that_nobody_takes_stay_are_named_and_go_out_later(segmenter, tmp_path):
    port = free_port()
    with node(segmenter, tmp_path, send_to=Receiver("127.0.0.1", port)) as served:
        store(served.address, cine())
        line = wait_for(lambda: [x for x in served.lines if "NOT delivered" in x])[0]
        assert "cannot be reached" in line
        (folder,) = served.spool.results()
        assert folder.name in line
        with receiver(itertools.chain([0xA700]), port=port) as (_, got):
            wait_for(lambda: len(got) == 2 and not served.spool.results())
    assert any("status 0xA700" in x for x in served.lines)
    assert len({g.SOPInstanceUID for g in got}) == 2


def test_what_was_not_delivered_goes_out_after_a_restart(segmenter, tmp_path):
    with node(segmenter, tmp_path) as served:
        store(served.address, cine())
        wait_for(served.spool.results)
    with receiver() as (place, got), node(segmenter, tmp_path, send_to=place):
        wait_for(lambda: len(got) == 2)


def test_only_named_callers_and_addresses_are_let_in(segmenter, tmp_path):
    with node(segmenter, tmp_path / "a", allow_titles=("SCANNER",)) as served:
        assert not echo(served.address, title="STRANGER")
        assert echo(served.address, title="SCANNER")
        assert any("rejected" in line for line in served.lines)
    with node(segmenter, tmp_path / "b", allow_addresses=("10.0.0.0/8",)) as served:
        assert not echo(served.address)
        assert "its address is not allowed" in served.lines[0]
    with node(segmenter, tmp_path / "c", allow_addresses=("127.0.0.0/8", "::1")) as served:
        assert echo(served.address)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory):
    """An authority, and a certificate of it for 127.0.0.1."""
    folder = tmp_path_factory.mktemp("tls")
    if not shutil.which("openssl"):
        pytest.skip("openssl is not installed")

    def openssl(*arguments):
        subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True, cwd=folder)

    openssl("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=ca",
            "-days", "2")
    openssl("req", "-newkey", "rsa:2048", "-nodes", "-keyout", "node.key", "-out", "node.csr", "-subj", "/CN=node")
    (folder / "ext").write_text("subjectAltName=IP:127.0.0.1\n")
    openssl("x509", "-req", "-in", "node.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-out",
            "node.pem", "-days", "2", "-extfile", "ext")
    return folder


def test_tls_lets_in_who_has_a_certificate_and_sends_with_it(segmenter, tmp_path, certificates):
    files = certificates / "node.pem", certificates / "node.key", certificates / "ca.pem"
    data, client = cine(), client_context(*files)
    with (receiver(ssl_context=server_context(*files)) as (place, got),
          node(segmenter, tmp_path, tls=server_context(*files), send_tls=client, send_to=place) as served):
        assert not echo(served.address)
        bare = ssl.create_default_context(cafile=str(files[2]))
        assert not echo(served.address, tls=(bare, "127.0.0.1"))
        assert set(store(served.address, data, tls=(client, "127.0.0.1"))) == {0}
        wait_for(lambda: len(got) == 2)
        assert any("no TLS" in line for line in served.lines)


def test_a_client_that_stalls_in_the_tls_handshake_stops_nobody(segmenter, tmp_path, certificates):
    files = certificates / "node.pem", certificates / "node.key", certificates / "ca.pem"
    with (node(segmenter, tmp_path, tls=server_context(*files)) as served,
          socket.create_connection(served.address)):
        assert echo(served.address, tls=(client_context(*files), "127.0.0.1"))


def test_a_kill_in_the_middle_loses_nothing(bundle, segmenter, tmp_path):
    data = cine()
    with process(bundle, tmp_path, "--quiet", 60) as (running, address):
        association = associate(address, data)
        assert all(association.send_c_store(d).Status == 0 for d in data[:5])
        running.send_signal(signal.SIGKILL)
        running.wait()
        association.abort()
    (tmp_path / "receiving" / "half.dcm").write_bytes(b"half")  # as a kill while writing leaves it
    with node(segmenter, tmp_path, quiet=4.0) as served:
        assert set(store(served.address, data[5:])) == {0}
        segs = wait_for(lambda: len(found := results_of(tmp_path)) == 2 and found)
        assert list((tmp_path / "receiving").iterdir()) == []
    np.testing.assert_array_equal(labels_of(segs, data).reshape(BEAT.shape), BEAT)


def test_a_series_that_was_in_work_when_the_node_was_killed_is_done_again_under_the_same_uids(segmenter, tmp_path):
    data = cine()
    with node(segmenter, tmp_path) as served:
        store(served.address, data)
        first = wait_for(lambda: len(found := results_of(tmp_path)) == 2 and found)
    (done,) = (tmp_path / "results").iterdir()
    for file in done.iterdir():  # back to where it was: the images in ready/, half of its results in receiving/
        file.unlink()
    done.rmdir()
    (tmp_path / "receiving" / "results-x").mkdir()
    (tmp_path / "ready" / "0123-1").mkdir()
    for d in data:
        d.save_as(tmp_path / "ready" / "0123-1" / f"{d.InstanceNumber}.dcm", enforce_file_format=True)
    with node(segmenter, tmp_path):
        again = wait_for(lambda: len(found := results_of(tmp_path)) == 2 and found)
    assert [s.SOPInstanceUID for s in again] == [s.SOPInstanceUID for s in first]


def test_the_command_serves_ends_politely_and_frees_port_and_folder(bundle, tmp_path):
    bad = cine("1.2.3.9")[0]
    del bad.PixelSpacing
    bad.PatientBirthDate = "SECRET^DATE"  # of which pydicom would warn, and quote it
    with process(bundle, tmp_path / "spool", "--report") as (running, address):
        assert echo(address)
        assert store(address, [*cine(), bad]) == [*[0] * 6, 0xC000]
        wait_for(lambda: len(results_of(tmp_path / "spool")) == 3)
        running.send_signal(signal.SIGTERM)
        assert running.wait(60) == 0
        said = running.stderr.read()
    assert "6 objects received, 1 in quarantine" in said
    for word in ("Traceback", "Warning", PERSON, ID, "SECRET", "1.2.3.4", "1.2.3.9"):
        assert word not in said
    with socket.create_server(address):
        pass


def test_masks_are_those_of_the_segmenter_in_its_frame_graph(tmp_path):
    segmenter = Segmenter("cine-synthetic", precision="int8", threads=1)
    protocol = segmenter.bundle.manifest.frames[0]
    frames = np.stack([bring(f, s, protocol)[0] for f, s in zip(
        *golden_frames(segmenter.bundle.file("golden.npz")), strict=True)])[:2]
    data = cine(images=frames[:, None], plane=Plane(spacing=protocol.spacing))
    for d in data:
        d.BitsStored, d.HighBit = 16, 15
    with node(segmenter, tmp_path) as served:
        assert store(served.address, data) == [0, 0]
        segs = wait_for(lambda: len(found := results_of(tmp_path)) == 2 and found)
    truth = np.stack([segmenter.segment(f, protocol.spacing).labels for f in frames])
    assert len(np.unique(truth)) == 4
    np.testing.assert_array_equal(labels_of(segs, data), truth)


def test_two_nodes_on_one_folder_or_port_are_refused(segmenter, tmp_path):
    with node(segmenter, tmp_path / "a") as served:
        with pytest.raises(EdgesegError, match="another node works in this folder"):
            Node(segmenter, Settings(tmp_path / "a"))
        with pytest.raises(EdgesegError, match="choose another"):
            Node(segmenter, Settings(tmp_path / "b", port=served.address[1]))
    with node(segmenter, tmp_path / "b"):  # the failed one gave its folder back
        pass


def test_a_report_says_volumes_and_ef_where_they_mean_something(segmenter, tmp_path):
    images = IMAGES.copy()
    lv = images == tiny_bundle.LEVELS[3]
    images[1][:, ::2][lv[1][:, ::2]] = 0  # half the ventricle is gone at the second phase
    data = cine(images=images)
    with node(segmenter, tmp_path, report=True) as served:
        store(served.address, data)
        found = wait_for(lambda: len(found := results_of(tmp_path)) == 3 and found)
        (report,) = (f for f in found if f.Modality == "SR")
        labels = labels_of([f for f in found if f.Modality == "SEG"], data).reshape(BEAT.shape)
        store(served.address, cine("1.2.9", IMAGES[:1]))
        wait_for(lambda: any("no report: fewer than 3 slices or 2 phases" in line for line in served.lines))
    values = {}

    def walk(item):
        if item.ValueType == "NUM":
            value = item.MeasuredValueSequence[0]
            values[item.ConceptNameCodeSequence[0].CodeValue] = (
                float(value.NumericValue), value.MeasurementUnitsCodeSequence[0].CodeValue)
        for child in item.get("ContentSequence", ()):
            walk(child)

    walk(report)
    ml = (labels == 3).sum((1, 2, 3)) * 1.5 * 1.5 * 8 / 1000
    ed, es = ml.max(), ml.min()
    assert values["8821-1"] == (pytest.approx(ed, rel=1e-4), "ml")
    assert values["8823-7"] == (pytest.approx(es, rel=1e-4), "ml")
    assert values["8811-2"] == (pytest.approx(100 * (ed - es) / ed, rel=1e-4), "%")
    assert values["18087-7"][1] == "g"
    assert (report.PatientID, report.SOPClassUID.name) == (ID, "Comprehensive SR Storage")


def test_a_full_disk_is_no_success_and_the_node_goes_on(segmenter, tmp_path, monkeypatch):
    data = cine()
    with node(segmenter, tmp_path) as served:
        with monkeypatch.context() as patch:
            patch.setattr(served.spool, "receive", lambda parts: (_ for _ in ()).throw(OSError(errno.ENOSPC, "full")))
            assert store(served.address, data[:1]) == [0xA700]
        assert store(served.address, data) == [0] * 6


def test_what_clients_hold_in_memory_is_limited(segmenter, tmp_path):
    with node(segmenter, tmp_path) as served:
        served.budget.limit = 20_000
        big = slice_file(np.arange(200 * 200).reshape(200, 200) % 4000, Plane(), 0, 0, 1)
        assert store(served.address, [big])[0] != 0
        assert store(served.address, cine()) == [0] * 6  # of 1.7 kB each: what was stored does not count any more
    budget = Budget(10)
    assert budget.take("a", 6)
    assert not budget.take("b", 5)
    budget.free("a")
    assert budget.take("b", 10)


def test_ten_clients_at_once_lose_nothing(segmenter, tmp_path):
    series = [cine(f"1.2.50.{n}") for n in range(10)]
    with node(segmenter, tmp_path) as served:
        done: list[list[int]] = []

        def one(data):
            while not (statuses := store(served.address, data)):  # rejected: too many at once
                time.sleep(0.2)
            done.append(statuses)

        threads = [threading.Thread(target=one, args=(d,)) for d in series]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert done == [[0] * 6] * 10
        wait_for(lambda: len(list(tmp_path.glob("results/*/*.dcm"))) == 20)
        segs = results_of(tmp_path)
    assert {s.ReferencedSeriesSequence[0].SeriesInstanceUID for s in segs} == {d[0].SeriesInstanceUID for d in series}
