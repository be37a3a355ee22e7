"""From the files of DICOM series to SEG files, without a network: what `edgeseg predict` and the DICOM node share."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgeseg.runtime.dicom_seg import Maker, Sources, make_seg, save
from edgeseg.runtime.dicom_series import Moment, Series, segment_moment
from edgeseg.runtime.segmenter import Segmenter


@dataclass(frozen=True)
class Written:
    """The SEG files of a series, one a phase; how many frames were segmented; one line each on what is odd."""

    files: tuple[Path, ...]
    frames: int
    notes: tuple[str, ...]


def write_segs(segmenter: Segmenter, maker: Maker, series: Series, out: Path, sources: Sources | None = None,
               seen: Callable[[Moment, np.ndarray, Any], None] | None = None) -> Written:
    """OUT/NAME.dcm, of a stack with several phases OUT/NAME_phaseNN.dcm.

    Args:
        seen: called with each moment, its label values uint8 [N, H, W] and its SEG.

    Raises:
        EdgesegError: files that cannot be read, pixels that cannot be segmented, no highdicom; the files that were
            written before that are removed.
    """
    files: list[Path] = []
    frames, notes = 0, []

    def labelled(t: int) -> tuple[Moment, np.ndarray, list[str]]:
        moment = series.read(t)
        return moment, *segment_moment(segmenter, moment)

    ahead = ThreadPoolExecutor(1)  # the network works on the next moment while the SEG of this one is written
    try:
        coming = ahead.submit(labelled, 0)
        for t in range(series.moments):
            moment, labels, wrong = coming.result()
            if t + 1 < series.moments:
                coming = ahead.submit(labelled, t + 1)
            sources = sources or Sources(series.files)
            made = make_seg(maker, sources, moment.planes, labels, t, series.moments)
            files.append(save(made, out / f"{series.moment_name(t)}.dcm"))
            frames += len(labels)
            notes += [f"{series.moment_name(t)}: {line}" for line in wrong]
            if not moment.spacing_known:
                notes.append(f"{series.name}: says no pixel size: {moment.spacing[0]:g} x {moment.spacing[1]:g} mm "
                             "assumed")
            if seen:
                seen(moment, labels, made)
    except BaseException:
        for file in files:
            file.unlink(missing_ok=True)
        raise
    finally:
        ahead.shutdown()
    return Written(tuple(files), frames, tuple(notes))
