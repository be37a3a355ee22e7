"""phantom:cine?domain=wide, the same hearts in randomised scenes: contrast, surroundings, shape and scanner vary far
more than in any one hospital, so that a network trained on them alone meets a real image as one more variation (the
idea of SynthSeg, Billot et al., Medical Image Analysis 86, 2023).

Signals are shares of that of blood in the left ventricle. In balanced SSFP the signal goes with T2 / T1, which at 1.5 T
gives muscle (50 / 1000 ms) a third of the signal of blood (250 / 1550 ms) and fat (60 to 80 / 300 ms) as much as blood
or more; slice profile, inflow and coils blur this, hence ranges well beyond. Volumes are those of heart.RANGES.

No real image or label is in it, but it was not made blindly. Statistics of ACDC's training patients set the shape of
the right ventricle (span as seen from the left one, how far it reaches down), how round the left one is, where the
last slices lie, contrasts, and the mean signal across the contours (grey for some mm beyond the muscle, no line). What
a network trained on it got wrong on ACDC's dev patients set the pericardium, papillary muscles, trabeculae, apex and
wall thickness: a Dice on those patients flatters it. ACDC's val patients were not looked at.
"""

from dataclasses import replace

import numpy as np

from edgeseg.phantoms.body import Body, sample_body
from edgeseg.phantoms.chambers import Tissue, sample_tissue
from edgeseg.phantoms.cine import SIZES, Patient, group_of
from edgeseg.phantoms.deform import Deformation
from edgeseg.phantoms.heart import Heart, bump, contours, outline, sample_heart, volumes
from edgeseg.phantoms.scanner import Scan, sample_scan
from edgeseg.phantoms.texture import stream

WIDE = 77
"""Last part of the key of the random stream of a patient of this domain."""


def wide_patient(index: int, seed: int = 0) -> Patient:
    """Draw patient `index` (>= 0) of `seed` in the wide domain."""
    rng = stream(seed, index, WIDE)
    group = group_of(index)
    axial = bool(rng.random() < 0.25)
    heart = wide_heart(rng, group, np.deg2rad(rng.normal(*((-150, 20) if axial else (155, 14)))))
    ink = float(rng.choice([-1.0, 1.0], p=[0.45, 0.55]))
    body = wide_body(rng, heart, axial, ink)
    tissue = wide_tissue(rng, heart, ink)
    shape = SIZES[int(rng.integers(len(SIZES)))]
    spacing = float(rng.uniform(1.3, 1.7) if rng.random() < 0.7 else rng.uniform(0.85, 2.0))
    spacing = round(float(np.clip(spacing, 240 / min(shape), 430 / max(shape))), 4)
    apart = float(rng.choice([5.0, 6.5, 8.0, 10.0], p=[0.05, 0.1, 0.25, 0.6]))
    first, end = float(rng.uniform(-0.2, 0.8)) * apart, heart.depth - float(rng.uniform(0.05, 1.0)) * apart
    count = int(np.clip(round((end - first) / apart) + 1, 5, 13))
    loose = rng.normal(0, 0.6 * np.exp(rng.normal(0, 0.5)), (count, 2))
    loose += rng.normal(0, 4, (count, 2)) * (rng.random((count, 1)) < 0.1)
    scan = wide_scan(rng, body.reach + 20)
    bent = Deformation(float(rng.normal(0, 0.045)), float(rng.uniform(0, np.pi)),
                       ((float(rng.uniform(0.2, 1.5)), 70.0), (float(rng.uniform(0, 0.25)), 22.0)))
    return Patient(
        index=index, seed=seed, group=group, shape=shape, spacing=spacing, slice_spacing=apart,
        thickness=apart * float(rng.uniform(0.6, 1.1)), levels=first + apart * np.arange(count), shifts=loose,
        place=(float(rng.normal(-4, 16)), float(rng.normal(-3, 16))), turn=float(rng.normal(0, 0.3)), heart=heart,
        tissue=tissue, body=body, scan=scan, slice_gain=np.exp(rng.normal(0, scan.gamma, count)), bent=bent,
        domain="wide")


def wide_heart(rng: np.random.Generator, group: str, septum: float) -> Heart:
    """A heart with more varied walls, and a right ventricle between crescent and half-moon that reaches low."""
    heart = sample_heart(rng, group, septum)
    wall = heart.wall_shape + outline(rng, 0.11, first=1) - 1
    shortening = heart.shortening * float(rng.uniform(0.6, 1.0))  # the base moves less, the cavity narrows more
    squeeze = 1 - (1 - heart.squeeze) * ((1 - heart.shortening) / (1 - shortening)) ** 0.5
    heart = replace(
        heart, wall=heart.wall * float(rng.uniform(0.8, 1.25)), apex_wall=heart.wall * float(rng.uniform(0.2, 0.6)),
        wall_shape=np.clip(wall, 0.45, None),
        shortening=shortening, squeeze=squeeze, outflow=heart.outflow * 0.6, rv_depth=25.0,
        rv_span=float(rng.uniform(28, 42)), rv_away=float(rng.uniform(0.85, 1.3)),
        rv_least=float(rng.uniform(0.05, 0.2)), rv_taper=float(rng.uniform(1.4, 3.5)),
        rv_narrow=float(rng.uniform(0.3, 0.6)), rv_flat=float(rng.uniform(0.75, 1.15)),
        rv_tilt=float(rng.normal(-0.1, 0.3)), rv_side=float(rng.normal(0, 0.2)), rv_top=float(rng.uniform(-12, 6)),
        rv_apex=float(rng.uniform(0.85, 1.08)),
        rv_shape=outline(rng, 0.07) - rng.uniform(0, 0.1) * bump(septum + rng.uniform(-0.5, 0.5), 0.35))
    wanted = volumes(sample_heart(rng, group, septum), 0.0, step=3.0)["RV"] * float(rng.uniform(0.9, 1.25))
    for _ in range(4):
        scale = (wanted / volumes(heart, 0.0, step=3.0)["RV"]) ** 0.5
        heart = replace(heart, rv_depth=float(np.clip(heart.rv_depth * scale, 12, 60)),
                        rv_span=float(np.clip(heart.rv_span * scale**0.5, 24, 45)))
    return heart


def wide_body(rng: np.random.Generator, heart: Heart, axial: bool, ink: float) -> Body:
    """A body of any contrast, near the heart or far from it."""
    at = contours(heart, np.array([0.15, 0.4]) * heart.depth, 0.0)
    reach = float(np.maximum(at.epi, at.free_wall).max()) * float(rng.uniform(0.8, 1.2))
    floor = float(at.epi.mean()) + float(rng.uniform(-4, 12))
    return replace(
        sample_body(rng, axial, reach, floor), fat=float(rng.uniform(0.5, 1.6)), fat_mm=float(rng.uniform(3, 40)),
        muscle=float(rng.uniform(0.18, 0.6)), lung=float(rng.uniform(0.03, 0.28)),
        liver=float(rng.uniform(0.15, 0.7)), spleen=float(rng.uniform(0.2, 0.9)),
        stomach=float(rng.choice([0.05, 0.4, 1.0]) * rng.uniform(0.6, 1.5)), marrow=float(rng.uniform(0.3, 1.0)),
        ink=ink, speckle=float(rng.uniform(0.1, 0.8)), clutter=float(rng.uniform(0.1, 0.8)) * (rng.random() < 0.4))


def wide_tissue(rng: np.random.Generator, heart: Heart, ink: float) -> Tissue:
    """Contrast and fine structure of one heart, from smooth to spongy."""
    tissue = sample_tissue(rng, heart, float(rng.uniform(0.2, 1.3)))
    papillary = tuple((angle, share * float(rng.uniform(0.95, 1.15)), mm * float(rng.uniform(0.9, 1.6)), first, last)
                      for angle, share, mm, first, last in tissue.papillary)
    return replace(
        tissue, muscle=float(np.clip(rng.normal(0.335, 0.085), 0.15, 0.62)),
        right_blood=float(np.clip(rng.normal(0.74, 0.14), 0.45, 1.1)), fat_mm=tissue.fat_mm * rng.uniform(0.0, 0.7),
        rv_wall=float(rng.uniform(0.8, 4)), rough_lv=float(rng.uniform(0.6, 6)), rough_rv=float(rng.uniform(1, 6.5)),
        strands=float(rng.uniform(0, 1.1)), swirl=float(rng.uniform(0.02, 0.3)),
        mottle=float(rng.uniform(0.03, 0.16)), ink=ink, atria=bool(rng.random() < 0.8), papillary=papillary,
        pericardium=float(rng.uniform(0.0, 4.5)), rim=float(rng.uniform(0.0, 1.2)) * (rng.random() < 0.2))


def wide_scan(rng: np.random.Generator, chest: float) -> Scan:
    """A scanner, from sharp to blurred and from even to shaded."""
    scan = sample_scan(rng, chest)
    return replace(
        scan, blur=float(rng.uniform(0.35, 1.1)), noise=float(np.clip(0.02 * np.exp(rng.normal(0, 0.6)), 0.004, 0.08)),
        coil=(scan.coil[0], float(rng.normal(0, 60)), float(rng.uniform(110, 340))),
        shading=float(rng.uniform(0.03, 0.25)), ghost=float(rng.uniform(0, 0.04)), gamma=float(rng.uniform(0.02, 0.2)),
        tone=float(np.clip(np.exp(rng.normal(0, 0.2)), 0.65, 1.4)))
