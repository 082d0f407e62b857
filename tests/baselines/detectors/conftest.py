"""Lets the tests beside it import the helpers that they share with other folders."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))
