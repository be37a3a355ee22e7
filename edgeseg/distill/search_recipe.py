"""SearchRecipe: one TOML file = one search. Its folder keeps the resolved copy."""

import math
import re
import tomllib
from dataclasses import asdict, field, fields, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError
from pydantic.dataclasses import dataclass

from edgeseg.distill.recipe import Recipe, lines_of
from edgeseg.distill.search_space import GRIDS, checked_space, parse_grid
from edgeseg.errors import EdgesegError

CONTROL_KEYS = ("student", "spec", "expansion", "width_mult", "stem_stride", "size", "spacing")
"""What of a distillation recipe makes a candidate."""


@dataclass(frozen=True)
class SearchRecipe:
    """Everything that decides what a search looks at.

    Attributes:
        max_latency: ms of one frame, on the last of `threads`, INT8.
        candidates: how many are drawn and measured. seed: which; also of the random ones among the first rung's.
        rungs: (candidates, epochs) of each rung of successive halving.
        threads: thread counts to measure with; empty: 1 and what affinity and quota allow.
        frame, dtype, back: the protocol whose whole frame graph is measured, as `export --frame`; empty: the network
            alone.
        grids, space: what is drawn from (`search_space`).
        distill: keys of a distillation recipe: data, teacher, loss, schedule (of the full run; rungs have their own
            epochs).
        controls: name -> CONTROL_KEYS of students made by hand, which are measured and trained beside the others.
    """

    max_latency: float = 1.0
    candidates: int = 200
    seed: int = 0
    rungs: tuple[tuple[int, int], ...] = ((24, 2), (12, 4), (6, 8), (3, 16))
    threads: tuple[int, ...] = ()
    frame: str = ""
    dtype: Literal["uint8", "int16", "uint16", "float32"] = "uint16"
    back: Literal["logits", "labels"] = "logits"
    grids: tuple[str, ...] = GRIDS
    space: dict[str, dict[str, list[Any]]] = field(default_factory=dict)
    distill: dict[str, Any] = field(default_factory=dict)
    controls: dict[str, dict[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not 0 < self.max_latency < math.inf:
            raise EdgesegError(f"max_latency is milliseconds above 0, not {self.max_latency:g}")
        if self.candidates < 1 or self.seed < 0:
            raise EdgesegError("candidates is at least 1, and seed not negative")
        if not self.rungs or min(map(min, self.rungs)) < 1 or any(
                b[0] >= a[0] or b[1] <= a[1] for a, b in pairwise(self.rungs)):
            raise EdgesegError(f"rungs are pairs of candidates and epochs, from one to the next fewer candidates and "
                               f"more epochs, such as 24x2,12x4,6x8, not {list(map(list, self.rungs))}")
        if any(t < 1 for t in self.threads):
            raise EdgesegError(f"the number of threads must be at least 1, not {min(self.threads)}")
        if not self.grids:
            raise EdgesegError(f"a search needs at least one grid, such as {GRIDS[0]}")
        for grid in self.grids:
            parse_grid(grid)
        checked_space(self.space)
        for name in self.controls:
            self.control(name)

    @property
    def base(self) -> Recipe:
        """The distillation recipe that all candidates share."""
        return Recipe().changed(self.distill, "distill")

    def control(self, name: str) -> Recipe:
        """The distillation recipe of a control.

        Raises:
            EdgesegError: a name that is no word, a key that makes no candidate, or a bad value.
        """
        given, where = self.controls[name], f"controls.{name}"
        if not re.fullmatch(r"[A-Za-z][\w-]{0,39}", name, re.ASCII) or re.fullmatch(r"[dm]\d{3,}", name):
            raise EdgesegError(f"control {name!r}: name it with letters, digits, - and _, not as those that are drawn")
        if unknown := sorted(set(given) - set(CONTROL_KEYS)):
            raise EdgesegError(f"{where}: unknown key {unknown[0]!r}; known: {', '.join(CONTROL_KEYS)}")
        return Recipe(teacher="none", kd_weight=0.0).changed(given, where)

    @classmethod
    def load(cls, path: Path) -> "SearchRecipe":
        """Read a TOML file.

        Raises:
            EdgesegError: not TOML, an unknown key (the known ones are listed), or a bad value.
        """
        try:
            values = tomllib.loads(path.read_text("utf-8"))
        except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise EdgesegError(f"{path}: not a readable search recipe ({error})") from None
        try:
            return cls().changed(values)
        except EdgesegError as error:
            raise EdgesegError(f"{path}: {error}") from None

    def changed(self, values: dict[str, Any]) -> "SearchRecipe":
        """A copy with `values`; None entries are left as they are."""
        known = {f.name for f in fields(self)}
        if unknown := sorted(set(values) - known):
            raise EdgesegError(f"unknown key {unknown[0]!r}; known: {', '.join(sorted(known))}")
        values = {k: v for k, v in values.items() if v is not None}
        if isinstance(values.get("max_latency"), str):
            values["max_latency"] = milliseconds(values["max_latency"])
        try:
            found = replace(self, **values)
        except ValidationError as error:
            first = error.errors()[0]
            raise EdgesegError(f"{'.'.join(map(str, first['loc']))} = {first['input']!r}: {first['msg']}") from None
        _ = found.base  # a bad key is said now
        return found

    def to_toml(self) -> str:
        """TOML text that `load` reads back to an equal recipe."""
        rows = asdict(self)
        tables = {name: rows.pop(name) for name in ("distill", "space", "controls")}
        spec = tables["distill"].pop("spec", {})
        text = lines_of(rows) + f"\n[distill]\n{lines_of(tables['distill'])}"
        if spec:
            text += f"\n[distill.spec]\n{lines_of(spec)}"
        for name, lists in tables["space"].items():
            text += f"\n[space.{name}]\n{lines_of(lists)}"
        for name, values in tables["controls"].items():
            spec = values.pop("spec", {})
            text += f'\n[controls."{name}"]\n{lines_of(values)}'
            text += f'\n[controls."{name}".spec]\n{lines_of(spec)}' if spec else ""
        return text


def milliseconds(text: str) -> float:
    """"1.0ms", "1.0 ms" or "0.8" as a number.

    Raises:
        EdgesegError: anything else, or not above 0.
    """
    found = re.fullmatch(r"(\d{1,6}(?:\.\d{1,6})?|\.\d{1,6})\s*(?:ms)?", text.strip(), re.ASCII)
    if not found or not float(found[1]):
        raise EdgesegError(f"--max-latency {text}: write milliseconds above 0, as 1.0ms or 0.8")
    return float(found[1])


def parse_rungs(text: str) -> tuple[tuple[int, int], ...]:
    """"24x2,12x4" as ((24, 2), (12, 4)).

    Raises:
        EdgesegError: another form.
    """
    found = [re.fullmatch(r"(\d{1,5})x(\d{1,5})", part.strip(), re.ASCII) for part in text.split(",")]
    if not all(found):
        raise EdgesegError(f"--rungs {text}: write CANDIDATESxEPOCHS of each rung, as 24x2,12x4,6x8,3x16")
    return tuple((int(m[1]), int(m[2])) for m in found if m)
