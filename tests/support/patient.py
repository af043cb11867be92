"""Properties hold at any speed: a loaded machine makes no test fail.

A ``conftest.py`` imports this before the tests beside it are made: hypothesis would fail a test of
which one example takes 200 ms.
"""

from hypothesis import HealthCheck, settings

settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")
