"""edgeseg serve: a bundle behind what scanners, archives and consoles speak."""

import typer

from edgeseg.cli.serve_dicom import dicom
from edgeseg.cli.serve_igtl import igtl
from edgeseg.cli.serve_mrd import mrd

app = typer.Typer(no_args_is_help=True, help="Serve a bundle: MRD (FIRE, OpenRecon, Gadgetron), DICOM, OpenIGTLink.")
app.command()(mrd)
app.command()(dicom)
app.command()(igtl)
