"""phantom:echo, labelled apical four chamber clips of hearts whose volumes, beats and valves are known.

A clip is a pure function of (seed, index, domain, ranges of ef and hr): only PCG64 streams are drawn from, so it is the
same on every machine (up to the rounding of a value by one in a few pixels). The truth beside the masks
(`Case.provenance["echo"]`) comes from the course of volumes and valves, not from the masks: see echo_beat.py (events),
echo_heart.py (volumes), echo_scene.py (greys and mask), echo_image.py (the scanner) and echo_domain.py (ranges, and
what was matched to real clips).
"""

from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from edgeseg.case import Case
from edgeseg.errors import EdgesegError
from edgeseg.labels import LabelScheme
from edgeseg.phantoms.cine import LICENCE, SPLIT
from edgeseg.phantoms.echo_beat import Beats, events, moments, sample_beats
from edgeseg.phantoms.echo_domain import DOMAINS, Domain
from edgeseg.phantoms.echo_heart import Heart, poses, sample_heart
from edgeseg.phantoms.echo_image import Scan, Scanner, sample_scan
from edgeseg.phantoms.echo_scene import Look, paint, sample_look, warp_of
from edgeseg.phantoms.texture import stream

if TYPE_CHECKING:
    from edgeseg.readers.dataset import Dataset

SCHEME = LabelScheme(("background", "LV"))
FRAMES = (96, 192)
"""Least and most frames of a clip."""
LIMITS = {"ef": (5.0, 85.0), "hr": (30.0, 180.0)}
"""What a range of ejection fractions (percent) or heart rates (per minute) must lie in."""
NOISE, CUT = 1, 2
"""Last part of the key of a random stream: of the scanner's noise, of where an excerpt begins."""


@dataclass(frozen=True, eq=False)
class Patient:
    """Everything that is drawn for one clip of `count` frames at `fps`, the first one at `first` / fps seconds."""

    index: int
    seed: int
    domain: Domain
    fps: float
    count: int
    hr: float
    heart: Heart
    beats: Beats
    look: Look
    scan: Scan
    first: int = 0

    @property
    def name(self) -> str:
        return name_of(self.index, self.domain)

    @property
    def times(self) -> np.ndarray:
        """Of the frames, s."""
        return (self.first + np.arange(self.count)) / self.fps


def name_of(index: int, domain: Domain) -> str:
    """Patients of another domain are other patients, whatever their number."""
    return f"echo_{domain.name}{index:04d}"


def echo_patient(index: int, seed: int = 0, domain: Domain = DOMAINS["train"]) -> Patient:
    """Draw patient `index` (>= 0) of `seed`; a conditioned patient is drawn from `domain` with other ranges."""
    rng = stream(seed, index, domain.key)
    fps = float(np.rint(rng.uniform(*domain.fps))) if rng.random() < 0.5 else 50.0
    hr, ef = float(rng.uniform(*domain.hr)), float(rng.uniform(*domain.ef))
    count = int(np.clip(rng.uniform(2.2, 4) * 60 / hr * fps, *FRAMES))
    heart = sample_heart(rng, domain)
    beats = sample_beats(rng, count / fps, hr, float(rng.uniform(*domain.irregular)), heart.edv, ef / 100)
    return Patient(index, seed, domain, fps, count, hr, heart, beats, sample_look(rng, domain),
                   sample_scan(rng, domain))


def excerpt(patient: Patient, frames: int) -> Patient:
    """The same clip, of at most `frames` consecutive frames, begun anywhere."""
    if frames >= patient.count:
        return patient
    rng = stream(patient.seed, patient.index, patient.domain.key, CUT)
    return replace(patient, first=int(rng.integers(patient.count - frames + 1)), count=frames)


def echo_clip(patient: Patient) -> tuple[np.ndarray, np.ndarray]:
    """The whole clip: frames float32 [T, 1, 112, 112] (whole numbers 0..255), labels uint8 [T, 112, 112]."""
    course = poses(patient.heart, moments(patient.beats, patient.times), patient.times)
    scanner = Scanner(patient.scan, stream(patient.seed, patient.index, patient.domain.key, NOISE))
    frames, labels = [], []
    for pose in course:
        warp = warp_of(patient.heart, course[0], pose)
        grey, mask = paint(patient.heart, patient.look, pose, warp)
        frames.append(scanner(grey, warp))
        labels.append(mask & scanner.sector)
    return np.stack(frames)[:, None], np.stack(labels).astype(np.uint8)


def truth(patient: Patient) -> dict:
    """What is known of a clip beside its masks.

    `ef` percent, of every beat; `edv`, `esv` ml, means over the beats whose end-diastole and end-systole are in the
    clip (of an excerpt without one, over all); `ed`, `es` indices of the frames nearest to mitral and to aortic
    closure; per frame `volume` (ml) and `mitral` (0 closed .. 1 open); `pixel` mm.
    """
    beats, at = patient.beats, moments(patient.beats, patient.times)
    ed, es = ([t - patient.first for t in found if t >= patient.first]
              for found in events(beats, patient.fps, patient.first + patient.count))
    seen = (beats.start[:-1] >= patient.times[0]) & (beats.end_systole() <= patient.times[-1])
    edv = float(beats.edv[:-1][seen if seen.any() else slice(None)].mean())
    return {"ef": 100 * beats.ef, "edv": edv, "esv": edv * (1 - beats.ef), "ed": ed, "es": es, "fps": patient.fps,
            "hr": patient.hr, "view": "A4C", "pixel": patient.heart.pixel, "volume": at.volume.tolist(),
            "mitral": at.mitral.tolist()}


def echo_case(index: int, seed: int, domain: Domain, frames: int = FRAMES[1]) -> Case:
    """The clip of patient `index`, at most `frames` of it. As in EchoNet-Dynamic, the picture says nothing of its
    pixels' size."""
    patient = excerpt(echo_patient(index, seed, domain), frames)
    pictures, labels = echo_clip(patient)
    return Case(id=patient.name, patient=patient.name, frames=pictures, spacing=(1.0, 1.0), axis="time",
                frame_time=1 / patient.fps, labels=labels, scheme=SCHEME,
                source=f"phantom:echo seed {seed} {patient.name}",
                provenance={"spacing": "unknown", "echo": truth(patient)})


def echo_dataset(options: dict[str, str], spec: str) -> "Dataset":
    """phantom:echo?n=60&seed=0: patients 0..n-1, one clip each; nothing is drawn before a case is read.

    `domain=other` draws from the shifted domain; `ef=20-40` (percent) and `hr=90-120` (per minute) from these ranges;
    `frames=16` gives so many consecutive frames of each clip: neighbours look alike, other hearts do not.

    Raises:
        EdgesegError: an unknown option or domain, a number that is not whole (n >= 1, seed >= 0), a range that is none.
    """
    from edgeseg.readers.dataset import CaseRef, Dataset

    unknown = sorted(set(options) - {"n", "seed", "domain", "ef", "hr", "frames"})
    if unknown:
        raise EdgesegError(f"{spec}: phantom:echo has no option {unknown[0]}: it takes n, seed, domain, ef, hr and "
                           "frames")
    name = options.get("domain", "train")
    if name not in DOMAINS:
        raise EdgesegError(f"{spec}: phantom:echo has no domain={name}: take one of {', '.join(DOMAINS)}")
    domain = DOMAINS[name]
    ef, hr = (between(key, options[key], spec) if key in options else getattr(domain, key) for key in ("ef", "hr"))
    domain = replace(domain, ef=ef, hr=hr)
    count, seed, frames = (whole(key, options.get(key, str(standard)), least, spec)
                           for key, standard, least in (("n", 60, 1), ("seed", 0, 0), ("frames", FRAMES[1], 2)))
    refs = tuple(CaseRef(id=name_of(i, domain), patient=name_of(i, domain), split=SPLIT[i % 10], phase=None, group=None,
                         vendor=None, load=partial(echo_case, i, seed, domain, frames)) for i in range(count))
    return Dataset("phantom-echo" if name == "train" else f"phantom-echo-{name}", spec, refs, SCHEME, LICENCE)


def whole(key: str, text: str, least: int, spec: str) -> int:
    """A whole number, at least `least`."""
    if not (text.isascii() and text.isdigit()) or int(text) < least:
        raise EdgesegError(f"{spec}: {key}={text} must be a whole number, at least {least}")
    return int(text)


def between(key: str, text: str, spec: str) -> tuple[float, float]:
    """`20-40` -> (20, 40)."""
    low, high = LIMITS[key]
    parts = text.split("-")
    if len(parts) == 2 and all(p.isascii() and p.isdigit() for p in parts):
        first, last = float(parts[0]), float(parts[1])
        if low <= first <= last <= high:
            return first, last
    raise EdgesegError(f"{spec}: {key}={text} must be a range like {key}=20-40 within {low:g}-{high:g}")
