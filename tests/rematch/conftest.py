"""Lets the tests beside it import their helpers: importlib mode gives test folders no package of their own."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
