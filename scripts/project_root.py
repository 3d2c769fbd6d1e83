"""Imported first by every program here, so that it finds the project's packages wherever it is started from."""

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
sys.path.insert(0, str(ROOT))

program = getattr(sys.modules["__main__"], "__file__", None)
if program and Path(program).resolve().parent == HERE:  # and not a test that imports one
    from utils.cli import speak_while_loading

    speak_while_loading()
