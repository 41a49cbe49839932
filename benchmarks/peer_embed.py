"""The peer's embedding path as a worker, run by the Python of `benchmarks/.peer`; driven by `bench_embed`.

One JSON request a line on stdin (model folder, file of prompts, threads, batch), one JSON answer a line on stdout. The
worker waits on its pipe while the other side is timed, so both are measured within the same minutes.
"""

import contextlib
import json
import os
import sys
import time
from pathlib import Path

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")


def main() -> None:
    answers = sys.stdout
    with contextlib.redirect_stdout(sys.stderr):  # the peer prints as it goes
        import numpy as np
        import torch
        from cell2sentence.csmodel import CSModel
        from transformers import AutoModelForCausalLM

        loaded: dict[str, tuple[CSModel, object]] = {}
        for line in sys.stdin:
            request = json.loads(line)
            torch.set_num_threads(request["threads"])
            folder = request["folder"]
            if folder not in loaded:
                wrapper = CSModel(folder, save_dir=request["scratch"], save_name=Path(folder).name)
                loaded = {folder: (wrapper, AutoModelForCausalLM.from_pretrained(wrapper.save_path))}
            wrapper, model = loaded[folder]
            prompts = json.loads(Path(request["prompts"]).read_text())
            started, cpu_started = time.perf_counter(), time.process_time()
            vectors = []
            for first in range(0, len(prompts), request["batch"]):
                # as `cell2sentence.tasks.embed_cells` does it, less the reading of a data set
                vectors += wrapper.embed_cells_batched(model, prompt_list=prompts[first : first + request["batch"]])
            wall, cpu = time.perf_counter() - started, time.process_time() - cpu_started
            if request.get("out"):
                np.save(request["out"], np.stack(vectors))
            answers.write(json.dumps({"wall_s": wall, "cpu_s": cpu}) + "\n")
            answers.flush()


if __name__ == "__main__":
    main()
