"""`python -m edgeseg` is the `edgeseg` command."""

from edgeseg.cli.main import main

main()
