"""Accuracy control: quantisers that harm most are taken out, one group after the other, until Dice is near FP32.

This is the greedy search of `nncf.quantize_with_accuracy_control`, put together here from the same classes because

- its metric gets OpenVINO's compiled network, which cannot be written to a file, and Dice is to be that of the file
  which would be shipped;
- with logits (OpenVINO only) it takes first the group whose removal leaves the LARGEST error (NNCF 3.4); here the one
  whose removal leaves the smallest, in both runtimes;
- it ranks once, and so may end with nothing in INT8 where two layers must go together; here it ranks anew after 1, 3,
  7, 15, ... groups (ranking costs far more than a step).
"""

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgeseg.errors import EdgesegError

if TYPE_CHECKING:
    from edgeseg.bundle.quantise import Inputs, Network, Score

MAX_DROP = 0.003
"""Absolute drop of the mean dev Dice at which the search stops: what an INT8 file may cost by this project's target,
well inside the admission limit, which is held by the end of an interval."""
MAX_SHARE = 0.5
"""Share of the convolutions that may go back to FP32: what needs more is no INT8 model."""
RANKING_FRAMES = 8
"""Calibration frames, evenly spread, on which the groups are ranked."""


def control_accuracy(network: "Network", out: Path, score: "Score", max_drop: float = MAX_DROP) -> dict[str, Any]:
    """Write the INT8 file and return its settings (see `quantise.quantise_rung`).

    Raises:
        EdgesegError: there is nothing to score with.
    """
    import nncf
    from nncf.quantization.algorithms.accuracy_control.algorithm import QuantizationAccuracyRestorer

    original = network.read()
    # the search puts FP32 weights back, so they must not be packed into INT8 yet
    model = network.quantised(backend_params={"compress_weights": False})
    chosen = np.unique(np.linspace(0, len(network.inputs) - 1, RANKING_FRAMES).astype(int))
    frames = nncf.Dataset([network.inputs[i] for i in chosen])
    with tempfile.TemporaryDirectory(prefix=".control-", dir=out.parent) as scratch:
        evaluator = make_evaluator(network, score, Path(scratch), original, [network.inputs[i] for i in chosen])
        before = evaluator.collect_metric_results(original, frames)
        if np.isnan(before.metric_value):
            raise EdgesegError("accuracy-control needs labelled dev cases: leave this rung out of the recipe")
        plain = now = evaluator.collect_metric_results(model, frames)
        left, groups = int(MAX_SHARE * len(network.convolutions(model))), 1
        while left > 0 and before.metric_value - now.metric_value > max_drop:
            groups = min(groups, left)
            search = QuantizationAccuracyRestorer(len(chosen), groups, max_drop, nncf.DropType.ABSOLUTE, 1)
            model = search.apply(original, before, model, now, frames, len(chosen), evaluator)
            now = evaluator.results_of(model)
            left, groups = left - groups, 2 * groups
        network.write(compressed(network, model), out)
    in_fp32 = tuple(name for name, int8 in network.convolutions(model).items() if not int8)
    dice = {"fp32": before.metric_value, "all in INT8": plain.metric_value, "reached": now.metric_value}
    return network.settings(ignored=in_fp32) | {"by": "NNCF's accuracy restorer, ranked anew after 1, 3, 7, ... groups",
                                                "max drop": max_drop, "dice": dice}


def make_evaluator(network: "Network", score: "Score", scratch: Path, original: Any,
                   frames: "list[Inputs]") -> Any:
    """NNCF's evaluator with our metrics: `score` of a whole model's file, and minus the squared error of the logits on
    `frames` for a model with one group of quantisers taken out."""
    from nncf.quantization.algorithms.accuracy_control.evaluator import Evaluator, MetricResults

    class FileEvaluator(Evaluator):
        def __init__(self) -> None:
            super().__init__(lambda model, items: (0.0, None))
            self._metric_mode = True  # larger is better
            self.validated: list[tuple[Any, MetricResults]] = []
            self.reference = self.logits(super().prepare_model(original), range(len(frames)))

        def logits(self, prepared: Any, indices: Any) -> list[np.ndarray]:
            return [next(iter(prepared.engine.infer(frames[i]).values())) for i in indices]

        def prepare_model(self, model: Any) -> Any:
            prepared = super().prepare_model(model)
            prepared.model = model
            return prepared

        def validate_prepared_model(self, prepared: Any, dataset: Any, indices: Any = None) -> Any:
            some = range(len(frames)) if indices is None else indices
            found = self.logits(prepared, some)
            errors = [-float(np.mean((a - self.reference[i]) ** 2)) for i, a in zip(some, found, strict=True)]
            if indices is not None:
                return float(np.mean(errors)), errors
            # a file of its own each: a runtime may still have the last one mapped
            file = scratch / f"{len(self.validated)}{'.xml' if network.openvino else '.onnx'}"
            dice = score(network.write(prepared.model, file))
            self.validated.append((prepared.model, MetricResults(dice, errors, 0.0, 0.0)))
            return dice, errors

        def results_of(self, model: Any) -> Any:
            return next(results for other, results in reversed(self.validated) if other is model)

    return FileEvaluator()


def compressed(network: "Network", model: Any) -> Any:
    """Weights packed into INT8, the last step of `nncf.quantize`."""
    if network.openvino:
        from nncf.openvino.quantization.quantize_model import compress_quantize_weights_transformation
    else:
        from nncf.onnx.quantization.quantize_model import compress_quantize_weights_transformation
    compress_quantize_weights_transformation(model)
    return model
