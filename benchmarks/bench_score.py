"""Annotation of cells by scoring 30 labels, beside the least it can cost and beside cell2sentence 1.2.0, on CPU.

    python -m benchmarks.bench_score [--cells 100] [--rounds 3] [--threads 2] [--no-peer] [--json]
    python -m benchmarks.bench_score --model FOLDER     # a trained model: accuracy on the data's own labels besides

A GPT-NeoX with random weights and a byte-level BPE tokenizer, about 780 tokens a cell in the words of one of the peer's
prompts; sentences of pbmc3k from `CYTOGLOT_DATA`, else of the pbmc68k cells that scanpy ships. All take turns in one
run; rates are of the best round, in cells a second of wall clock and of processor time.

- `plain`: one forward pass over each prompt and as many tokens as the label tree has nodes, without a mask, a cache
  or prompts' logits: the least that scoring can cost, tokenizing left out. `ours` is `score_answers`, all included.
- `genes`: `score_answers` with a model of equal width whose tokenizer has a token for each of up to 3,000 genes.
- `peer 16`: the peer's loop, one cell at a time, stopped after 16 new tokens; `peer`: with its defaults.
- `questions`: 200 questions of up to 90 tokens about one cell, each read from its start and after the shared prefix.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, GPTNeoXConfig, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from benchmarks.peer import peer_python
from cytoglot.data.datasets import known_datasets, load_dataset
from cytoglot.lm.model.language_model import LanguageModel, set_threads
from cytoglot.lm.model.load import load_model
from cytoglot.lm.model.tokenizer import build_tokenizer, encode_completions, encode_prompts
from cytoglot.lm.runtime import prefix_cache
from cytoglot.lm.runtime.batches import length_batches, pad_right
from cytoglot.lm.scoring import score
from cytoglot.lm.scoring.answer_tree import AnswerTree
from cytoglot.lm.scoring.score import score_answers, score_answers_naive

LABELS = (
    "B cell",
    "naive B cell",
    "memory B cell",
    "plasma cell",
    "CD4 T cell",
    "naive CD4 T cell",
    "memory CD4 T cell",
    "regulatory T cell",
    "CD8 T cell",
    "naive CD8 T cell",
    "cytotoxic CD8 T cell",
    "gamma-delta T cell",
    "mucosal-associated invariant T cell",
    "natural killer cell",
    "CD16+ natural killer cell",
    "CD14+ monocyte",
    "CD16+ monocyte",
    "macrophage",
    "dendritic cell",
    "plasmacytoid dendritic cell",
    "conventional dendritic cell",
    "megakaryocyte",
    "platelet",
    "erythrocyte",
    "neutrophil",
    "eosinophil",
    "basophil",
    "mast cell",
    "hematopoietic stem cell",
    "endothelial cell",
)
PROMPT = (
    "The following is a list of {n} gene names ordered by descending expression level in a human cell. Your task is to "
    "give the cell type which this cell belongs to based on its gene expression.\nCell sentence: {genes}.\nThe cell "
    "type corresponding to these genes is:"
)
TARGETS = {"ours / plain": 0.9, "ours / peer 16": 1.5, "ours / peer": 20.0, "genes / peer 16": 4.0, "tokens": 8.0}
N_PEER_CELLS, N_QUESTIONS, MAX_GENE_WORDS = 10, 200, 3000


def main() -> None:
    """Run all comparisons and print rates, ratios and targets."""
    arguments = _arguments()
    set_threads(arguments.threads)
    sentences, cell_types = read_cells(arguments.cells)
    genes = most_frequent(sentences, MAX_GENE_WORDS)
    labels = sorted(set(cell_types)) if arguments.model else LABELS
    if arguments.model:
        lm = load_model(arguments.model, device="cpu")
        config = lm.model.config
        arguments.width, arguments.layers = config.hidden_size, config.num_hidden_layers
    else:
        lm = neox(byte_level(sentences, arguments.vocabulary), arguments)
    n_genes = arguments.genes or genes_for_tokens(lm.tokenizer, sentences, 780)
    prompts = [as_prompt(words, n_genes) for words in sentences]
    known = set(genes)
    by_gene = neox(build_tokenizer(genes, [PROMPT, *LABELS], n_subwords=1024), arguments)
    gene_prompts = [as_prompt([word for word in words if word in known], n_genes) for words in sentences]
    answers = [f" {label}." for label in labels]
    result: dict[str, Any] = {"setting": describe(lm, prompts, answers, arguments), "load": os.getloadavg()}
    with tempfile.TemporaryDirectory() as folder:
        peer = None if arguments.no_peer else Peer(lm, Path(folder), arguments.threads)
        contest = {
            "plain": lambda: plain(lm, prompts, answers, arguments.batch_tokens),
            "ours": lambda: score_answers(lm, prompts, answers, batch_tokens=arguments.batch_tokens),
            "genes": lambda: score_answers(by_gene, gene_prompts, answers, batch_tokens=arguments.batch_tokens),
        }
        result |= rates(contest, len(prompts), peer, prompts, arguments.rounds)
    result["agreement"] = agreement(lm, prompts[:5], answers)
    if arguments.model:
        result["accuracy"] = accuracy(lm, prompts, answers, cell_types, result.pop("peer texts"))
    result.pop("peer texts", None)
    result["questions"] = questions(lm, prompts[0], genes, arguments.rounds)
    result["targets"] = TARGETS
    write(result, as_json=arguments.json)


def read_cells(n: int) -> tuple[list[list[str]], list[str]]:
    """Return the expressed genes of each cell, highest first, and its cell type."""
    name = next(name for name in ("pbmc3k_counts_labeled", "pbmc68k_reduced") if name in known_datasets())
    adata = load_dataset(name)
    matrix = adata if adata.raw is None else adata.raw
    values = matrix.X[:n]
    values = values.toarray() if hasattr(values, "toarray") else np.asarray(values)
    names = np.asarray(matrix.var_names)
    orders = [np.argsort(-row, kind="stable")[: np.count_nonzero(row)] for row in values]
    column = next((c for c in ("cell_type", "bulk_labels", "louvain") if c in adata.obs), adata.obs.columns[0])
    return [names[order].tolist() for order in orders], adata.obs[column].astype(str).tolist()[:n]


def most_frequent(sentences: Sequence[Sequence[str]], n: int) -> list[str]:
    """Return the genes found in most cells."""
    genes, counts = np.unique([word for words in sentences for word in words], return_counts=True)
    return genes[np.argsort(-counts, kind="stable")[:n]].tolist()


def byte_level(sentences: Sequence[Sequence[str]], n_tokens: int) -> PreTrainedTokenizerFast:
    """Return byte-level BPE as the published models have it, learned on sentences."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet, end = pre_tokenizers.ByteLevel.alphabet(), "<|endoftext|>"
    trainer = trainers.BpeTrainer(
        vocab_size=n_tokens, special_tokens=[end], initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator([PROMPT, *LABELS, *(" ".join(words) for words in sentences)], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token=end, eos_token=end, pad_token=end, clean_up_tokenization_spaces=False
    )


def neox(tokenizer: PreTrainedTokenizerBase, arguments: argparse.Namespace) -> LanguageModel:
    """Return random weights of the width and depth asked for."""
    torch.manual_seed(0)
    config = GPTNeoXConfig(
        vocab_size=len(tokenizer),
        hidden_size=arguments.width,
        num_hidden_layers=arguments.layers,
        num_attention_heads=arguments.width // 32,
        intermediate_size=4 * arguments.width,
        max_position_embeddings=2048,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    return LanguageModel(model=AutoModelForCausalLM.from_config(config).eval(), tokenizer=tokenizer)


def as_prompt(words: Sequence[str], n: int) -> str:
    """Return the prompt of a cell."""
    return PROMPT.format(n=n, genes=" ".join(words[:n]))


def genes_for_tokens(tokenizer: PreTrainedTokenizerBase, sentences: Sequence[Sequence[str]], n_tokens: int) -> int:
    """Return how many genes make prompts of `n_tokens` tokens on average."""
    some = sentences[:20]

    def distance(n: int) -> float:
        return abs(np.mean([len(ids) for ids in encode_prompts(tokenizer, [as_prompt(w, n) for w in some])]) - n_tokens)

    return min(range(100, 801, 10), key=distance)


def describe(
    lm: LanguageModel, prompts: Sequence[str], answers: Sequence[str], arguments: argparse.Namespace
) -> dict[str, float]:
    """Return the sizes of the problem."""
    return {
        "cells": len(prompts),
        "tokens a cell": float(np.mean([len(ids) for ids in encode_prompts(lm.tokenizer, prompts)])),
        "labels": len(answers),
        "nodes of their tree": AnswerTree.build(encode_completions(lm.tokenizer, answers, eos=True)).n_nodes,
        "vocabulary": lm.n_vocabulary,
        "threads": torch.get_num_threads(),
        "million weights": lm.model.num_parameters() / 1e6,
        "rounds": arguments.rounds,
    }


def plain(lm: LanguageModel, prompts: Sequence[str], answers: Sequence[str], batch_tokens: int | None) -> None:
    """Read each prompt and as many tokens as the tree has besides, with logits for the tree only."""
    rows = encode_prompts(lm.tokenizer, prompts)
    n_nodes = AnswerTree.build(encode_completions(lm.tokenizer, answers, eos=True)).n_nodes
    after = np.zeros(n_nodes - 1, dtype=np.int64)
    lengths = np.array([len(row) for row in rows])
    with lm.inference():
        for batch in length_batches(lengths, max_tokens=score.checked_batch_tokens(lm, batch_tokens), extra=n_nodes):
            ids_bt = pad_right([np.append(rows[i], after) for i in batch], lm.pad_id, lm.device)
            lm.model(input_ids=ids_bt, use_cache=False, logits_to_keep=n_nodes)


class Peer:
    """cell2sentence's loop in a process of its own."""

    def __init__(self, lm: LanguageModel, folder: Path, threads: int) -> None:
        lm.save(folder / "model")
        self.request = {"folder": str(folder / "model"), "scratch": str(folder), "threads": threads}
        worker = Path(__file__).with_name("peer_worker.py")
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        self.worker = subprocess.Popen([str(peer_python()), str(worker)], text=True, **pipes)

    def annotate(self, prompts: Sequence[str], max_tokens: int | None) -> dict[str, Any]:
        """Return the seconds that the peer needs, and its answers."""
        assert self.worker.stdin is not None
        assert self.worker.stdout is not None
        self.worker.stdin.write(
            json.dumps({**self.request, "what": "annotate", "prompts": prompts, "max_tokens": max_tokens}) + "\n"
        )
        self.worker.stdin.flush()
        answer: dict[str, Any] = json.loads(self.worker.stdout.readline())
        return answer

    def stop(self) -> None:
        """End the process."""
        self.worker.communicate()


def rates(
    contest: dict[str, Callable[[], object]], n: int, peer: Peer | None, prompts: Sequence[str], rounds: int
) -> dict[str, Any]:
    """Return cells a second of the best round for each, and the ratios that have a target."""
    few = list(prompts[:N_PEER_CELLS])
    times: dict[str, list[tuple[float, float, int]]] = {}
    texts: list[str] = []
    for work in contest.values():
        work()  # warm up
    if peer is not None:
        peer.annotate(few[:1], 1)
    for number in range(rounds):
        for name, work in contest.items():
            times.setdefault(name, []).append((*timed(work), n))
        if peer is not None:
            found = peer.annotate(few, 16)
            texts = found["texts"]
            times.setdefault("peer 16", []).append((found["wall_s"], found["cpu_s"], len(few)))
            if number == 0:  # a minute or more
                found = peer.annotate(few, None)
                times["peer"] = [(found["wall_s"], found["cpu_s"], len(few))]
    if peer is not None:
        peer.stop()
    rate = {
        name: {
            "wall": max(cells / wall for wall, _cpu, cells in found),
            "cpu": max(cells / cpu for _wall, cpu, cells in found),
        }
        for name, found in times.items()
    }
    pairs = [target.split(" / ") for target in TARGETS if " / " in target]
    ratio = {
        f"{a} / {b}": {kind: rate[a][kind] / rate[b][kind] for kind in ("wall", "cpu")}
        | within_rounds(times[a], times[b])
        for a, b in pairs
        if a in rate and b in rate
    }
    return {"cells/s": rate, "ratios": ratio, "peer texts": texts}


def within_rounds(
    ours: Sequence[tuple[float, float, int]], others: Sequence[tuple[float, float, int]]
) -> dict[str, float]:
    """Return the median over rounds of how many times more cells ours does in a second of processor time."""
    pairs = zip(ours, others, strict=False)
    return {"cpu, median of rounds": float(np.median([a[2] / a[1] * b[1] / b[2] for a, b in pairs]))}


def timed(work: Callable[[], object]) -> tuple[float, float]:
    """Return wall and processor seconds."""
    started, cpu_started = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - started, time.process_time() - cpu_started


def agreement(lm: LanguageModel, prompts: Sequence[str], answers: Sequence[str]) -> dict[str, float]:
    """Return the largest difference from one full forward pass for each label, and how often the best is the same."""
    ours, naive = score_answers(lm, prompts, answers), score_answers_naive(lm, prompts, answers)
    same = (ours.argmax(axis=1) == naive.argmax(axis=1)).mean()
    return {"largest difference (nats)": float(np.abs(ours - naive).max()), "same best label": float(same)}


def accuracy(
    lm: LanguageModel, prompts: Sequence[str], answers: Sequence[str], cell_types: Sequence[str], texts: Sequence[str]
) -> dict[str, float]:
    """Return the share of right labels, ours for all cells and for those that the peer wrote answers for."""
    best = score_answers(lm, prompts, answers).argmax(axis=1)
    right = np.array([answers[k] == f" {label}." for k, label in zip(best, cell_types, strict=True)])
    found = {"ours": float(right.mean()), "ours, the peer's cells": float(right[:N_PEER_CELLS].mean())}
    if texts:
        pairs = zip(texts, cell_types, strict=False)
        found["peer 16"] = float(np.mean([text.split(".")[0].strip() == label for text, label in pairs]))
    return found


def questions(lm: LanguageModel, cell: str, genes: Sequence[str], rounds: int) -> dict[str, float]:
    """Return tokens and seconds of many questions about a cell, without and with the shared prefix."""
    rng = np.random.default_rng(0)
    budget = 85 // len(encode_completions(lm.tokenizer, [f" {genes[-1]}"])[0])
    asked = [" ".join(rng.choice(genes[:500], size=rng.integers(1, budget))) for _ in range(N_QUESTIONS)]
    tails = [ids[:90] for ids in encode_completions(lm.tokenizer, [f" Of {some}: is it so?" for some in asked])]
    prompts = [cell + lm.tokenizer.decode(ids) for ids in tails]
    answers, read = [" yes", " no"], [0]
    hook = lm.model.get_input_embeddings().register_forward_hook(
        lambda _module, _inputs, out: read.__setitem__(0, read[0] + out.shape[0] * out.shape[1])
    )
    shared_prefixes = prefix_cache.shared_prefixes
    found: dict[str, tuple[int, float, float, Any]] = {}
    try:
        for _ in range(rounds):
            for name, finder in {
                "apart": lambda rows: [prefix_cache.ungrouped(rows)],
                "shared": shared_prefixes,
            }.items():
                prefix_cache.shared_prefixes = finder
                read[0] = 0
                kept: list[Any] = []
                wall, cpu = timed(lambda kept=kept: kept.append(score_answers(lm, prompts, answers, terminator=False)))
                best = found.get(name, (0, np.inf, np.inf, None))
                found[name] = (read[0], min(wall, best[1]), min(cpu, best[2]), kept[0])
    finally:
        prefix_cache.shared_prefixes = shared_prefixes
        hook.remove()
    apart, shared = found["apart"], found["shared"]
    return {
        "tokens apart": apart[0],
        "tokens shared": shared[0],
        "tokens ratio": apart[0] / shared[0],
        "wall ratio": apart[1] / shared[1],
        "cpu ratio": apart[2] / shared[2],
        "largest difference (nats)": float(np.abs(apart[3] - shared[3]).max()),
    }


def write(result: dict[str, Any], *, as_json: bool) -> None:
    """Print the result."""
    if as_json:
        sys.stdout.write(json.dumps(result, indent=2) + "\n")
        return
    for part, values in result.items():
        sys.stdout.write(f"{part}\n")
        for name, value in values.items() if isinstance(values, dict) else [("", values)]:
            shown = (
                "  ".join(f"{kind} {number:.3g}" for kind, number in value.items())
                if isinstance(value, dict)
                else f"{value:.5g}"
                if isinstance(value, float)
                else f"{value}"
            )
            sys.stdout.write(f"  {name:28} {shown}\n")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--vocabulary", type=int, default=8000, help="tokens of the byte-level BPE tokenizer")
    parser.add_argument("--genes", type=int, help="words of a sentence; by default what makes about 780 tokens")
    parser.add_argument("--batch-tokens", type=int)
    parser.add_argument("--model", help="folder of a trained model, instead of random weights")
    parser.add_argument("--no-peer", action="store_true")
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


if __name__ == "__main__":
    main()
