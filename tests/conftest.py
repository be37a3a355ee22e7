"""Fixtures that several test folders share. (pytest puts this folder on the import path: `import nnunet_folders`.)"""

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

from edgeseg.runtime.telemetry import telemetry_off

if TYPE_CHECKING:
    from edgeseg.container import Bundle
    from edgeseg.distill.run import Run

settings.register_profile("untimed", deadline=None)  # no test says how fast a machine is
settings.load_profile("untimed")

telemetry_off()  # OpenVINO would start a process for it at every conversion

# Tiny networks on a busy machine: threads that wait for each other made these tests 10 times slower. Read by torch
# and nnunetv2 (which sets its own number of threads around its export) when they are first imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("nnUNet_def_n_proc", "1")

# Started in the background of a script (`make test &`) this process is told to ignore Ctrl-C, and would hand that down
# to the commands that the tests interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)

SHARED = Path(__file__).parents[2] / "shared"


@pytest.fixture(scope="session", autouse=True)
def cache_apart(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What `edgeseg verify` keeps of this machine goes into a folder of the tests, never into the user's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def clip_run(tmp_path_factory: pytest.TempPathFactory) -> "Run":
    """A finished run of a recurrent student (`tiny_clips`)."""
    import tiny_clips

    return tiny_clips.make_run(tmp_path_factory.mktemp("clips"))


@pytest.fixture(scope="session")
def stream_bundle(clip_run: "Run") -> "Bundle":
    """Its bundle, whose INT8 files were calibrated, judged and timed as any other's."""
    from edgeseg.bundle.export import export_bundle
    from edgeseg.bundle.recipe import CalibrationRecipe
    from edgeseg.container import open_bundle

    recipe = CalibrationRecipe(name="quick", frames=8, rungs=("post-training",))
    return open_bundle(export_bundle(clip_run, recipe=recipe, seconds=0.1))


@pytest.fixture(scope="session")
def acdc() -> Path:
    """The real ACDC folder, which is not part of the repository."""
    folder = SHARED / "data" / "acdc"
    if not folder.is_dir():
        pytest.skip("real ACDC data is not here (../shared/data/acdc)")
    return folder


@pytest.fixture(scope="session")
def acdc_teacher_folder() -> Path:
    """A real nnU-Net v2 model folder trained on ACDC, which is not part of the repository."""
    folder = SHARED / "teachers" / "nnunet_acdc"
    if not folder.is_dir():
        pytest.skip("the real nnU-Net model folder is not here (../shared/teachers/nnunet_acdc)")
    return folder
