"""Let the tests of this folder import `task_records`: with pytest's importlib mode a test folder is no import path."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "tasks"))
