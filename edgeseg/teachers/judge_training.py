"""train_judge(): a small image-text judge trained on labelled echo clips, in open_clip's own format.

For the phantom, whose masks and mitral valve are known (and for any clips with labelled left ventricles). A frame and a
copy of it with a region blacked out are drawn towards the captions that are true of them and away from the others, by
the sigmoid loss of SigLIP (Zhai et al. 2023), with soft targets: how much of the ventricle and of its wall can still be
seen, how far the valve is open. Regions are spoiled true masks and blobs; no segmentation network has a part in it.
"""

import json
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from edgeseg.case import Case
from edgeseg.errors import EdgesegError
from edgeseg.files import new_file, write_text
from edgeseg.labels import IGNORE
from edgeseg.phantoms.texture import smooth_noise
from edgeseg.teachers.judge import CONFIG, MASK_PROMPTS, VALVE_PROMPTS, WEIGHTS, import_open_clip

SIZE = 112
FRAMES = 12
"""Frames taken of each clip, evenly spaced."""
WALL = 8
"""Pixels beyond the cavity that count as its wall."""
PREPROCESS = {"mean": [0.127] * 3, "std": [0.198] * 3, "interpolation": "bicubic", "resize_mode": "shortest"}
"""Mean and deviation as of EchoNet-Dynamic's frames, as shares of white."""
MODEL: dict[str, Any] = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": SIZE, "layers": [1, 1, 1, 1], "width": 16, "head_width": 64},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
    "init_logit_scale": math.log(10), "init_logit_bias": 0.0}
"""CLIP's residual network with one block a stage and a text transformer of one layer: its vocabulary is most of it."""


@dataclass(frozen=True)
class Frames:
    """uint8 [n, SIZE, SIZE], the left ventricle bool [n, SIZE, SIZE], how far the valve is open [n] (NaN: unknown)."""

    grey: np.ndarray
    inside: np.ndarray
    valve: np.ndarray


def train_judge(cases: Iterable[Case], out: Path, epochs: int = 20, batch: int = 16, learning_rate: float = 2e-3,
                seed: int = 0, say: Callable[[str], None] = print) -> Path:
    """Train on labelled clips; returns `out`, which `Judge.open` reads.

    Args:
        cases: for example `open_data("phantom:echo?n=200&seed=9").select("train")`.
        epochs: passes over FRAMES frames of each clip, with new regions each time.

    Raises:
        EdgesegError: `out` is in use, no labelled frame, open_clip is not installed.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise EdgesegError(f"{out}: already there: choose another folder")
    open_clip = import_open_clip()
    import torch

    rng, data = np.random.default_rng(seed), gather(cases)
    torch.manual_seed(seed)
    model = new_model()
    tokens = open_clip.SimpleTokenizer(context_length=MODEL["text_cfg"]["context_length"])(
        [*MASK_PROMPTS, *VALVE_PROMPTS])
    steps = epochs * math.ceil(len(data.grey) / batch)
    optimiser = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, learning_rate, total_steps=steps, pct_start=0.15)
    history = []
    for epoch in range(epochs):
        losses = []
        for chosen in np.array_split(rng.permutation(len(data.grey)), steps // epochs):
            x, target = drawn(data, chosen, rng)
            loss = sigmoid_loss(model, torch.from_numpy(x), tokens, torch.from_numpy(target))
            optimiser.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
            schedule.step()
            losses.append(float(loss.detach()))
        history.append(float(np.mean(losses)))
        say(f"judge    epoch {epoch + 1} of {epochs}: loss {history[-1]:.4f}")
    write_model(model.eval(), out)
    write_text(out / "training.json", json.dumps({"frames": len(data.grey), "epochs": epochs, "batch": batch,
                                                  "learning_rate": learning_rate, "seed": seed,
                                                  "loss": history}, indent=1) + "\n")
    return out


def new_model() -> Any:
    """MODEL with random weights: an open_clip CLIP."""
    import_open_clip()
    from open_clip.model import CLIP

    return CLIP(**MODEL)


def write_model(model: Any, out: Path) -> None:
    """Weights and, last, the configuration that makes `out` a model folder of open_clip."""
    from safetensors.torch import save_file

    with new_file(out / WEIGHTS) as part:
        save_file({k: v.contiguous() for k, v in model.state_dict().items()}, part)
    write_text(out / CONFIG, json.dumps({"model_cfg": MODEL, "preprocess_cfg": PREPROCESS}, indent=1) + "\n")


def sigmoid_loss(model: Any, x: Any, tokens: Any, target: Any) -> Any:
    """Mean binary cross-entropy of every frame with every caption; a NaN target counts for nothing."""
    import torch

    pictures, _ = model.get_logits(x, tokens)
    known = ~torch.isnan(target)
    return torch.nn.functional.binary_cross_entropy_with_logits(pictures[known], target[known])


def gather(cases: Iterable[Case]) -> Frames:
    """FRAMES labelled frames of each clip that show a left ventricle."""
    grey, inside, valve = [], [], []
    for case in cases:
        if case.labels is None or case.scheme is None or "LV" not in case.scheme.names or case.frames.shape[1] != 1:
            raise EdgesegError(f"{case.source or case.id}: a judge learns from grey clips with labels of the LV")
        value = case.scheme.values[case.scheme.names.index("LV")]
        known = [t for t, frame in enumerate(case.labels) if (frame != IGNORE).all() and (frame == value).any()]
        opening = case.provenance.get("echo", {}).get("mitral")
        for i in np.unique(np.linspace(0, len(known) - 1, FRAMES).round().astype(int)) if known else ():
            t = known[i]
            frame = np.clip(case.frames[t, 0], 0, 255).astype(np.uint8)
            grey.append(cv2.resize(frame, (SIZE, SIZE), interpolation=cv2.INTER_AREA))
            inside.append(cv2.resize((case.labels[t] == value).astype(np.uint8), (SIZE, SIZE),
                                     interpolation=cv2.INTER_NEAREST) > 0)
            valve.append(np.nan if opening is None else opening[t])
    if not grey:
        raise EdgesegError("no labelled frame to train a judge on: choose other data")
    return Frames(np.stack(grey), np.stack(inside), np.array(valve, np.float32))


def drawn(data: Frames, chosen: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Pictures float32 [2 b, 3, SIZE, SIZE] as the model takes them, the second half partly black, and their captions'
    targets float32 [2 b, 5] in the order of MASK_PROMPTS, VALVE_PROMPTS."""
    grey, inside = data.grey[chosen].astype(np.float32), data.inside[chosen]
    gain = rng.uniform(0.75, 1.25, (len(chosen), 1, 1))
    grey = np.clip(grey * gain, 0, 255).round()
    regions = np.stack([region(m, rng) for m in inside])
    pictures = np.concatenate([grey, np.where(regions, 0, grey)]).astype(np.float32)
    x = (pictures / 255 - PREPROCESS["mean"][0]) / PREPROCESS["std"][0]  # type: ignore[operator, index]
    seen = np.array([captions(m, r) for m, r in zip(inside, regions, strict=True)], np.float32)
    valve = np.stack([1 - data.valve[chosen], data.valve[chosen]], axis=1)
    whole = np.concatenate([np.tile((1.0, 1.0, 0.0), (len(chosen), 1)), valve], axis=1)
    part = np.concatenate([seen, np.full_like(valve, np.nan)], axis=1)  # of a valve that may be hidden nothing is said
    return (np.ascontiguousarray(np.repeat(x[:, None], 3, axis=1), np.float32),
            np.concatenate([whole, part]).astype(np.float32))


def captions(inside: np.ndarray, black: np.ndarray) -> tuple[float, float, float]:
    """How true WALL, LEFT VENTRICLE and NOTHING are (0..1) of a frame with `black` pixels (bool [H, W]) in it.

    From the shares of the ventricle that are seen and of its wall that are not, by their square roots: a hundredth of
    the ventricle that shows, or of the wall that does not, moves them by a tenth. That tells good masks apart.
    """
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * WALL + 1, 2 * WALL + 1))
    wall = cv2.dilate(inside.astype(np.uint8), kernel).astype(bool) & ~inside
    seen, lost = (inside & ~black).sum() / inside.sum(), (wall & black).sum() / max(wall.sum(), 1)
    return 1 - math.sqrt(lost), math.sqrt(seen), 1 - math.sqrt(seen)


def region(inside: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """What is blacked out, bool [H, W]: the ventricle as it is, or moved, turned and scaled, or an ellipse anywhere;
    with and without a bite or a bump; its edge moved in and out, here more and there less."""
    black: Any = inside.astype(np.uint8)
    kind, reach = rng.random(), rng.choice([3.0, 12.0])
    if kind > 0.9:
        black = ellipse(rng, None)
    elif kind > 0.3:
        y, x = (float(v.mean()) for v in np.nonzero(inside))
        turn: Any = cv2.getRotationMatrix2D((x, y), rng.normal(0, 2 * reach), math.exp(rng.normal(0, 0.02 * reach)))
        turn[:, 2] += rng.normal(0, reach / 2, 2)
        black = cv2.warpAffine(black, turn, (SIZE, SIZE), flags=cv2.INTER_NEAREST)
    if rng.random() < 0.3:
        rows, columns = np.nonzero(inside)
        i = rng.integers(len(rows))
        blob = ellipse(rng, (int(columns[i]), int(rows[i])))
        black = black & (1 - blob) if rng.random() < 0.5 else black | blob
    if rng.random() < 0.2:
        return black > 0
    depth = cv2.distanceTransform(black, cv2.DIST_L2, 3) - cv2.distanceTransform(1 - black, cv2.DIST_L2, 3)
    edge = smooth_noise(rng, (SIZE, SIZE), float(rng.uniform(4, 15)))
    return depth + rng.normal(0, 2.5) + rng.uniform(0, 3) * edge > 0


def ellipse(rng: np.random.Generator, centre: tuple[int, int] | None) -> np.ndarray:
    """uint8 [SIZE, SIZE] of 0 and 1; a small one around `centre`, else one of any size anywhere."""
    most = 12 if centre else 40
    centre = centre or (int(rng.integers(SIZE)), int(rng.integers(SIZE)))
    axes = int(rng.integers(3, most)), int(rng.integers(3, most))
    return cv2.ellipse(np.zeros((SIZE, SIZE), np.uint8), centre, axes, float(rng.uniform(0, 180)), 0, 360, 1, -1)
