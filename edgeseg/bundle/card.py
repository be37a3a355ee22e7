"""MODEL_CARD.md and LICENSE of a bundle, written from its manifest."""

from edgeseg.manifest import FileCheck, Manifest

LINKS = {
    "CC BY-NC-SA 4.0": "https://creativecommons.org/licenses/by-nc-sa/4.0/",
    "CC BY-SA 4.0": "https://creativecommons.org/licenses/by-sa/4.0/",
    "CC BY 4.0": "https://creativecommons.org/licenses/by/4.0/",
    "CC0": "https://creativecommons.org/publicdomain/zero/1.0/",
}


def model_card(m: Manifest) -> str:
    """The card: what the model is for, what it was made from, what was measured, what is not known."""
    grid = m.preprocessing
    values = ", ".join(f"{v} {n}" for n, v in zip(m.labels.names, m.labels.values, strict=True))
    kinds = ", ".join(f"{c} ({n.kind})" for c, n in zip(m.channels, grid.channels, strict=True))
    patients = ", ".join(f"{n} {split}" for split, n in m.data.patients.items())
    teacher = ", ".join(f"{k} {v}" for k, v in m.teacher.items() if isinstance(v, str | int | float | list))
    return f"""# {m.name}

{m.task[0].upper()}{m.task[1:]}, by a {m.student.get("family", "small")} student for plain CPUs.

## Intended use

{m.intended_use.capitalize()}. Not a medical device: no result of it may decide on a patient.

## Input and output

- Input: {len(m.channels)} channel(s), {kinds}; any pixel grid, resampled to
  {grid.spacing[0]:g} x {grid.spacing[1]:g} mm and covered by windows of {grid.size[0]} x {grid.size[1]} pixels.
- Output: label map in the input's own grid: {values}.

## Data and licences

- Data: {m.data.name} ({patients} patients), licence: {m.data.licence}.
- The weights carry the terms of the data that they were trained on: {m.licences["weights"]} (see LICENSE).
- Teacher: {teacher or "none: trained on labels only"}.

## Calibration of INT8

{calibration(m)}

## Measured

{dice(m)}Each file against the trained student in torch, on {m.measured.frames} frames of {m.measured.frames_from};
agreement counts the pixels where either sees foreground.

| file | MB | max abs logit difference | logit range | label agreement |
|---|---|---|---|---|
{chr(10).join(map(row, m.measured.checks))}

## Known limits

- Only as good as its training data: other scanners, sequences, orientations or diseases were not tested.
- INT8 results differ slightly between CPUs and runtime versions; golden.npz holds what the building machine computed.
- No patient image is in this bundle: its golden frames are synthetic.
"""


def calibration(m: Manifest) -> str:
    if m.calibration is None:
        return "This bundle has no INT8 files."
    c = m.calibration
    counts = "; ".join(f"{name}: {', '.join(f'{v} {k}' for k, v in found.items())}" for name, found in c.strata.items())
    return (f"{len(c.frames)} frames of {c.patients} training patients of {c.data}, seed {c.seed} ({counts}). Patients "
            "and cases are in the manifest as salted hashes, each frame with its SHA-256.")


def dice(m: Manifest) -> str:
    best = m.measured.training.get("dev")
    value = best.get("dice") if isinstance(best, dict) else None
    return f"Dice on dev when training ended: {value:.4f}.\n\n" if isinstance(value, float) else ""


def row(c: FileCheck) -> str:
    return (f"| {c.file} | {c.bytes / 1e6:.2f} | {c.max_logit_difference:.2e} | {c.logit_range:.1f} | "
            f"{c.label_agreement:.4f} |")


def licence_text(m: Manifest) -> str:
    """LICENSE: the terms of the weights, which are those of the data."""
    licence = m.licences["weights"]
    link = next((f" ({url})" for known, url in LINKS.items() if known in licence and url not in licence), "")
    return (f"The model weights in this bundle were trained on the data set {m.data.name}.\n"
            f"They carry the terms of that data: {licence}{link}.\n"
            "The terms of the teacher that they were distilled from may apply as well.\n\n"
            f"The software that made this bundle, edgeseg, is licensed separately ({m.licences['software']}).\n")
