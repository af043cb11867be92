"""Every block of commands of these pages is run by a test, or the page says that none runs it."""

from __future__ import annotations

import re

import pytest

from tests.support import need

DOCS = need.ROOT / "docs"
PAGES = [DOCS / "kubernetes.md", DOCS / "istio.md", DOCS / "workload-api.md"]
PAGES += sorted((DOCS / "how-to").glob("*.md"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_block_of_commands_says_what_runs_it(page: object) -> None:
    lines = need.ROOT.joinpath(str(page)).read_text().splitlines()
    for number, line in enumerate(lines):
        if not re.match(r" *```(sh|console)$", line):
            continue
        mark = re.fullmatch(r" *<!-- (not run|run) by (\S+|a test) -->", lines[number - 1])
        assert mark, f"{page}:{number + 1}: write before it which test runs these commands"
        if mark[1] == "run":
            assert (need.ROOT / mark[2]).is_file(), mark[2]
