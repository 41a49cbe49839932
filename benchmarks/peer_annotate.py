"""The peer's annotation loop as a worker, run by the Python of `benchmarks/.peer`; driven by `bench_score`.

One JSON request a line on stdin (model folder, prompts, threads, most new tokens or none for the peer's default), one
JSON answer a line on stdout. The worker waits on its pipe while the other side is timed.
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
            options = {} if request["max_tokens"] is None else {"max_num_tokens": request["max_tokens"]}
            started, cpu_started = time.perf_counter(), time.process_time()
            # as `cell2sentence.tasks.predict_cell_types_of_data` does it, less the reading of model and data set
            texts = [wrapper.generate_from_prompt(model, prompt=prompt, **options) for prompt in request["prompts"]]
            wall, cpu = time.perf_counter() - started, time.process_time() - cpu_started
            answers.write(json.dumps({"wall_s": wall, "cpu_s": cpu, "texts": texts}) + "\n")
            answers.flush()


if __name__ == "__main__":
    main()
