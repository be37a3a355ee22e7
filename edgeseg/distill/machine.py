"""How much of the machine a training uses: device, precision, processes."""

import os
import time
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeseg.errors import EdgesegError, need

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Machine:
    """How much of the machine a training may use; passed through to Lightning.

    Attributes:
        accelerator: "auto", "cpu" or "gpu". devices: processes (GPUs, or gloo ranks on a CPU). nodes: machines.
        threads: torch threads a process, None: torch's choice.
    """

    accelerator: str = "auto"
    devices: int = 1
    nodes: int = 1
    threads: int | None = None


def is_first_process() -> bool:
    """Whether this process prepares (rank 0 of Lightning's own launcher, torchrun or Slurm)."""
    return all(os.environ.get(name, "0") == "0" for name in ("RANK", "SLURM_PROCID", "NODE_RANK", "LOCAL_RANK"))


def wait_for(marker: Path) -> None:
    while not marker.exists():
        time.sleep(0.5)


def check_machine(machine: Machine, batch_size: int) -> None:
    """Refuse what cannot run before anything is read or written."""
    for module in ("torch", "lightning", "nnunetv2", "safetensors"):
        if find_spec(module) is None:
            need(module, "train")
    import torch

    if machine.accelerator not in ("auto", "cpu", "gpu"):
        raise EdgesegError(f"accelerator {machine.accelerator!r} is not known: auto, cpu or gpu")
    if machine.accelerator == "gpu" and not torch.cuda.is_available():
        raise EdgesegError("there is no GPU that torch can use here: leave --accelerator at auto, or take cpu")
    processes = machine.devices * machine.nodes
    if machine.devices < 1 or machine.nodes < 1 or batch_size % processes:
        raise EdgesegError(f"batch_size = {batch_size} must be a multiple of the number of processes, devices x nodes "
                           f"= {processes}, which is at least 1")
    torch.set_flush_denormal(True)
    if machine.threads:
        torch.set_num_threads(machine.threads)


def described(machine: Machine) -> dict[str, Any]:
    """What trained the run, for its record."""
    import torch

    return {"device": training_device(machine.accelerator).type, "processes": machine.devices * machine.nodes,
            "threads": torch.get_num_threads(), "cpus": len(os.sched_getaffinity(0))}


def resolve_precision(wanted: str, accelerator: str) -> str:
    """ "auto" -> bf16 mixed precision where the device computes it natively (twice as fast here), else 32 bit."""
    if wanted != "auto":
        return wanted
    from edgeseg.teachers.nnunet import native_bf16

    device = training_device(accelerator)
    if native_bf16(device):
        return "bf16-mixed"
    return "16-mixed" if device.type == "cuda" else "32-true"


def training_device(accelerator: str) -> "torch.device":
    """The device that a process of this accelerator choice trains on."""
    import torch

    gpu = accelerator != "cpu" and torch.cuda.is_available()
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if gpu else torch.device("cpu")


