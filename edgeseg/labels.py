"""LabelScheme: the classes of a task. Datasets are mapped into it by name, never by number."""

from dataclasses import dataclass

import numpy as np

from edgeseg.errors import EdgesegError

IGNORE = 255
"""Label value of pixels that no loss may look at (nnU-Net's `ignore` label)."""

# Names that different data sets give to one structure (lower case). ACDC and M&Ms number the three cardiac structures
# in opposite order (1 RV, 2 myocardium, 3 LV against 1 LV, 2 myocardium, 3 RV), so only names can join them.
SYNONYMS = {
    "RV": ("rv", "rvc", "right ventricle", "right ventricular cavity"),
    "MYO": ("myo", "mlv", "myocardium", "lv myocardium", "lvm", "left ventricular myocardium"),
    "LV": ("lv", "lvc", "lvbp", "left ventricle", "left ventricular cavity", "lv cavity"),
}


def canonical_name(name: str) -> str:
    """The name under which a structure is known here: `MLV` -> `MYO`; an unknown name is only stripped."""
    plain = name.strip().lower().replace("_", " ").replace("-", " ")
    for known, others in SYNONYMS.items():
        if plain in others:
            return known
    return name.strip()


@dataclass(frozen=True)
class LabelScheme:
    """Names and integer values of the classes of a task, background (value 0) first.

    Attributes:
        names: canonical names; `names[k]` is class k of every network output.
        values: the integer that stands for each class in label images of this scheme.
    """

    names: tuple[str, ...]
    values: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "names", tuple(canonical_name(n) for n in self.names))
        object.__setattr__(self, "values", tuple(self.values) or tuple(range(len(self.names))))
        if len(self.names) < 2 or self.names[0] != "background" or self.values[0] != 0:
            raise EdgesegError(f"a label scheme starts with background = 0 and has at least one class: {self}")
        if len(set(self.names)) != len(self.names) or len(set(self.values)) != len(self.names):
            raise EdgesegError(f"a label scheme names each class once, with its own value: {self}")
        if len(self.values) != len(self.names) or not all(0 <= v < IGNORE for v in self.values):
            raise EdgesegError(f"label values lie in 0..{IGNORE - 1}, one a class: {self}")

    @property
    def foreground(self) -> tuple[str, ...]:
        return self.names[1:]

    def encode(self, labels: np.ndarray, source: "LabelScheme", ignore: int | None = None) -> np.ndarray:
        """Label values of `source` -> class indices of this scheme, uint8 of the same shape.

        Structures that this scheme does not name become background; `ignore` (a value) becomes IGNORE.

        Raises:
            EdgesegError: a value outside `source`, or a structure of this scheme that `source` does not have.
        """
        missing = [n for n in self.foreground if n not in source.names]
        if missing:
            raise EdgesegError(f"labels name {', '.join(source.foreground)} but the task needs {', '.join(missing)}")
        table = np.zeros(256, np.uint8)
        known = np.zeros(256, bool)
        for name, value in zip(source.names, source.values, strict=True):
            known[value] = True
            table[value] = self.names.index(name) if name in self.names else 0
        known[IGNORE] = True
        table[IGNORE] = IGNORE
        if ignore is not None:
            known[ignore], table[ignore] = True, IGNORE
        check_values(labels, np.flatnonzero(known))
        return table[labels]

    def decode(self, classes: np.ndarray) -> np.ndarray:
        """Class indices -> label values of this scheme, uint8 of the same shape."""
        return np.asarray(self.values, np.uint8)[classes]


def check_values(labels: np.ndarray, allowed: np.ndarray) -> None:
    """Raise EdgesegError when `labels` (uint8) holds a value that is not in `allowed`."""
    found = np.flatnonzero(np.bincount(labels.ravel(), minlength=256))
    wrong = sorted(set(found.tolist()) - set(np.asarray(allowed).tolist()))
    if wrong:
        raise EdgesegError(f"label value {wrong[0]} is outside the scheme (allowed: {list(map(int, allowed[:20]))})")
