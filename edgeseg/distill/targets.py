"""make_targets(): what one teacher, or several fused, say of every frame of a data set, stored on disk."""

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgeseg.case import Case
from edgeseg.errors import EdgesegError
from edgeseg.readers import Dataset
from edgeseg.teachers.stored import StoredTargets, fingerprint, new_manifest, quantise, write_shard

SHARD = 16
"""Cases a shard: what an interruption may cost."""


def make_targets(teachers: Sequence[Any], dataset: Dataset, out: Path, weights: Sequence[float] = (),
                 tta: str = "none", say: Callable[[str], None] = print) -> StoredTargets:
    """Store the weighted mean of the teachers' probabilities, floor(255 p), of every case; goes on with a folder that
    the same teachers began.

    Args:
        weights: one a teacher, made to sum to 1; none: the plain mean.

    Raises:
        EdgesegError: teachers of different tasks, bad weights, or `out` was begun with other teachers or options; cases
            that could not be read or predicted, after all others are stored.
    """
    shares = checked_weights(weights, len(teachers))
    first = teachers[0]
    for other in teachers[1:]:
        if other.scheme.names != first.scheme.names:
            raise EdgesegError(f"{other.name} names {', '.join(other.scheme.foreground)}, {first.name} "
                               f"{', '.join(first.scheme.foreground)}: teachers of one task can be fused")
    described = [{"name": t.name, "weight": w, "provenance": t.provenance}
                 for t, w in zip(teachers, shares, strict=True)]
    manifest = new_manifest(first.scheme, first.channels, first.preprocessing, first.mirror_axes, described, tta,
                            [dataset.name])
    if (out / "manifest.json").exists():
        kept = StoredTargets.open(out).manifest
        if key := next((k for k in manifest if k not in ("shards", "cases", "data") and kept[k] != manifest[k]), None):
            raise EdgesegError(f"{out}: was begun with another {key}: choose another --out")
        manifest = kept
    out.mkdir(parents=True, exist_ok=True)
    left = [ref for ref in dataset.refs if ref.id not in manifest["cases"]]
    say(f"targets  {len(left)} of {len(dataset)} cases to do")
    begun, frames, failed = time.monotonic(), 0, 0
    for start in range(0, len(left), SHARD):
        part: dict[str, tuple[str, np.ndarray]] = {}
        for ref in left[start : start + SHARD]:
            try:
                case = ref.load()
                part[ref.id] = fingerprint(case), quantise(fused(teachers, shares, case, tta))
            except EdgesegError as error:
                say(f"targets  left out: {error}")
                failed += 1
            else:
                frames += len(case.frames)
        if part:
            write_shard(out, manifest, part)
        done, seconds = min(start + SHARD, len(left)), time.monotonic() - begun
        say(f"targets  {done}/{len(left)} cases, {frames / seconds:.1f} frames/s, "
            f"{seconds / done * (len(left) - done) / 60:.1f} min left")
    if failed:
        raise EdgesegError(f"{failed} of {len(left)} cases failed, each is named above; {out} holds the others, and "
                           "the same command tries again")
    return StoredTargets(out, json.loads(json.dumps(manifest)))


def fused(teachers: Sequence[Any], shares: Sequence[float], case: Case, tta: str) -> np.ndarray:
    """Weighted mean of the teachers' probabilities, float32 [N, K, H, W]."""
    return np.asarray(sum(np.float32(w) * t.predict(case, tta)[1] for t, w in zip(teachers, shares, strict=True)))


def checked_weights(weights: Sequence[float], teachers: int) -> list[float]:
    """Shares that sum to 1."""
    if not weights:
        return [1 / teachers] * teachers
    if len(weights) != teachers or min(weights) < 0 or not sum(weights) > 0:
        raise EdgesegError(f"one weight a teacher, none negative: {teachers} teachers, weights {tuple(weights)}")
    return [w / sum(weights) for w in weights]
