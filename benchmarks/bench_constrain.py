"""What the mask of allowed words costs at each step of generation, beside the model's own step.

    python benchmarks/bench_constrain.py [--batch 32] [--json]

For each vocabulary: words of one token (a tokenizer made from scratch) and words of several (byte-level BPE), the
mask as our own engine uses it (`allowed` + `advance`) and as a logits processor inside `transformers.generate`
(`processor`), and one decoding step of the model, whose context is the prompt and half of the words. Medians over all
steps of `--repeats` cells of 200 words, each step timed alone.
"""

from __future__ import annotations

import argparse
import json
import os
import time

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import DynamicCache, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from cytoglot.answer_format import DistinctWords
from cytoglot.lm.answer_constraint import AnswerConstraint
from cytoglot.lm.constrain import constrain
from cytoglot.lm.scratch import scratch_model
from cytoglot.lm.tokenizer import build_tokenizer

PROMPT_TOKENS, WORDS_PER_CELL = 60, 200


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


def time_engine(constraint: AnswerConstraint, batch: int, repeats: int) -> float:
    """Median ms of saying what is allowed and taking note of what was chosen, over whole answers."""
    times: list[float] = []
    for repeat in range(repeats):
        generator = torch.Generator().manual_seed(repeat)
        state = constraint.start(torch.full((batch,), constraint.max_tokens()))
        while not bool(state.is_finished_b.all()):
            start = time.perf_counter()
            allowed = state.allowed()
            between = time.perf_counter()
            noise = torch.rand(allowed.shape, generator=generator).masked_fill_(~allowed, -1)
            symbols = noise.argmax(dim=1)
            after = time.perf_counter()
            state.advance(symbols)
            times.append(1e3 * (between - start + time.perf_counter() - after))
    return float(np.median(times))


def time_processor(constraint: AnswerConstraint, n_vocabulary: int, batch: int, repeats: int) -> tuple[float, float]:
    """Median ms of the logits processor, and of one `masked_fill` of the same logits, the least any mask can cost."""
    times, bare = [], []
    logits = torch.randn(batch, n_vocabulary)
    for _ in range(repeats):
        processor = constraint.processor(prompt_length=PROMPT_TOKENS)
        ids = torch.zeros((batch, PROMPT_TOKENS), dtype=torch.int64)
        for _ in range(WORDS_PER_CELL):
            start = time.perf_counter()
            scores = processor(ids, logits)
            times.append(1e3 * (time.perf_counter() - start))
            start = time.perf_counter()
            logits.masked_fill(logits > 0, -torch.inf)
            bare.append(1e3 * (time.perf_counter() - start))
            logits = logits.roll(1, dims=0)
            ids = torch.cat([ids, scores.argmax(dim=1)[:, None]], dim=1)
    return float(np.median(times)), float(np.median(bare))


def time_model(tokenizer: PreTrainedTokenizerBase, batch: int) -> float:
    """Median ms of one step of the "small" model from scratch, its context half of a cell."""
    model = scratch_model(tokenizer, "small", seed=0)
    with torch.inference_mode():
        cache = DynamicCache(config=model.config)
        context = torch.randint(len(tokenizer), (batch, PROMPT_TOKENS + WORDS_PER_CELL // 2))
        model(input_ids=context, past_key_values=cache, use_cache=True, logits_to_keep=1)
        token = torch.zeros((batch, 1), dtype=torch.int64)
        steps = []
        for _ in range(30):
            start = time.perf_counter()
            model(input_ids=token, past_key_values=cache, use_cache=True)
            steps.append(1e3 * (time.perf_counter() - start))
    return float(np.median(steps))


def measure(kind: str, n_words: int, *, batch: int, repeats: int) -> dict[str, object]:
    words = gene_like(n_words)
    texts = ["Genes of a cell of a given type, from highest to lowest."]
    tokenizer = build_tokenizer(words, texts) if kind == "one token" else byte_level(words, 4000)
    n_genes = min(WORDS_PER_CELL, n_words)
    answer_format = DistinctWords(words=words, min_words=n_genes, max_words=n_genes)
    start = time.perf_counter()
    constraint = constrain(answer_format, tokenizer)
    setup = time.perf_counter() - start
    mask_ms = time_engine(constraint, batch, repeats)
    processor_ms, bare_ms = time_processor(constraint, len(tokenizer), batch, repeats)
    model_ms = time_model(tokenizer, batch)
    return {
        "words": n_words,
        "word_spelling": kind,
        "vocabulary": len(tokenizer),
        "batch": batch,
        "setup_s": round(setup, 3),
        "mask_ms": round(mask_ms, 3),
        "processor_ms": round(processor_ms, 3),
        "bare_masked_fill_ms": round(bare_ms, 3),
        "model_step_ms": round(model_ms, 3),
        "mask_to_model": round(mask_ms / model_ms, 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--words", type=int, nargs="+", default=[765, 2000, 36_000])
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows = [
        measure(kind, n_words, batch=options.batch, repeats=options.repeats)
        for n_words in options.words
        for kind in ("one token", "several tokens")
    ]
    small = [float(str(row["mask_ms"])) for row in rows if int(str(row["words"])) <= 2000]
    target = {"limit_ms": 1.0, "worst_ms": max(small), "met": max(small) < 1.0} if small else None
    if options.json:
        print(json.dumps({"results": rows, "target": target}, indent=2))
        return
    print("  ".join(f"{name:>19}" for name in rows[0]))
    for row in rows:
        print("  ".join(f"{value!s:>19}" for value in row.values()))
    if target:
        print(f"mask at up to 2,000 words: worst {target['worst_ms']} ms per step, target under 1 ms: {target['met']}")


if __name__ == "__main__":
    main()
