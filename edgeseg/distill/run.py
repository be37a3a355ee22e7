"""Run: the folder that `distill` writes. Reading it needs no torch; only `student()` does.

    recipe.toml          the resolved recipe
    run.json             student spec, label scheme, preprocessing, teacher and data provenance, metrics
    student.safetensors  weights of the best epoch on dev
    metrics.csv          one row an epoch
    last.ckpt            to resume from (weights, optimiser, schedule)
    teacher.onnx         the teacher's network, for `bench --against` (absent without a teacher)
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeseg.errors import EdgesegError
from edgeseg.files import write_text
from edgeseg.labels import LabelScheme
from edgeseg.preprocess import Normalisation, Preprocessing

if TYPE_CHECKING:
    from torch import nn

    from edgeseg.readers import Dataset


@dataclass(frozen=True)
class Run:
    """A finished distillation.

    Attributes:
        recipe: the resolved recipe as a dict. spec: the student's spec as a dict.
        channels: names of the input channels. teacher: the teacher's provenance, empty without one.
        data: spec, name, licence, the patients of each split, and what is known of the run that it began with
            (`distill/pretrained.py`). metrics: dev Dice and what training measured.
    """

    folder: Path
    recipe: dict[str, Any]
    spec: dict[str, Any]
    scheme: LabelScheme
    preprocessing: Preprocessing
    channels: tuple[str, ...]
    teacher: dict[str, Any]
    data: dict[str, Any]
    metrics: dict[str, Any]

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def seed(self) -> int:
        return int(self.recipe["seed"])

    def trained_on(self) -> set[str]:
        """Patients who trained it or the run that it began with. A final run trained on dev too."""
        dev = self.plain_names("dev") if self.recipe.get("final") else set()
        return self.plain_names("train") | dev | set(self.data.get("pretrained", {}).get("patients", ()))

    def plain_names(self, split: str) -> set[str]:
        """Patients of a split, also by the name they have in their own data set: in a mixture the data set's name
        stands before a patient's."""
        named = set(self.data["splits"].get(split, ()))
        return named | {p.removeprefix(f"{data}_") for p in named for data in self.data["name"].split("+")}

    def data_names(self) -> set[str]:
        """Names of the data sets of those patients."""
        return {*self.data["name"].split("+"), *self.data.get("pretrained", {}).get("data", ())}

    @classmethod
    def open(cls, folder: Path) -> "Run":
        """Read a finished run.

        Raises:
            EdgesegError: no such folder, or the run has not finished.
        """
        folder = Path(folder)
        if not folder.is_dir():
            raise EdgesegError(f"{folder}: no such run; `edgeseg distill --out {folder}` makes one")
        try:
            record = json.loads((folder / "run.json").read_text())
        except FileNotFoundError:
            raise EdgesegError(f"{folder}: not finished (no run.json): `edgeseg distill --resume {folder}`") from None
        except json.JSONDecodeError as error:
            raise EdgesegError(f"{folder / 'run.json'}: damaged ({error})") from None
        try:
            return cls(
                folder=folder,
                scheme=LabelScheme(**record.pop("labels")),
                preprocessing=preprocessing_from_dict(record.pop("preprocessing")),
                channels=tuple(record.pop("channels")),
                **record,
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise EdgesegError(f"{folder / 'run.json'}: not of a finished run of this version ({error})") from None

    def save(self) -> None:
        """Write run.json (beside, then renamed)."""
        record = {
            "recipe": self.recipe,
            "spec": self.spec,
            "labels": asdict(self.scheme),
            "preprocessing": asdict(self.preprocessing),
            "channels": self.channels,
            "teacher": self.teacher,
            "data": self.data,
            "metrics": self.metrics,
        }
        write_text(self.folder / "run.json", json.dumps(record, indent=1) + "\n")

    def student(self) -> "nn.Module":
        """The trained student in evaluation mode, on the CPU.

        Raises:
            EdgesegError: its weights are missing, damaged, or of another network.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        from edgeseg.students import build_student

        model, file = build_student(self.spec), self.folder / "student.safetensors"
        try:
            model.load_state_dict(load_file(file))
        except FileNotFoundError:
            raise EdgesegError(f"{file}: missing: copy the whole run again") from None
        except (SafetensorError, RuntimeError):
            raise EdgesegError(f"{file}: damaged, or not of this run: copy it again") from None
        return model.eval()

    def dataset(self) -> "Dataset":
        """The data set that the run was trained on, opened again with the same splits and training patients."""
        from edgeseg.distill.recipe import Recipe

        return Recipe().changed(self.recipe, str(self.folder)).dataset()


def preprocessing_from_dict(values: dict[str, Any]) -> Preprocessing:
    """The inverse of `dataclasses.asdict` after a trip through JSON."""
    channels = tuple(Normalisation(**c) for c in values["channels"])
    return Preprocessing(tuple(values["size"]), tuple(values["spacing"]), channels, values["overlap"],
                         values["window"])


def latest_run(root: Path = Path("runs")) -> Path:
    """The run below `root` that finished last.

    Raises:
        EdgesegError: there is none.
    """
    found = sorted(root.glob("*/run.json"), key=lambda p: p.stat().st_mtime)
    if not found:
        raise EdgesegError(f"no finished run in {root}/: `edgeseg distill` makes one, or name a run folder")
    return found[-1].parent
