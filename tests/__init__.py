"""Tests. Two run side by side (`make test`): threads that wait must sleep then, not keep a core busy."""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # before torch loads OpenMP
