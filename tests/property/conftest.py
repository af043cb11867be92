"""Properties hold at any speed."""

import tests.support.patient  # noqa: F401  loads the profile
