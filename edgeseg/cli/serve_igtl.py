"""edgeseg serve igtl: a bundle behind OpenIGTLink."""

from pathlib import Path
from typing import Annotated

import typer

from edgeseg.cli.options import BUNDLE, bundle_path

Opt = typer.Option


def igtl(
    bundle: Annotated[Path, Opt(parser=bundle_path, metavar="BUNDLE", help=BUNDLE)],
    host: Annotated[str, Opt(help="address to listen on; any but loopback is open to the network")] = "127.0.0.1",
    port: Annotated[int, Opt(help="0: any free one", min=0, max=65535)] = 18944,
    precision: Annotated[str, Opt(help="auto, int8, bf16 or fp32")] = "auto",
    threads: Annotated[int | None, Opt(help="of each client's network (default: physical cores, at most the "
                                            "container's quota)")] = None,
    backend: Annotated[str, Opt(help="openvino or onnxruntime")] = "openvino",
) -> None:
    """Serve OpenIGTLink: IMAGE in, label IMAGE out with the same matrix and time stamp, its device name NAME_seg.

    An image that cannot be segmented is answered by a STATUS that says why. Serves until SIGTERM or Ctrl-C.
    """
    from edgeseg.serve.common import logger, stop_on_signals, warn_if_open
    from edgeseg.serve.igtl import Server

    log = logger("igtl")
    with stop_on_signals() as stop:
        server = Server(bundle, host, port, backend, precision, threads, log)
        warn_if_open(host, log)
        typer.echo(f"listening {server.address[0]}:{server.address[1]}")
        server.serve(stop)
