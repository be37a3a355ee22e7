"""Video: `video:` (a file, or a folder with all that lies below it) of unlabelled clips: AVI, MP4 and other video files
that FFmpeg decodes, and multi-frame DICOM (found by content)."""

import logging
from functools import partial
from pathlib import Path
from typing import Any

from edgeseg.case import Case
from edgeseg.errors import EdgesegError
from edgeseg.readers.clip import decode, frame_rate, spacing_of
from edgeseg.readers.dataset import CaseRef, Dataset
from edgeseg.readers.dicom_clip import decode_dicom, is_clip, pseudonym
from edgeseg.readers.dicom_image import is_dicom
from edgeseg.readers.echonet import tell
from edgeseg.readers.splits import split_of_patients

ENDINGS = (".avi", ".mp4", ".m4v", ".mov", ".mkv", ".mpg", ".mpeg", ".wmv", ".webm")


def open_video(root: Path, *, spec: str, split_file: Path | None = None) -> Dataset:
    """`video:PATH`: each clip is an unlabelled case, named by its path below PATH, its patient the clip itself or, of
    DICOM, a pseudonym. Files that are no clip are left out of a folder, and logged.

    Raises:
        EdgesegError: no clip at all, two clips of one name; pydicom is not installed and a file is DICOM.
    """
    files = [root] if root.is_file() else sorted(f for f in root.rglob("*") if f.is_file() and f.name[0] != ".")
    dicom = {f: is_dicom(f) for f in files}
    clips = {f: d for f, d in dicom.items() if (is_clip(f) or f == root if d else f.suffix.lower() in ENDINGS)}
    if not clips:
        raise EdgesegError(f"{root}: {'is' if root.is_file() else 'holds'} no video ({', '.join(ENDINGS)}) or "
                           "multi-frame DICOM file")
    for note in tell(f"{root}: files that are no clip, left out", [f.name for f in files if f not in clips]):
        logging.getLogger(__name__).warning(note)
    base = root.parent if root.is_file() else root
    names = {f: f.relative_to(base).with_suffix("").as_posix().replace("/", "_") for f in clips}
    patients = {f: pseudonym(f) if d else names[f] for f, d in clips.items()}
    split = split_of_patients(patients.values(), root, split_file)
    refs = [CaseRef(names[f], patients[f], split.get(patients[f]), None, None, None,
                    partial(read_case, f, names[f], patients[f], d)) for f, d in clips.items()]
    return Dataset("video", spec, tuple(refs), None, "unknown")


def read_case(path: Path, name: str, patient: str, dicom: bool) -> Case:
    """One clip.

    Raises:
        EdgesegError: the file cannot be decoded, or holds fewer than two frames.
    """
    clip = decode_dicom(path) if dicom else decode(path)
    rate, known, notes = frame_rate({"the file": clip.rate})
    provenance: dict[str, Any] = {"echo": {"fps": rate} if known else {}, "notes": (*clip.notes, *notes)}
    if clip.spacing is None:
        provenance["spacing"] = "unknown"
    return Case(id=name, patient=patient, frames=clip.frames[:, None], spacing=clip.spacing or spacing_of(clip.frames),
                axis="time", frame_time=1 / rate, vendor=clip.vendor, source=str(path), provenance=provenance)
