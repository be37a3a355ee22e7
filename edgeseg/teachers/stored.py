"""Targets: what teachers said of every frame, on disk. All that a lab needs to share to let others distil.

    FOLDER/manifest.json     scheme, grid, teachers, and for each case its shard and a fingerprint of its frames
    FOLDER/shard-0000.npz    case -> uint8 [N, K - 1, H, W]: floor(255 p) of each class but background

No image and no weights. A fingerprint (SHA-256 of the frames) finds frames again that somebody else holds too, and says
nothing to whoever does not. Reading needs no torch.
"""

import json
from dataclasses import asdict
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from edgeseg.case import Case
from edgeseg.errors import EdgesegError
from edgeseg.files import new_file, write_text
from edgeseg.labels import LabelScheme
from edgeseg.preprocess import Normalisation, Preprocessing

VERSION = 1
LEVELS = 255


def quantise(probabilities: np.ndarray) -> np.ndarray:
    """Float [N, K, H, W] -> uint8 [N, K - 1, H, W], floor(255 p) without background, as EchoDFKD stores a sigmoid."""
    return np.floor(np.clip(probabilities[:, 1:], 0, 1) * np.float32(LEVELS)).astype(np.uint8)


def probabilities_of(stored: np.ndarray) -> np.ndarray:
    """The inverse, to 1/255: float32 [N, K, H, W]; background is what the others leave."""
    classes = stored.astype(np.float32) / LEVELS
    return np.concatenate([np.clip(1 - classes.sum(1, keepdims=True), 0, 1), classes], axis=1)


def fingerprint(case: Case) -> str:
    """SHA-256 of the raw frames (float32, their shape first)."""
    return sha256(repr(case.frames.shape).encode() + np.ascontiguousarray(case.frames).tobytes()).hexdigest()


class StoredTargets:
    """Stored targets in the place of a teacher; attributes as of `NnUNetTeacher`. It can only `predict`."""

    predict_only = True
    ignore = None

    def __init__(self, folder: Path, manifest: dict[str, Any]) -> None:
        self.folder, self.manifest = folder, manifest
        self.scheme = LabelScheme(tuple(manifest["scheme"]["names"]), tuple(manifest["scheme"]["values"]))
        self.channels = tuple(manifest["channels"])
        grid = manifest["preprocessing"]
        self.preprocessing = Preprocessing(
            tuple(grid["size"]), tuple(grid["spacing"]), tuple(Normalisation(**c) for c in grid["channels"]),
            grid["overlap"], grid["window"])
        self.mirror_axes = tuple(manifest["mirror_axes"])
        self.stride = (1, 1)
        self.name = " + ".join(t["name"] for t in manifest["teachers"])
        self.provenance = {"targets": folder.resolve().name, "teachers": manifest["teachers"], "folds": [],
                           "parameters": max(t["provenance"]["parameters"] for t in manifest["teachers"])}
        self._shard = lru_cache(maxsize=2)(self._read_shard)

    @classmethod
    def open(cls, folder: Path) -> "StoredTargets":
        """Raises EdgesegError: no such folder, unfinished, damaged or of a newer version."""
        path = folder / "manifest.json"
        try:
            manifest = json.loads(path.read_text("utf-8"))
            if manifest["version"] > VERSION:
                raise EdgesegError(f"{path}: version {manifest['version']} is newer than this edgeseg reads: update it")
            return cls(folder, manifest)
        except FileNotFoundError:
            raise EdgesegError(f"{folder}: holds no targets (no manifest.json): `edgeseg targets` makes them") from None
        except (ValueError, KeyError, TypeError, AttributeError):
            raise EdgesegError(f"{path}: not a readable manifest of targets: copy it again") from None

    def predict(self, case: Case, tta: str = "none") -> tuple[np.ndarray, np.ndarray]:
        """What was stored of this case: class indices uint8 [N, H, W] and probabilities float32 [N, K, H, W].

        Raises:
            EdgesegError: no targets of this case, targets of other frames, or a damaged shard.
        """
        entry = self.manifest["cases"].get(case.id)
        where = case.source or case.id
        if entry is None:
            raise EdgesegError(f"{where}: {self.folder} holds no targets of {case.id}")
        if entry["frames_sha256"] != fingerprint(case):
            raise EdgesegError(f"{where}: the targets in {self.folder} were made of other frames")
        stored = self._shard(entry["shard"]).get(case.id)
        if stored is None or stored.shape != (len(case.frames), len(self.scheme.names) - 1, *case.frames.shape[-2:]):
            raise EdgesegError(f"{self.folder / entry['shard']}: damaged: make or copy it again")
        p = probabilities_of(stored)
        return p.argmax(axis=1).astype(np.uint8), p

    def _read_shard(self, name: str) -> dict[str, np.ndarray]:
        path = self.folder / name
        try:
            if sha256(path.read_bytes()).hexdigest() != self.manifest["shards"][name]:
                raise ValueError
            with np.load(path, allow_pickle=False) as content:
                return dict(content)
        except (OSError, ValueError, KeyError):
            raise EdgesegError(f"{path}: missing or changed since it was written: make or copy it again") from None


def write_shard(folder: Path, manifest: dict[str, Any], cases: dict[str, tuple[str, np.ndarray]]) -> None:
    """One more shard (case id -> fingerprint, uint8 array), then the manifest that names it: a kill between the two
    leaves the folder as it was."""
    name = f"shard-{len(manifest['shards']):04d}.npz"
    with new_file(folder / name) as part, part.open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, **{case: array for case, (_, array) in cases.items()})
    manifest["shards"][name] = sha256((folder / name).read_bytes()).hexdigest()
    manifest["cases"] |= {case: {"shard": name, "frames_sha256": mark} for case, (mark, _) in cases.items()}
    write_text(folder / "manifest.json", json.dumps(manifest, indent=1) + "\n")


def new_manifest(scheme: LabelScheme, channels: tuple[str, ...], grid: Preprocessing, mirror_axes: tuple[int, ...],
                 teachers: list[dict[str, Any]], tta: str, data: list[str]) -> dict[str, Any]:
    """`data`: names of the data sets (never paths)."""
    return {"version": VERSION, "quantisation": "floor(255 p), background left out", "tta": tta, "data": data,
            "scheme": {"names": list(scheme.names), "values": list(scheme.values)}, "channels": list(channels),
            "preprocessing": json.loads(json.dumps(asdict(grid))), "mirror_axes": list(mirror_axes),
            "teachers": json.loads(json.dumps(teachers)), "shards": {}, "cases": {}}
