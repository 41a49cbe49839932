"""What the engine reaches on a GPU, in one call under ten minutes; needs the repository and its packages, no data.

    python -m benchmarks.gpu [--json] [--device cuda] [--seconds 40]

Prints the measured bf16 matrix product rate, and beside it, as a share of that rate:

- fine-tuning of a 410M and a 160M model (Pythia's shapes, random weights, packed rows, every token learned) with the
  loss and optimizer of `cytoglot train`, not its Trainer: tokens/s x 6 N, N without the input vectors;
- embedding of cells of unlike length by a 160M and a 410M model: real tokens/s x 2 N, N without both vector tables;
- writing distinct genes under constraint beside writing the same number of tokens without one.

`--device cpu --tiny` runs the same code in seconds with models of no use, to see that it runs.
"""

from __future__ import annotations

import argparse
import json
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

from benchmarks.bench_constrain import byte_level, gene_like
from cytoglot.answer_format import DistinctWords, FreeText
from cytoglot.lm.embedding.embed import embed_texts
from cytoglot.lm.generation.generate import generate_answers
from cytoglot.lm.model.language_model import LanguageModel
from cytoglot.progress import set_progress
from cytoglot.training.loop.loss import loss_sum

logger = logging.getLogger("gpu")


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A GPT-NeoX by size."""

    name: str
    layers: int
    width: int
    heads: int
    vocabulary: int = 50_304


PYTHIA_160M = Shape(name="160M", layers=12, width=768, heads=12)
PYTHIA_410M = Shape(name="410M", layers=24, width=1024, heads=16)
TINY = Shape(name="tiny", layers=2, width=64, heads=2, vocabulary=4096)
TARGETS = {"train 410M": 0.40, "train 160M": 0.30, "embed 160M": 0.60, "embed 410M": 0.60, "constraint": 1.05}


def make_model(shape: Shape, device: torch.device, dtype: torch.dtype) -> GPTNeoXForCausalLM:
    torch.manual_seed(0)
    config = GPTNeoXConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.width,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        intermediate_size=4 * shape.width,
        max_position_embeddings=4096,
        attention_dropout=0.0,
        hidden_dropout=0.0,
    )
    return GPTNeoXForCausalLM(config).to(device=device, dtype=dtype)


def seconds_of(run: Callable[[], object], device: torch.device, *, at_least: float, warm: int = 3) -> float:
    """Return the median seconds of a call; the device is idle before and after each."""
    for _ in range(warm):
        run()
    times: list[float] = []
    started = time.perf_counter()
    while len(times) < 3 or time.perf_counter() - started < at_least:
        _wait(device)
        before = time.perf_counter()
        run()
        _wait(device)
        times.append(time.perf_counter() - before)
    return float(np.median(times))


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def matmul_rate(device: torch.device, *, size: int) -> float:
    """Return bf16 multiply-adds per second x 2, of a square product: what the other rates are shares of."""
    left, right = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    return 2 * size**3 / seconds_of(lambda: left @ right, device, at_least=2)


def measure_training(
    shape: Shape, device: torch.device, rate: float, *, rows: int, width: int, seconds: float
) -> dict[str, Any]:
    """Time whole optimizer steps: packed rows, bf16 autocast over float32 weights, fused AdamW, clipped gradients."""
    model = make_model(shape, device, torch.float32).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, weight_decay=0.01, fused=device.type == "cuda")
    batch = packed_batch(shape, device, rows=rows, width=width)

    def step() -> None:
        with torch.autocast(device.type, dtype=torch.bfloat16):
            loss = loss_sum(model, batch) / rows
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    took = seconds_of(step, device, at_least=seconds)
    n_parameters = sum(p.numel() for p in model.parameters()) - model.get_input_embeddings().weight.numel()
    tokens = rows * width / took
    peak = torch.cuda.max_memory_allocated(device) / 2**30 if device.type == "cuda" else None
    return _row(f"train {shape.name}", tokens, 6 * n_parameters, rate) | {"peak_gib": peak, "step_s": took}


def packed_batch(shape: Shape, device: torch.device, *, rows: int, width: int) -> dict[str, Tensor]:
    """Rows of examples of 400 to 900 tokens, every token learned: prompt and answer, as in pretraining."""
    draw = np.random.default_rng(0)
    positions = np.zeros((rows, width), dtype=np.int64)
    segments = np.zeros((rows, width), dtype=np.int64)
    for row in range(rows):
        start, segment = 0, 0
        while start < width:
            length = min(int(draw.integers(400, 900)), width - start)
            positions[row, start : start + length] = np.arange(length)
            segments[row, start : start + length] = segment
            start, segment = start + length, segment + 1
    ids = torch.from_numpy(draw.integers(shape.vocabulary, size=(rows, width)))
    arrays = {
        "input_ids": ids,
        "position_ids": torch.from_numpy(positions),
        "segment_ids": torch.from_numpy(segments),
        "weights": torch.from_numpy((positions > 0).astype(np.float32) / width),
    }
    return {name: array.to(device) for name, array in arrays.items()}


def measure_embedding(
    shape: Shape, device: torch.device, rate: float, *, n_texts: int, seconds: float
) -> dict[str, Any]:
    """Time whole calls of `embed_texts`, tokenizing included, on texts of 150 to 250 genes."""
    words = gene_like(2000)
    tokenizer = byte_level(words, min(14_000, shape.vocabulary))
    lm = LanguageModel(make_model(shape, device, torch.bfloat16).eval(), tokenizer, device)
    draw = np.random.default_rng(0)
    texts = [" ".join(draw.choice(words, size=draw.integers(150, 251), replace=False)) for _ in range(n_texts)]
    n_tokens = sum(len(ids) for ids in tokenizer(texts)["input_ids"])
    took = seconds_of(lambda: embed_texts(lm, texts), device, at_least=seconds, warm=1)
    vectors = lm.model.get_input_embeddings().weight.numel() + lm.model.get_output_embeddings().weight.numel()
    n_parameters = sum(p.numel() for p in lm.model.parameters()) - vectors
    return _row(f"embed {shape.name}", n_tokens / took, 2 * n_parameters, rate) | {"texts_per_s": n_texts / took}


def measure_constraint(shape: Shape, device: torch.device, *, n_genes: int, batch: int, words: int) -> dict[str, Any]:
    """Time writing `words` distinct words of `n_genes` genes, and as many tokens freely, per step of the batch."""
    names = gene_like(n_genes)
    tokenizer = byte_level(names, min(14_000, shape.vocabulary))
    lm = LanguageModel(make_model(shape, device, torch.bfloat16).eval(), tokenizer, device)
    prompts = [f"Genes of cell {i}:" for i in range(batch)]
    distinct = DistinctWords(words=names, min_words=words, max_words=words)

    def write(answer_format: DistinctWords | FreeText) -> tuple[float, int]:
        _wait(device)
        before = time.perf_counter()
        answers = generate_answers(lm, prompts, answer_format, seed=0, batch_size=batch)
        _wait(device)
        took = time.perf_counter() - before
        return took, max(len(ids) for ids in tokenizer([text for (text,) in answers])["input_ids"]) + 2

    write(DistinctWords(words=names, min_words=2, max_words=2))
    constrained, n_steps = write(distinct)
    # End of text is as likely as any token, so that a free answer of random weights goes on to its limit nearly always.
    free, n_free = write(FreeText(max_tokens=n_steps))
    ratio = (constrained / n_steps) / (free / n_free)
    return {
        "what": "constraint",
        "genes": n_genes,
        "batch": batch,
        "ms_per_step": 1e3 * constrained / n_steps,
        "ms_per_step_free": 1e3 * free / n_free,
        "ratio": ratio,
    }


def _row(what: str, tokens_per_s: float, flops_per_token: float, rate: float) -> dict[str, Any]:
    return {
        "what": what,
        "tokens_per_s": tokens_per_s,
        "tflops": tokens_per_s * flops_per_token / 1e12,
        "share_of_matmul": tokens_per_s * flops_per_token / rate,
    }


def measure(device: torch.device, *, tiny: bool, seconds: float) -> dict[str, Any]:
    """Measure everything on one device."""
    rate = matmul_rate(device, size=512 if tiny else 8192)
    rows: list[dict[str, Any]] = []
    trained = [(TINY, 2, 256)] if tiny else [(PYTHIA_410M, 16, 2048), (PYTHIA_160M, 32, 2048)]
    for shape, n_rows, width in trained:
        rows.append(measure_training(shape, device, rate, rows=n_rows, width=width, seconds=seconds))
        _clear(device)
    for shape in [TINY] if tiny else [PYTHIA_160M, PYTHIA_410M]:
        rows.append(measure_embedding(shape, device, rate, n_texts=20 if tiny else 1000, seconds=seconds))
        _clear(device)
    shape, n_genes = (TINY, 300) if tiny else (PYTHIA_160M, 36_000)
    rows.append(measure_constraint(shape, device, n_genes=n_genes, batch=4 if tiny else 64, words=20 if tiny else 150))
    for row in rows:
        target = TARGETS.get(row["what"])
        row["target"] = target
        row["met"] = None if target is None else _is_met(row, target)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
    return {"device": name, "matmul_tflops": rate / 1e12, "torch": torch.__version__, "results": rows}


def _is_met(row: dict[str, Any], target: float) -> bool:
    return bool(row["ratio"] <= target) if "ratio" in row else bool(row["share_of_matmul"] >= target)


def _clear(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--seconds", type=float, default=30.0, help="of each measurement, about")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    if options.device.startswith("cuda") and not torch.cuda.is_available():
        parser.exit(2, "no CUDA device here; --device cpu --tiny only shows that the code runs\n")
    set_progress(False)
    result = measure(torch.device(options.device), tiny=options.tiny, seconds=0.2 if options.tiny else options.seconds)
    if options.json:
        print(json.dumps(result, indent=2))
        return
    print(f"{result['device']}: bf16 matrix product {result['matmul_tflops']:.1f} TFLOP/s, torch {result['torch']}")
    for row in result["results"]:
        print(
            "  ".join(
                f"{key}={value:.4g}" if isinstance(value, float) else f"{key}={value}" for key, value in row.items()
            )
        )


if __name__ == "__main__":
    main()
