"""phantom:ct, labelled axial abdominal CT in Hounsfield units, of patients who never were.

A patient is a pure function of (seed, index); only PCG64 streams are drawn from. Slices run from the feet to the head
and look as a DICOM axial image does: front of the body up, the patient's left side (the spleen) on the image's right.
256 x 256 pixels of 1.35 to 2 mm cover the whole body.

No real image or label is in it, but it was not made blindly: shapes, places, contrast and noise were drawn after two
patients of the Medical Segmentation Decathlon's spleen task, 21 slices each, and what a network trained on it got wrong
on them (a slim low lobe of the liver, a thick wall) set the ranges of both. A Dice on those two patients flatters it.

    ct_patient -> Patient --ct_volume--> HU and labels
"""

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from edgeseg.case import Case
from edgeseg.errors import EdgesegError
from edgeseg.labels import LabelScheme
from edgeseg.phantoms.ct_body import Body, sample_body, walls
from edgeseg.phantoms.ct_organs import ALL, Organs, Tissue, paint_organs, sample_organs, sample_tissue
from edgeseg.phantoms.ct_scan import Scan, Scanner, sample_scan
from edgeseg.phantoms.ct_scene import Scene, Texture, draw_texture
from edgeseg.phantoms.ct_spleen import Spleen, sample_spleen
from edgeseg.phantoms.deform import Bender, Deformation
from edgeseg.phantoms.texture import stream

if TYPE_CHECKING:
    from edgeseg.readers.dataset import Dataset

SCHEMES = {"spleen": LabelScheme(("background", "spleen")), "all": LabelScheme(ALL)}
"""By the option `labels`."""
SPLIT = ("train", "val", "dev", "train", "train", "train", "val", "train", "train", "train")
"""Set of patient i: SPLIT[i % 10], 70 / 10 / 20 %, as of phantom:cine."""
LICENCE = "Apache-2.0 (synthetic, no patient data)"
SHAPE = (256, 256)
CT, TEXTURE, NOISE, BEND = range(71, 75)
"""Part of the key of a random stream: what it is drawn for."""


@dataclass(frozen=True, eq=False)
class Patient:
    """Everything that is drawn for one patient; mm, rad.

    Attributes:
        index, seed: what it was drawn from. spacing: in-plane. thickness: of a slice.
        levels: of the slices, 0 at the spleen's middle, towards the head.
        place: of the body's centre from the image's. turn: of the body. bent: how the scene is deformed.
    """

    index: int
    seed: int
    spacing: float
    slice_spacing: float
    thickness: float
    levels: np.ndarray
    place: tuple[float, float]
    turn: float
    bent: Deformation
    body: Body
    spleen: Spleen
    organs: Organs
    tissue: Tissue
    scan: Scan

    @property
    def name(self) -> str:
        return f"ct{self.index:04d}"


def ct_patient(index: int, seed: int = 0) -> Patient:
    """Draw patient `index` (>= 0) of `seed`."""
    rng = stream(seed, index, CT)
    body = sample_body(rng)
    spleen = sample_spleen(rng, body)
    tissue = sample_tissue(rng)
    count, apart = int(rng.integers(16, 23)), float(rng.choice([2.5, 3.0, 4.0, 5.0], p=[0.1, 0.15, 0.25, 0.5]))
    # a slab like the real ones, from somewhere under the spleen, or higher up to where the lungs begin
    first = -spleen.height * float(rng.uniform(0.2, 1.15)) - float(rng.uniform(0, 40))
    first = max(first, -0.5 * spleen.height - apart * (count - 1))  # some of the spleen is always shown
    across = 2 * body.wide
    spacing = round(float(np.clip(across * rng.uniform(1.08, 1.6) / SHAPE[1], 1.35, 2.0)), 4)
    return Patient(
        index=index, seed=seed, spacing=spacing, slice_spacing=apart,
        thickness=apart * float(rng.uniform(0.6, 1.0)), levels=first + apart * np.arange(count),
        place=(float(rng.normal(0, 7)), float(rng.normal(-6, 9))), turn=float(rng.normal(0, 0.06)),
        bent=Deformation(float(rng.normal(0, 0.03)), float(rng.uniform(0, np.pi)),
                         ((float(rng.uniform(1, 4)), 75.0), (float(rng.uniform(0.3, 1.2)), 24.0)), keep=0.93),
        body=body, spleen=spleen, organs=sample_organs(rng, body, spleen), tissue=tissue, scan=sample_scan(rng))


def ct_volume(patient: Patient) -> tuple[np.ndarray, np.ndarray]:
    """HU float32 [N, 1, H, W] (whole numbers) and labels uint8 [N, H, W], class indices of ALL."""
    (rows, cols), pixel, key = SHAPE, patient.spacing, (patient.seed, patient.index)
    bend, scanner = Bender(patient.bent, SHAPE, pixel), Scanner(patient.scan, SHAPE, pixel)
    frames = np.zeros((len(patient.levels), 1, rows, cols), np.float32)
    labels = np.zeros((len(patient.levels), rows, cols), np.uint8)
    y = (np.arange(rows) + 0.5 - rows / 2)[:, None] * pixel - patient.place[1]
    x = (np.arange(cols) + 0.5 - cols / 2)[None, :] * pixel - patient.place[0]
    for k, level in enumerate(patient.levels):
        bent_x, bent_y = bend(x, y, (*key, k, BEND))
        cos, sin = np.cos(patient.turn), np.sin(patient.turn)
        at = (cos * bent_x + sin * bent_y).astype(np.float32), (cos * bent_y - sin * bent_x).astype(np.float32)
        texture = draw_texture(stream(*key, k, TEXTURE), SHAPE, pixel)
        # the mean over three levels is the slice's thickness
        scenes = [paint(patient, *at, level + s * patient.thickness / 3, texture) for s in (-1, 0, 1)]
        labels[k] = scenes[1].labels
        image = sum((s.image for s in scenes), np.zeros(SHAPE, np.float32)) / np.float32(3)
        frames[k, 0] = scanner(image, at, stream(*key, k, NOISE), patient.body.spine)
    return frames, labels


def paint(patient: Patient, x: np.ndarray, y: np.ndarray, level: float, texture: Texture) -> Scene:
    """The body at one level (mm), without a scanner's faults."""
    scene = Scene(x, y, patient.spacing, texture)
    at = walls(patient.body, x, y, level)
    paint_organs(scene, patient.body, at, patient.spleen, patient.organs, patient.tissue, level)
    return scene


def ct_dataset(options: dict[str, str], spec: str) -> "Dataset":
    """phantom:ct?n=60&seed=0: patients 0..n-1, one volume each; nothing is drawn before a case is read.

    `labels=all` labels every structure of ALL, `labels=spleen` (the default) the spleen alone.

    Raises:
        EdgesegError: an option that is not n, seed or labels, a number that is not whole (n >= 1, seed >= 0), or labels
            that are not there.
    """
    from edgeseg.readers.dataset import CaseRef, Dataset

    least = {"n": 1, "seed": 0}
    for key, value in options.items():
        if key == "labels":
            if value not in SCHEMES:
                raise EdgesegError(f"{spec}: phantom:ct has no labels={value}: take one of {', '.join(SCHEMES)}")
            continue
        if key not in least:
            raise EdgesegError(f"{spec}: phantom:ct has no option {key}: it takes n, seed and labels")
        if not (value.isascii() and value.isdigit()) or int(value) < least[key]:
            raise EdgesegError(f"{spec}: {key}={value} must be a whole number, at least {least[key]}")
    count, seed, labels = int(options.get("n", "60")), int(options.get("seed", "0")), options.get("labels", "spleen")
    refs = tuple(CaseRef(id=f"ct{i:04d}", patient=f"ct{i:04d}", split=SPLIT[i % 10], phase=None, group=None,
                         vendor=None, load=partial(ct_case, i, seed, labels)) for i in range(count))
    return Dataset("phantom-ct", spec, refs, SCHEMES[labels], LICENCE)


def ct_case(index: int, seed: int, labels: str) -> Case:
    """The volume of patient `index` as a labelled Case; its group is the contrast phase."""
    patient, scheme = ct_patient(index, seed), SCHEMES[labels]
    frames, found = ct_volume(patient)
    return Case(id=patient.name, patient=patient.name, frames=frames, spacing=(patient.spacing, patient.spacing),
                slice_spacing=patient.slice_spacing, labels=scheme.encode(found, SCHEMES["all"]), scheme=scheme,
                group=patient.tissue.phase, source=f"phantom:ct seed {seed} {patient.name}")
