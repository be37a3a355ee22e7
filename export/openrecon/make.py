"""What OpenRecon packaging needs of a bundle: its label, a Dockerfile and all that this copies.

    python export/openrecon/make.py --bundle cine --bench benchmarks/results/bench.json --out DIR

Memory and cores of the label are what `edgeseg bench --out` (or benchmarks/bench.py) measured. README.md says what to
do with DIR, and what has not been tried.
"""

import argparse
import base64
import json
import math
import re
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import Any

from edgeseg import __version__
from edgeseg.container import SUMS, Bundle, open_bundle, sha256
from edgeseg.errors import EdgesegError, need

HERE = Path(__file__).resolve().parent
PORT = 9002
SERVER_MB, STEP_MB = 384, 64
"""MB for what `edgeseg serve mrd` with two clients holds beside one Segmenter: replies that wait (128 for each by its
default), images that come in, the second Segmenter; and what the sum is rounded up to. An allowance, not measured."""
WHEEL = f"edgeseg-{__version__}-py3-none-any.whl"


@dataclass(frozen=True)
class Needs:
    """Of one Segmenter, as measured. `bundle`: what was measured, by its file name."""

    bundle: str
    memory_mb: float
    cores: int


def read_needs(path: Path) -> Needs:
    """Peak memory of the bundle's hungriest row, and the fewest threads at which the row that a user gets by default
    meets the bench's target.

    Raises:
        EdgesegError: not the JSON of a bench, or one that was interrupted or measured none of this.
    """
    try:
        document = json.loads(path.read_text("utf-8"))
        found = document.get("bench", document)
        if not str(found["schema"]).startswith("edgeseg.bench/") or not found["complete"]:
            raise ValueError("not a complete bench")
        rows = [r for r in found["rows"] if r["role"] == "student" and not r["torch"] and r["failed"] is None]
        default = next(r for r in rows if r["name"] == found["default_row"])
        memory = max(float(r["peak_rss_mb"]) for r in rows)
        cores = [r["threads"] for r in rows if r["target_met"]
                 and (r["backend"], r["precision"]) == (default["backend"], default["precision"])]
        if not math.isfinite(memory):
            raise ValueError("no memory")
        return Needs(str(found["bundle"]), memory, int(min(cores or [default["threads"]])))
    except (ValueError, KeyError, TypeError, AttributeError, StopIteration) as error:
        raise EdgesegError(f"{path}: no complete result of edgeseg bench ({type(error).__name__}): run it again with "
                           "--out and name its JSON") from None


def make_label(bundle: Bundle, needs: Needs, vendor: str, version: str) -> dict[str, Any]:
    """The OpenRecon label of a bundle. Who makes a product of it fills the empty fields here."""
    m = bundle.manifest
    name = re.sub(r"[^A-Za-z0-9]+", "-", f"edgeseg-{m.name}").strip("-")
    memory = STEP_MB * math.ceil((needs.memory_mb + SERVER_MB) / STEP_MB)
    return {
        "general": {
            "id": name, "name": {"en": name}, "vendor": vendor, "version": version,
            "information": {"en": f"{m.task[:1].upper()}{m.task[1:]}, on the CPU. For {m.intended_use} use."},
            "regulatory_information": {
                "device_trade_name": name, "production_identifier": version, "manufacturer_address": "", "made_in": "",
                "manufacture_date": "", "material_number": "", "gtin": "", "udi": "",
                "safety_advices": "Not a medical device. Not for diagnosis.",
                "special_operating_instructions": "The original images always come back, with or without masks.",
                "additional_relevant_information":
                    f"Weights: {m.licences.get('weights', 'licence not stated')}. Bundle: SHA-256 of {SUMS} "
                    f"{sha256(bundle.file(SUMS))}. Memory and cores: measured on {needs.bundle}."}},
        "reconstruction": {
            "transfer_protocol": {"protocol": "ISMRMRD", "version": "1.4.1"}, "port": PORT, "emitter": "image",
            "injector": "image", "can_process_adjustment_data": False, "can_use_gpu": False,
            "min_count_required_gpus": 0, "min_required_gpu_memory": 0, "min_required_memory": memory,
            "min_count_required_cpu_cores": needs.cores, "content_qualification_type": "RESEARCH"},
        "parameters": []}  # the server takes its options when it starts


def problems(label: Any) -> list[str]:
    """Where a label breaks the rules of label.schema.json, as `place: what is wrong`."""
    rules = json.loads((HERE / "label.schema.json").read_text("utf-8"))
    found = need("jsonschema", "dev").Draft202012Validator(rules).iter_errors(label)
    return [f"{'/'.join(map(str, error.absolute_path)) or 'label'}: {error.message}" for error in found]


def dockerfile(label: dict[str, Any]) -> str:
    encoded = base64.b64encode(json.dumps(label, ensure_ascii=False).encode()).decode()
    return Template((HERE / "Dockerfile.in").read_text("utf-8")).substitute(
        name=label["general"]["name"]["en"], wheel=WHEEL, port=label["reconstruction"]["port"], label=encoded)


def package_name(label: dict[str, Any]) -> str:
    """How the zip for the scanner, and in it the image and the PDF, have to be called."""
    general = label["general"]
    return f"OpenRecon_{general['vendor']}_{general['name']['en']}_V{general['version']}"


def write(out: Path, bundle: Bundle, label: dict[str, Any]) -> None:
    """The folder that docker builds; only the wheel is missing.

    Raises:
        EdgesegError: a label that breaks the rules (nothing is written), a folder that is there.
    """
    if wrong := problems(label):
        raise EdgesegError(f"the label would break OpenRecon's rules: {'; '.join(wrong)}")
    if out.exists():
        raise EdgesegError(f"{out}: is there already: name a new folder")
    (out / "bundle.edgeseg").mkdir(parents=True)
    for name in sorted(bundle.files):
        (out / "bundle.edgeseg" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(bundle.file(name), out / "bundle.edgeseg" / name)
    shutil.copyfile(HERE.parents[1] / "constraints.txt", out / "constraints.txt")
    (out / "label.json").write_text(json.dumps(label, indent=2, ensure_ascii=False) + "\n", "utf-8")
    (out / "Dockerfile").write_text(dockerfile(label), "utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", required=True, help="its path, or a shipped name")
    parser.add_argument("--bench", type=Path, required=True, help="JSON that edgeseg bench wrote")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--vendor", default="edgeseg", help="letters, digits and dashes: part of file names")
    parser.add_argument("--version", default=__version__, help="of the package, SemVer")
    given = parser.parse_args()
    if not re.fullmatch(r"[A-Za-z0-9-]+", given.vendor):
        raise EdgesegError(f"--vendor {given.vendor}: it becomes part of file names: letters, digits and dashes")
    bundle, needs = open_bundle(given.bundle), read_needs(given.bench)
    label = make_label(bundle, needs, given.vendor, given.version)
    write(given.out, bundle, label)
    if Path(needs.bundle).name != bundle.path.name:
        print(f"note: {given.bench} measured {needs.bundle}, not {bundle.path.name}: measure this one before you ship")
    reconstruction = label["reconstruction"]
    print(f"{given.out}: {package_name(label)}, {reconstruction['min_required_memory']} MB, "
          f"{reconstruction['min_count_required_cpu_cores']} core(s), no GPU")
    print(f"next: python -m pip wheel --no-deps -w {given.out} {HERE.parents[1]}; then README.md in {HERE}")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except EdgesegError as error:
        sys.exit(f"{Path(__file__).name}: {error}")
    except OSError as error:
        sys.exit(f"{Path(__file__).name}: {error.filename}: {error.strerror}")
