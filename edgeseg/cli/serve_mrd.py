"""edgeseg serve mrd: a bundle behind the ISMRMRD stream."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from edgeseg.cli.options import BUNDLE, bundle_path

Opt = typer.Option


class Output(StrEnum):
    masks = "masks"
    overlays = "overlays"


def mrd(
    bundle: Annotated[Path, Opt(metavar="BUNDLE", parser=bundle_path, help=BUNDLE)],
    host: Annotated[str, Opt(help="address to listen on")] = "127.0.0.1",
    port: Annotated[int, Opt(help="0: any free one", min=0, max=65535)] = 9002,
    backend: Annotated[str, Opt(help="openvino or onnxruntime")] = "openvino",
    precision: Annotated[str, Opt(help="auto, int8, bf16 or fp32")] = "auto",
    threads: Annotated[int | None, Opt(help="of each client's network (default: physical cores)")] = None,
    output: Annotated[Output, Opt(help="what is sent beside each original")] = Output.masks,
    image_deadline: Annotated[float, Opt(help="seconds for the mask of one image", min=0)] = 1.0,
    series_deadline: Annotated[float, Opt(help="seconds for all masks of a series together", min=0)] = 120.0,
    clients: Annotated[int, Opt(help="at one time", min=1)] = 8,
    queue_mb: Annotated[int, Opt(help="MB that wait for a client that is slow to read", min=1)] = 128,
    idle: Annotated[float, Opt(help="seconds of silence between messages that end a session", min=0.001)] = 600.0,
    stall: Annotated[float, Opt(help="the same within a message, or without reading", min=0.001)] = 30.0,
) -> None:
    """Serve a bundle to MRD clients (Siemens FIRE and OpenRecon, Gadgetron): images in, the same images and masks out.

    Originals always go back, unchanged. At the close of a cine series its volumes and ejection fraction follow as text
    and in the meta attributes of one more image.
    """
    from edgeseg.serve.common import Segmenters, listen, logger, stop_on_signals, warn_if_open
    from edgeseg.serve.mrd import MrdServer
    from edgeseg.serve.mrd_session import Settings
    from edgeseg.serve.mrd_wire import package

    package()
    log = logger("mrd")
    settings = Settings(output.value, image_deadline, series_deadline, idle, stall, queue_mb * 10**6)
    with stop_on_signals() as stop, listen(host, port) as listener:
        warn_if_open(host, log)
        segmenters = Segmenters(bundle, backend, precision, threads, clients)
        first = segmenters.first
        log(f"{first.bundle.path.name}: {first.backend} {first.precision}, {first.threads} thread(s), "
            f"at most {clients} clients")
        typer.echo(f"listening {host}:{listener.getsockname()[1]}")
        MrdServer(listener, segmenters, settings, log).run(stop)
    log("stopped")
