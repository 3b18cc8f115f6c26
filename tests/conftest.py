"""Settings of the whole suite. (Its place puts the repository's root on the path: `from tests.builders import …`.)"""

from __future__ import annotations

from hypothesis import HealthCheck, settings

# A shared core can pause for longer than any single example takes, so time per example says nothing here.
settings.register_profile("tilework", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("tilework")
