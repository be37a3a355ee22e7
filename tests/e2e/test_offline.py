"""The whole job without a network: distil, export and predict reach for nothing outside, and leave HOME as it was."""

import os
import subprocess
import sys
from pathlib import Path

import nnunet_folders
import pytest
from disks import dataset

from edgeseg.labels import LabelScheme
from edgeseg.phantoms.write import write_acdc

GUARD = '''
"""Imported by every Python process at its start: whatever leaves this machine is written down and fails."""
import os, socket

LOCAL = ("localhost", "::1", "", None, b"localhost", b"", "0.0.0.0", "::")

def refuse(call, host):
    if isinstance(host, (str, bytes)) and os.fsdecode(host).startswith("127.") or host in LOCAL:
        return
    with open(os.environ["EDGESEG_WITNESS"], "a") as file:
        file.write(f"{call} {host!r}\\n")
    raise OSError(101, "Network is unreachable")

def guard(owner, name, host_of):
    original = getattr(owner, name)
    def guarded(*args, **options):
        refuse(name, host_of(*args, **options))
        return original(*args, **options)
    setattr(owner, name, guarded)

def of_address(sock, *args):
    return "localhost" if sock.family == socket.AF_UNIX else args[-1][0]

for name in ("connect", "connect_ex", "sendto"):
    guard(socket.socket, name, of_address)
guard(socket, "getaddrinfo", lambda host, *args, **options: host)
guard(socket, "gethostbyname", lambda host: host)
'''


@pytest.fixture
def offline(tmp_path):
    """Environment variables of a machine without a network and with an empty home; tmp_path/witness tells of tries."""
    (tmp_path / "guard").mkdir()
    (tmp_path / "home").mkdir()
    (tmp_path / "guard" / "sitecustomize.py").write_text(GUARD)
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("XDG_", "MPL", "nnUNet_"))}
    return kept | {"PYTHONPATH": str(tmp_path / "guard"), "HOME": str(tmp_path / "home"),
                   "EDGESEG_WITNESS": str(tmp_path / "witness")}


def python(environment: dict[str, str], *arguments) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, *map(str, arguments)], env=environment, capture_output=True, text=True,
                          cwd=Path(environment["HOME"]).parent, check=False)


TRIES = """
import socket
for reach in (lambda: socket.create_connection(("192.0.2.1", 80), 0.1), lambda: socket.getaddrinfo("example.org", 80),
              lambda: socket.socket().connect_ex(("192.0.2.2", 80)),
              lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"x", ("192.0.2.3", 53))):
    try:
        reach()
        raise SystemExit("reached something")
    except OSError:
        pass
with socket.create_server(("127.0.0.1", 0)) as server:  # processes of one machine may talk to each other
    socket.create_connection(server.getsockname()).close()
"""


def test_the_guard_sees_whatever_leaves_this_machine(offline, tmp_path):
    done = python(offline, "-c", TRIES)
    assert done.returncode == 0, done.stderr
    tried = (tmp_path / "witness").read_text()
    assert all(host in tried for host in ("192.0.2.1", "example.org", "192.0.2.2", "192.0.2.3"))
    assert "127.0.0.1" not in tried


def test_distil_export_and_predict_need_no_network_and_leave_nothing_at_home(offline, tmp_path):
    data = write_acdc(dataset(LabelScheme(("background", "RV", "MYO", "LV")), patients=4), tmp_path / "hearts")
    teacher = nnunet_folders.model_folder(tmp_path / "teacher", patch=(32, 32), spacing=(1.5, 1.25))
    recipe = tmp_path / "recipe.toml"
    recipe.write_text("size = [32, 32]\nwidth_mult = 0.5\nexpansion = 1\nepochs = 1\nbatch_size = 4\n")
    quick = tmp_path / "calibration.toml"
    quick.write_text('frames = 4\nrungs = ["post-training"]\n')
    image = data / "training" / "patient004" / "patient004_frame01.nii.gz"
    for arguments in (
        ("distill", "--recipe", recipe, "--data", f"acdc:{data}", "--teacher", f"nnunet:{teacher}", "--out", "run",
         "--accelerator", "cpu", "--threads", 1),
        ("export", "run", "--int8", "--calibration", quick, "--seconds", 0.1),
        ("predict", "run.edgeseg", "-i", image, "-o", "masks", "--threads", 1),
    ):
        # nnU-Net imports matplotlib, which keeps its list of fonts at home: the one thing that training may leave there
        plots = {"MPLCONFIGDIR": str(tmp_path / "matplotlib")} if arguments[0] == "distill" else {}
        done = python(offline | plots, "-m", "edgeseg", *arguments)
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "masks" / "patient004_frame01.nii.gz").is_file()
    assert not (tmp_path / "witness").exists(), (tmp_path / "witness").read_text()
    assert sorted(p.relative_to(tmp_path) for p in (tmp_path / "home").rglob("*")) == []
