"""What this CPU is to a runtime: the instruction sets that decide its kernels, and the cores it may use."""

from pathlib import Path

from edgeseg.manifest import CpuClass
from edgeseg.runtime.threads import default_threads

CPUINFO = Path("/proc/cpuinfo")
ISA_FLAGS = ("sse4_2", "avx", "fma", "avx2", "avx_vnni", "avx_vnni_int8", "avx512f", "avx512bw", "avx512vl",
             "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_tile", "amx_int8", "amx_bf16", "asimd", "asimddp",
             "i8mm", "bf16", "sve")
"""Those that decide which kernels a CPU runtime picks, by the names that Linux gives them."""


def cpu_info(path: Path = CPUINFO) -> dict[str, str]:
    """The first processor's fields of /proc/cpuinfo (empty where there is none)."""
    try:
        text = path.read_text().strip()
    except (OSError, UnicodeDecodeError):
        return {}
    pairs = (line.split(":", 1) for line in text.split("\n\n")[0].splitlines() if ":" in line)
    return {key.strip(): value.strip() for key, value in pairs}


def isa_flags() -> tuple[str, ...]:
    """Those of ISA_FLAGS that this CPU has, in their order."""
    info = cpu_info()
    flags = (info.get("flags") or info.get("Features") or "").split()
    return tuple(f for f in ISA_FLAGS if f in flags)


def cpu_class() -> CpuClass:
    """This machine's class: two machines of one class are expected to rank the precisions alike."""
    return CpuClass(isa=isa_flags(), cores=default_threads())


def native_bf16() -> bool:
    """Whether OpenVINO computes in bf16 here with instructions for it.

    It accepts the hint on every AVX-512 CPU and then simulates it, slower than FP32; on ARM it has no bf16 at all.
    """
    return not {"avx512_bf16", "amx_bf16"}.isdisjoint(isa_flags())
