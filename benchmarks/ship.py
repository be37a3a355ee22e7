"""Ship a run: export it, check what will lie in git and in every wheel, and put it where edgeseg finds it by name.

    python benchmarks/ship.py --run runs/cine --name cine --frame 256x216@1.40625

Writes export/NAME.edgeseg and calibration/NAME.sheet.json (which frames calibrated it). Nothing is written when a check
fails, and nothing is replaced without --replace.
"""

import argparse
import re
import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np

from edgeseg.bundle.card import gate_rows
from edgeseg.bundle.export import export_bundle
from edgeseg.bundle.golden import phantom_clip, phantom_frames
from edgeseg.bundle.graph import parse_protocol
from edgeseg.bundle.recipe import CalibrationRecipe
from edgeseg.bundle.staging import beside
from edgeseg.cli.bundle import dice_text, shown_score
from edgeseg.container import SUFFIX, Bundle, open_bundle
from edgeseg.distill.run import Run
from edgeseg.errors import EdgesegError
from edgeseg.files import write_text
from edgeseg.manifest import FrameProtocol
from edgeseg.runtime.backends import model_file
from edgeseg.runtime.golden import load_golden

ROOT = Path(__file__).resolve().parents[1]
INT8_WEIGHTS, STREAM_WEIGHTS = 1_000_000, 1_500_000
"""Bytes of the INT8 IR's .bin: of a student of single images, and of a stream, whose state path stays FP32."""
BUNDLE = 25_000_000
"""Bytes of all files: each version of a shipped bundle stays in git's history for good."""
FILES = re.compile(r"manifest\.json|metadata\.json|SHA256SUMS|MODEL_CARD\.md|LICENSE|golden\.npz"
                   r"|(model\.|frames/[^/]+/)(fp32|int8)\.(onnx|xml|bin)")


def ship(run: Run, name: str, protocols: tuple[FrameProtocol, ...], recipe: CalibrationRecipe, replace: bool = False,
         root: Path = ROOT, seconds: float = 2.0) -> Bundle:
    """Export `run` as the shipped bundle `name` of the checkout `root`, and return it; errors as of `place`."""
    out, _ = places(name, root, replace)  # better said before the export
    with tempfile.TemporaryDirectory(prefix="edgeseg-ship-") as kept:
        made = export_bundle(run, Path(kept) / out.name, recipe=recipe, protocols=protocols, frame_precisions=("int8",),
                             seconds=seconds,
                             say=lambda line: print(f"export   {line}", flush=True))
        return place(made, name, root, replace)


def places(name: str, root: Path, replace: bool) -> tuple[Path, Path]:
    """Where the bundle `name` and its calibration sheet go; EdgesegError for a bad name, or one that is taken."""
    if not re.fullmatch(r"[a-z][a-z0-9-]*", name):
        raise EdgesegError(f"{name}: a shipped bundle is named by lower-case letters, digits and hyphens")
    out, sheet = root / "export" / f"{name}{SUFFIX}", root / "calibration" / f"{name}.sheet.json"
    if taken := [p for p in (out, sheet) if p.exists() and not replace]:
        raise EdgesegError(f"{taken[0]}: exists: replace it with --replace")
    return out, sheet


def place(made: Path, name: str, root: Path, replace: bool) -> Bundle:
    """Put the bundle folder `made` and its calibration sheet where they are shipped from.

    Raises:
        EdgesegError: the name is bad or taken, or the bundle must not be shipped; then nothing is written.
    """
    (out, sheet), source = places(name, root, replace), open_bundle(made)
    if found := refusals(source):
        raise EdgesegError(f"{name} is not shipped: {'; '.join(found)}")
    assert source.manifest.calibration is not None  # it has INT8 files
    with beside(out, replace) as part:
        shutil.copytree(made, part, dirs_exist_ok=True)
    write_text(sheet, source.manifest.calibration.model_dump_json(indent=1) + "\n")
    return open_bundle(out)


def refusals(bundle: Bundle) -> list[str]:
    """Why a bundle may not be shipped."""
    m, weights = bundle.manifest, model_file("openvino", "int8").replace(".xml", ".bin")
    found = [f"{n} does not belong into a bundle" for n in sorted(bundle.files) if not FILES.fullmatch(n)]
    if weights not in bundle.files:
        found.append("it has no INT8 files")
    elif (size := bundle.file(weights).stat().st_size) > (limit := STREAM_WEIGHTS if m.stream else INT8_WEIGHTS):
        found.append(f"{weights} has {size} bytes, more than {limit}")
    if (total := total_bytes(bundle)) > BUNDLE:
        found.append(f"it has {total} bytes, more than {BUNDLE}")
    if m.calibration is None or (m.calibration.ids != "salted" and not m.calibration.synthetic):
        found.append("its calibration sheet names patients, or it has none")
    if m.golden != "phantom" or not golden_is_synthetic(bundle):
        found.append("its golden frames are not the phantom's")
    if "weights" not in m.licences:
        found.append("its weights have no licence")
    elif "CC BY-NC-SA" not in m.licences["weights"] and m.teacher:
        found.append(f"its data is free ({m.licences['weights']}), but a teacher's terms may not be")
    return found


def total_bytes(bundle: Bundle) -> int:
    return sum(bundle.file(n).stat().st_size for n in bundle.files)


def golden_is_synthetic(bundle: Bundle) -> bool:
    """Whether golden.npz holds exactly the frames that the phantom makes."""
    draw = phantom_clip if bundle.manifest.stream else phantom_frames
    made = [frame for frame, _ in draw(len(bundle.manifest.channels))]
    kept = [item.frame for item in load_golden(bundle.file("golden.npz"))]
    return len(made) == len(kept) and all(np.array_equal(a, b) for a, b in zip(made, kept, strict=True))


def report(bundle: Bundle, sheet: Path) -> None:
    m, weights = bundle.manifest, bundle.file(model_file("openvino", "int8")).with_suffix(".bin")
    missed = [row for row in gate_rows(m.measured.admission.gates)[1:] if "MISSED" in row[-1]] \
        if m.measured.admission else []
    print(f"bundle   {bundle.path}: {total_bytes(bundle) / 1e6:.2f} MB, INT8 weights {weights.stat().st_size} bytes")
    print(f"sheet    {sheet}: {len(m.calibration.frames) if m.calibration else 0} frames")
    print(f"Dice     {dice_text(m, shown_score(m))}")
    print(f"licence  {m.licences['weights']}")
    print("images   none of a patient: golden frames are the phantom's")
    for row in missed:
        print(f"caution  gate missed: {', '.join(row[:4])}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--name", required=True, help="cine, cine-synthetic, ...")
    parser.add_argument("--frame", action="append", default=[], help="protocol of a frame graph; repeat")
    parser.add_argument("--dtype", default="uint16")
    parser.add_argument("--back", default="logits")
    parser.add_argument("--calibration", type=Path, default=ROOT / "calibration" / "cine.toml")
    parser.add_argument("--seconds", type=float, default=2.0, help="of timing a row of the speed gate")
    parser.add_argument("--replace", action="store_true")
    parser.add_argument("--root", type=Path, default=ROOT, help="checkout to write into")
    given = parser.parse_args()
    try:
        protocols = tuple(parse_protocol(text, given.dtype, given.back) for text in given.frame)
        bundle = ship(Run.open(given.run), given.name, protocols, CalibrationRecipe.load(given.calibration),
                      given.replace, given.root, given.seconds)
    except EdgesegError as error:
        sys.exit(f"ship: {error}")
    report(bundle, given.root / "calibration" / f"{given.name}.sheet.json")


if __name__ == "__main__":
    main()
