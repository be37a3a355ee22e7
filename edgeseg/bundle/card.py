"""MODEL_CARD.md and LICENSE of a bundle, written from its manifest."""

from collections.abc import Iterable, Sequence

from edgeseg.manifest import Admission, Calibration, Estimate, FileCheck, Gate, Manifest, Scores, Speeds

LINKS = {
    "CC BY-NC-SA 4.0": "https://creativecommons.org/licenses/by-nc-sa/4.0/",
    "CC BY-SA 4.0": "https://creativecommons.org/licenses/by-sa/4.0/",
    "CC BY 4.0": "https://creativecommons.org/licenses/by/4.0/",
    "CC0": "https://creativecommons.org/publicdomain/zero/1.0/",
    "Apache-2.0": "https://www.apache.org/licenses/LICENSE-2.0",
}
IN_SHORT = {
    "CC BY-NC-SA 4.0": "name the source, no commercial use, pass on what you make of them under the same terms",
    "Apache-2.0": "free to use, also commercially, and to pass on with this licence",
}
"""What a licence means for whoever uses the weights, the strictest first; the licence itself is what holds."""
SYNTHETIC = "phantom"
"""Data set of synthetic images."""
TIER = 0.999
"""MLPerf's higher accuracy tier (INT8 over FP32), reported beside the 99 % gate."""
SPLITS = {"dev": "dev: every choice was made on it", "val": "val: kept for reporting"}
FITTED = "dev: the last training saw these patients too, so this is no estimate for new ones"


def model_card(m: Manifest) -> str:
    """The card: what the model is for, what it was made from, what was measured, what is not known."""
    return "\n\n".join([
        f"# {m.name}",
        f"{capital(m.task)}, by a {m.student.get('family', 'small')} student for plain CPUs.",
        "## Intended use",
        f"{capital(m.intended_use)}. Not a medical device: no result of it may decide on a patient.",
        "## Input and output", input_and_output(m),
        "## Data and licences", data(m),
        "## Calibration of INT8", calibration(m),
        "## Admission of INT8", admission(m),
        "## Dice per structure", dice(m),
        "## Speed", speed(m.measured.speeds),
        "## Streams and frame graphs", frames(m),
        "## Files", files(m),
        "## Known limits", limits(m),
    ]) + "\n"


def input_and_output(m: Manifest) -> str:
    grid = m.preprocessing
    values = ", ".join(f"{v} {n}" for n, v in zip(m.labels.names, m.labels.values, strict=True))
    kinds = ", ".join(f"{c} ({n.kind})" for c, n in zip(m.channels, grid.channels, strict=True))
    cover = ("one centred window of {0} x {1} pixels, background outside" if grid.window == "centre" else
             "covered by windows of {0} x {1} pixels").format(*grid.size)
    return (f"- Input: {len(m.channels)} channel(s), {kinds}; any pixel grid, resampled to\n"
            f"  {grid.spacing[0]:g} x {grid.spacing[1]:g} mm, {cover}.\n"
            f"- Output: label map in the input's own grid: {values}.{stream(m)}")


def stream(m: Manifest) -> str:
    if m.stream is None:
        return ""
    rate = f", about {1 / m.stream.frame_time:.3g} frames a second as in training" if m.stream.frame_time else ""
    return (f"\n- Recurrent: the frames of a clip one after the other{rate}; what it remembers is "
            f"{len(m.stream.states)} states.")


def data(m: Manifest) -> str:
    patients = ", ".join(f"{n} {split}" for split, n in m.data.patients.items())
    if m.distillation.get("final"):
        patients += " patients, trained on train and dev"
    else:
        patients += " patients"
    teacher = ", ".join(f"{k} {v}" for k, v in m.teacher.items() if isinstance(v, str | int | float | list))
    began = ""
    if run := m.distillation.get("pretrained"):
        taught = f", distilled from {' and '.join(run['teachers'])}" if run["teachers"] else ""
        began = (f"- The training began with the weights of {run['name']}, trained on {', '.join(run['data'])}"
                 f"{taught}.\n")
    return (f"- Data: {m.data.name} ({patients}), licence: {m.data.licence}.\n{began}"
            "- The weights carry the terms of the data that they were trained on: "
            f"{m.licences.get('weights', 'not stated')} (see LICENSE).\n"
            f"- Teacher: {teacher or 'none: trained on labels only'}.")


def calibration(m: Manifest) -> str:
    """The calibration sheet in words."""
    c = m.calibration
    if c is None:
        return "This bundle has no INT8 files."
    own = c.source == "run"
    kind, patient = ("synthetic frames (no patient's image among them)", "simulated patients") if c.synthetic else (
        "frames", "training patients" if own else "patients")
    source = "the run's own training data" if own else c.source
    counts = "; ".join(f"{name}: {', '.join(f'{v} {k}' for k, v in found.items())}" for name, found in c.strata.items())
    ids = "as salted hashes" if c.ids == "salted" else "by their ids"
    spread = f", spread over {counts}" if counts else ""
    return (f"{len(c.frames)} {kind} of {c.patients} {patient} of {c.data} (recipe {c.recipe}, from {source}, "
            f"seed {c.seed}){spread}. Patients and cases are in the manifest {ids}, each frame with its SHA-256. "
            f"{held_out(c)}")


def held_out(c: Calibration) -> str:
    """What is known of dev and val among the frames: `bundle.calibrate.open_source` checks each source in its way."""
    if c.source == "run":
        return "None is of a dev or val patient."
    if c.synthetic:
        return "No name is that of a dev or val patient."
    return ("Names and frames were compared with those of the run's dev and val patients, and none is the same; a copy "
            "that was renamed and resampled would not show.")


def admission(m: Manifest) -> str:
    """Verdict for each precision of each runtime, every gate behind it, and the ladder that led there."""
    a = m.measured.admission
    if a is None:
        return "Not tested." if m.calibration else "This bundle has no INT8 files."
    head, *gates = gate_rows(a.gates)
    text = [f"Compared with FP32 in the same runtime, paired over {a.patients} patients of {a.data} {a.split}. "
            f"{verdicts(a)}\n\n{table(head, gates)}"]
    if m.measured.ladder:
        rows = [(r.backend, r.rung, f"{r.dice:.4f}", ", ".join(r.failed) or "none") for r in m.measured.ladder]
        text.append("How the INT8 files were found, in the order of trying:\n\n"
                    + table(("runtime", "rung", "dev Dice", "failed gates"), rows))
    return "\n\n".join(text)


def verdicts(a: Admission) -> str:
    """One sentence for each candidate; a bundle takes a precision by default only where it is admitted and faster."""
    own = dict.fromkeys(g.subject for g in a.gates if g.kind == "accuracy")
    said = [f"{s}: {'admitted' if a.admitted(*s.rsplit(' ', 1)) else 'not admitted'}" for s in own]
    return f"{'; '.join(said)}." if said else "No candidate."


def gate_rows(gates: Iterable[Gate]) -> list[tuple[str, ...]]:
    """A heading, then a row a gate: of what, gate, value with interval, limit, patients or rounds, verdict."""
    rows: list[tuple[str, ...]] = [("of", "gate", "measured [95 % interval]", "limit", "n", "verdict")]
    for g in gates:
        end = {"value": "", "low": "lower end ", "high": "upper end "}[g.tested]
        unit = f" {g.unit}" if g.unit else ""
        tier = ", 99.9 % tier" if g.name == "mean Dice ratio" and (g.estimate.low or 0) >= TIER else ""
        rows.append((g.subject, g.name, interval(g.estimate) + unit, f"{end}{g.relation} {g.limit:g}{unit}",
                     str(g.estimate.n), ("passed" if g.passed else "MISSED") + tier))
    return rows


def interval(e: Estimate) -> str:
    """`0.0012 [-0.0003, 0.0031]`, or the value alone where it has no interval."""
    ends = f" [{e.low:.4g}, {e.high:.4g}]" if e.low is not None and e.high is not None else ""
    return f"{e.value:.4g}{ends}"


def dice(m: Manifest) -> str:
    """A table for each split; before any was measured, what training reported."""
    if m.measured.scores:
        known = SPLITS | ({"dev": FITTED} if m.distillation.get("final") else {})
        splits = {s.split: known.get(s.split, s.split) for s in m.measured.scores}
        kind = ", synthetic images" if m.data.name.startswith(SYNTHETIC) else ""
        return "\n\n".join([f"Cases of {m.data.name}{kind}.", *(
            f"On {splits[split]}. Mean over patients [95 % interval].\n\n"
            + dice_table([s for s in m.measured.scores if s.split == split]) for split in splits),
            *([f"Note: {note}"] if (note := m.distillation.get("note")) else [])])
    best = None if m.distillation.get("final") else m.measured.training.get("dev")
    value = best.get("dice") if isinstance(best, dict) else None
    return f"Dice on dev when training ended: {value:.4f}." if isinstance(value, float) else "Not measured."


def dice_table(scores: Sequence[Scores]) -> str:
    structures = dict.fromkeys(name for s in scores for name in s.dice)
    rows = [(s.backend, s.precision, str(max(e.n for e in s.dice.values())) if s.dice else "0",
             *(interval(s.dice[name]) if name in s.dice else "" for name in structures)) for s in scores]
    return table(("runtime", "precision", "patients", *structures), rows)


def speed(s: Speeds | None) -> str:
    if s is None or not s.rows:
        return "Not measured on the building machine."
    rows = [(r.backend, r.precision, f"{r.median_ms:.2f}", interval(r.over_fp32) if r.over_fp32 else "")
            for r in s.rows]
    busy = " Other work was running on it: the ratios hold, the times are too long." if s.busy else ""
    return (f"One frame through the network, {s.threads} thread(s) of {s.cpu} ({s.cpu_class.cores} cores; "
            f"{', '.join(s.cpu_class.isa) or 'no vector instructions that count'}).{busy} Other machines differ: "
            "`edgeseg verify` measures there.\n\n"
            + table(("runtime", "precision", "median ms", "times as fast as FP32 [95 % interval]"), rows))


def frames(m: Manifest) -> str:
    """What a stream costs, and the frame graphs."""
    text = [f"- {capital(s.split)}: normalising each frame by itself instead of the whole volume changes mean Dice by "
            f"{interval(s.difference)} (from {s.before.value:.4f})." for s in m.measured.streaming]
    text += [f"- {capital(s.split)}: the arg-max on the small grid and labels sent back (nearest), instead of logits "
             f"sent back (linear), changes mean Dice by {interval(s.difference)} (from {s.before.value:.4f})."
             for s in m.measured.label_return]
    for p in m.frames:
        back = "before" if p.back == "logits" else "after"
        text.append(f"- Frame graph {p.name}: raw {p.dtype} frames of {p.size[0]} x {p.size[1]} pixels of "
                    f"{p.spacing[0]:g} x {p.spacing[1]:g} mm in, label map of the same grid out; back in that grid "
                    f"{back} the arg-max.")
        text += [f"  {c.backend} {c.precision} against the NumPy pipeline: {100 * c.agreement:.2f} % of the pixels "
                 f"equal, least Dice of a structure {c.least_dice:.4f}."
                 for c in m.measured.frame_checks if c.protocol == p.name]
    if not m.measured.streaming:
        text.append("- What it costs to normalise frames one by one, as a stream must, was not measured.")
    return "\n".join(text if m.frames else [*text, "- No frame graph is in this bundle."])


def files(m: Manifest) -> str:
    rows = map(file_row, m.measured.checks)
    return (f"Each file against the trained student in torch, on {m.measured.frames} frames of "
            f"{m.measured.frames_from};\nagreement counts the pixels where either sees foreground.\n\n"
            + table(("file", "MB", "max abs logit difference", "logit range", "label agreement"), rows))


def file_row(c: FileCheck) -> tuple[str, ...]:
    return (c.file, f"{c.bytes / 1e6:.2f}", f"{c.max_logit_difference:.2e}", f"{c.logit_range:.1f}",
            f"{c.label_agreement:.4f}")


def limits(m: Manifest) -> str:
    text = ["Only as good as its training data: other scanners, sequences, orientations or diseases were not tested."]
    if m.data.name.startswith(SYNTHETIC):
        text.append("Trained and scored here on synthetic images alone: the Dice above is not that of patients' "
                    "images, which `edgeseg evaluate` measures.")
    if m.calibration:
        text.append("INT8 results differ slightly between CPUs and runtime versions; golden.npz holds what the "
                    "building machine computed.")
    if m.measured.admission and not all(g.passed for g in m.measured.admission.gates):
        text.append("Not every gate above was passed: `precision=\"auto\"` takes no precision that was not admitted.")
    text.append("No patient image is in this bundle: its golden frames are synthetic." if m.golden == "phantom" else
                f"This bundle holds images: its golden frames are images of {m.golden}, whose maker may share them.")
    return "\n".join(f"- {line}" for line in text)


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table whose columns are aligned as it stands; a bar in a cell would end it."""
    lines = [[cell.replace("|", "\\|") for cell in line] for line in (head, *rows)]
    widths = [max(3, *map(len, column)) for column in zip(*lines, strict=True)]
    lines.insert(1, ["-" * width for width in widths])
    return "\n".join("| " + " | ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)) + " |" for line in lines)


def capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def licence_text(m: Manifest) -> str:
    """LICENSE: the terms of the weights, which are those of the data."""
    licence = m.licences["weights"]
    links = ", ".join(url for known, url in LINKS.items() if known in licence and url not in licence)
    short = next((f"In short: {words}.\n" for known, words in IN_SHORT.items() if known in licence), "")
    began = m.distillation.get("pretrained") or {"data": [], "teachers": []}
    teachers = " and ".join(dict.fromkeys([*([teacher_name(m)] if m.teacher else []), *began["teachers"]]))
    teacher = (f"The terms of the teacher that they were distilled from ({teachers}) may apply as well.\n"
               if teachers else "No teacher: they were trained on labels only.\n")
    data = " and ".join(dict.fromkeys([m.data.name, *began["data"]]))
    return (f"The model weights in this bundle were trained on the data set {data}.\n"
            f"They carry the terms of that data: {licence}{f' ({links})' if links else ''}.\n{short}{teacher}\n"
            f"The software that made this bundle, edgeseg, is licensed separately ({m.licences['software']}).\n")


def teacher_name(m: Manifest) -> str:
    return str(m.teacher.get("dataset") or m.teacher.get("folder") or "unnamed")
