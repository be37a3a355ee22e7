"""search(): a space of students -> latency of each on this CPU -> short distillations -> the Pareto front.

    SEARCH/
      search.toml          the resolved recipe
      candidates.json      what was drawn, and the controls
      latency.jsonl        one line a candidate
      soft/ grids/         stored targets and prepared cases: they hold images, and go when the search is done
      rungs/1/NAME.json    one file a training
      rungs/1.json         who went on from the rung and who was discarded
      search.json winner.toml control-NAME.toml
"""

import json
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from edgeseg.bundle.export import without_paths
from edgeseg.bundle.search_setup import Say, Setup, make_folder, set_up
from edgeseg.bundle.search_stopwatch import REFERENCE, Stopwatch, read_lines, reference_ms
from edgeseg.distill.search_choice import halve, pareto, promising
from edgeseg.distill.search_recipe import SearchRecipe
from edgeseg.distill.search_rung import RUNGS, grid_folder, prepare, train_rung
from edgeseg.distill.search_space import Candidate
from edgeseg.errors import EdgesegError, GateFailed, Interrupted, need
from edgeseg.files import write_text
from edgeseg.measure.document import write_json
from edgeseg.measure.environment import describe, is_busy
from edgeseg.runtime.cpu import cpu_class

LATENCY, RESULT = "latency.jsonl", "search.json"
SECONDS_A_CANDIDATE = 9.0
"""ONNX, quantisation and timing of a candidate on one idle 3 GHz core."""
IMAGES_A_SECOND = 25.0
"""Of a typical candidate in training, one process on one such core with bf16."""


@dataclass(frozen=True)
class Search:
    """A finished search.

    Attributes:
        latency: one row a candidate: name, text, ms and its interval for each thread count, parameters, macs, ...
        rungs: {"epochs", "rows": [{"name", "dice", "ms", "why"}], "discarded": [...], "front": [...]} of each.
        winner: best dev Dice of the last rung within the limit. about: machine, recipe, reference.
    """

    folder: Path
    latency: list[dict[str, Any]]
    rungs: list[dict[str, Any]]
    winner: str
    about: dict[str, Any]

    def document(self) -> dict[str, Any]:
        return {"kind": "search", "winner": self.winner, "about": self.about, "rungs": self.rungs,
                "latency": self.latency}

    @classmethod
    def open(cls, folder: Path) -> "Search":
        """Read the search.json of a finished search.

        Raises:
            EdgesegError: there is none.
        """
        try:
            found = json.loads((folder / RESULT).read_text())
            return cls(folder, found["latency"], found["rungs"], found["winner"], found["about"])
        except (OSError, KeyError, TypeError, json.JSONDecodeError) as error:
            raise EdgesegError(f"{folder}: no finished search ({error}): `edgeseg search --resume {folder}`") from None


def search(recipe: SearchRecipe, folder: Path, resume: bool = False, jobs: int = 1, trust: bool = False,
           say: Say = print) -> Search:
    """Search, or go on with an interrupted search in `folder`.

    Args:
        jobs: trainings at a time, each on one thread. trust: allow a teacher checkpoint that needs full unpickling.

    Raises:
        EdgesegError: bad input, or a folder that holds something else. GateFailed: nothing is fast enough.
        Interrupted: Ctrl-C; what was measured and trained is kept.
    """
    if jobs < 1:
        raise EdgesegError(f"--jobs is at least 1, not {jobs}")
    for module in ("nncf", "onnx", "onnxscript"):
        if find_spec(module) is None:
            need(module, "train")
    if resume and (folder / RESULT).exists():
        return Search.open(folder)
    fresh = not folder.exists()
    try:
        recipe = recipe if resume else make_folder(recipe, folder)
        return Searching(set_up(recipe, folder, trust, say), jobs, say).run()
    except (KeyboardInterrupt, Interrupted):
        raise Interrupted(f"{folder}: interrupted; go on with `edgeseg search --resume {folder}`") from None
    except Exception:
        if fresh and not (folder / LATENCY).exists():
            shutil.rmtree(folder, ignore_errors=True)  # bad input leaves nothing behind
        raise


class Searching:
    """The steps of a search, each of which starts from what its folder holds already."""

    def __init__(self, setup: Setup, jobs: int, say: Say) -> None:
        self.setup, self.jobs, self.say = setup, jobs, say
        self.recipe, self.folder, self.task = setup.recipe, setup.folder, setup.task
        self.data, self.protocol, self.candidates = setup.data, setup.protocol, setup.candidates

    def cost(self) -> str:
        """What is about to happen, and about how long it takes."""
        done = len(read_lines(self.folder / LATENCY))
        controls = sum(c.control for c in self.candidates)
        epochs = sum((count + controls) * length for count, length in self.recipe.rungs)
        train = self.data.select("train").refs
        slices = np.mean([len(ref.load().frames) for ref in train[:8]] or [0]) * len(train)
        minutes = (len(self.candidates) - done) * SECONDS_A_CANDIDATE / 60
        hours = epochs * slices / IMAGES_A_SECOND / self.jobs / 3600
        rungs = ", ".join(f"{count} x {length}" for count, length in self.recipe.rungs)
        return (f"search   {len(self.candidates)} candidates ({controls} by hand), {done} of them measured already; "
                f"limit {self.recipe.max_latency:g} ms on {self.recipe.threads[-1]} thread(s), INT8, "
                f"{'whole frame ' + self.protocol.name if self.protocol else 'network alone'}\n"
                f"cost     about {minutes:.0f} min of measuring (the machine should do nothing else), then at most "
                f"{epochs} epochs of {slices:.0f} slices in rungs of {rungs} (candidates x epochs), about "
                f"{hours:.1f} h with {self.jobs} at a time")

    def run(self) -> Search:
        self.say(self.cost())
        rows = self.measured()
        chosen = self.chosen(rows)
        rungs, front = [], list(chosen)
        for number, (_, epochs) in enumerate(self.recipe.rungs, 1):
            rung, front = self.rung(number, front, epochs, rows, chosen)
            rungs.append(rung)
        return self.finish(rows, rungs)

    # ---- latency

    def measured(self) -> dict[str, dict[str, Any]]:
        """{name: row} of every candidate, measured where latency.jsonl does not know it."""
        file, cpu = self.folder / LATENCY, list(cpu_class().isa)
        lines = read_lines(file)
        if any(line["cpu"] != cpu for line in lines):
            raise EdgesegError(f"{file}: was measured on another CPU: go on there, or start a search here")
        lines = [line for line in lines if "failed" not in line]  # perhaps the machine's fault: tried again
        known = {line["name"]: line for line in lines}
        waiting = [c for c in self.candidates if c.name not in known]
        write_text(file, "".join(json.dumps(line) + "\n" for line in lines))  # without a torn last line
        begun = time.monotonic()
        with Stopwatch(self.task.channels, self.task.scheme.values, self.recipe.threads, self.protocol) as watch:
            for number, candidate in enumerate(waiting, 1):
                line = {"name": candidate.name, "cpu": cpu, **watch.measure(candidate)}
                known[candidate.name] = line
                with file.open("a") as out:
                    out.write(json.dumps(line) + "\n")
                each = (time.monotonic() - begun) / number
                self.say(f"latency  {len(known)}/{len(self.candidates)}  {self.brief(line, known)}  {each:.1f} s each, "
                         f"{(len(waiting) - number) * each / 60:.0f} min left")
        return self.in_ms(known)

    def brief(self, line: Mapping[str, Any], known: Mapping[str, Mapping[str, Any]]) -> str:
        if "failed" in line:
            return f"{line['name']} FAILED: {line['failed']}"
        rows = self.in_ms({k: v for k, v in known.items() if "failed" not in v})
        best = min(rows.values(), key=lambda r: r["ms"])
        return f"{line['name']} {rows[line['name']]['ms']:.2f} ms  fastest {best['name']} {best['ms']:.2f} ms"

    def in_ms(self, known: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
        """Ratios times the reference's median over the whole search; `ms` is on the last thread count."""
        clock = reference_ms(known.values(), self.recipe.threads)
        rows = {}
        for c in self.candidates:
            line = known.get(c.name)
            if line is None:
                continue
            row = {**asdict(c), "grid": c.grid, "text": c.text()}
            if "failed" in line:
                rows[c.name] = row | {"failed": True, "ms": float("inf")}
                continue
            ms = {t: {k: v[k] * clock[t]["ms"] for k in ("ratio", "low", "high")} for t, v in line["threads"].items()}
            rows[c.name] = row | {k: line[k] for k in ("parameters", "macs", "bytes", "others")} | {
                "ms": ms[str(self.recipe.threads[-1])]["ratio"],
                "threads": {t: {"ms": v["ratio"], "low": v["low"], "high": v["high"]} for t, v in ms.items()}}
        return rows

    # ---- accuracy

    def chosen(self, rows: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
        """{name: why} of the first rung. Those beyond the limit are out, controls are in."""
        limit, drawn = self.recipe.max_latency, [r for r in rows.values() if not r["control"] and "failed" not in r]
        controls = [r for r in rows.values() if r["control"] and "failed" not in r]
        fast = [r for r in drawn if r["ms"] <= limit]
        self.say(f"latency  {len(fast)} of {len(drawn)} candidates take at most {limit:g} ms")
        if not fast and not any(r["ms"] <= limit for r in controls):
            if not (every := [*drawn, *controls]):
                raise EdgesegError("no candidate could be measured; each said above why")
            best = min(every, key=lambda r: r["ms"])
            raise GateFailed(f"no candidate takes at most {limit:g} ms: the fastest, {best['name']} ({best['text']}), "
                             f"takes {best['ms']:.2f} ms; `--resume {self.folder} --max-latency` with more goes on")
        whole = self.prepared([self.named(r["name"]) for r in [*fast, *controls]])
        fast, controls = ([r for r in found if r["grid"] in whole] for found in (fast, controls))
        if not fast and not controls:
            raise EdgesegError("no grid of a fast enough candidate holds the whole foreground: add larger ones")
        why = promising(fast, self.recipe.rungs[0][0], self.recipe.seed)
        if len(why) < self.recipe.rungs[0][0]:
            self.say(f"rung 1   {len(why)} candidates are fast enough, not the {self.recipe.rungs[0][0]} of the rung")
        return why | {r["name"]: "control" for r in controls}

    def named(self, name: str) -> Candidate:
        return next(c for c in self.candidates if c.name == name)

    def prepared(self, candidates: Sequence[Candidate]) -> set[str]:
        """Prepare the training cases for every grid that occurs. With a protocol, a grid whose one window leaves out
        more of the foreground than a run would let it is out: its frames would take several passes."""
        from edgeseg.distill.train import CENTRED

        kept = set()
        for c in {c.grid: c for c in candidates}.values():
            self.say(f"cases    brought to {c.grid}")
            folder = grid_folder(self.folder, c)
            folder.parent.mkdir(parents=True, exist_ok=True)
            outside = prepare(self.task, self.task.grid(c), folder, self.setup.teacher, self.say)
            if self.protocol and outside > CENTRED:
                self.say(f"cases    {outside:.2%} of the foreground lies outside the window of {c.grid}: left out")
            else:
                kept.add(c.grid)
        return kept

    def rung(self, number: int, names: Sequence[str], epochs: int, rows: Mapping[str, Mapping[str, Any]],
             why: Mapping[str, str]) -> tuple[dict[str, Any], list[str]]:
        """Train `names`, keep the best: the rung's record, and who goes on."""
        begun, done, known = time.monotonic(), 0, len(list((self.folder / RUNGS / str(number)).glob("*.json")))
        best: tuple[float, str] = (-1.0, "-")

        def told(name: str, found: Mapping[str, Any]) -> None:
            nonlocal done, best
            done += 1
            if "failed" in found:
                self.say(f"rung {number}   {name} FAILED: {found['failed']}")
                return
            best = max(best, (found["dice"], name))
            left = (len(names) - known - done) * (time.monotonic() - begun) / done / 60
            self.say(f"rung {number}   {known + done}/{len(names)}  {name} {rows[name]['ms']:.2f} ms dev Dice "
                     f"{found['dice']:.4f}  best {best[1]} {best[0]:.4f}  {found['seconds'] / epochs:.0f} s an epoch, "
                     f"{left:.0f} min left")

        found = train_rung(self.folder, number, names, epochs, self.jobs, told)
        if all("failed" in r for r in found.values()):
            raise EdgesegError(f"rung {number}: every training failed: {next(iter(found.values()))['failed']}")
        last = number == len(self.recipe.rungs)
        controls = [n for n in names if why[n] == "control"]
        kept, out = halve(found, controls, len(names) if last else self.recipe.rungs[number][0])
        table = sorted(({"name": n, "ms": rows[n]["ms"], "dice": r.get("dice"), "why": why[n],
                         **({"failed": True} if "failed" in r else {}),  # why may name a patient or a folder
                         **{k: r[k] for k in ("per_structure", "seconds", "window") if k in r}}
                        for n, r in found.items()), key=lambda r: -(r["dice"] if r["dice"] is not None else -1))
        scored = [(r["name"], r["ms"], r["dice"]) for r in table if r["dice"] is not None]
        record = {"epochs": epochs, "rows": table, "discarded": out, "front": pareto(scored)}
        write_json(self.folder / RUNGS / f"{number}.json", record)
        if not last:
            self.say(f"rung {number}   discarded: {', '.join(out) or 'nobody'}")
        return record, kept

    # ---- the end

    def finish(self, rows: Mapping[str, dict[str, Any]], rungs: list[dict[str, Any]]) -> Search:
        limit = self.recipe.max_latency
        fit = [r for r in rungs[-1]["rows"] if r["dice"] is not None and r["ms"] <= limit]
        if not fit:
            raise EdgesegError(f"{self.folder}: what reached the last rung takes more than {limit:g} ms")
        winner = fit[0]["name"]
        for name in {winner, *(c.name for c in self.candidates if c.control)}:
            file = "winner.toml" if name == winner else f"control-{name}.toml"
            write_text(self.folder / file, self.named(name).recipe(self.setup.base).to_toml())
        lines = read_lines(self.folder / LATENCY)
        others = [x["others"] for x in lines if x.get("others") is not None]
        about = {"machine": describe(), "recipe": without_paths(asdict(self.recipe)),
                 "reference": {"text": REFERENCE.text(), **reference_ms(lines, self.recipe.threads)},
                 "others": {"median": float(np.median(others)), "max": max(others)} if others else {},
                 "busy": is_busy(float(np.median(others))) if others else None,
                 "data": {"name": self.data.name, "splits": {s: len(self.data.select(s).patients())
                                                             for s in ("train", "dev")}}}
        result = Search(self.folder, sorted(rows.values(), key=lambda r: r["ms"]), rungs, winner, about)
        write_json(self.folder / RESULT, result.document())
        for name in ("soft", "grids"):  # they hold images
            shutil.rmtree(self.folder / name, ignore_errors=True)
        return result
