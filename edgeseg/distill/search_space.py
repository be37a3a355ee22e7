"""The space of `edgeseg search`: students of both families and the grids that they may work on. No torch.

One candidate is drawn so: the family (dense three times of four), then each dimension, uniformly and independently of
the others, from its list in SPACE (a value that stands there twice is drawn twice as often); a grid whose size is no
multiple of the student's stride, and a candidate that was drawn before, are drawn again.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgeseg.distill.recipe import Recipe
from edgeseg.errors import EdgesegError
from edgeseg.preprocess import Preprocessing

GRIDS = ("192@1.5625", "160@1.75", "160@1.5625", "128@2.0")
"""Sides in pixels @ mm of a pixel. 1.5625 mm is what nnU-Net plans for ACDC; all hold a heart that is near the middle
(250 to 300 mm)."""
SPACE: dict[str, dict[str, list[Any]]] = {
    "dense": {
        "stages": [4, 5, 5, 6],
        "first": [8, 16, 24, 32],  # channels of the first stage; of the next ones times `growth`, at most `most`
        "growth": [1.25, 1.5, 1.75, 2.0],
        "most": [48, 64, 96, 128],
        "first_blocks": [0, 0, 1],
        "blocks": [0, 1, 1, 2],  # of each other stage by itself
        "expansions": [0, 0, 0, 2, 4],  # of each stage by itself
        "stem_stride": [2, 2, 4],
        "head": ["subpixel", "bilinear"],
        "up": ["nearest", "transposed"],
        "activation": ["relu", "relu", "hardswish"],
    },
    "mobilenetv2": {
        "width_mult": [0.25, 0.375, 0.5, 0.75, 1.0],
        "expansion": [1, 2, 4, 6],
        "blocks": [1, 2],  # of each stage but the first
        "stem_stride": [2],
    },
}
FAMILIES = ("dense", "dense", "dense", "mobilenetv2")
PATIENCE = 1000
"""So many draws in a row without a new candidate: the space is taken to be exhausted."""


@dataclass(frozen=True)
class Candidate:
    """A student on a grid, in the words of a distillation recipe.

    Attributes:
        name: "d017" (dense), "m018" (mobilenetv2), or the name of a control. control: made by hand, not drawn.
    """

    name: str
    student: str
    spec: dict[str, Any]
    size: tuple[int, int]
    spacing: tuple[float, float]
    control: bool = False

    @property
    def grid(self) -> str:
        """"192@1.5625", or with sides that differ "192x160@1.5x1.25"."""
        sides, mm = (f"{a:g}" if a == b else f"{a:g}x{b:g}" for a, b in (self.size, self.spacing))
        return f"{sides}@{mm}"

    @property
    def key(self) -> str:
        """Equal for candidates that are the same thing."""
        return json.dumps([self.student, self.spec, self.size, self.spacing], sort_keys=True)

    def recipe(self, base: Recipe) -> Recipe:
        """`base` with this student on this grid."""
        return base.changed({"student": self.student, "spec": self.spec, "size": self.size, "spacing": self.spacing})

    def text(self) -> str:
        """For a line of a table."""
        short = {"widths": "", "blocks": "b", "expansions": "e", "stem_stride": "stem ", "width_mult": "x",
                 "expansion": "t"}
        words = [short.get(k, "") + (".".join(map(str, v)) if isinstance(v, list | tuple) else f"{v}")
                 for k, v in self.spec.items() if not (k == "expansions" and not any(v))]
        return " ".join([self.student, self.grid, *words])


def control(name: str, recipe: Recipe, grid: Preprocessing) -> Candidate:
    """The student of a distillation recipe as a candidate on `grid`."""
    spec = dict(recipe.spec)
    if recipe.student == "mobilenetv2":
        spec = {k: getattr(recipe, k) for k in ("width_mult", "expansion", "stem_stride")} | spec
    return Candidate(name, recipe.student, spec, grid.size, grid.spacing, control=True)


def sample(count: int, seed: int, grids: Sequence[str] = GRIDS, space: Mapping[str, Mapping[str, list[Any]]] = SPACE,
           taken: Sequence[Candidate] = ()) -> list[Candidate]:
    """`count` different candidates, none of them equal to one of `taken`; fewer when the space holds no more."""
    rng = np.random.default_rng(seed)
    families = [f for f in FAMILIES if f in space]
    parsed = [parse_grid(g) for g in grids]
    seen, misses = {c.key for c in taken}, 0
    found: list[Candidate] = []
    while len(found) < count and misses < PATIENCE:
        family = families[rng.integers(len(families))]
        drawn = {k: v[rng.integers(len(v))] for k, v in space[family].items()}
        size, spacing = parsed[rng.integers(len(parsed))]
        spec = (dense_spec if family == "dense" else mobilenet_spec)(drawn, space[family], rng)
        stages = len(spec.get("widths") or spec["blocks"])
        one = Candidate(f"{family[0]}{len(found):03d}", family, spec, size, spacing)
        if any(n % (spec["stem_stride"] * 2 ** (stages - 1)) for n in size) or one.key in seen:
            misses += 1
            continue
        misses = 0
        seen.add(one.key)
        found.append(one)
    return found


def dense_spec(drawn: Mapping[str, Any], lists: Mapping[str, list[Any]], rng: np.random.Generator) -> dict[str, Any]:
    """Fields of a `DenseSpec`; widths are multiples of 8 up to 32 and of 16 above (what INT8 kernels work on)."""
    widths = [rounded(min(drawn["most"], drawn["first"] * drawn["growth"] ** k)) for k in range(drawn["stages"])]

    def each(name: str) -> list[Any]:
        return [lists[name][rng.integers(len(lists[name]))] for _ in widths]

    blocks = [drawn["first_blocks"], *each("blocks")[1:]]
    expansions = [t if n else 0 for t, n in zip(each("expansions"), blocks, strict=True)]  # of no block: no matter
    return {"widths": widths, "blocks": blocks, "expansions": expansions,
            **{k: drawn[k] for k in ("stem_stride", "head", "up", "activation")}}


def mobilenet_spec(drawn: Mapping[str, Any], _: Mapping[str, list[Any]], __: np.random.Generator) -> dict[str, Any]:
    """Fields of a `MobileNetV2Spec` of five stages."""
    return {**drawn, "blocks": [1, *4 * [drawn["blocks"]]]}


def rounded(width: float) -> int:
    step = 8 if width <= 32 else 16
    return max(8, int(width / step + 0.5) * step)


def parse_grid(text: str) -> tuple[tuple[int, int], tuple[float, float]]:
    """"192@1.5625" as ((192, 192), (1.5625, 1.5625)).

    Raises:
        EdgesegError: another form, or a side or a spacing of 0.
    """
    found = re.fullmatch(r"(\d{1,4})@(\d{1,3}(?:\.\d{1,9})?)", text, re.ASCII)
    side, mm = (int(found[1]), float(found[2])) if found else (0, 0.0)
    if not side or not mm:
        raise EdgesegError(f"grid {text!r}: write SIDE@MM, for example 192@1.5625")
    return (side, side), (mm, mm)


def checked_space(given: Mapping[str, Mapping[str, list[Any]]]) -> dict[str, dict[str, list[Any]]]:
    """SPACE with the lists of `given` in place of its own, and only the families that `given` names (all: none named).

    Raises:
        EdgesegError: an unknown family or dimension, or an empty list.
    """
    for family, lists in given.items():
        if family not in SPACE:
            raise EdgesegError(f"space: unknown student family {family!r}; known: {', '.join(SPACE)}")
        for name, values in lists.items():
            if name not in SPACE[family]:
                raise EdgesegError(f"space.{family}: unknown key {name!r}; known: {', '.join(SPACE[family])}")
            if not values:
                raise EdgesegError(f"space.{family}.{name}: an empty list leaves nothing to draw from")
            own = SPACE[family][name]
            if wrong := [v for v in values if not like(v, own)]:
                raise EdgesegError(f"space.{family}.{name} = {wrong[0]!r}: give values like {own}")
    return {family: {**SPACE[family], **given.get(family, {})} for family in SPACE if family in given or not given}


def like(value: Any, own: list[Any]) -> bool:
    """Whether a value could stand in a list of SPACE: one of its words; a whole number not below its least; or, where
    not all of its numbers are whole, a number above 0."""
    if isinstance(own[0], str):
        return value in own
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    if all(isinstance(v, int) for v in own):
        return isinstance(value, int) and value >= min(own)
    return value > 0
