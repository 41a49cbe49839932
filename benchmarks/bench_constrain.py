"""What the mask of allowed words costs at each step of generation, beside the model's own step.

    python -m benchmarks.bench_constrain [--batch 32] [--threads 1] [--grammars] [--json]

For each vocabulary and spelling (one token a word: a tokenizer made from scratch; byte-level BPE of 4,000 and of 14,000
tokens), over whole answers of up to 200 words drawn from random logits:

- `mask_ms`: saying what is allowed and taking note of what was chosen (`allowed` + `advance`);
- `draw_ms`: choosing the next token with our own sampler, log-probability left out;
- `processor_ms`: the logits processor inside `transformers.generate`, and `beam_ms` the same where the rows of a step
  go on from rows drawn at random, beside `bare_ms`: one `masked_fill` of the same logits, the least a mask of the whole
  vocabulary can cost;
- `small_ms`, `neox_ms`: a decoding step of the "small" model from scratch, its context half of a cell, and of 12 layers
  of GPT-NeoX 768 wide (160M with Pythia's vocabulary) after a short prompt;
- `setup_s`: making the constraint, tokenizing the words included.

Medians of steps, in milliseconds of CPU time on one thread (so that other processes matter less), of wall time on more.
What numba compiles on first use is timed in processes of their own: `cold_s` once after installation, `warm_s` in
every later process (CPU seconds). `--grammars` adds the grammar libraries that are installed; they are no dependencies.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    DynamicCache,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from cytoglot.answer_format import DistinctWords
from cytoglot.lm.constraint.answer_constraint import AnswerConstraint
from cytoglot.lm.constraint.constrain import constrain
from cytoglot.lm.generation.sampling import Sampling, TokenSampler
from cytoglot.lm.model.scratch import scratch_model
from cytoglot.lm.model.tokenizer import build_tokenizer

PROMPT_TOKENS, WORDS_PER_CELL = 60, 200
SPELLINGS = {"one token": 0, "BPE 4k": 4_000, "BPE 14k": 14_000}
TARGET = {"words": 36_000, "spelling": "BPE 14k", "mask_ms": 1.0, "mask_to_neox": 0.03, "setup_s": 1.0}

COMPILE = """
import time
import torch
from benchmarks.bench_constrain import byte_level, gene_like
from cytoglot.answer_format import DistinctWords
from cytoglot.lm.constraint.constrain import constrain
from cytoglot.lm.generation.sampling import Sampling, TokenSampler
words = gene_like(50)
constraint = constrain(DistinctWords(words=words, min_words=2, max_words=5), byte_level(words, 300))
sampler = TokenSampler(Sampling(), ["a"], tokens_s=constraint.tokens_s)
scores = torch.zeros(1, 300)
start = time.process_time()
state = constraint.start(torch.tensor([50]))
state.allowed()
constraint.mask(scores, state)
state.advance(sampler.draw(scores, state)[0])
state.select(torch.tensor([0]))
print(time.process_time() - start)
"""


def gene_like(n_words: int, seed: int = 0) -> tuple[str, ...]:
    """Names in the shapes of human gene symbols: families with numbers, clones with a version, hyphens."""
    rng = np.random.default_rng(seed)
    names: dict[str, None] = {}
    while len(names) < n_words:
        stem = "".join(rng.choice(list("ABCDEFGHIKLMNPRSTUWZ"), size=rng.integers(2, 5)))
        shape = rng.integers(4)
        number = rng.integers(1, 99)
        names[
            (f"{stem}{number}", f"{stem}{number}A", f"{stem}-{number}", f"AC{rng.integers(10**6):06d}.{number % 9}")[
                shape
            ]
        ] = None
    return tuple(names)


def byte_level(words: tuple[str, ...], size: int) -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator([" ".join(words[i : i + 50]) for i in range(0, len(words), 50)], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|endoftext|>")


def tokenizer_of(words: tuple[str, ...], spelling: str) -> PreTrainedTokenizerFast:
    if spelling == "one token":
        return build_tokenizer(words, ["Genes of a cell of a given type, from highest to lowest."])
    return byte_level(words, SPELLINGS[spelling])


class Stopwatch:
    """Milliseconds of each call, by name."""

    def __init__(self) -> None:
        self.times: dict[str, list[float]] = {}
        self.clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter

    def __call__(self, name: str, call: Callable[..., Any], *arguments: Any) -> Any:
        """Return what a call returns, and keep its time."""
        start = self.clock()
        result = call(*arguments)
        self.times.setdefault(name, []).append(1e3 * (self.clock() - start))
        return result

    def median(self, name: str) -> float:
        """Return the median of the calls of a name."""
        return round(float(np.median(self.times[name])), 3)


def time_engine(constraint: AnswerConstraint, n_vocabulary: int, batch: int, watch: Stopwatch) -> None:
    """Write answers of random logits to their end."""
    state = constraint.start(torch.full((batch,), constraint.max_tokens()))
    sampler = TokenSampler(Sampling(), [str(row) for row in range(batch)], tokens_s=constraint.tokens_s)
    logits = 3 * torch.randn(batch, n_vocabulary)
    draw = partial(sampler.draw, with_log_probs=False)
    while not bool(state.is_finished_b.all()):
        watch("allowed", state.allowed)
        symbols, _ = watch("draw", draw, logits, state)
        watch("advance", state.advance, symbols)
        logits = logits.roll(1, dims=0)


def time_processor(constraint: AnswerConstraint, n_vocabulary: int, batch: int, watch: Stopwatch) -> None:
    """Write half an answer by the processor, as sampling does and as beam search does, and mask what it masks."""
    logits = 3 * torch.randn(batch, n_vocabulary)
    some = torch.rand(batch, n_vocabulary) < 0.5
    for name in ("processor", "beam"):
        processor = constraint.processor(prompt_length=PROMPT_TOKENS)
        ids = torch.zeros((batch, PROMPT_TOKENS), dtype=torch.int64)
        for _ in range(WORDS_PER_CELL):
            scores = watch(name, processor, ids, logits)
            watch("bare", logits.masked_fill, some, -torch.inf)
            following = torch.cat([ids, scores.argmax(dim=1)[:, None]], dim=1)
            ids = following[torch.randint(batch, (batch,))] if name == "beam" else following
            logits = logits.roll(1, dims=0)


def time_model(name: str, tokenizer: PreTrainedTokenizerBase, batch: int, watch: Stopwatch) -> None:
    n_context, n_steps = PROMPT_TOKENS + WORDS_PER_CELL // 2, 20
    if name == "neox":
        n_context, n_steps = 16, 3
        config = GPTNeoXConfig(
            vocab_size=len(tokenizer),
            hidden_size=768,
            num_hidden_layers=12,
            num_attention_heads=12,
            intermediate_size=3072,
        )
        model = GPTNeoXForCausalLM(config).eval()
    else:
        model = scratch_model(tokenizer, "small", seed=0)
    with torch.inference_mode():
        cache = DynamicCache(config=model.config)
        context = torch.randint(len(tokenizer), (batch, n_context))
        model(input_ids=context, past_key_values=cache, use_cache=True, logits_to_keep=1)
        token = torch.zeros((batch, 1), dtype=torch.int64)
        step = partial(model, input_ids=token, past_key_values=cache, use_cache=True)
        for _ in range(n_steps):
            watch(name, step)


def measure(spelling: str, n_words: int, *, batch: int, with_neox: bool) -> dict[str, object]:
    words, watch = gene_like(n_words), Stopwatch()
    tokenizer = tokenizer_of(words, spelling)
    n_genes = min(WORDS_PER_CELL, n_words)
    answer_format = DistinctWords(words=words, min_words=n_genes, max_words=n_genes)
    constraint = watch("setup", constrain, answer_format, tokenizer)
    time_engine(constraint, len(tokenizer), batch, watch)
    time_processor(constraint, len(tokenizer), batch, watch)
    time_model("small", tokenizer, batch, watch)
    mask_ms = round(watch.median("allowed") + watch.median("advance"), 3)
    row: dict[str, object] = {
        "words": n_words,
        "spelling": spelling,
        "vocabulary": len(tokenizer),
        "setup_s": round(watch.median("setup") / 1e3, 3),
        "mask_ms": mask_ms,
        **{f"{name}_ms": watch.median(name) for name in ("draw", "processor", "beam", "bare", "small")},
        "mask_to_small": round(mask_ms / watch.median("small"), 3),
    }
    if with_neox:
        time_model("neox", tokenizer, batch, watch)
        row |= {"neox_ms": watch.median("neox"), "mask_to_neox": round(mask_ms / watch.median("neox"), 4)}
    return row


def compile_seconds() -> dict[str, float]:
    """CPU seconds of the first step in a new process, with nothing compiled before and with numba's cache."""
    with tempfile.TemporaryDirectory() as cache:
        environment = os.environ | {"NUMBA_CACHE_DIR": cache}
        seconds = [
            float(
                subprocess.run([sys.executable, "-c", COMPILE], env=environment, capture_output=True, check=True).stdout
            )
            for _ in range(2)
        ]
    return {"cold_s": round(seconds[0], 2), "warm_s": round(seconds[1], 2)}


def check_target(rows: list[dict[str, object]]) -> dict[str, object] | None:
    of_target = [row for row in rows if (row["words"], row["spelling"]) == (TARGET["words"], TARGET["spelling"])]
    if not of_target or "neox_ms" not in of_target[0]:
        return None
    found = {name: of_target[0][name] for name in ("mask_ms", "mask_to_neox", "setup_s")}
    met = all(float(str(found[name])) <= float(str(TARGET[name])) for name in found)
    return {"asked": TARGET, "found": found, "met": met}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--words", type=int, nargs="+", default=[765, 960, 2000, 36_000])
    parser.add_argument("--spellings", nargs="+", choices=SPELLINGS, default=list(SPELLINGS))
    parser.add_argument("--grammars", action="store_true", help="time the grammar libraries that are installed")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    compiled = compile_seconds()
    constrain(DistinctWords(words=("A",), min_words=1, max_words=1), byte_level(("A",), 257)).start(torch.tensor([9]))
    largest = max(options.words)
    rows = [
        measure(spelling, n_words, batch=options.batch, with_neox=n_words == largest)
        for n_words in options.words
        for spelling in options.spellings
    ]
    report: dict[str, object] = {"batch": options.batch, "threads": options.threads, "results": rows, **compiled}
    report["target"] = check_target(rows)
    if options.grammars:
        from benchmarks.grammar_libraries import time_libraries

        words = gene_like(largest)
        report["grammars"] = time_libraries(words, tokenizer_of(words, "BPE 14k"), batch=options.batch)
    if options.json:
        print(json.dumps(report, indent=2))
        return
    for row in rows:
        print("  ".join(f"{name} {value}" for name, value in row.items()))
    print(f"first step in a new process: {compiled['cold_s']} s, compiling; {compiled['warm_s']} s with numba's cache")
    for line in (report["target"], *(report.get("grammars") or [])):
        if line:
            print(line)


if __name__ == "__main__":
    main()
