"""One of several processes that train a model together: ``accelerate launch --module baselines.post_training.trl_worker FOLDER``.

``trl_training.trained_in_processes`` starts it, and says what is in the folder.
"""

from __future__ import annotations

import sys
from pathlib import Path

from baselines.post_training.trl_training import work

if __name__ == "__main__":
    work(Path(sys.argv[1]))
