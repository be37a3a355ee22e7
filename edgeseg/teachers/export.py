"""A teacher for the benches: its network as ONNX, and a copy of its folder that is safe to give to nnU-Net.

`python -m edgeseg.teachers.export FOLDER OUT.onnx` writes the network of an nnU-Net model folder in a process of its
own, so that who measures has no torch in it.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from edgeseg.errors import EdgesegError, need
from edgeseg.onnx_file import write_onnx
from edgeseg.teachers.folder import write_model_folder
from edgeseg.teachers.nnunet import NnUNetTeacher
from edgeseg.teachers.plans import read_folder


def teacher_onnx(teacher: NnUNetTeacher, out: Path) -> None:
    """Write the first fold's network: `image` [1, C, *patch] -> `logits` [1, heads, *patch]."""
    need("onnxscript", "train")
    write_onnx(teacher.network(), teacher.input_shape, out)


def safe_copy(folder: Path, out: Path) -> list[int | str]:
    """Write the model in `folder` to the new folder `out`, its checkpoints with weights and plans alone.

    nnU-Net reads checkpoints with a pickle that can run anything. The copy is made of what `NnUNetTeacher.open` reads
    without running anything, and refuses what would: nnU-Net's own command predicts the same from it, safely. It
    names nnUNetTrainer as its trainer, whose network is that of the plans, as the teacher's was found to be.

    Returns:
        The folds that are there, as nnU-Net names them.

    Raises:
        EdgesegError: as `NnUNetTeacher.open`.
    """
    teacher = NnUNetTeacher.open(folder)
    plans, dataset = read_folder(folder)
    for fold, network in zip(teacher.provenance["folds"], teacher._networks, strict=True):
        write_model_folder(out, network.state_dict(), dataset, plans, teacher.provenance["configuration"], fold,
                           teacher._mirror_axes)
    return teacher.provenance["folds"]


def main(arguments: Sequence[str]) -> int:
    """Write the 2D network of the model folder `arguments[0]` to the ONNX file `arguments[1]`; returns an exit code."""
    folder, out = map(Path, arguments)
    try:
        teacher = NnUNetTeacher.open(folder)
        if teacher.is_3d:
            raise EdgesegError(f"{folder}: a 3d model's network takes volumes, and the bench has single frames for it: "
                               "name a 2d model")
        teacher_onnx(teacher, out)
    except (EdgesegError, OSError) as error:
        print(error, file=sys.stderr)
        return EdgesegError.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
