"""What all tests have in common."""

from __future__ import annotations

import os

# lm-eval's bootstrap forks this process, whose other threads (torch's, Ray's) may hold locks then:
# the children wait for ever. Without its pool it draws the same numbers.
os.environ.setdefault("DISABLE_MULTIPROC", "1")

# Tests run in several processes: one thread each, for all that imports torch after this, and for
# what they start.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
