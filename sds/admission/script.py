"""Writes the wrapper as one script: its source, with the constants of a configuration.

Owns the text that ``sds admission wrapper`` prints, and the check that a file contains it.
Invariant: the start of the service finds a script that was made for another configuration, since
that script might not enforce.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from sds.admission import wrapper
from sds.errors import ConfigurationError
from sds.settings import yamlfile

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sds.admission.settings import AdmissionConfig


def script(config: AdmissionConfig, *, python: str) -> str:
    """Return the whole script.

    Args:
        config: the service's configuration, which gives the constants.
        python: the path of the interpreter on the node.
    """
    source = Path(wrapper.__file__).read_text(encoding="utf-8")
    call = (
        f"main(sys.argv[1:], runtime={config.runtime.oci!r}, service={str(config.socket)!r}, "
        f"enforce={config.enforce!r})"
    )
    return f"#!{python} -IS\n{source}\n\n{call}\n"


def script_findings(config: AdmissionConfig) -> Iterator[str]:
    """Return what is wrong with the file at ``config.wrapper``; its interpreter does not matter."""
    try:
        found = yamlfile.read(Path(config.wrapper)).decode(errors="replace")
    except ConfigurationError as error:
        yield f"wrapper: {error.message}"
        return
    if found.partition("\n")[2] != script(config, python="").partition("\n")[2]:
        yield (
            f"wrapper: {config.wrapper} was made for another configuration or version: write it "
            "again with `sds admission wrapper`"
        )
