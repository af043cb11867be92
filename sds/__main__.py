"""``python -m sds`` is the command ``sds``."""

from sds.entry import main

main()
