"""Sweep: one TOML file = the same distillation in several arms, over a grid, for several seeds.

    base = "recipe.toml"            # beside this file; or the keys of a recipe in a table [base]
    seeds = [0, 1, 2]

    [[arms]]
    name = "none"
    kd_weight = 0.0                 # what this arm changes of the recipe

    [[arms]]
    name = "kl"

    [grid]                          # every combination, for every arm; an arm's own key goes before it
    fraction = [0.5, 1.0]

An arm changes what is distilled and into what, never what all must share to be compared (SHARED).
"""

import hashlib
import json
import re
import tomllib
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

from edgeseg.distill.recipe import Recipe
from edgeseg.errors import EdgesegError

SHARED = ("data", "split_file", "fraction", "hu_window", "size", "spacing", "augment", "mirror", "noise", "clip",
          "epochs", "batch_size", "learning_rate", "weight_decay", "ema", "validate_every", "final", "precision",
          "seed")
"""Data, budget, optimiser and schedule: the published gains of one thesis are confounded by all four."""
UNPREPARED = ("loss", "own_layers", "kd_weight", "temperature", "t_squared", "features", "expansion", "width_mult",
              "augment", "mirror", "noise", "clip", "epochs", "batch_size", "learning_rate", "weight_decay",
              "ema", "validate_every", "precision", "seed", "note", "targets", "tta", "folds", "configuration")
"""Fields that prepared cases do not depend on (the last four: only where the teacher's predictions are stored)."""


@dataclass(frozen=True)
class Planned:
    """One run of a sweep. `name` is its folder: `ARM-KEYVALUE-sSEED`."""

    name: str
    arm: str
    recipe: Recipe


@dataclass(frozen=True)
class Sweep:
    """What a sweep file says. `base` has no seed of its own; `arms`: name -> changes; `grid`: key -> values."""

    base: Recipe
    seeds: tuple[int, ...]
    arms: dict[str, dict[str, Any]]
    grid: dict[str, list[Any]]
    where: str = "sweep"

    @classmethod
    def load(cls, path: Path) -> "Sweep":
        """Read a TOML file.

        Raises:
            EdgesegError: not TOML, an unknown key, an arm twice or that changes what all share, a bad recipe.
        """
        try:
            values = tomllib.loads(path.read_text("utf-8"))
        except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise EdgesegError(f"{path}: not a readable sweep ({error})") from None
        if unknown := sorted(set(values) - {"base", "seeds", "arms", "grid"}):
            raise EdgesegError(f"{path}: unknown key {unknown[0]!r}; known: base, seeds, arms, grid (what is of the "
                               "recipe goes into [base])")
        base = values.get("base", {})
        if not isinstance(base, str | dict):
            raise EdgesegError(f"{path}: base is the file of a recipe or a table of its keys, not {base!r}")
        recipe = (Recipe.load(path.parent / base) if isinstance(base, str) else
                  Recipe().changed(base, f"{path} [base]"))
        seeds, arms, grid = values.get("seeds", [0]), values.get("arms", []), values.get("grid", {})
        if not isinstance(seeds, list) or not seeds or not all(type(s) is int for s in seeds):
            raise EdgesegError(f"{path}: seeds is a list of whole numbers such as [0, 1, 2], not {seeds!r}")
        if not isinstance(arms, list) or not all(isinstance(a, dict) and isinstance(a.get("name"), str) for a in arms):
            raise EdgesegError(f"{path}: write every arm as a table [[arms]] with a name")
        if not arms:
            raise EdgesegError(f"{path}: a sweep needs at least one [[arms]] with a name")
        if twice := [name for name, n in Counter(a["name"] for a in arms).items() if n > 1]:
            raise EdgesegError(f"{path}: arm {twice[0]!r} is there twice: rename one of them")
        made = {a["name"]: {k: v for k, v in a.items() if k != "name"} for a in arms}
        return cls(recipe, tuple(dict.fromkeys(seeds)), made, grid, str(path))

    def changed(self, values: dict[str, Any]) -> "Sweep":
        """The same sweep of a base recipe with `values` (None entries are left as they are): its data, its teacher."""
        return replace(self, base=self.base.changed(values))

    def runs(self) -> list[Planned]:
        """Every run, seed by seed, so that an interrupted sweep has whole rounds of all arms.

        Raises:
            EdgesegError: an arm or a grid value that makes no recipe, or no fair comparison.
        """
        self.check()
        planned = []
        for seed in self.seeds:
            for arm, changes in self.arms.items():
                free = {k: values for k, values in self.grid.items() if k not in changes}
                for picked in product(*(range(len(values)) for values in free.values())):
                    point = {k: free[k][i] for k, i in zip(free, picked, strict=True)}
                    parts = [arm, *(f"{k}{shown(point[k], i)}" for k, i in zip(free, picked, strict=True))]
                    try:
                        recipe = self.base.changed({**point, **changes, "seed": seed}, "recipe")
                    except EdgesegError as error:
                        raise EdgesegError(f"{self.where}: arm {arm!r}: {error}") from None
                    planned.append(Planned("-".join([*parts, f"s{seed}"]), "-".join(parts), recipe))
        if twice := [name for name, n in Counter(p.name for p in planned).items() if n > 1]:
            raise EdgesegError(f"{self.where}: two runs would be named {twice[0]}: change a value or an arm's name")
        return planned

    def check(self) -> None:
        where = self.where
        for key, values in self.grid.items():
            if key == "seed":
                raise EdgesegError(f"{where}: seeds have a key of their own: seeds = [0, 1, 2]")
            if not isinstance(values, list) or not values:
                raise EdgesegError(f"{where}: [grid] {key} is a list of values, not {values!r}")
        if self.base.teacher == "phantom":
            raise EdgesegError(f"{where}: every run would train a teacher of its own: train one "
                               "(`edgeseg train-teacher`) and name it: teacher = 'KIND:FOLDER'")
        for arm, changes in self.arms.items():
            if not re.fullmatch(r"\w[\w.+ -]*", arm):
                raise EdgesegError(f"{where}: arm {arm!r}: a name is a folder's: letters, digits, spaces and . _ + -")
            if own := [k for k in SHARED if k in changes]:
                raise EdgesegError(f"{where}: arm {arm!r} changes {own[0]}, which all arms share: put it into the base "
                                   "or, with all its values, into [grid]")
            if "teacher" in changes and not (self.base.size and self.base.spacing):
                raise EdgesegError(f"{where}: arm {arm!r} has a teacher of its own, whose grid may be another: set "
                                   "size and spacing in the base (no distillation is kd_weight = 0, teacher kept)")


def shown(value: Any, index: int) -> str:
    """A value as a part of a folder's name; a list, table or long text by its place (0, 1, ...) in the grid."""
    if isinstance(value, bool | int | float):
        return f"{value:g}" if isinstance(value, float) else str(value).lower()
    plain = isinstance(value, str) and value.replace("_", "").isalnum() and len(value) <= 20
    return f"-{value}" if plain else f"-{index}"


def shared(recipe: Recipe) -> str:
    """Name of the folder of prepared cases (`distill(..., cache=)`): one for all recipes that need the same.

    A field that is not known here separates: that costs disk, not a result.
    """
    values = asdict(recipe)
    parts: dict[str, Any] = {k: v for k, v in values.items() if k not in UNPREPARED}
    if recipe.kd_weight > 0 and recipe.targets != "network":
        parts |= {k: values[k] for k in ("targets", "tta", "folds", "configuration")}
    if values.get("fraction", 1.0) < 1:
        parts["seed"] = recipe.seed  # which patients
    return f"cache-{hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:12]}"


def differing(a: Recipe, b: Recipe) -> Iterable[str]:
    """Names of the fields in which two recipes differ."""
    rows, others = asdict(a), asdict(b)
    return (k for k, v in rows.items() if v != others[k])
