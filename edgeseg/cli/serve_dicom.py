"""edgeseg serve dicom: a bundle as a DICOM node."""

from pathlib import Path
from typing import Annotated

import typer

from edgeseg.cli.options import BUNDLE, bundle_path

Opt = typer.Option


def dicom(
    bundle: Annotated[Path, Opt(parser=bundle_path, metavar="BUNDLE", help=BUNDLE)],
    ae: Annotated[str, Opt(help="AE title of this node")] = "EDGESEG",
    host: Annotated[str, Opt(help="address to listen on; any but loopback is open to the network")] = "127.0.0.1",
    port: Annotated[int, Opt(help="0: any free one", min=0, max=65535)] = 11112,
    send_to: Annotated[str | None, Opt(metavar="[AE@]HOST:PORT", help="receiver of the results; without one they "
                                                                      "stay in FOLDER/results")] = None,
    folder: Annotated[Path, Opt(help="where objects are kept until they are done, and what is wrong with others: it "
                                     "holds patient data")] = Path("edgeseg-dicom"),
    labelmap: Annotated[bool, Opt("--labelmap", help="write SEG of type LABELMAP (newer: smaller, and not every "
                                                     "receiver knows it) in place of BINARY")] = False,
    report: Annotated[bool, Opt("--report", help="also write a structured report of volumes and EF")] = False,
    quiet: Annotated[float, Opt(min=0.1, help="seconds without a new object after which a series is complete")] = 2.0,
    expect: Annotated[int, Opt(min=0, help="objects that make a series complete at once; 0: what they say")] = 0,
    allow_ae: Annotated[list[str], Opt(help="calling AE title to accept; repeat for several (default: all)")] = [],  # noqa: B006
    allow_address: Annotated[list[str], Opt(help="client address or network to accept; repeat for several "
                                                 "(default: all)")] = [],  # noqa: B006
    tls_cert: Annotated[Path | None, Opt(help="certificate (PEM): listen with TLS only")] = None,
    tls_key: Annotated[Path | None, Opt(help="its key, without a password, unless it is in the same file")] = None,
    tls_ca: Annotated[Path | None, Opt(help="authority (PEM): only clients with its certificate")] = None,
    send_tls: Annotated[bool, Opt("--send-tls", help="send with TLS, with the same files")] = False,
    precision: Annotated[str, Opt(help="auto, int8, bf16 or fp32")] = "auto",
    threads: Annotated[int | None, Opt(help="default: physical cores, at most the container's quota")] = None,
    backend: Annotated[str, Opt(help="openvino or onnxruntime")] = "openvino",
) -> None:
    """Serve DICOM: cine MR series and ultrasound loops in by C-STORE, their segmentations (SEG) out to --send-to.

    Success is answered when an object is on disk. A series is complete when its association is released or as many
    objects as it says have come, else after --quiet seconds. Serves until SIGTERM or Ctrl-C.
    """
    from edgeseg.errors import EdgesegError
    from edgeseg.runtime.segmenter import Segmenter
    from edgeseg.serve.common import logger, stop_on_signals, warn_if_open
    from edgeseg.serve.dicom_network import client_context, server_context
    from edgeseg.serve.dicom_node import Node, Settings
    from edgeseg.serve.dicom_send import Receiver

    if (tls_key or tls_ca) and not tls_cert and not send_tls:
        raise EdgesegError("--tls-key and --tls-ca: name the certificate too, with --tls-cert")
    if not 0 < len(ae.strip()) <= 16 or not ae.isascii():
        raise EdgesegError(f"--ae {ae}: an AE title has 1 to 16 characters of ASCII")
    receiver = Receiver.parse(send_to) if send_to else None
    listening = server_context(tls_cert, tls_key, tls_ca) if tls_cert else None
    sending = client_context(tls_cert, tls_key, tls_ca) if send_tls else None
    log = logger("dicom")
    with stop_on_signals() as stop:
        segmenter = Segmenter(bundle, backend, precision, threads)
        segmenter.warm_up()
        node = Node(segmenter, Settings(
            folder, ae, host, port, receiver, "LABELMAP" if labelmap else "BINARY", report, quiet, expect,
            tuple(allow_ae), tuple(allow_address), listening, sending), log)
        warn_if_open(host, log)
        node.start()
        typer.echo(f"listening {node.address[0]}:{node.address[1]}")
        stop.wait()
        node.close()
