"""What is claimed of contrastive distillation, and whether it holds: verdicts of `contrastive_ablation.py`.

Each takes the arms by name, scored on one split, and gives {"claim", "verdict", "tests": pair -> comparison}.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from edgeseg.measure.significance import Comparison, compare_paired, corrected, crossed_interval
from edgeseg.measure.statistics import Interval
from edgeseg.report.compare import Arm

SCALES, KINDS = ("encoder", "bottleneck", "decoder"), ("supervised", "instance")
NONE, KL, MAP, LARGE = "none", "layer-wise KL", "prediction map", "S2 alone"
ALPHA = 0.05


def patients_of(arm: Arm) -> np.ndarray:
    """Dice of each patient, mean over structures and seeds."""
    return arm.dice.mean(axis=(0, 2))


def family(arms: dict[str, Arm], pairs: Sequence[tuple[str, str]], margin: float) -> dict[str, Comparison]:
    """`a minus b` -> comparison, all of them corrected as one family; pairs with an arm that is not there are left out.
    """
    there = [(a, b) for a, b in pairs if a in arms and b in arms]
    found = corrected([compare_paired(patients_of(arms[a]), patients_of(arms[b]), margin) for a, b in there])
    return {f"{a} minus {b}": c for (a, b), c in zip(there, found, strict=True)}


def over_seeds(arms: dict[str, Arm], tests: Mapping[str, Comparison]) -> dict[str, Interval]:
    """Of each of the pairs, the difference with seeds drawn too: what other seeds and other patients would give. Only
    of arms with the same seeds."""
    found = {}
    for name in tests:
        a, b = (arms[n] for n in name.split(" minus "))
        if a.seeds == b.seeds:
            found[name] = crossed_interval((a.dice - b.dice).mean(axis=2))
    return found


def significant(found: Comparison) -> bool:
    """Both tests, after correction."""
    return found.permutation_holm < ALPHA and found.wilcoxon_holm < ALPHA


def encoder_strongest(arms: dict[str, Arm], margin: float) -> dict[str, Any]:
    """T09: contrast between encoders is the strongest single term."""
    found = family(arms, [(f"encoder {k}", other) for k in KINDS for other in (*(f"{s} {k}" for s in SCALES[1:]), MAP)],
                   margin)
    verdict = ("not measured" if not found else
               "holds" if all(significant(c) and c.difference.value > 0 for c in found.values()) else
               "contradicted" if any(significant(c) and c.difference.value < 0 for c in found.values()) else
               "not shown")
    return {"claim": "encoder-to-encoder contrast is the strongest single term", "verdict": verdict, "tests": found}


def small_beats_large(arms: dict[str, Arm], best: str | None, margin: float) -> dict[str, Any]:
    """T11: the small student, distilled, is at least as good as the large one alone."""
    found = family(arms, [(best, LARGE)] if best else [], margin)
    verdict = "not measured"
    for c in found.values():
        verdict = ("cannot be judged: one patient" if c.non_inferior is None else
                   "holds: better" if c.bound > 0 else "contradicted: worse" if c.difference.high < 0 else
                   f"holds within the margin: not worse by {margin:g}" if c.non_inferior else "not shown")
    return {"claim": "57 k parameters distilled reach 227 k alone", "verdict": verdict, "tests": found}


def new_default(arms: dict[str, Arm], best: str | None, margin: float) -> dict[str, Any]:
    """Whether the best arm on dev beats the layer-wise KL alone on dev, corrected for all arms that could have won."""
    found = family(arms, [(name, KL) for name in arms if name not in (NONE, KL, LARGE)], margin)
    won = found.get(f"{best} minus {KL}")
    verdict = ("not measured" if not found else "no: the layer-wise KL is best on dev" if won is None else
               f"yes: {best}" if significant(won) and won.difference.value > 0 else
               f"no: {best} is best on dev, and not significantly")
    return {"claim": "the best combination beats the layer-wise KL alone on dev", "verdict": verdict, "tests": found}
