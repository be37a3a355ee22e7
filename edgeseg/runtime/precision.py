"""`precision="auto"`: the fastest precision that the bundle admits, by what was measured on a CPU like this one.

INT8 is faster than FP32 on one CPU and slower on the next. What the build box measured counts on a CPU of its class;
elsewhere FP32 is taken until `edgeseg verify` has measured there. Its record lies in the user's cache, never in the
bundle, which is the same bytes everywhere.
"""

import hashlib
import os
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from edgeseg.container import SUMS, Bundle
from edgeseg.errors import EdgesegError
from edgeseg.manifest import CpuClass, Speeds
from edgeseg.runtime.backends import CANDIDATES, model_file
from edgeseg.runtime.cpu import cpu_class, native_bf16

__all__ = ["LocalRecord", "choose_precision", "cpu_class", "local_record", "native_bf16", "read_local_record"]

LARGEST_RECORD = 2**20
"""Bytes. A record has about one thousand; what is larger is something else."""


class LocalRecord(BaseModel):
    """What `edgeseg verify` measured on this machine with the bundle whose SHA256SUMS has the hash `bundle`.

    Attributes:
        agreed: runtime -> whether its golden frames gave the labels that they gave on the build box.
        speeds: with the default number of threads. None where a network did not run.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_version: Literal[1] = 1
    bundle: str
    cpu_class: CpuClass
    agreed: dict[str, bool]
    speeds: Speeds | None


def choose_precision(bundle: Bundle, backend: str, threads: int | None = None) -> str:
    """The precision to run `backend` with on this machine; "fp32" wherever nothing else is proven. Never raises.

    One other than FP32 is taken if it passed admission, and if the interval of its speed over FP32 lies above 1 on a
    CPU of this class: in the manifest, else in this machine's own record. Of several the one with the least median.
    All are measured with the default number of threads: with another (`threads`) nothing is known. A replay of this
    runtime that disagreed on this machine means FP32, whoever measured the speed. A bundle with frame graphs is never
    run in bf16, in which there are none: resampling outside the graph costs more than bf16 saves.
    """
    admission = bundle.manifest.measured.admission
    if admission is None:
        return "fp32"
    here, record = cpu_class(), read_local_record(bundle)
    if threads not in (None, here.cores):
        return "fp32"
    if record and record.cpu_class != here:
        record = None
    if record and not record.agreed.get(backend):
        return "fp32"
    known = [bundle.manifest.measured.speeds, record.speeds if record else None]
    speeds = next((s for s in known if s and s.cpu_class == here), None)
    faster = [row for row in (speeds.rows if speeds else ())
              if row.backend == backend and row.precision != "fp32" and row.precision in CANDIDATES
              and row.over_fp32 is not None and row.over_fp32.low is not None and row.over_fp32.low > 1
              and admission.admitted(backend, row.precision)
              and model_file(backend, row.precision) in bundle.files
              and (row.precision != "bf16" or (backend == "openvino" and native_bf16() and not bundle.manifest.frames))]
    return min(faster, key=lambda row: row.median_ms).precision if faster else "fp32"


def bundle_key(bundle: Bundle) -> str:
    """SHA-256 of SHA256SUMS: the same for every copy of one bundle, another for any other content."""
    return hashlib.sha256(bundle.file(SUMS).read_bytes()).hexdigest()


def local_record(bundle: Bundle) -> Path:
    """Where this machine's record of a bundle lies: below XDG_CACHE_HOME or ~/.cache, outside the bundle.

    Raises:
        EdgesegError: this user has no home folder.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if not cache.is_absolute():  # as the XDG specification says: then it does not count
        try:
            cache = Path.home() / ".cache"
        except RuntimeError:
            raise EdgesegError("no folder for the record of this machine: set XDG_CACHE_HOME to one") from None
    return cache / "edgeseg" / "verify" / f"{bundle_key(bundle)}.json"


def read_local_record(bundle: Bundle) -> LocalRecord | None:
    """This machine's record of the bundle; None when there is none or it is damaged: it can be measured again."""
    try:
        path = local_record(bundle)
        if not path.is_file() or path.stat().st_size > LARGEST_RECORD:
            return None
        record = LocalRecord.model_validate_json(path.read_bytes())
        return record if record.bundle == bundle_key(bundle) else None
    except (OSError, ValueError, EdgesegError):  # pydantic's errors are ValueErrors
        return None
