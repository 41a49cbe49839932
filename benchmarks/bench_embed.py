"""Vectors of cells of varied length beside cell2sentence 1.2.0: same weights, same tokens, same prompts, on CPU.

    python -m benchmarks.bench_embed [--cells 64] [--rounds 3] [--threads 1 2] [--sweep] [--json]
    python -m benchmarks.bench_embed --memory 25000 100000

A GPT-NeoX of Pythia-14M's size with random weights and a byte-level BPE tokenizer in which a gene is about four tokens.
Both sides take turns in the same run; the peer in batches of 8 in the given order, its default, and `one by one`, where
it has no padding. `cytoglot bf16` computes in bfloat16; `cytoglot genes` is a model of the same
width whose tokenizer has a token for each gene. The output layer has the tokenizer's rows, and in a second table the
50,304 of Pythia. `--sweep` times ours alone at several batch sizes. `--memory` embeds synthetic files of these many
cells from file to file, each in a process of its own, and prints the most memory that it held.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoModelForCausalLM, GPTNeoXConfig, PreTrainedTokenizerBase

from benchmarks.bench_constrain import byte_level, gene_like
from benchmarks.peer import peer_python
from benchmarks.synthetic_atlas import N_GENES, write_atlas
from cytoglot.applications.embed_file import embed_file
from cytoglot.cell_model.load import CellModel
from cytoglot.cell_model.spec import CellModelSpec
from cytoglot.data.genes.vocabulary import GeneVocabulary
from cytoglot.lm.embedding.embed import MAX_PADDING, Precision, embed_texts
from cytoglot.lm.model.language_model import LanguageModel
from cytoglot.lm.model.tokenizer import build_tokenizer, encode_prompts
from cytoglot.lm.runtime.batches import DEFAULT_BATCH_TOKENS, length_batches
from cytoglot.sentence.cell_sentence import RankSettings

PYTHIA_ROWS = 50_304
PEER_BATCH = 8
"""the peer's default"""
SWEEP = (512, 1024, 2048, 4096, 8192, 16_384)


def main() -> None:
    arguments = _arguments()
    if arguments.memory or arguments.memory_worker:
        memory(arguments.memory) if arguments.memory else memory_worker(arguments.memory_worker)
        return
    genes = gene_like(2000)
    texts = cells(genes, arguments.cells)
    bpe = byte_level(genes, 1000)
    by_gene = build_tokenizer(genes, [texts[0]], n_subwords=512)
    result: dict[str, Any] = {"texts": describe(texts, bpe, by_gene)}
    with tempfile.TemporaryDirectory() as folder:
        for rows in (0, PYTHIA_ROWS):
            lm = neox(bpe, rows, seed=0)
            lm.save(Path(folder) / f"rows-{rows}")
            bench = Bench(
                folder=Path(folder), model=f"rows-{rows}", texts=texts, lm=lm, by_gene=neox(by_gene, rows, seed=1)
            )
            for threads in arguments.threads:
                name = f"{lm.n_vocabulary} output rows, {threads} threads"
                result[name] = bench.run(threads, arguments.rounds)
                _print(name, result[name])
            bench.stop()
            if rows == 0:
                result["correctness"] = bench.correctness()
                _print("correctness", result["correctness"])
                if arguments.sweep:
                    result["sweep"] = sweep(lm, texts, arguments.threads, arguments.rounds)
                    _print("sweep, tokens/s", result["sweep"])
    _print("texts", result["texts"])
    if arguments.json:
        sys.stdout.write(json.dumps(result, indent=2) + "\n")


def cells(genes: tuple[str, ...], n: int) -> list[str]:
    """Prompts whose sentences have 40 to 420 genes, 200 on average, as when every expressed gene is written."""
    rng = np.random.default_rng(0)
    n_genes = np.clip(rng.lognormal(np.log(180), 0.5, size=n), 40, 420).astype(int)
    sentences = [" ".join(rng.choice(genes, size=k, replace=False)) for k in n_genes]
    return [f"Genes of a cell, from highest to lowest: {sentence}. The cell type is:" for sentence in sentences]


def neox(tokenizer: PreTrainedTokenizerBase, rows: int, seed: int) -> LanguageModel:
    """Random weights in the shape of Pythia-14M."""
    torch.manual_seed(seed)
    config = GPTNeoXConfig(
        vocab_size=rows or -(-len(tokenizer) // 128) * 128,
        hidden_size=128,
        num_hidden_layers=6,
        num_attention_heads=4,
        intermediate_size=512,
        max_position_embeddings=4096,
        rotary_pct=0.25,
    )
    return LanguageModel(model=AutoModelForCausalLM.from_config(config).eval(), tokenizer=tokenizer)


@dataclass
class Bench:
    """Both sides with one model."""

    folder: Path
    model: str
    texts: list[str]
    lm: LanguageModel
    by_gene: LanguageModel

    def __post_init__(self) -> None:
        worker = Path(__file__).with_name("peer_worker.py")
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        self.worker = subprocess.Popen([str(peer_python()), str(worker)], text=True, **pipes)

    def run(self, threads: int, rounds: int) -> dict[str, dict[str, float]]:
        """Return seconds (medians over rounds) and how many times faster than the peer each of ours is."""
        torch.set_num_threads(threads)
        self.peer(threads)  # warm up
        timed(self.lm, self.texts)
        times: dict[str, list[dict[str, float]]] = {}
        for _ in range(rounds):
            times.setdefault("cell2sentence", []).append(self.peer(threads))
            times.setdefault("cell2sentence one by one", []).append(self.peer(threads, batch=1, out=None))
            times.setdefault("cytoglot", []).append(timed(self.lm, self.texts))
            times.setdefault("cytoglot bf16", []).append(timed(self.lm, self.texts, dtype="bfloat16"))
            times.setdefault("cytoglot genes", []).append(timed(self.by_gene, self.texts))
            times.setdefault("cytoglot genes bf16", []).append(timed(self.by_gene, self.texts, dtype="bfloat16"))
        table = {}
        for name, found in times.items():
            row = {unit: median(t[unit] for t in found) for unit in ("wall_s", "cpu_s")}
            for unit in ("wall", "cpu"):
                ratios = [a[f"{unit}_s"] / b[f"{unit}_s"] for a, b in zip(times["cell2sentence"], found, strict=True)]
                row[f"times_faster_{unit}"] = median(ratios)
            table[name] = row
        return table

    def peer(self, threads: int, *, batch: int = PEER_BATCH, out: str | None = "peer.npy") -> dict[str, float]:
        """Let the peer embed the texts; return its seconds."""
        assert self.worker.stdin is not None
        assert self.worker.stdout is not None
        request = {
            "folder": str(self.folder / self.model),
            "scratch": str(self.folder / f"scratch-{self.model}"),
            "what": "embed",
            "prompts": self.texts,
            "threads": threads,
            "batch": batch,
            "out": out and str(self.folder / out),
        }
        self.worker.stdin.write(json.dumps(request) + "\n")
        self.worker.stdin.flush()
        answer: dict[str, float] = json.loads(self.worker.stdout.readline())
        return answer

    def correctness(self) -> dict[str, float]:
        """Return how near each is to the mean of the hidden states of each text alone."""
        truth_nd = np.stack([self._alone(text) for text in self.texts])
        peer_n = cosine(np.load(self.folder / "peer.npy"), truth_nd)
        return {
            "cosine ours fp32, least": float(cosine(embed_texts(self.lm, self.texts), truth_nd).min()),
            "cosine ours bf16, least": float(
                cosine(embed_texts(self.lm, self.texts, dtype="bfloat16"), truth_nd).min()
            ),
            "cosine peer, mean": float(peer_n.mean()),
            "cosine peer, least": float(peer_n.min()),
        }

    def _alone(self, text: str) -> NDArray[np.float32]:
        ids = torch.from_numpy(encode_prompts(self.lm.tokenizer, [text])[0])[None]
        with torch.no_grad():
            hidden_td = self.lm.model(ids, output_hidden_states=True).hidden_states[-1][0]
        return hidden_td.mean(0).numpy()

    def stop(self) -> None:
        """End the peer's process."""
        assert self.worker.stdin is not None
        self.worker.stdin.close()
        self.worker.wait()


def timed(
    lm: LanguageModel, texts: list[str], *, dtype: Precision = "float32", batch_tokens: int | None = None
) -> dict[str, float]:
    started, cpu_started = time.perf_counter(), time.process_time()
    embed_texts(lm, texts, dtype=dtype, batch_tokens=batch_tokens)
    return {"wall_s": time.perf_counter() - started, "cpu_s": time.process_time() - cpu_started}


def sweep(lm: LanguageModel, texts: list[str], threads: list[int], rounds: int) -> dict[str, dict[str, float]]:
    """Return tokens per second of wall clock for each batch size, precision and number of threads."""
    n_tokens = sum(len(row) for row in encode_prompts(lm.tokenizer, texts))
    table: dict[str, dict[str, float]] = {}
    for n_threads in threads:
        torch.set_num_threads(n_threads)
        for dtype in ("float32", "bfloat16"):
            found: dict[int, list[float]] = {size: [] for size in SWEEP}
            for _ in range(rounds):
                for size in SWEEP:
                    found[size].append(n_tokens / timed(lm, texts, dtype=dtype, batch_tokens=size)["wall_s"])
            table[f"{dtype}, {n_threads} threads"] = {str(size): median(rates) for size, rates in found.items()}
    return table


def memory(numbers: list[int]) -> None:
    """Print the peak memory of embedding files of these many cells (the token vectors, so that reading is the work)."""
    with tempfile.TemporaryDirectory() as folder:
        for n in numbers:
            path = write_atlas(Path(folder) / f"{n}.h5ad", n)
            command = [sys.executable, "-m", "benchmarks.bench_embed", "--memory-worker", str(path)]
            found = subprocess.run(command, capture_output=True, check=True, text=True).stdout
            sys.stdout.write(f"{n} cells, file of {path.stat().st_size / 1e6:.0f} MB: {found}")
            sys.stdout.flush()
            path.unlink()


def memory_worker(path: Path) -> None:
    """Embed one file into a copy of it; print seconds and the most memory held, without and with the work."""
    genes = [f"GENE{i}" for i in range(N_GENES)]
    tokenizer = build_tokenizer(genes, ["Genes of a cell: The cell type is:"], n_subwords=400)
    torch.manual_seed(0)
    config = GPTNeoXConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=512,
        max_position_embeddings=512,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    model = CellModel(
        lm=LanguageModel(model=AutoModelForCausalLM.from_config(config).eval(), tokenizer=tokenizer),
        spec=CellModelSpec(vocabulary=GeneVocabulary(tuple(genes)), ranking=RankSettings(top_genes=100)),
    )
    model.embed(["warm"], layer=0)
    before, started = _peak_mb(), time.perf_counter()
    embed_file(path, path.with_suffix(".out.h5ad"), model, hidden_layer=0, pooling="sentence")
    sys.stdout.write(f"{time.perf_counter() - started:.0f} s, at most {_peak_mb():.0f} MB ({before:.0f} before)\n")


def _peak_mb() -> float:
    # not getrusage, whose peak a new process inherits from the one that started it
    status = Path("/proc/self/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) / 1024


def padding_share(lengths: np.ndarray, batches: list[np.ndarray]) -> float:
    """Return the share of padding among all tokens of the batches."""
    n_computed = sum(len(batch) * int(lengths[batch].max()) for batch in batches)
    return 1 - sum(int(lengths[batch].sum()) for batch in batches) / n_computed if n_computed else 0.0


def describe(
    texts: list[str], bpe: PreTrainedTokenizerBase, by_gene: PreTrainedTokenizerBase
) -> dict[str, float | str]:
    lengths = {name: _lengths(tokenizer, texts) for name, tokenizer in (("bpe", bpe), ("genes", by_gene))}
    in_order = [np.arange(i, min(i + PEER_BATCH, len(texts))) for i in range(0, len(texts), PEER_BATCH)]
    batches = length_batches(lengths["bpe"], max_tokens=DEFAULT_BATCH_TOKENS["cpu"], max_padding=MAX_PADDING)
    return {
        "cells": len(texts),
        "tokens a cell": f"{lengths['bpe'].mean():.0f} ({lengths['bpe'].min()} to {lengths['bpe'].max()})",
        "gene-level tokens a cell": f"{lengths['genes'].mean():.0f}",
        "padding ours": padding_share(lengths["bpe"], batches),
        "padding peer": padding_share(lengths["bpe"], in_order),
        "load": os.getloadavg()[0],
        "device": "cpu " + torch.backends.cpu.get_cpu_capability(),
    }


def _lengths(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> NDArray[np.int64]:
    return np.array([len(row) for row in encode_prompts(tokenizer, texts)])


def cosine(a_nd: NDArray[np.floating], b_nd: NDArray[np.floating]) -> NDArray[np.floating]:
    return (a_nd * b_nd).sum(1) / np.linalg.norm(a_nd, axis=1) / np.linalg.norm(b_nd, axis=1)


def _print(title: str, table: dict[str, Any]) -> None:
    sys.stderr.write(f"\n{title}\n")
    for name, value in table.items():
        items = value.items() if isinstance(value, dict) else [("", value)]
        shown = "  ".join(f"{k} {v:.6g}".strip() if isinstance(v, float) else f"{k} {v}".strip() for k, v in items)
        sys.stderr.write(f"  {name:26s} {shown}\n")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--sweep", action="store_true")
    parser.add_argument("--memory", type=int, nargs="+")
    parser.add_argument("--memory-worker", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


if __name__ == "__main__":
    main()
