"""Golden frames: phantom frames in their native grid with the labels that each model file gives for them.

Of a recurrent network they are consecutive frames of one clip, and the labels those of the whole clip.
"""

from pathlib import Path

import numpy as np

from edgeseg.errors import EdgesegError
from edgeseg.preprocess import Preprocessing
from edgeseg.runtime.backends import BACKENDS, PRECISIONS, load_backend, model_file
from edgeseg.runtime.golden import Golden, replayed, save_golden

COUNT = 8
PER_PATIENT = 2
CLIP = 16
"""Consecutive frames of a recurrent network: an error in the state that is carried on shows after a few."""
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


def phantom_clip(channels: int) -> list[tuple[np.ndarray, tuple[float, float]]]:
    """CLIP consecutive frames [C, H, W] of an echo phantom, with spacings."""
    return consecutive(f"phantom:echo?n=1&seed={SEED}", channels)


def consecutive(spec: str, channels: int) -> list[tuple[np.ndarray, tuple[float, float]]]:
    """The first CLIP frames of the first case of a data set."""
    from edgeseg.readers import open_data

    case = open_data(spec).refs[0].load()
    if case.frames.shape[1] not in (1, channels):
        raise EdgesegError(f"{case.source or case.id}: {case.frames.shape[1]} channels, the task has {channels}")
    return [(np.broadcast_to(f, (channels, *f.shape[1:])), case.spacing) for f in case.frames[:CLIP]]


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


def write_golden(folder: Path, preprocessing: Preprocessing, spec: str = "", recurrent: bool = False) -> None:
    """Segment the frames with every model file in `folder` and write golden.npz there.

    Args:
        spec: data set whose frames are taken; "": phantom frames, no patient's image. recurrent: the network's frames
            are those of a clip.
    """
    channels = len(preprocessing.channels)
    if recurrent:
        frames = consecutive(spec, channels) if spec else phantom_clip(channels)
    else:
        frames = frames_of(spec, channels) if spec else phantom_frames(channels)
    labels: list[dict[str, np.ndarray]] = [{} for _ in frames]
    for backend in BACKENDS:
        for precision in PRECISIONS:
            if not (path := folder / model_file(backend, precision)).is_file():
                continue
            network = load_backend(backend, path)
            for found, classes in zip(labels, replayed(frames, preprocessing, network, recurrent), strict=True):
                found[f"{backend} {precision}"] = classes
    save_golden(folder / "golden.npz", [Golden(f, s, found) for (f, s), found in zip(frames, labels, strict=True)])
