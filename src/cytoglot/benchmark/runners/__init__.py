"""Cell models that need a Python environment of their own: `settings`, `find`, `environment`, `run`, then `embedder`.

`models/` holds the runners, a folder each; what their scripts share is in `models/_preprocess/`. Scripts run in another
Python and import nothing of cytoglot.
"""

from cytoglot.benchmark.runners.embedder import RunnerEmbedder
from cytoglot.benchmark.runners.find import Runner, find_runner, runner_folders

__all__ = ["Runner", "RunnerEmbedder", "find_runner", "runner_folders"]
