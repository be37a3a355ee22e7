"""One complete series after the other: from its folder in ready/ to its results."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from edgeseg.errors import EdgesegError
from edgeseg.runtime.dicom_report import make_report
from edgeseg.runtime.dicom_results import SegWriter, write_segs
from edgeseg.runtime.dicom_seg import Maker, Sources, save
from edgeseg.runtime.dicom_series import Series, find_series
from edgeseg.runtime.segmenter import Segmenter
from edgeseg.serve.dicom_spool import Spool


class Work:
    """Segments folders of complete series. One thread at a time.

    Args:
        report: also write a structured report of volumes and ejection fraction, where these mean something.
        say: takes log lines.
    """

    def __init__(self, segmenter: Segmenter, spool: Spool, maker: Maker, report: bool,
                 say: Callable[[str], None]) -> None:
        self.segmenter, self.spool, self.maker, self.report, self.say = segmenter, spool, maker, report, say
        self.writer = SegWriter()

    def do(self, folder: Path) -> Path | None:
        """The results of ready/NAME, as a folder in results/. What cannot be segmented goes to quarantine."""
        name, start = folder.name, time.perf_counter()
        out = self.spool.begin(name)
        objects = len(list(folder.glob("*.dcm")))
        frames = 0
        try:
            # a loop is a series by itself
            found, notes = find_series([folder], loops_too=objects == 1)
            for note in notes:
                self.say(f"series {name}: {note}")
            for series in found:
                try:
                    frames += self._segment(series, out, name)
                except EdgesegError as error:
                    self._set_aside(series, folder, str(error))
        except Exception as error:  # nothing that was received may be lost, whatever is wrong with it or with us
            why = str(error) if isinstance(error, EdgesegError) else f"failed: {type(error).__name__}"
            place = self.spool.set_aside(folder, without(why, folder))
            self.say(f"series {name}: quarantined as {place.name}: {without(why, folder)}")
        results = self.spool.finish(out, name)
        if results:
            self.say(f"series {name}: {objects} objects, {frames} frames, {len(list(results.iterdir()))} results in "
                     f"{time.perf_counter() - start:.2f} s")
        return results

    def _segment(self, series: Series, out: Path, name: str) -> int:
        segs: list[Any] = []
        measures = None
        if self.report:
            from edgeseg.serve.dicom_measure import Measures  # scipy: it costs a second of the start

            measures = Measures(self.segmenter.scheme, series)

        def seen(moment: Any, labels: Any, reference: Any) -> None:
            if measures:
                measures.add(moment, labels)
                segs.append(reference)

        written = write_segs(self.segmenter, self.maker, series, out, self.writer, seen)
        for note in written.notes:
            self.say(f"series {name}: {note}")
        if measures:
            if values := measures.values():
                save(make_report(self.maker, Sources(series.files[0]), values, segs), out / f"{series.name}_report.dcm")
            else:
                self.say(f"series {name}: no report: {measures.why}")
        return written.frames

    def _set_aside(self, series: Series, folder: Path, why: str) -> None:
        """Move the files of one series of a folder into a folder of quarantine/."""
        part = folder / series.name
        part.mkdir(exist_ok=True)
        for file in series.files:
            if file.exists():
                file.rename(part / file.name)
        place = self.spool.set_aside(part, without(why, folder))
        self.say(f"series {folder.name}: quarantined as {place.name}: {without(why, folder)}")


def without(text: str, folder: Path) -> str:
    """A message that names files of `folder` by their names alone."""
    return text.replace(f"{folder}/", "")
