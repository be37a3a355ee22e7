"""The Python side of serve_cpp.py, a worker (edgeseg.measure.worker): "end_to_end" is `Segmenter.segment`, "network"
the frame graph that it runs, called with the same raw frames."""

from pathlib import Path
from typing import Any

from edgeseg.container import open_bundle
from edgeseg.errors import EdgesegError
from edgeseg.measure.worker import checked, load_frames, main, settings_of
from edgeseg.runtime.frame_graph import FrameGraphs
from edgeseg.runtime.segmenter import Segmenter


class FrameGraph:
    """The subject."""

    def __init__(self, job: dict[str, Any]) -> None:
        frames, spacings, _ = load_frames(Path(job["frames"]))
        bundle = open_bundle(job["path"])
        segmenter = Segmenter(bundle, job["backend"], job["precision"], job["threads"])
        graphs = FrameGraphs(bundle, job["backend"], job["precision"], job["threads"])
        protocol = graphs.find(frames[0].shape[-2:], frames[0].dtype, spacings[0])
        if protocol is None:
            raise EdgesegError(f"{bundle.path}: has no {job['precision']} frame graph: export it with --frame")
        graph, inputs = graphs.load(protocol), [f[None] for f in frames]
        self.count, self.shape, self.runtime = len(frames), graph.shape, settings_of(graph)
        self.calls = {"end_to_end": lambda i: checked(segmenter.segment(frames[i], spacings[i])),
                      "network": lambda i: graph(inputs[i])}


if __name__ == "__main__":
    main(FrameGraph)
