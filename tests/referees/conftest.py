"""Collected only by `make test-referees`: the programs in here take minutes to build."""

import os

collect_ignore_glob = [] if os.environ.get("SDS_REFEREES") == "yes" else ["test_*.py"]
