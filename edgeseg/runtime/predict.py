"""Predict: NIfTI images or DICOM series in, label maps of the same geometry out, as NIfTI (`predict`), or of DICOM as
DICOM segmentations (`predict_segs`, the same that the DICOM node writes)."""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np

from edgeseg.case import Case
from edgeseg.errors import EdgesegError, need
from edgeseg.readers import dicom, nifti, nifti_write
from edgeseg.runtime.overlay import write_overlay
from edgeseg.runtime.segmenter import Segmentation, Segmenter
from edgeseg.runtime.throughput import Throughput


@dataclass(frozen=True)
class Predicted:
    """One case: the mask that was written, or why there is none. `frames` counts slices times time points."""

    case: str
    mask: Path | None  # of several SEGs, one a phase, the first
    frames: int
    seconds: float
    error: str = ""


@dataclass(frozen=True)
class Images:
    """What becomes one mask: its files, and a way to read its time points one after the other (one for a volume)."""

    files: tuple[Path, ...]
    read: Callable[[], Iterator[Case]]


def find_images(images: Sequence[Path]) -> dict[str, tuple[Path, ...]]:
    """Case name -> its files, one a channel, from files and folders; nnU-Net's case_0000.nii.gz is channel 0 of case.

    Raises:
        EdgesegError: a path that is not there, a folder without NIfTI, a missing channel, one name twice.
    """
    paths: list[Path] = []
    for path in map(Path, images):
        if not path.exists():
            raise EdgesegError(f"{path}: no such file or folder: check -i")
        paths += nifti.find_files(path) if path.is_dir() else [path]
    return nifti.read_channels(list(dict.fromkeys(paths)))


def find_cases(images: Sequence[Path]) -> tuple[dict[str, Images], list[str]]:
    """Case name -> what is read for it, and notes on DICOM that was left out or is odd.

    A folder with NIfTI files directly in it is read for those, any other for the DICOM files in and below it.

    Raises:
        EdgesegError: as `find_images`; neither NIfTI nor DICOM; DICOM without pydicom.
    """
    of_dicom = [path for path in map(Path, images) if holds_dicom(path)]
    of_nifti = [path for path in map(Path, images) if path not in of_dicom]
    cases = {name: Images(files, partial(nifti.read_times, files, id=name, patient=name))
             for name, files in (find_images(of_nifti) if of_nifti else {}).items()}
    stacks, notes = dicom.find_stacks(of_dicom) if of_dicom else ([], [])
    return cases | {s.name: Images(s.files, s.read_times) for s in stacks}, notes


def holds_dicom(path: Path) -> bool:
    """Whether a path is to be read as DICOM; False when it is not there.

    Raises:
        EdgesegError: neither NIfTI by name (in a folder: of a file directly in it) nor DICOM by content.
    """
    inside = list(path.iterdir()) if path.is_dir() else [path]
    if not path.exists() or any(nifti.stem(file) is not None for file in inside):
        return False
    if any(dicom.is_dicom(f) for f in (path.rglob("*") if path.is_dir() else [path]) if f.is_file()):
        return True
    raise EdgesegError(f"{path}: holds no .nii or .nii.gz file, and no DICOM in any folder below it" if path.is_dir()
                       else f"{path}: is not a NIfTI file (.nii or .nii.gz) and not DICOM: convert it")


def mask_paths(cases: dict[str, tuple[Path, ...]], out: Path) -> dict[str, Path]:
    """Where the mask of each case goes: OUT/case with the image's ending (DICOM: .nii.gz), or OUT for a single case.

    Raises:
        EdgesegError: a mask would overwrite an image, or OUT is a file.
    """
    single = nifti.stem(out) is not None and not out.is_dir()
    if single and len(cases) > 1:
        raise EdgesegError(f"{out}: is one file but there are {len(cases)} cases: name a folder")
    if out.exists() and not out.is_dir() and not single:
        raise EdgesegError(f"{out}: is a file, not a folder: choose another -o")
    masks = {}
    for case, files in cases.items():
        ending = next((e for e in nifti.ENDINGS if files[0].name.endswith(e)), nifti.ENDINGS[0])
        masks[case] = out if single else out / f"{case}{ending}"
    images = {f.resolve() for files in cases.values() for f in files}
    for mask in masks.values():
        if mask.resolve() in images:
            raise EdgesegError(f"{mask}: the mask would overwrite its image: choose another -o")
    return masks


def predict(segmenter: Segmenter, images: Sequence[Path], out: Path, overlay: bool = False,
            progress: Callable[[Predicted, int], None] | None = None,
            note: Callable[[str], None] | None = None) -> list[Predicted]:
    """Segment every case; one that fails is reported in its result and the others go on.

    Args:
        segmenter: a Throughput computes the time points of a 4D image in all its streams.
        overlay: also write case.png, the slices (of the first time point) with their labels in colour.
        progress: called after each case with its result and the number of cases.
        note: called before the first case with each line on DICOM files that were left out or are odd.

    Raises:
        EdgesegError: before anything is written, see `find_cases` and `mask_paths`.
    """
    cases, notes = find_cases(images)
    masks = mask_paths({name: case.files for name, case in cases.items()}, Path(out))
    if note:
        for line in notes:
            note(line)
    results = []
    for case, found in cases.items():
        start = time.perf_counter()
        try:
            frames = predict_case(segmenter, found, masks[case], overlay)
            result = Predicted(case, masks[case], frames, time.perf_counter() - start)
        except (EdgesegError, OSError) as error:
            result = Predicted(case, None, 0, time.perf_counter() - start, describe(error, found.files[0]))
        results.append(result)
        if progress:
            progress(result, len(cases))
    return results


def predict_segs(segmenter: Segmenter, images: Sequence[Path], out: Path,
                 kind: Literal["BINARY", "LABELMAP"] = "BINARY",
                 progress: Callable[[Predicted, int], None] = lambda result, cases: None,
                 note: Callable[[str], None] = lambda line: None) -> list[Predicted]:
    """Segment every DICOM series and write OUT/SERIES.dcm, or OUT/SERIES_phaseNN.dcm; arguments as of `predict`.

    Raises:
        EdgesegError: before anything is written: a path that is not DICOM, OUT is a file, no pydicom or highdicom.
    """
    from edgeseg.runtime.dicom_results import write_segs
    from edgeseg.runtime.dicom_seg import Maker
    from edgeseg.runtime.dicom_series import find_series

    need("highdicom", "dicom")
    for path in map(Path, images):
        if not path.exists():
            raise EdgesegError(f"{path}: no such file or folder: check -i")
        if not holds_dicom(path):
            raise EdgesegError(f"{path}: holds NIfTI: a DICOM segmentation refers to DICOM images")
    if out.exists() and not out.is_dir():
        raise EdgesegError(f"{out}: is a file, not a folder: choose another -o")
    found, notes = find_series([Path(p) for p in images])
    results = []
    for line in notes:
        note(line)
    for series in found:
        start = time.perf_counter()
        try:
            written = write_segs(segmenter, Maker.of(segmenter, kind), series, Path(out))
            result = Predicted(series.name, written.files[0], written.frames, time.perf_counter() - start)
            for line in written.notes:
                note(line)
        except (EdgesegError, OSError) as error:
            result = Predicted(series.name, None, 0, time.perf_counter() - start, describe(error, series.files[0]))
        results.append(result)
        progress(result, len(found))
    return results


def predict_case(segmenter: Segmenter, images: Images, mask: Path, overlay: bool) -> int:
    """Segment one image, of a 4D one each time point by itself, and write the mask; returns the number of frames."""
    first: Case | None = None
    slots = []  # of each time point: where its slices lie in the mask

    def volumes() -> Iterator[tuple[np.ndarray, tuple[float, float]]]:
        nonlocal first
        for volume in images.read():
            first = first or volume
            slots.append(volume.provenance.get("slots"))
            yield volume.frames, volume.spacing

    labels = []
    for found in segment_volumes(segmenter, volumes()):
        if not found.ok:
            raise EdgesegError(f"{images.files[0]}: {found.status}")
        labels.append(found.labels)
    assert first is not None  # an image has at least one time point
    provenance, count = first.provenance, sum(map(len, labels))
    whole = [dicom.on_grid(x, s, provenance["shape"][2]) if s else x for x, s in zip(labels, slots, strict=True)]
    stack = whole[0]
    if len(whole) > 1:  # write_labels reshapes [x, y, n] to `shape`, the last axis fastest: in a slice all its times
        provenance = provenance | {"shape": (*provenance["shape"], len(whole))}
        stack = np.stack(whole, axis=1).reshape(-1, *whole[0].shape[1:])
    nifti_write.write_labels(mask, stack, provenance)
    if overlay:
        picture = mask.with_name(f"{nifti.stem(mask)}.png")
        write_overlay(picture, first.frames[:, 0], segmenter.scheme.values, labels[0])
    return count


def segment_volumes(segmenter: Segmenter,
                    volumes: Iterable[tuple[np.ndarray, tuple[float, float]]]) -> Iterator[Segmentation]:
    """Each volume when it is read, or with a Throughput several at a time."""
    if isinstance(segmenter, Throughput):
        return segmenter.segment_volumes(volumes)
    return (segmenter.segment_volume(frames, spacing) for frames, spacing in volumes)


def describe(error: Exception, image: Path) -> str:
    """One line that names a file."""
    if isinstance(error, OSError):
        return f"{error.filename or image}: {error.strerror or error}"
    return str(error)
