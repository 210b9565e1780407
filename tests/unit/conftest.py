"""Properties run as many examples as a quick tier can afford, without deadlines for slow machines."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("unit", deadline=None, max_examples=100)
settings.load_profile("unit")
