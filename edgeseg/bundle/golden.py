"""Golden frames: phantom frames in their native grid with the labels that each model file gives for them."""

from pathlib import Path

import numpy as np

from edgeseg.errors import EdgesegError
from edgeseg.preprocess import Preprocessing
from edgeseg.runtime.backends import BACKENDS, PRECISIONS, load_backend, model_file
from edgeseg.runtime.golden import Golden, save_golden

COUNT = 8
PER_PATIENT = 2
SEED = 2094  # no phantom that anybody trains on by default


def phantom_frames(channels: int, count: int = COUNT) -> list[tuple[np.ndarray, tuple[float, float]]]:
    """`count` frames [C, H, W] with spacings, two a phantom patient, together from base to apex; no patient's image.

    Whole numbers, as scanners deliver them. A network of several channels gets the same frame in each.
    """
    from edgeseg.readers import open_data

    data = open_data(f"phantom:cine?n={count // PER_PATIENT}&seed={SEED}")
    first = {ref.patient: ref for ref in reversed(data.refs)}
    found = []
    for k, patient in enumerate(data.patients()):
        case = first[patient].load()
        for position in (k, k + count // 2):  # one frame from the upper half of the stack, one from the lower
            index = int((position + 0.5) * len(case.frames) / count)
            frame = np.clip(np.rint(case.frames[index, :1]), 0, 65535).astype(np.uint16)
            found.append((np.repeat(frame, channels, axis=0), case.spacing))
    return found


def frames_of(spec: str, channels: int, count: int = COUNT) -> list[tuple[np.ndarray, tuple[float, float]]]:
    """The middle frames [C, H, W] of `count` cases of a data set, with spacings: for a maker who may share them.

    Raises:
        EdgesegError: no such data, other channels.
    """
    from edgeseg.readers import open_data

    found = []
    for ref in open_data(spec).refs[:count]:
        case = ref.load()
        if case.frames.shape[1] != channels:
            raise EdgesegError(f"{case.source or case.id}: {case.frames.shape[1]} channels, the task has {channels}")
        found.append((case.frames[len(case.frames) // 2], case.spacing))
    return found


def write_golden(folder: Path, preprocessing: Preprocessing, spec: str = "") -> None:
    """Segment the frames with every model file in `folder` and write golden.npz there.

    Args:
        spec: data set whose frames are taken; "": phantom frames, no patient's image.
    """
    channels = len(preprocessing.channels)
    frames = frames_of(spec, channels) if spec else phantom_frames(channels)
    labels: list[dict[str, np.ndarray]] = [{} for _ in frames]
    for backend in BACKENDS:
        for precision in PRECISIONS:
            if not (path := folder / model_file(backend, precision)).is_file():
                continue
            network = load_backend(backend, path)
            for (frame, spacing), found in zip(frames, labels, strict=True):
                volume = frame[None].astype(np.float32)
                found[f"{backend} {precision}"] = preprocessing.segment(volume, spacing, network)[0]
    save_golden(folder / "golden.npz", [Golden(f, s, found) for (f, s), found in zip(frames, labels, strict=True)])
