"""`python -m mtask` is the command `mtask`."""

from mtask.cli import main

main()
