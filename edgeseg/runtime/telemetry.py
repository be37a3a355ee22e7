"""Nothing that edgeseg runs reports home: openvino and onnxruntime both do so by default, merely by being imported.

`import openvino` sends an event through the openvino-telemetry package (which NNCF and openvino bring along) and writes
a client id into ~/intel; onnxruntime's Linux wheels since 1.29 send model names and hashes and write a device id into
~/.cache/Microsoft. Call `telemetry_off` before the first import of either; nothing is written to undo it.
"""

import os
import sys


def telemetry_off() -> None:
    """Switch both off for this process and its children."""
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # read once, when the library starts
    # An entry of None makes the import fail as if the package were not installed, which openvino and NNCF provide for.
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
