"""``python -m sds`` is the command ``sds``."""

from sds.cli import main

main(prog_name="sds")
