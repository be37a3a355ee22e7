"""Recipe: one TOML file = one distillation. A run keeps the resolved copy."""

import json
import tomllib
from dataclasses import asdict, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import ConfigDict, ValidationError
from pydantic.dataclasses import dataclass

from edgeseg.errors import EdgesegError

if TYPE_CHECKING:
    from edgeseg.readers import Dataset


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class FeaturePair:
    """One `[[features]]` table: a module of the student learns from one of the teacher (`distill/features.py`).

    Attributes:
        scale: a free name, of this pair alone. teacher, student: paths of the modules, such as "encoder.stages.2".
        kind: InfoNCE of pixels by class, InfoNCE of whole images, or mean square error.
        weight: of the term, which is added to the loss. tau: temperature of the cosines (not of mse).
    """

    scale: str
    teacher: str
    student: str
    kind: Literal["supervised", "instance", "mse"]
    weight: float = 0.1
    tau: float = 0.1

    def __post_init__(self) -> None:
        if not (self.scale and self.teacher and self.student):
            raise EdgesegError("[[features]]: scale, teacher and student are names, none of them empty")
        if self.weight <= 0 or self.tau <= 0:
            raise EdgesegError(f"[[features]] {self.scale}: weight and tau must be positive, not {self.weight} and "
                               f"{self.tau}; leave a table out to do without it")


@dataclass(frozen=True)
class Recipe:
    """Everything that decides what a distillation gives.

    Attributes:
        data: data specs, `acdc:PATH`; several are merged by label name.
        split_file: JSON with train/dev/val patients; empty: the one beside the data, else a seeded split.
        fraction: share of the training patients that the student sees, drawn by `seed`; dev and val stay whole.
        hu_window: lowest and highest Hounsfield unit of CT data without a teacher; with one, its own window counts.
        teacher: `nnunet:FOLDER`, `deeplabv3:CHECKPOINT`, `multitask:FOLDER`, `targets:FOLDER` (what `edgeseg targets`
            stored); `phantom`: train one on the phantom first; `none`: labels only (kd_weight 0).
        folds: folds of the teacher; empty: all that the folder has.
        configuration: nnU-Net configuration when the folder holds several; empty: the one it has.
        targets: `network`: the teacher's network on each augmented patch; `stored`: soft predictions of its full
            pipeline, made once per case (always so for a 3D teacher); `auto`.
        tta: test-time augmentation of stored targets. The student never has any.
        loss: "layerwise_kl", or "soft_bce": the full-resolution output alone, temperature 1. With W = 1 and two classes
            its gradient is that of EchoDFKD's published binary cross-entropy against the teacher's sigmoid. Or
            "prediction_map": labels at every layer, the teacher at the full resolution alone (published: T 4, T^2).
        features: `[[features]]` tables, each a term beside the loss, whatever kd_weight is.
        own_layers: P(i) is the teacher's deep supervision output i; False: its full output brought to scale i.
        kd_weight: W of the loss. temperature: T. t_squared: multiply the KL by T^2.
        student: the family. spec: fields of its spec (`MobileNetV2Spec`, `DenseSpec`, `ConvLSTMSpec`, `UNetSpec`) that
            differ from its defaults.
        expansion, width_mult, stem_stride: of the MobileNetV2 student.
        pretrained: folder of a finished run whose weights the student begins with; empty: random ones.
        clip: consecutive frames of a training window, for a student of clips. augment: "nnunet": its training
            augmentation, the same for all frames of a clip; "none", as published for EchoDFKD.
        mirror: mirror training images along both axes (with a teacher: along its axes, whatever this says). Not for
            what is told apart by its side, as spleen and liver are.
        noise: share of training images that get Rician noise on top of nnU-Net's augmentation.
        size, spacing: the student's grid in pixels and mm; empty: the teacher's.
        epochs, batch_size, learning_rate, weight_decay: schedule; one epoch shows every training slice once.
        ema: decay a step of the moving average of the weights that is validated and kept, in 0..1; 0: no average.
        validate_every: epochs between validations on dev (the last epoch is always validated).
        final: train on dev as well, once every choice is made: the last epoch is kept, and a score on dev estimates
            nothing any more. Dev patients still calibrate nothing.
        note: what a reader of the model card must know of how these settings were found.
        precision: Lightning's precision, or `auto`: bf16 where the device has it natively, else 32-bit.
    """

    data: tuple[str, ...] = ("phantom:cine?n=30&seed=0",)
    split_file: str = ""
    fraction: float = 1.0
    hu_window: tuple[float, ...] = ()
    teacher: str = "phantom"
    folds: tuple[int, ...] = ()
    configuration: str = ""
    targets: Literal["auto", "network", "stored"] = "auto"
    tta: Literal["none", "mirror", "mirror+rotate"] = "mirror"
    loss: Literal["layerwise_kl", "soft_bce", "prediction_map"] = "layerwise_kl"
    features: tuple[FeaturePair, ...] = ()
    own_layers: bool = True
    kd_weight: float = 0.5
    temperature: float = 1.0
    t_squared: bool = False
    student: Literal["mobilenetv2", "dense", "convlstm", "unet"] = "mobilenetv2"
    spec: dict[str, Any] = field(default_factory=dict)
    expansion: int = 4
    width_mult: float = 1.0
    stem_stride: int = 2
    pretrained: str = ""
    clip: int = 25
    augment: Literal["nnunet", "none"] = "nnunet"
    mirror: bool = True
    noise: float = 0.0
    size: tuple[int, ...] = ()
    spacing: tuple[float, ...] = ()
    epochs: int = 40
    batch_size: int = 8
    learning_rate: float = 2e-3
    weight_decay: float = 1e-4
    ema: float = 0.0
    validate_every: int = 4
    final: bool = False
    precision: Literal["auto", "32-true", "bf16-mixed", "16-mixed"] = "auto"
    seed: int = 0
    note: str = ""

    def __post_init__(self) -> None:
        if not self.data:
            raise EdgesegError("a recipe needs at least one data set: data = ['acdc:PATH']")
        if not 0 <= self.kd_weight <= 1:
            raise EdgesegError(f"kd_weight (W) lies in 0..1, not {self.kd_weight}")
        if self.temperature <= 0:
            raise EdgesegError(f"temperature (T) must be positive, not {self.temperature}")
        if fixed := sorted(set(self.spec) & {"family", "in_channels", "num_classes"}):
            raise EdgesegError(f"[spec] {fixed[0]}: the data and the teacher decide it; leave it out")
        if self.student != "mobilenetv2" and (self.expansion, self.width_mult, self.stem_stride) != (4, 1.0, 2):
            raise EdgesegError("expansion, width_mult and stem_stride are MobileNetV2's; of another student set [spec]")
        if self.loss == "soft_bce" and self.temperature != 1:
            raise EdgesegError("soft_bce has no temperature: leave it at 1, or use layerwise_kl")
        if self.clip < 1:
            raise EdgesegError(f"clip is a number of frames, at least 1, not {self.clip}")
        if not 0 <= self.noise <= 1:
            raise EdgesegError(f"noise is a share of the images, 0..1, not {self.noise}")
        if not 0 <= self.ema < 1:
            raise EdgesegError(f"ema is a decay a step in 0..1, such as 0.999, not {self.ema}")
        if self.epochs < 1 or self.batch_size < 1 or self.validate_every < 1:
            raise EdgesegError("epochs, batch_size and validate_every must be at least 1")
        if self.teacher == "phantom" and not all(d.startswith("phantom:") for d in self.data):
            raise EdgesegError("name the teacher of this data: nnunet:MODEL_FOLDER (or none, with kd_weight 0)")
        if any(len(pair) not in (0, 2) for pair in (self.size, self.spacing)):
            raise EdgesegError(f"size and spacing are two numbers each, not {self.size} and {self.spacing}")
        if self.teacher == "none" and self.kd_weight > 0:
            raise EdgesegError("teacher = 'none' leaves nothing to distil: set kd_weight = 0 or name a teacher")
        if not 0 < self.fraction <= 1:
            raise EdgesegError(f"fraction is a share of the training patients, above 0, up to 1, not {self.fraction}")
        if self.hu_window and (len(self.hu_window) != 2 or self.hu_window[0] >= self.hu_window[1]):
            raise EdgesegError(f"hu_window is the lowest and the highest HU, such as [-160, 240], not {self.hu_window}")
        if self.features:
            self.check_features()

    def check_features(self) -> None:
        names = [pair.scale for pair in self.features]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise EdgesegError(f"two [[features]] tables are called {twice!r}: give each a scale name of its own")
        if self.teacher == "none":
            raise EdgesegError("[[features]] are a teacher's: name one, or leave them out")
        if self.student == "convlstm":
            raise EdgesegError("[[features]] are maps of single images; a convlstm student reads clips: leave them out")
        if self.targets == "stored":
            raise EdgesegError("[[features]] need the teacher's network on each patch: set targets = 'network'")

    @property
    def mirror_axes(self) -> tuple[int, ...]:
        """Of a training without a teacher: rows and columns, or none."""
        return (0, 1) if self.mirror else ()

    @property
    def needs_labels(self) -> bool:
        """Whether a training case without labels is refused."""
        return self.kd_weight < 1 or any(pair.kind == "supervised" for pair in self.features)

    def dataset(self) -> "Dataset":
        """The data sets that it names, merged, with its share of the training patients of each.

        Raises:
            EdgesegError: as of the readers; a data set of a mixture has no training case, and its share would vanish.
        """
        from edgeseg.readers import merge, open_data
        from edgeseg.readers.splits import take_fraction

        found = [open_data(spec, Path(self.split_file) if self.split_file else None) for spec in self.data]
        for part in found:
            if any(r.share is not None for r in part.refs) and not part.select("train"):
                raise EdgesegError(f"{part.spec}: has a share of the mixture and no training case: leave it out, or "
                                   "bring one")
        return merge(found if self.fraction == 1 else [take_fraction(d, self.fraction, self.seed) for d in found])

    @classmethod
    def load(cls, path: Path) -> "Recipe":
        """Read a TOML file.

        Raises:
            EdgesegError: not TOML, an unknown key (the known ones are listed), or a bad value.
        """
        try:
            values = tomllib.loads(path.read_text())
        except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise EdgesegError(f"{path}: not a readable recipe ({error})") from None
        return cls().changed(values, str(path))

    def changed(self, values: dict[str, Any], where: str = "recipe") -> "Recipe":
        """A copy with `values`; None entries are left as they are."""
        known = {f.name for f in fields(self)}
        unknown = sorted(set(values) - known)
        if unknown:
            raise EdgesegError(f"{where}: unknown key {unknown[0]!r}; known: {', '.join(sorted(known))}")
        try:
            return replace(self, **{k: v for k, v in values.items() if v is not None})
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(map(str, first["loc"]))
            raise EdgesegError(f"{where}: {key} = {first['input']!r}: {first['msg']}") from None

    def to_toml(self) -> str:
        """TOML text that `load` reads back to an equal recipe (JSON strings, numbers and lists are valid TOML)."""
        rows = asdict(self)
        spec, features = rows.pop("spec"), rows.pop("features")
        tables = [f"\n[spec]\n{lines_of(spec)}"] if spec else []
        return lines_of(rows) + "".join(tables + [f"\n[[features]]\n{lines_of(pair)}" for pair in features])


def lines_of(rows: dict[str, Any]) -> str:
    return "".join(f"{key} = {json.dumps(value, ensure_ascii=False)}\n" for key, value in rows.items())


PHANTOM = Recipe(data=("phantom:cine?n=30&seed=0",), epochs=5, width_mult=0.5, batch_size=4, learning_rate=4e-3,
                 validate_every=5)
"""What `edgeseg distill` does without options: minutes on two cores, synthetic data, a teacher trained at once."""
