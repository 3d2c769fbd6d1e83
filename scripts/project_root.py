"""Imported first by every program here, so that it finds the project's packages wherever it is started from."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
