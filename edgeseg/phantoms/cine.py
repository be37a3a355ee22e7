"""phantom:cine, labelled short-axis cine MR stacks of hearts whose volumes are known.

A patient is a pure function of (seed, index), a frame of (seed, index, phase): only PCG64 streams are drawn from, so
frame k of case n is the same on every machine (up to the rounding of a value by one in a few pixels).

    cine_patient -> Patient --cine_volume(phase)--> frames and labels;  true_volumes: ml from the contours themselves
"""

from dataclasses import dataclass
from functools import lru_cache, partial
from typing import TYPE_CHECKING

import numpy as np

from edgeseg.case import Case
from edgeseg.errors import EdgesegError
from edgeseg.labels import LabelScheme
from edgeseg.phantoms.body import Body, paint_body, sample_body
from edgeseg.phantoms.chambers import Grain, Polar, Tissue, grain_of, label_slice, paint_heart, sample_tissue
from edgeseg.phantoms.deform import Bender, Deformation
from edgeseg.phantoms.heart import GROUPS, Contours, Heart, contours, contraction, sample_heart, volumes
from edgeseg.phantoms.scanner import Scan, acquire, sample_scan, sensitivity
from edgeseg.phantoms.texture import Canvas, enlarge, smooth_noise, stream

if TYPE_CHECKING:
    from edgeseg.readers.dataset import Dataset

SCHEME = LabelScheme(("background", "RV", "MYO", "LV"))
SPLIT = ("train", "val", "dev", "train", "train", "train", "val", "train", "train", "train")
"""Set of patient i: SPLIT[i % 10], 70 / 10 / 20 %; the first three patients have one each."""
LICENCE = "Apache-2.0 (synthetic, no patient data)"
SIZES = ((256, 216), (256, 208), (256, 232), (216, 256), (208, 256), (224, 208), (256, 256), (240, 200), (288, 240))
"""Rows and columns of an image."""
HEART_REACH = 100.0
"""mm around the LV's centre within which the heart is painted."""
BODY, WARP, GRAIN, FIELD, FLOW, NOISE, BEND = range(1, 8)
"""Last part of the key of a random stream: what it is drawn for."""


@dataclass(frozen=True, eq=False)
class Patient:
    """Everything that is drawn for one patient; mm, rad.

    Attributes:
        index, seed: what it was drawn from. group: one of GROUPS. shape: rows, columns. spacing: in-plane, mm.
        levels: of the slices, mm from the base towards the apex. shifts: x, y of every slice (breath holds), mm.
        place: where the heart's middle is, mm from the image's centre. turn: of the whole scene.
        bent: how the whole scene is deformed. domain: "" or "wide" (edgeseg/phantoms/wide.py).
    """

    index: int
    seed: int
    group: str
    shape: tuple[int, int]
    spacing: float
    slice_spacing: float
    thickness: float
    levels: np.ndarray
    shifts: np.ndarray
    place: tuple[float, float]
    turn: float
    heart: Heart
    tissue: Tissue
    body: Body
    scan: Scan
    slice_gain: np.ndarray
    bent: Deformation | None = None
    domain: str = ""

    @property
    def name(self) -> str:
        return name_of(self.index, self.domain)


def name_of(index: int, domain: str) -> str:
    """Patients of another domain are other patients, whatever their number."""
    return f"{domain or 'phantom'}{index:04d}"


def group_of(index: int) -> str:
    """Groups go round so that every set of SPLIT gets every group."""
    return GROUPS[(index + index // 10) % len(GROUPS)]


def cine_patient(index: int, seed: int = 0) -> Patient:
    """Draw patient `index` (>= 0) of `seed`."""
    rng = stream(seed, index)
    group = group_of(index)
    axial = bool(rng.random() < 0.25)
    heart = sample_heart(rng, group, np.deg2rad(rng.normal(-158 if axial else 150, 9)))
    at = contours(heart, np.array([0.15, 0.4]) * heart.depth, 0.0)
    reach = float(np.maximum(at.epi, at.free_wall).max())
    body = sample_body(rng, axial, 0.92 * reach, float(at.epi.mean()))
    shape = SIZES[int(rng.integers(len(SIZES)))]
    spacing = float(rng.uniform(1.3, 1.65) if rng.random() < 0.7 else rng.uniform(0.85, 1.9))
    spacing = round(float(np.clip(spacing, 240 / min(shape), 430 / max(shape))), 4)
    slice_spacing = float(rng.choice([5.0, 6.5, 8.0, 10.0], p=[0.05, 0.1, 0.25, 0.6]))
    covered = heart.depth + max(heart.rv_top, 0)
    count = int(np.clip(round(covered / slice_spacing + rng.uniform(-0.5, 1.2)), 6, 12))
    slice_spacing = max(slice_spacing, float(np.ceil(2 * (covered - 10) / count) / 2))
    first = -max(heart.rv_top, 0) + rng.uniform(-0.35, 0.65) * slice_spacing
    loose = rng.normal(0, 0.5 * np.exp(rng.normal(0, 0.45)), (count, 2))
    loose += rng.normal(0, 3, (count, 2)) * (rng.random((count, 1)) < 0.08)  # now and then another breath hold
    return Patient(
        index=index, seed=seed, group=group, shape=shape, spacing=spacing, slice_spacing=slice_spacing,
        thickness=slice_spacing * float(rng.uniform(0.7, 1.0)), levels=first + slice_spacing * np.arange(count),
        shifts=loose, place=(float(rng.normal(-2, 12)), float(rng.normal(-4, 14))),
        turn=float(rng.normal(0, 0.16)), heart=heart, tissue=sample_tissue(rng, heart, body.fat), body=body,
        scan=(scan := sample_scan(rng, body.reach + 20)), slice_gain=np.exp(rng.normal(0, scan.gamma, count)))


@dataclass(frozen=True)
class Scene:
    """What of a slice does not beat: the body round the heart, and positions."""

    body: Canvas
    box: tuple[slice, slice]  # of the heart
    polar: Polar  # of the pixels in the box
    grain: Grain
    field: np.ndarray


def cine_scenes(patient: Patient) -> list[Scene]:
    """The still part of every slice, reusable for all phases."""
    heart, pixel, (rows, cols) = patient.heart, patient.spacing, patient.shape
    base = (patient.seed, patient.index)
    centres = heart.centre(patient.levels) + patient.shifts
    cos, sin = np.cos(patient.turn), np.sin(patient.turn)
    warp, scenes = np.zeros((2, 6, 6), np.float32), []
    bend = Bender(patient.bent, patient.shape, pixel) if patient.bent else None
    for k, level in enumerate(patient.levels):
        y = (np.arange(rows) + 0.5 - rows / 2)[:, None] * pixel - patient.place[1] - patient.shifts[k, 1]
        x = (np.arange(cols) + 0.5 - cols / 2)[None, :] * pixel - patient.place[0] - patient.shifts[k, 0]
        if bend:
            x, y = bend(x, y, (*base, k, BEND))
        x, y = (cos * x + sin * y).astype(np.float32), (cos * y - sin * x).astype(np.float32)
        warp = 0.85 * warp + 0.53 * stream(*base, k, WARP).standard_normal(warp.shape, np.float32)
        canvas = Canvas(x + 8 * enlarge(warp[0], patient.shape), y + 8 * enlarge(warp[1], patient.shape), pixel)
        paint_body(patient.body, canvas, float(level / heart.depth), (*base, k, BODY))
        x, y = x + patient.shifts[k, 0] - centres[k, 0], y + patient.shifts[k, 1] - centres[k, 1]
        near = np.hypot(x, y) < HEART_REACH
        box = span(near.any(axis=1)), span(near.any(axis=0))
        field = sensitivity(patient.scan, x, y, stream(*base, FIELD))
        grain = grain_of(patient.tissue, x[box].shape, pixel, (*base, k, GRAIN))
        scenes.append(Scene(canvas, box, Polar(x[box], y[box]), grain, field))
    return scenes


def span(used: np.ndarray) -> slice:
    """From the first to the last True."""
    at = np.flatnonzero(used)
    return slice(int(at[0]), int(at[-1]) + 1)


def cine_volume(patient: Patient, phase: float, scenes: list[Scene] | None = None) -> tuple[np.ndarray, np.ndarray]:
    """The stack at `phase` (0 end-diastole, patient.heart.es end-systole, up to 1).

    Returns:
        frames float32 [N, 1, H, W] (whole numbers >= 0) and labels uint8 [N, H, W] with the values of SCHEME.
        `scenes` saves time when many phases of one patient are made.
    """
    heart, count = patient.heart, len(patient.levels)
    scenes = scenes or cine_scenes(patient)
    exact = contours(heart, patient.levels, contraction(heart, phase))
    # The mean over three levels and moments is the slice's thickness and the frame's duration.
    blurred = [contours(heart, patient.levels + s * patient.thickness / 3, contraction(heart, phase + 0.015 * s))
               for s in (-1, 0, 1)]
    frames, labels = np.zeros((count, 1, *patient.shape), np.float32), np.zeros((count, *patient.shape), np.uint8)
    for k, scene in enumerate(scenes):
        rng = stream(patient.seed, patient.index, k, NOISE, round(1000 * (phase % 1.0)))
        labels[k][scene.box] = found = label_slice(scene.polar, exact, k)
        signal, blood = scene.body.image.copy(), np.zeros(patient.shape, np.float32)
        signal[scene.box] = heart_signal(patient, scene, blurred, k, flow_of(patient, scene, exact, k, rng))
        blood[scene.box] = found % 2
        frames[k, 0] = acquire(signal, scene.field, blood, patient.scan, rng, float(patient.slice_gain[k]))
    return frames, labels


def heart_signal(patient: Patient, scene: Scene, moments: list[Contours], k: int, flow: np.ndarray) -> np.ndarray:
    """Signed signal in the heart's box, the mean over `moments`."""
    total = np.zeros_like(scene.polar.r)
    for at in moments:
        canvas = Canvas(scene.polar.x, scene.polar.y, patient.spacing)
        canvas.image = scene.body.image[scene.box].copy()
        paint_heart(canvas, scene.polar, patient.heart, patient.tissue, at, k, scene.grain, flow)
        total += canvas.image
    return total / np.float32(len(moments))


def flow_of(patient: Patient, scene: Scene, at: Contours, k: int, rng: np.random.Generator) -> np.ndarray:
    """float32 [H, W] of the box: blood's signal, uneven by flow, with a dark jet at random."""
    flow = 1 + 0.6 * patient.tissue.swirl * smooth_noise(rng, scene.polar.r.shape, 14 / patient.spacing)
    if rng.random() < 0.5:
        x0, y0 = rng.normal(0, 0.6, 2) * max(8.0, float(at.endo[k].mean()))
        away = ((scene.polar.x - np.float32(x0)) ** 2 + (scene.polar.y - np.float32(y0)) ** 2) / rng.uniform(60, 250)
        flow -= np.float32(2.2 * patient.tissue.swirl) * np.exp(-away)
    return np.clip(flow, 0.15, 1.4).astype(np.float32)


def cine_beat(index: int, seed: int = 0, phases: int = 30) -> tuple[np.ndarray, np.ndarray]:
    """A whole beat of patient `index`, from end-diastole: frames [T, N, 1, H, W], labels [T, N, H, W]."""
    patient = cine_patient(index, seed)
    scenes = cine_scenes(patient)
    stacks = [cine_volume(patient, t / phases, scenes) for t in range(phases)]
    return np.stack([f for f, _ in stacks]), np.stack([v for _, v in stacks])


def true_volumes(patient: Patient, phase: float) -> dict[str, float]:
    """ml of RV, MYO and LV at `phase`, from the contours: what no sampling into slices has touched."""
    return volumes(patient.heart, contraction(patient.heart, phase))


def cine_dataset(options: dict[str, str], spec: str) -> "Dataset":
    """phantom:cine?n=60&seed=0: patients 0..n-1, each with its ED and ES stack; nothing is drawn before a case is read.

    `domain=wide` draws them from the randomised domain (edgeseg/phantoms/wide.py).

    Raises:
        EdgesegError: an option that is not n, seed or domain, a number that is not whole (n >= 1, seed >= 0), or a
            domain that is not there.
    """
    from edgeseg.readers.dataset import CaseRef, Dataset

    domain, least = options.get("domain", ""), {"n": 1, "seed": 0}
    for key, value in options.items():
        if key == "domain":
            if domain != "wide":
                raise EdgesegError(f"{spec}: phantom:cine has no domain={domain}: leave it out or take domain=wide")
            continue
        if key not in least:
            raise EdgesegError(f"{spec}: phantom:cine has no option {key}: it takes n, seed and domain")
        if not (value.isascii() and value.isdigit()) or int(value) < least[key]:
            raise EdgesegError(f"{spec}: {key}={value} must be a whole number, at least {least[key]}")
    count, seed = int(options.get("n", "60")), int(options.get("seed", "0"))
    refs = []
    for index in range(count):
        name, group = name_of(index, domain), group_of(index)
        for phase in ("ED", "ES"):
            refs.append(CaseRef(id=f"{name}_{phase}", patient=name, split=SPLIT[index % 10], phase=phase, group=group,
                                vendor=None, load=partial(cine_case, index, seed, phase, domain)))
    return Dataset(f"phantom-{domain}" if domain else "phantom", spec, tuple(refs), SCHEME, LICENCE)


def cine_case(index: int, seed: int, phase: str, domain: str = "") -> Case:
    """The "ED" or "ES" stack of patient `index` as a labelled Case."""
    patient, scenes = drawn(index, seed, domain)
    frames, labels = cine_volume(patient, 0.0 if phase == "ED" else patient.heart.es, scenes)
    return Case(id=f"{patient.name}_{phase}", patient=patient.name, frames=frames,
                spacing=(patient.spacing, patient.spacing), slice_spacing=patient.slice_spacing, labels=labels,
                scheme=SCHEME, phase=phase, group=patient.group, source=f"phantom:cine seed {seed} {patient.name}")


@lru_cache(maxsize=1)
def drawn(index: int, seed: int, domain: str) -> tuple[Patient, list[Scene]]:
    """A patient and its still scenes, kept for the other phase, which is usually read next."""
    if domain:
        from edgeseg.phantoms.wide import wide_patient

        patient = wide_patient(index, seed)
    else:
        patient = cine_patient(index, seed)
    return patient, cine_scenes(patient)
