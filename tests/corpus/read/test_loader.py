"""Batches hold the examples that the tasks make, each cell once, and go on exactly where they stopped."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from typing import Any

import numpy as np
import pytest

from cytoglot.corpus.format.folder import Corpus, write_corpus
from cytoglot.corpus.format.shard_file import make_block
from cytoglot.corpus.read.loader import BatchSettings, CorpusLoader, ExampleSettings
from cytoglot.corpus.read.packing import TokenBatch
from cytoglot.corpus.read.records import RecordReader
from cytoglot.corpus.read.tokenize import GeneTokenizer
from cytoglot.data.genes.vocabulary import GeneVocabulary
from cytoglot.errors import InputError, UnknownNameError
from cytoglot.lm.model.tokenizer import build_tokenizer, encode_pair
from cytoglot.sentence.augment import AugmentSettings
from cytoglot.tasks import tasks

PLAIN = ExampleSettings(paraphrase_share=0, metadata_share=1)
ANNOTATION = {"cell_type_annotation": 1.0}
WORDINGS = [template.text.replace("{", " ") for task in tasks.values() for template in task.templates.training]
TEXTS = [
    *WORDINGS,
    *["24 genes of a human blood cell (disease: normal, sex: female). Type: type A.", "\nCell 1: A"] * 99,
]


@pytest.fixture(scope="session")
def hf_tokenizer(small_corpus: Corpus) -> Any:
    return build_tokenizer(small_corpus.vocabulary.symbols, TEXTS)


@pytest.fixture(scope="session")
def tokenizer(small_corpus: Corpus, hf_tokenizer: Any) -> GeneTokenizer:
    return gene_tokenizer(hf_tokenizer, small_corpus.vocabulary)


def gene_tokenizer(hf_tokenizer: Any, vocabulary: GeneVocabulary) -> GeneTokenizer:
    def encode(texts: list[str]) -> list[list[int]]:
        return hf_tokenizer(texts, add_special_tokens=False, split_special_tokens=True)["input_ids"]

    return GeneTokenizer(encode, vocabulary, opening=[hf_tokenizer.bos_token_id], eos=hf_tokenizer.eos_token_id)


def padded(context: int = 4096, batch_size: int = 8) -> BatchSettings:
    return BatchSettings(context=context, packed=False, batch_size=batch_size)


def packed(context: int = 512, batch_size: int = 2) -> BatchSettings:
    return BatchSettings(context=context, batch_size=batch_size)


def examples_of(batch: TokenBatch) -> Iterator[tuple[tuple[int, ...], tuple[float, ...]]]:
    """Yield ids and weights of each example of a batch."""
    for ids, weights, segments, positions in zip(
        batch.input_ids, batch.weights, batch.segment_ids, batch.position_ids, strict=True
    ):
        for number in range(1, segments.max() + 1):
            own = segments == number
            assert positions[own].tolist() == list(range(own.sum()))
            yield tuple(ids[own].tolist()), tuple(weights[own].tolist())


def test_batches_hold_what_the_task_makes_of_each_cell(
    small_corpus: Corpus, tokenizer: GeneTokenizer, hf_tokenizer: Any
) -> None:
    expected = []
    for block in small_corpus.blocks("train"):
        records = RecordReader(small_corpus).open(block)
        for row in range(len(block)):
            for name, own in (("cell_type_annotation", 1.0), ("unconditional_generation", None)):
                example = tasks[name].example(
                    record := records.cell(row, records.draws(row)), template=tasks[name].short_template(record)
                )
                ids, n_prompt = encode_pair(hf_tokenizer, example.prompt, example.completion)
                weight = own or np.float32(3.0 / (len(ids) - n_prompt))
                weights = [0.0] * n_prompt + [float(weight)] * (len(ids) - n_prompt)
                expected.append((name, tuple(ids.tolist()), tuple(weights)))
    for name in ("cell_type_annotation", "unconditional_generation"):
        for batches in (padded(), packed()):
            loader = CorpusLoader(
                small_corpus,
                tokenizer=tokenizer,
                batches=batches,
                examples=replace(PLAIN, generation_weight=3.0),
                tasks={name: 1},
                epochs=1,
            )
            found = [example for batch in loader for example in examples_of(batch)]
            true = [(ids, weights) for task, ids, weights in expected if task == name]
            assert sorted(found) == sorted(true)
            assert found != true  # shuffled
            assert loader.asked == {name: len(true)}
            assert loader.n_examples == len(true)


@pytest.mark.parametrize(("world", "n_workers"), [(1, 1), (2, 1), (1, 3), (3, 2), (20, 4)])
@pytest.mark.parametrize("epoch", [0, 1])
def test_every_cell_is_visited_once_by_all_readers_together(
    small_corpus: Corpus, tokenizer: GeneTokenizer, world: int, n_workers: int, epoch: int
) -> None:
    def read(rank: int, world: int, worker: int, n_workers: int) -> list[tuple[int, ...]]:
        loader = CorpusLoader(
            small_corpus, tokenizer=tokenizer, batches=padded(), examples=PLAIN, tasks=ANNOTATION, epochs=1,
            rank=rank, world=world, worker=worker, n_workers=n_workers, window_cells=30,
        )  # fmt: skip
        found: list[tuple[int, ...]] = []
        for _ in range(epoch + 1):
            found = [ids for batch in loader for ids, _ in examples_of(batch)]
        assert found
        return found

    every = [
        ids for rank in range(world) for worker in range(n_workers) for ids in read(rank, world, worker, n_workers)
    ]
    assert Counter(every) == Counter(read(0, 1, 0, 1))
    assert len(every) == small_corpus.description.total("n_cells", "train")


def test_the_order_follows_seed_and_epoch(small_corpus: Corpus, tokenizer: GeneTokenizer) -> None:
    def read(seed: int, epochs: int = 2) -> list[list[tuple[int, ...]]]:
        loader = CorpusLoader(
            small_corpus, tokenizer=tokenizer, batches=padded(), examples=PLAIN, tasks=ANNOTATION, epochs=1, seed=seed
        )
        return [[ids for batch in loader for ids, _ in examples_of(batch)] for _ in range(epochs)]

    first, second = read(1)
    assert [first, second] == read(1)
    assert first != second
    assert sorted(first) == sorted(second) == sorted(read(2)[0])
    assert read(2)[0] != first


@pytest.mark.parametrize("batches", [packed(), padded(), BatchSettings(context=600, packed=False, batch_tokens=900)])
@pytest.mark.parametrize("seed", range(2))
def test_reading_goes_on_exactly_where_it_stopped(
    small_corpus: Corpus, tokenizer: GeneTokenizer, batches: BatchSettings, seed: int
) -> None:
    def loader() -> CorpusLoader:
        return CorpusLoader(
            small_corpus, tokenizer=tokenizer, batches=batches, seed=seed, window_cells=50,
            examples=ExampleSettings(augment=AugmentSettings()), rank=seed % 2, world=2,
        )  # fmt: skip

    whole = list(islice(loader(), 36))
    assert loader().state()["epoch"] == 0
    for stop in np.random.default_rng(seed).integers(0, 30, size=4).tolist():
        stopped, resumed = loader(), loader()
        for batch, expected in zip(islice(stopped, stop), whole, strict=False):
            assert np.array_equal(batch.input_ids, expected.input_ids)
        resumed.restore(json.loads(json.dumps(stopped.state())))
        for batch, expected in zip(islice(resumed, 6), whole[stop:], strict=False):
            for name in ("input_ids", "weights", "position_ids", "segment_ids"):
                assert np.array_equal(getattr(batch, name), getattr(expected, name))
        assert resumed.state() != stopped.state()


def test_a_position_of_another_reader_is_refused(small_corpus: Corpus, tokenizer: GeneTokenizer) -> None:
    state = CorpusLoader(small_corpus, tokenizer=tokenizer, batches=packed(), seed=1).state()
    other = CorpusLoader(small_corpus, tokenizer=tokenizer, batches=packed(), seed=2)
    with pytest.raises(InputError, match=r"other settings \(seed\): seed was 1 and is 2; read with the same"):
        other.restore(state)
    with pytest.raises(InputError, match=r"other settings \(batch_size, part\)"):
        CorpusLoader(small_corpus, "test", tokenizer=tokenizer, batches=packed(batch_size=3), seed=1).restore(
            state | {"settings": state["settings"] | {"tasks": CorpusLoader(
                small_corpus, "test", tokenizer=tokenizer, batches=packed(), seed=1).state()["settings"]["tasks"]}}
        )  # fmt: skip


def test_weights_are_shares_of_the_examples_across_units(small_corpus: Corpus, tokenizer: GeneTokenizer) -> None:
    weights = {"cell_type_annotation": 2, "cell_generation": 2, "multicell_generation": 1, "gene_set_naming": 3}
    loader = CorpusLoader(small_corpus, tokenizer=tokenizer, batches=packed(), tasks=weights, epochs=5)
    batches = list(loader)
    n_cells = 5 * small_corpus.description.total("n_cells", "train")
    assert loader.asked["cell_type_annotation"] + loader.asked["cell_generation"] == n_cells
    assert loader.asked["cell_type_annotation"] == pytest.approx(n_cells / 2, abs=70)
    # A group is visited 0.25 × cells / groups times an epoch; the last group of a donor may be of one cell: no example.
    visited = loader.asked["multicell_generation"] + loader.skipped["no task can ask about this cell group"]
    assert visited == pytest.approx(n_cells / 4, abs=60)
    assert loader.asked["gene_set_naming"] == n_cells * 3 // 4
    assert loader.n_examples * 5 == 2 * n_cells
    assert sum(batch.n_examples for batch in batches) == sum(loader.asked.values())


def test_without_cells_a_group_or_a_row_of_a_table_is_the_measure(
    small_corpus: Corpus, tokenizer: GeneTokenizer
) -> None:
    def asked(weights: dict[str, float], **options: int) -> Counter[str]:
        loader = CorpusLoader(small_corpus, tokenizer=tokenizer, batches=padded(), tasks=weights, epochs=1, **options)
        list(loader)
        return loader.asked + Counter(groups=loader.skipped.total())

    n_groups = small_corpus.description.total("n_groups", "train")
    found = asked({"multicell_generation": 3, "gene_set_naming": 1})
    assert found["multicell_generation"] + found["groups"] == n_groups
    assert found["gene_set_naming"] == round(n_groups / 3)
    found = asked({"gene_set_naming": 1, "gene_set_enumeration": 1})
    assert found.total() == len(small_corpus.gene_sets("train")) == 6
    readers = [asked({"gene_set_naming": 1}, rank=rank, world=3) for rank in range(3)]
    assert [found.total() for found in readers] == [2, 2, 2]


@pytest.fixture(scope="session")
def two_sources(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """200 cells of source a and 100 of b, each with the genes of its number in base 4."""
    vocabulary = GeneVocabulary(tuple(f"G{i}" for i in range(20)))
    ids = np.stack([4 * place + np.arange(300) // 4**place % 4 for place in range(5)], axis=1)
    blocks = [
        make_block(
            cell_ids=[f"c{row}" for row in rows],
            offsets=np.arange(0, 5 * len(rows) + 1, 5),
            gene_ids=ids[rows].ravel(),
            n_genes=20,
            source=["b" if row % 3 == 0 else "a" for row in rows],
            metadata={"cell_type": ["T" if row % 3 else None for row in rows]},
            group=np.array(rows) // 3,
        )
        for rows in (range(150), range(150, 300))
    ]
    folder = tmp_path_factory.mktemp("two_sources") / "corpus"
    return write_corpus(folder, {"train": blocks}, vocabulary=vocabulary)


def visits(corpus: Corpus, sources: dict[str, float], **weights: float) -> Counter[str]:
    tokenizer = gene_tokenizer(build_tokenizer(corpus.vocabulary.symbols, TEXTS), corpus.vocabulary)
    loader = CorpusLoader(
        corpus, tokenizer=tokenizer, batches=padded(), examples=PLAIN, sources=sources, epochs=1,
        tasks=weights or {"unconditional_generation": 1},
    )  # fmt: skip
    keys = {
        tuple(block.ids(row).tolist()): block.values("source")[1][block.values("source")[0][row]]
        for block in corpus.blocks("train")
        for row in range(len(block))
    }
    genes = {token: i for i, token in enumerate(range(len(tokenizer._names)))}
    first_gene = int(tokenizer._flat[0])
    found: Counter[str] = Counter()
    for batch in loader:
        for ids, _ in examples_of(batch):
            cell = [token - first_gene for token in ids if token - first_gene in genes]
            found[keys.get(tuple(cell), "group")] += 1
    assert loader.n_examples == pytest.approx(sum(found.values()) + loader.skipped.total(), abs=40)
    return found


def test_sources_are_visited_by_their_weights(two_sources: Corpus) -> None:
    assert visits(two_sources, {}) == {"a": 200, "b": 100}
    assert visits(two_sources, {"a": 2, "b": 0}) == {"a": 400}
    half = visits(two_sources, {"a": 0.5, "b": 1.5})
    assert half["a"] == pytest.approx(100, abs=25)
    assert half["b"] == pytest.approx(150, abs=20)
    both = visits(two_sources, {"b": 3}, unconditional_generation=1, multicell_generation=1)
    assert (both["a"], both["b"]) == (200, 300)
    assert both["group"] == pytest.approx(500, abs=30)


def test_a_cell_that_no_task_can_ask_is_left_out_and_counted(two_sources: Corpus) -> None:
    tokenizer = gene_tokenizer(build_tokenizer(two_sources.vocabulary.symbols, TEXTS), two_sources.vocabulary)
    loader = CorpusLoader(
        two_sources, tokenizer=tokenizer, batches=packed(64), examples=PLAIN, tasks=ANNOTATION, epochs=1
    )
    assert sum(batch.n_examples for batch in loader) == 200
    assert loader.skipped == {"no task can ask about this cell": 100}


@pytest.mark.parametrize("task", ["cell_type_annotation", "cell_generation", "cell_types_of_cells", "interpretation"])
@pytest.mark.parametrize("is_packed", [True, False])
def test_what_is_too_long_loses_genes_and_never_its_answer(
    small_corpus: Corpus, tokenizer: GeneTokenizer, hf_tokenizer: Any, task: str, is_packed: bool
) -> None:
    context = 120 if tasks[task].unit == "cell_group" else 44
    loader = CorpusLoader(
        small_corpus,
        tokenizer=tokenizer,
        batches=BatchSettings(context=context, packed=is_packed, batch_size=2),
        examples=PLAIN,
        tasks={task: 1},
        epochs=1,
    )
    labels = set(small_corpus.count("cell_type", "train"))
    symbols, lengths = set(small_corpus.vocabulary.symbols), []
    for batch in loader:
        for ids, weights in examples_of(batch):
            assert len(ids) <= context
            assert (ids[0], ids[-1]) == (hf_tokenizer.bos_token_id, hf_tokenizer.eos_token_id)
            lengths.append(len(ids))
            n_prompt = next(i for i, weight in enumerate(weights) if weight)
            prompt, answer = (hf_tokenizer.decode(part) for part in (ids[1:n_prompt], ids[n_prompt:-1]))
            if task == "cell_type_annotation":
                assert answer[1:-1] in labels
            if task == "cell_generation":
                genes = answer[1:-1].split(" ")
                assert f" {len(genes)} genes:" in prompt
                assert set(genes) <= symbols
            if task == "cell_types_of_cells":
                assert answer.count("Cell ") == prompt.count("Cell ") - 1  # "Cell types:" at the end
            if task == "interpretation":
                assert answer == " Cells that were made by a recipe."
    assert max(lengths) > context - 8
    assert not loader.skipped["does not fit the context"]


def test_an_answer_that_does_not_fit_is_left_out(small_corpus: Corpus, tokenizer: GeneTokenizer) -> None:
    weights = {"interpretation": 1, "cell_type_annotation": 1}
    examples = ExampleSettings(paraphrase_share=0, metadata_share=0)
    loader = CorpusLoader(
        small_corpus, tokenizer=tokenizer, batches=packed(36), examples=examples, tasks=weights, epochs=1
    )
    assert sum(batch.n_examples for batch in loader) == small_corpus.description.total("n_cells", "train")
    assert loader.skipped["does not fit the context"] > 0
    loader = CorpusLoader(small_corpus, tokenizer=tokenizer, batches=packed(5), tasks=ANNOTATION)
    with pytest.raises(InputError, match="no example could be made of what this reader read of the train part"):
        next(iter(loader))


def test_rows_are_nearly_full(small_corpus: Corpus, tokenizer: GeneTokenizer) -> None:
    for context, top_genes in ((1024, None), (512, None), (600, 20)):
        loader = CorpusLoader(
            small_corpus, tokenizer=tokenizer, batches=packed(context, 1), epochs=3,
            examples=ExampleSettings(top_genes=top_genes),
            tasks={"cell_type_annotation": 1, "cell_generation": 1, "tissue_annotation": 0.3},
        )  # fmt: skip
        batches = list(loader)
        assert {batch.input_ids.shape for batch in batches} == {(1, context)}
        # The last row of an epoch of 160 cells is a large part of it; an epoch in earnest has thousands of rows.
        full = sorted(batch.n_tokens for batch in batches)[3:]
        assert len(full) > 20
        assert 1 - sum(full) / (context * len(full)) < 0.02


def test_top_genes_cut_every_sentence(small_corpus: Corpus, tokenizer: GeneTokenizer, hf_tokenizer: Any) -> None:
    examples = replace(PLAIN, top_genes=4)
    loader = CorpusLoader(
        small_corpus, tokenizer=tokenizer, batches=padded(), examples=examples, tasks=ANNOTATION, epochs=1
    )
    for ids in (ids for batch in loader for ids, _ in examples_of(batch)):
        assert hf_tokenizer.decode(ids[1:]).startswith("4 genes of a ")


def test_a_tokenizer_that_reads_whole_texts_gives_the_same_batches(
    small_corpus: Corpus, tokenizer: GeneTokenizer, hf_tokenizer: Any
) -> None:
    plain = gene_tokenizer(hf_tokenizer, small_corpus.vocabulary)
    plain.why_plain = "asked"
    fast, slow = (
        list(CorpusLoader(small_corpus, tokenizer=found, batches=packed(), epochs=1, seed=3))
        for found in (tokenizer, plain)
    )
    assert len(fast) == len(slow)
    assert all(np.array_equal(a.input_ids, b.input_ids) for a, b in zip(fast, slow, strict=True))


def test_prompts_can_be_learned_too(small_corpus: Corpus, tokenizer: GeneTokenizer) -> None:
    examples = replace(PLAIN, loss_on="everything", generation_weight=3.0)
    loader = CorpusLoader(
        small_corpus, tokenizer=tokenizer, batches=padded(), examples=examples, tasks=ANNOTATION, epochs=1
    )
    for _, weights in (example for batch in loader for example in examples_of(batch)):
        n_prompt = weights.index(1.0)
        assert weights[0] == 0
        assert sum(weights[:n_prompt]) == pytest.approx(3.0 * (n_prompt - 1) / n_prompt)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sources": {"synthetik": 2}}, "unknown source 'synthetik'; did you mean 'synthetic'"),
        ({"sources": {"synthetic": -1}}, "weight of source 'synthetic' must be at least 0, found -1"),
        ({"sources": {"synthetic": 0}}, "every source has the weight 0"),
        ({"rank": 2, "world": 2}, "expected rank and worker below 2 and 1, found 2 and 0"),
        ({"world": 500}, r"500 readers share \d+ records of the train part; use fewer readers"),
        ({"tasks": {"annotation": 1}}, "unknown task 'annotation'"),
    ],
)
def test_faulty_options_are_refused(
    small_corpus: Corpus, tokenizer: GeneTokenizer, options: dict[str, Any], message: str
) -> None:
    with pytest.raises((InputError, UnknownNameError), match=message):
        CorpusLoader(small_corpus, tokenizer=tokenizer, batches=packed(), **{"tasks": ANNOTATION, **options})


def test_what_a_part_lacks_is_said(two_sources: Corpus, tokenizer: GeneTokenizer) -> None:
    for name, part, what in (
        ("gene_set_naming", "train", "gene set"),
        ("cell_type_annotation", "test", "cell"),
        ("multicell_generation", "validation", "cell group"),
    ):
        with pytest.raises(
            InputError, match=f"expected a {what} in the {part} part .* found none; leave out the tasks"
        ):
            CorpusLoader(two_sources, part, tokenizer=tokenizer, batches=packed(), tasks={name: 1})  # type: ignore[arg-type]


def test_faulty_batches_are_refused() -> None:
    with pytest.raises(InputError, match="expected batch_size or, for rows that are not packed, batch_tokens"):
        BatchSettings(context=10)
    with pytest.raises(InputError, match="batch_tokens=5, packed=True"):
        BatchSettings(context=10, batch_tokens=5)
    with pytest.raises(InputError, match="context and a batch of 1 or more"):
        BatchSettings(context=0, batch_size=1)


def test_written_cells_are_the_cells_themselves_and_shown_ones_are_views(
    small_corpus: Corpus, tokenizer: GeneTokenizer
) -> None:
    """With views that drop genes, no written cell lacks one, and most shown cells do."""
    lengths = {}
    for block in small_corpus.blocks("train"):
        lengths |= dict(zip(block.cell_ids.to_pylist(), np.diff(block.offsets).tolist(), strict=True))
    seen = {}
    for name in ("unconditional_generation", "cell_type_annotation"):
        settings = replace(
            PLAIN, distinct_words="words", augment=AugmentSettings(unchanged_share=0, max_gene_dropout=0.9)
        )
        loader = CorpusLoader(
            small_corpus, tokenizer=tokenizer, batches=padded(), examples=settings, tasks={name: 1.0}, epochs=1
        )
        batches = list(loader)
        seen[name] = sorted(int(row.max()) for batch in batches for row in batch.n_words)
        texts = [hf for batch in batches for hf in batch.input_ids.tolist()]
        assert len(texts) == len(lengths)
    assert seen["unconditional_generation"] == sorted(lengths.values())
    assert set(seen["cell_type_annotation"]) == {0}, "a label is no answer of distinct words"


def test_words_of_an_answer_are_marked_and_half_of_a_long_one_is_in_the_loss(
    small_corpus: Corpus, tokenizer: GeneTokenizer, hf_tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cytoglot.corpus.read import loader as module
    from cytoglot.lm.model.tokenizer import word_token_ids

    monkeypatch.setattr(module, "_FEW_WORDS", 10)
    genes = set(word_token_ids(hf_tokenizer, small_corpus.vocabulary.symbols).tolist())
    settings = replace(PLAIN, distinct_words="words", word_share=0.5)
    tasks_asked = {"cell_generation": 1.0}

    def read(epochs: int) -> list[TokenBatch]:
        return list(
            CorpusLoader(
                small_corpus, tokenizer=tokenizer, batches=padded(), examples=settings, tasks=tasks_asked, epochs=epochs
            )
        )

    n_long = 0
    for batch in read(1):
        for ids, weights, n_words in zip(batch.input_ids, batch.weights, batch.n_words, strict=True):
            words = n_words > 0
            n = int(n_words.max())
            assert set(n_words[words].tolist()) == {n}
            assert words.sum() == n
            assert set(ids[words].tolist()) <= genes
            assert len(set(ids[words].tolist())) == n
            kept = weights[words] > 0
            assert kept.sum() == (n if n <= 10 else round(n / 2))
            n_long += n > 10
            # The answer counts as much as if all of its words were in the loss.
            assert weights.sum() == pytest.approx(settings.generation_weight, rel=1e-4)
    assert n_long > 20
    first, again = read(1), read(1)
    assert all(np.array_equal(a.weights, b.weights) for a, b in zip(first, again, strict=True))
    twice = read(2)
    rows = {}
    for batch in twice:
        for ids, weights in zip(batch.input_ids, batch.weights, strict=True):
            rows.setdefault(ids[ids > 0].tobytes(), []).append(tuple((weights > 0).tolist()))
    assert sum(len(set(kept)) == 2 for kept in rows.values()) > 0.5 * len(rows), "other words in the next pass"
