"""The peer's annotation and embedding as a worker, run by the Python of `benchmarks/.peer`.

One JSON request a line on stdin, one JSON answer a line on stdout. The worker waits on its pipe while the other side is
timed, so both are measured within the same minutes. A request names the model folder, a folder for copies, the number
of threads, the prompts, and what is asked: `annotate` (most new tokens, or none for the default) or `embed`
(batch, and a file for the vectors or none).
"""

import contextlib
import json
import os
import sys
import time
from pathlib import Path

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")


def annotate(wrapper, model, request):
    # as `cell2sentence.tasks.predict_cell_types_of_data` does it, less the reading of model and data set
    options = {} if request["max_tokens"] is None else {"max_num_tokens": request["max_tokens"]}
    return [wrapper.generate_from_prompt(model, prompt=prompt, **options) for prompt in request["prompts"]]


def embed(wrapper, model, request):
    # as `cell2sentence.tasks.embed_cells` does it, less the reading of a data set
    prompts, batch = request["prompts"], request["batch"]
    vectors = []
    for first in range(0, len(prompts), batch):
        vectors += wrapper.embed_cells_batched(model, prompt_list=prompts[first : first + batch])
    return vectors


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
            work = {"annotate": annotate, "embed": embed}[request["what"]]
            started, cpu_started = time.perf_counter(), time.process_time()
            found = work(wrapper, model, request)
            answer = {"wall_s": time.perf_counter() - started, "cpu_s": time.process_time() - cpu_started}
            if request["what"] == "annotate":
                answer["texts"] = found
            elif request["out"]:
                np.save(request["out"], np.stack(found))
            answers.write(json.dumps(answer) + "\n")
            answers.flush()


if __name__ == "__main__":
    main()
