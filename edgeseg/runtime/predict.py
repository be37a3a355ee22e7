"""Predict: NIfTI images in, label maps of the same geometry and name out."""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgeseg.case import Case
from edgeseg.errors import EdgesegError
from edgeseg.readers import nifti
from edgeseg.runtime.overlay import write_overlay
from edgeseg.runtime.segmenter import Segmentation, Segmenter
from edgeseg.runtime.throughput import Throughput


@dataclass(frozen=True)
class Predicted:
    """One case: the mask that was written, or why there is none. `frames` counts slices times time points."""

    case: str
    mask: Path | None
    frames: int
    seconds: float
    error: str = ""


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


def mask_paths(cases: dict[str, tuple[Path, ...]], out: Path) -> dict[str, Path]:
    """Where the mask of each case goes: OUT/case.nii.gz with the image's ending, or OUT itself for a single case.

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
        ending = next(e for e in nifti.ENDINGS if files[0].name.endswith(e))
        masks[case] = out if single else out / f"{case}{ending}"
    images = {f.resolve() for files in cases.values() for f in files}
    for mask in masks.values():
        if mask.resolve() in images:
            raise EdgesegError(f"{mask}: the mask would overwrite its image: choose another -o")
    return masks


def predict(segmenter: Segmenter, images: Sequence[Path], out: Path, overlay: bool = False,
            progress: Callable[[Predicted, int], None] | None = None) -> list[Predicted]:
    """Segment every case; one that fails is reported in its result and the others go on.

    Args:
        segmenter: a Throughput computes the time points of a 4D image in all its streams.
        overlay: also write case.png, the slices (of the first time point) with their labels in colour.
        progress: called after each case with its result and the number of cases.

    Raises:
        EdgesegError: before anything is written, see `find_images` and `mask_paths`.
    """
    cases = find_images(images)
    masks = mask_paths(cases, Path(out))
    results = []
    for case, files in cases.items():
        start = time.perf_counter()
        try:
            frames = predict_case(segmenter, case, files, masks[case], overlay)
            result = Predicted(case, masks[case], frames, time.perf_counter() - start)
        except (EdgesegError, OSError) as error:
            result = Predicted(case, None, 0, time.perf_counter() - start, describe(error, files[0]))
        results.append(result)
        if progress:
            progress(result, len(cases))
    return results


def predict_case(segmenter: Segmenter, case: str, files: tuple[Path, ...], mask: Path, overlay: bool) -> int:
    """Segment one image, of a 4D one each time point by itself, and write the mask; returns the number of frames."""
    times = nifti.time_points(files[0])
    first: Case | None = None

    def volumes() -> Iterator[tuple[np.ndarray, tuple[float, float]]]:
        nonlocal first
        for volume in nifti.read_times(files, id=case, patient=case):
            first = first or volume
            yield volume.frames, volume.spacing

    labels = []
    for found in segment_volumes(segmenter, volumes()):
        if not found.ok:
            raise EdgesegError(f"{files[0]}: {found.status}")
        labels.append(found.labels)
    assert first is not None  # an image has at least one time point
    provenance, stack = first.provenance, labels[0]
    if times > 1:  # write_labels reshapes [x, y, n] to `shape`, the last axis fastest: slices outside, times inside
        provenance = provenance | {"shape": (*provenance["shape"], times)}
        stack = np.stack(labels, axis=1).reshape(-1, *labels[0].shape[1:])
    nifti.write_labels(mask, stack, provenance)
    if overlay:
        picture = mask.with_name(f"{nifti.stem(mask)}.png")
        write_overlay(picture, first.frames[:, 0], segmenter.scheme.values, labels[0])
    return len(stack)


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
