"""Every task of a corpus: the truth scores 1, a constant model ties with the constant answer, the rest is listed."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cytoglot.benchmark.constant_answer import fit_constant_answer
from cytoglot.benchmark.corpus_tasks import (
    CONSTANT,
    OURS,
    SHUFFLED,
    CorpusEvaluation,
    CorpusTaskSettings,
    derangement,
    evaluate_corpus,
)
from cytoglot.cell_model.load import CellModel
from cytoglot.cell_model.spec import CellModelSpec
from cytoglot.cell_model.task_answers import ModelAnswers
from cytoglot.cell_model.task_scores import EvalRecord, EvalTask, parts_of, statistics
from cytoglot.corpus.format.folder import Corpus, SourceInfo, write_corpus
from cytoglot.corpus.format.shard_file import make_block
from cytoglot.data.genes.vocabulary import GeneVocabulary
from cytoglot.errors import InputError, VocabularyMismatchError
from cytoglot.lm.model.language_model import LanguageModel
from cytoglot.lm.model.scratch import ScratchSettings, scratch_model
from cytoglot.lm.model.tokenizer import build_tokenizer, encode_pair
from cytoglot.lm.scoring.score import score_answers_naive
from cytoglot.report.html import write_report
from cytoglot.tasks import CellRecord, tasks

FEW = CorpusTaskSettings(n_per_task=8, n_training=40)
VOCABULARY = GeneVocabulary(("A", "B", "C", "D", "a"))


def untrained(corpus: Corpus, *, context_length: int = 512, task_names: Sequence[str] | None = None) -> CellModel:
    """A model that has learned nothing."""
    texts = [template.text for name in tasks for template in tasks[name].templates.training]
    tokenizer = build_tokenizer(corpus.vocabulary.symbols, texts, context_length=context_length)
    scratch = ScratchSettings(hidden_size=32, n_heads=2, feed_forward=32, context_length=context_length)
    spec = CellModelSpec(
        vocabulary=corpus.vocabulary,
        ranking=corpus.description.settings,
        tasks=tuple(task_names or tasks),
        manifest={"inputs": {"corpus": corpus.description.fingerprint}},
    )
    return CellModel(lm=LanguageModel(model=scratch_model(tokenizer, scratch, seed=0), tokenizer=tokenizer), spec=spec)


@pytest.fixture(scope="module")
def model(small_corpus: Corpus) -> CellModel:
    return untrained(small_corpus)


@pytest.fixture
def asked_of(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[EvalTask]]:
    """Replace what the model answers; return the list of everything that it is asked."""

    def replaced(answer: Callable[[EvalTask, EvalRecord], str]) -> list[EvalTask]:
        seen: list[EvalTask] = []

        def answers(self: ModelAnswers, asked: EvalTask, budgets: Sequence[int]) -> list[str]:
            assert len(budgets) == len(asked.records)
            seen.append(asked)
            return [answer(asked, one) for one in asked.records]

        monkeypatch.setattr(ModelAnswers, "answers", answers)
        return seen

    return replaced


def asked_task(name: str, truths: Sequence[str], *, vocabulary: GeneVocabulary = VOCABULARY) -> EvalTask:
    """The questions of which these are the true answers."""
    task = tasks[name]
    records = tuple(
        EvalRecord(record=CellRecord(cell_id=str(i)), prompt="?", truth=t, parts=parts_of(task, t, vocabulary))
        for i, t in enumerate(truths)
    )
    return EvalTask(task=task, vocabulary=vocabulary, records=records)


def values(asked: EvalTask, answers: Sequence[str]) -> dict[str, float]:
    return {name: statistic.value for name, statistic in statistics(asked, answers).items()}


# --- scores, by hand ----------------------------------------------------------------------------------------------


def test_scores_of_one_label_by_hand() -> None:
    found = values(asked_task("cell_type_annotation", ["CD4 T", "CD4 T", "B", "NK"]), ["CD4 T", "CD8 T", "B", "B"])
    f1 = [2 / 3, 2 / 3, 0]  # of B (1 hit, 1 true, 2 given), CD4 T (1 hit, 2 true, 1 given) and NK
    assert found == pytest.approx({"exact_match": 0.5, "token_f1": (1 + 0.5 + 1 + 0) / 4, "macro_f1": sum(f1) / 3})


def test_scores_of_genes_by_hand() -> None:
    asked = asked_task("cell_generation", ["A B C", "A B"])
    assert asked.kind == "genes"
    found = values(asked, ["A B C.", "B D x"])
    assert found == pytest.approx({"exact_match": 0.5, "token_f1": (1 + 2 / 5) / 2, "gene_overlap": (1 + 0.5) / 2})


def test_a_gene_of_another_species_is_another_gene() -> None:
    assert values(asked_task("cell_generation", ["a"]), ["A"])["token_f1"] == 0


def test_a_repeated_gene_costs_precision() -> None:
    assert values(asked_task("cell_generation", ["A B"]), ["A B B B"])["token_f1"] == pytest.approx(2 * 2 / (2 + 4))


def test_cells_without_an_order_are_compared_with_those_that_suit_them() -> None:
    asked = asked_task("multicell_generation", ["Cell 1: A B\nCell 2: C D"])
    assert asked.kind == "cells"
    assert set(values(asked, ["Cell 1: C D\nCell 2: A B"]).values()) == {1.0}
    only_one = values(asked, ["Cell 1: C A"])  # half of either cell
    assert only_one == pytest.approx({"exact_match": 0, "token_f1": 0.5 / 2, "gene_overlap": 0.5 / 2})
    surplus = values(asked, ["Cell 1: C D\nCell 2: A B\nCell 3: A B"])
    assert surplus == pytest.approx({"exact_match": 0, "token_f1": 2 / 3, "gene_overlap": 1})


def test_cells_of_given_types_are_compared_in_order() -> None:
    asked = asked_task("cell_group_generation_by_cell_types", ["Cell 1: A B\nCell 2: C D"])
    assert set(values(asked, ["Cell 1: C D\nCell 2: A B"]).values()) == {0.0}
    assert set(values(asked, ["Cell 1: A B\nCell 2: C D"]).values()) == {1.0}


def test_scores_of_several_labels_by_hand() -> None:
    asked = asked_task("cell_types_of_cells", ["Cell 1: B\nCell 2: NK", "Cell 1: B\nCell 2: B"])
    assert asked.kind == "labels"
    found = values(asked, ["Cell 1: B\nCell 2: B", "Cell 1: B"])
    f1 = [2 * 2 / (3 + 3), 0]  # of B (2 hits, 3 true, 3 given; the missing one is none) and NK
    assert found == pytest.approx({"exact_match": 0, "token_f1": 0.5, "accuracy": 0.5, "macro_f1": sum(f1) / 2})


@pytest.mark.parametrize("name", ["multicell_generation", "cell_types_of_cells", "interpretation", "cell_generation"])
def test_an_empty_answer_scores_nothing(name: str) -> None:
    truth = {"interpretation": "We saw cells", "cell_generation": "A B"}.get(name, "Cell 1: A\nCell 2: B")
    assert set(values(asked_task(name, [truth]), [""]).values()) == {0.0}


# --- the constant answer ------------------------------------------------------------------------------------------


def constant(name: str, training: Sequence[str], asked: Sequence[str]) -> list[str]:
    fitted_on, wanted = asked_task(name, training), asked_task(name, asked)
    lengths = [one.n_genes for one in wanted.records]
    answer = fit_constant_answer(
        fitted_on.kind, fitted_on.records, lengths=lengths, vocabulary=VOCABULARY, labels=("NK", "B"), seed=0
    )
    return [answer.answer(one) for one in wanted.records]


def test_the_constant_label_is_the_most_frequent() -> None:
    assert constant("cell_type_annotation", ["B"], ["B", "T"]) == ["NK", "NK"]
    assert constant(
        "cell_types_of_cells", ["Cell 1: B\nCell 2: T", "Cell 1: T\nCell 2: T"], ["Cell 1: B\nCell 2: B"]
    ) == ["Cell 1: T\nCell 2: T"]


def test_constant_genes_are_the_most_frequent_among_as_many_in_order_of_rank() -> None:
    training = ["A B C", "A B D", "C B A"]
    # among the first one: A twice; among the first two: B three times, A twice; C leads D in all
    assert constant("cell_generation", training, ["D", "D C", "D C B A"]) == ["A", "A B", "A B C D"]
    assert constant("multicell_generation", ["Cell 1: A B\nCell 2: A C"], ["Cell 1: B C\nCell 2: D"]) == [
        "Cell 1: A B\nCell 2: A B"
    ]


def test_the_constant_text_is_the_most_typical() -> None:
    assert constant("interpretation", ["a b c", "a b d", "x y"], ["q"]) == ["a b c"]


@given(st.integers(2, 60), st.integers(0, 5))
def test_no_record_keeps_its_own_truth_in_the_shuffled_control(n: int, seed: int) -> None:
    order = derangement(n, seed=seed)
    assert order is not None
    assert sorted(order.tolist()) == list(range(n))
    assert not (order == np.arange(n)).any()


def test_one_record_cannot_be_shuffled() -> None:
    assert derangement(1, seed=0) is None


# --- the evaluation -----------------------------------------------------------------------------------------------


def of(result: CorpusEvaluation, method: str) -> dict[tuple[str, str], float | None]:
    return {(row.task, row.metric): row.value for row in result.rows if row.method == method}


def test_an_oracle_scores_1_in_every_task_and_metric(
    small_corpus: Corpus, model: CellModel, tmp_path: Path, asked_of: Callable[..., list[EvalTask]]
) -> None:
    seen = asked_of(lambda _, one: one.truth)
    result = evaluate_corpus(small_corpus, model, out=tmp_path / "out", settings=FEW)
    ours, shuffled = of(result, OURS), of(result, SHUFFLED)
    assert len({task for task, _ in ours}) == len(seen) >= 7
    assert set(ours.values()) == {1.0}
    assert ours.keys() == shuffled.keys() == of(result, CONSTANT).keys()
    assert shuffled["cell_type_annotation", "exact_match"] < 1
    assert {task for task, _ in ours} | set(result.not_shown) == set(tasks)
    for asked in seen:
        assert len(asked.records) <= FEW.n_per_task


def test_a_constant_model_ties_with_the_constant_answer(
    small_corpus: Corpus, model: CellModel, tmp_path: Path, asked_of: Callable[..., list[EvalTask]]
) -> None:
    asked_of(lambda _, one: one.truth)
    first = evaluate_corpus(small_corpus, model, out=tmp_path / "first", settings=FEW)
    written = pd.read_parquet(first.folder / "answers.parquet").set_index(["task", "key"])["constant"]
    asked_of(lambda asked, one: written[asked.task.name, one.record.key])
    tied = evaluate_corpus(small_corpus, model, out=tmp_path / "second", settings=FEW)
    assert {(line.difference, line.difference_low, line.difference_high) for line in tied.table} == {(0.0, 0.0, 0.0)}
    assert of(tied, OURS) == of(tied, CONSTANT) == of(first, CONSTANT)


def test_only_records_of_the_part_are_asked_about(
    small_corpus: Corpus, model: CellModel, tmp_path: Path, asked_of: Callable[..., list[EvalTask]]
) -> None:
    ids = {
        p: {i for b in small_corpus.blocks(p) for i in b.cell_ids.to_pylist()} for p in ("train", "validation", "test")
    }
    for part in ("validation", "test"):
        seen = asked_of(lambda _, one: one.truth)
        evaluate_corpus(small_corpus, model, out=tmp_path / part, settings=FEW.model_copy(update={"part": part}))
        cells = {one.record.cell_id for asked in seen if asked.task.unit == "cell" for one in asked.records}
        in_groups = {
            cell.cell_id
            for asked in seen
            if asked.task.unit == "cell_group"
            for one in asked.records
            for cell in one.record.cells
        }
        assert cells <= ids[part]
        assert in_groups <= ids[part]
        assert cells
        assert in_groups


def test_tasks_that_show_nothing_are_listed_with_the_reason(
    small_corpus: Corpus, tmp_path: Path, asked_of: Callable[..., list[EvalTask]]
) -> None:
    asked_of(lambda _, one: one.truth)
    learned = [name for name in tasks if name != "unconditional_generation"]
    result = evaluate_corpus(
        small_corpus, untrained(small_corpus, task_names=learned), out=tmp_path / "out", settings=FEW
    )
    reasons = result.not_shown
    assert reasons["unconditional_generation"] == "the model was not trained on it"
    assert reasons["interpretation"].startswith("a single possible answer in this corpus: 'Cells that were made by")
    # one test donor has one tissue
    assert reasons["tissue_annotation"].startswith("a single answer in the test part, for 8 records: ")
    assert not {row.task for row in result.rows} & set(reasons)
    assert json.loads((result.folder / "results.json").read_text())["not_shown"] == reasons


@pytest.fixture
def little_corpus(tmp_path: Path) -> Corpus:
    """Twelve training cells of A and B, six test cells of A and C, and nothing else known."""

    def block(types: str, n: int) -> object:
        gene_ids = np.tile([0, 1, 2], n)
        offsets = np.arange(n + 1) * 3
        ids = [f"{types}{i}" for i in range(n)]
        kinds = [types[i % len(types)] for i in range(n)]
        return make_block(
            cell_ids=ids, offsets=offsets, gene_ids=gene_ids, n_genes=5, source=["s"] * n, metadata={"cell_type": kinds}
        )

    cells = {"train": [block("AAB", 12)], "validation": [block("A", 2)], "test": [block("AC", 6)]}
    return write_corpus(tmp_path / "corpus", cells, vocabulary=VOCABULARY, sources=[SourceInfo(name="s")])


def test_labels_are_those_of_the_training_part(
    little_corpus: Corpus, tmp_path: Path, asked_of: Callable[..., list[EvalTask]]
) -> None:
    seen = asked_of(lambda _, one: one.truth)
    result = evaluate_corpus(little_corpus, untrained(little_corpus), out=tmp_path / "out", settings=FEW)
    assert {asked.task.name: asked.labels for asked in seen}["cell_type_annotation"] == ("A", "B")
    assert of(result, CONSTANT)["cell_type_annotation", "exact_match"] == 0.5
    assert result.not_shown["multicell_generation"].startswith("no cell group of the train part can be asked")
    assert result.not_shown["tissue_annotation"] == "no cell group of the train part can be asked (it needs tissue)"
    # all cells are the same three genes
    assert result.not_shown["unconditional_generation"].startswith("a single possible answer in this corpus: 'A B C'")


def test_records_are_cut_to_what_the_context_has_room_for(
    small_corpus: Corpus, tmp_path: Path, asked_of: Callable[..., list[EvalTask]]
) -> None:
    seen = asked_of(lambda _, one: one.truth)
    short = untrained(small_corpus, context_length=120)
    evaluate_corpus(small_corpus, short, out=tmp_path / "out", settings=FEW)
    is_cut = []
    for asked in seen:
        for one in asked.records:
            ids, _ = encode_pair(short.lm.tokenizer, one.prompt, f" {one.truth}.")
            assert len(ids) <= 120
            assert asked.task.prompt(one.record) == one.prompt
            is_cut.append(one.record.longest < 24)
    assert any(is_cut)


def test_long_answers_are_asked_for_fewer_times(
    small_corpus: Corpus, model: CellModel, tmp_path: Path, asked_of: Callable[..., list[EvalTask]]
) -> None:
    asked_of(lambda _, one: one.truth)
    names = ("cell_type_annotation", "cell_generation", "multicell_generation")
    settings = CorpusTaskSettings(tasks=names, n_per_task=12, answer_tokens=200, min_records=3, n_training=20)
    result = evaluate_corpus(small_corpus, model, out=tmp_path / "out", settings=settings)
    n = {row.task: row.n for row in result.rows}
    assert n["cell_type_annotation"] == 12
    assert 3 < n["cell_generation"] < 12
    assert n["multicell_generation"] == 3


def test_held_out_wordings_are_asked(
    small_corpus: Corpus, model: CellModel, tmp_path: Path, asked_of: Callable[..., list[EvalTask]]
) -> None:
    prompts = {}
    for wording in ("terse", "held_out"):
        seen = asked_of(lambda _, one: one.truth)
        settings = FEW.model_copy(update={"wording": wording, "tasks": ("cell_type_annotation",)})
        evaluate_corpus(small_corpus, model, out=tmp_path / wording, settings=settings)
        prompts[wording] = {one.record.key: one.prompt for one in seen[0].records}
    assert prompts["terse"].keys() == prompts["held_out"].keys()
    assert all(prompts["held_out"][key] != prompt for key, prompt in prompts["terse"].items())


# --- the model's own answers --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def result(small_corpus: Corpus, model: CellModel, tmp_path_factory: pytest.TempPathFactory) -> CorpusEvaluation:
    """What an untrained model really answers."""
    return evaluate_corpus(
        small_corpus, model, out=tmp_path_factory.mktemp("corpus_tasks") / "out", settings=FEW, seed=1
    )


def test_every_row_has_its_place(result: CorpusEvaluation) -> None:
    for row in result.rows:
        assert row.value is not None
        assert row.low is not None
        assert row.low - 1e-9 <= row.value <= row.high + 1e-9
        assert 0 < row.n <= FEW.n_per_task
        assert row.unit == tasks[row.task].unit, "the one test donor cannot be resampled"
    assert {line.task for line in result.table} == {row.task for row in result.rows}


def test_the_folder_holds_everything(result: CorpusEvaluation, small_corpus: Corpus) -> None:
    written = {path.name for path in result.folder.iterdir()}
    assert written == {"results.json", "table.csv", "answers.parquet", "timings.json", "manifest.json"}
    content = json.loads((result.folder / "results.json").read_text())
    assert content["meta"]["corpus"] == small_corpus.description.fingerprint
    assert len(pd.read_csv(result.folder / "table.csv")) == len(result.table) == len(content["table"])
    answers = pd.read_parquet(result.folder / "answers.parquet")
    assert list(answers) == ["task", "key", "prompt", "truth", "answer", "constant"]
    assert answers["prompt"].str.len().max() <= 400
    page = write_report(result.folder).read_text()
    assert "The tasks of the corpus" in page
    assert "cell types of cells" in page
    assert "interpretation: a single possible answer" in page
    (result.folder / "report.html").unlink()


def test_written_genes_are_distinct_and_as_many_as_asked(result: CorpusEvaluation, small_corpus: Corpus) -> None:
    answers = pd.read_parquet(result.folder / "answers.parquet").set_index("task").loc["cell_generation"]
    for answer, truth in zip(answers["answer"], answers["truth"], strict=True):
        words = answer.split()
        assert len(set(words)) == len(words) == len(truth.split())
        assert set(words) <= set(small_corpus.vocabulary.symbols)


def test_labels_are_the_likeliest(result: CorpusEvaluation, small_corpus: Corpus, model: CellModel) -> None:
    answers = pd.read_parquet(result.folder / "answers.parquet").set_index("task").loc["cell_type_annotation"]
    labels = small_corpus.labels("cell_type")
    scores_na = score_answers_naive(model.lm, answers["prompt"].tolist(), [f" {label}." for label in labels])
    assert answers["answer"].tolist() == [labels[i] for i in scores_na.argmax(axis=1)]


def test_the_same_seed_gives_the_same_result(
    result: CorpusEvaluation, small_corpus: Corpus, model: CellModel, tmp_path: Path
) -> None:
    again = evaluate_corpus(small_corpus.folder, model, out=tmp_path / "again", settings=FEW, seed=1)
    assert again.rows == result.rows
    assert (again.folder / "results.json").read_bytes() == (result.folder / "results.json").read_bytes()


def test_a_trained_model_knows_more_than_one_answer(
    small_corpus: Corpus, tiny_model: CellModel, tmp_path: Path
) -> None:
    """It was trained on other genes of the same cells, so this shows that it is asked well, and nothing else."""
    settings = CorpusTaskSettings(n_per_task=20, n_training=40)
    result = evaluate_corpus(small_corpus, tiny_model, out=tmp_path / "out", settings=settings)
    (line,) = [line for line in result.table if (line.task, line.metric) == ("cell_type_annotation", "exact_match")]
    assert line.difference_low > 0
    assert line.model > line.shuffled
    assert {row.task for row in result.rows} == set(tiny_model.spec.tasks)
    assert any("was not trained on this corpus" in message for message in result.messages)
    assert any("the other 11 of the query's 130 genes" in message for message in result.messages)


# --- faults -------------------------------------------------------------------------------------------------------


def test_a_model_of_other_genes_is_refused(small_corpus: Corpus, model: CellModel, tmp_path: Path) -> None:
    other = replace(model, spec=replace(model.spec, vocabulary=GeneVocabulary(("X", "Y")), tie_rates=None))
    with pytest.raises(VocabularyMismatchError, match="trained on the genes of this corpus"):
        evaluate_corpus(small_corpus, other, out=tmp_path / "out", settings=FEW)


def test_nothing_to_show_is_said_and_leaves_no_folder(small_corpus: Corpus, tmp_path: Path) -> None:
    one = untrained(small_corpus, task_names=["interpretation"])
    with pytest.raises(InputError, match=r"no task of this corpus can be shown .*interpretation: a single possible"):
        evaluate_corpus(small_corpus, one, out=tmp_path / "out", settings=FEW)
    assert not list(tmp_path.iterdir())


def test_a_folder_of_other_things_is_kept(small_corpus: Corpus, model: CellModel, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(InputError, match="holds other things than a result of `cytoglot evaluate`"):
        evaluate_corpus(small_corpus, model, out=tmp_path, settings=FEW)


def test_a_misspelt_task_is_answered_with_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"unknown task 'cell_type_anotation', did you mean 'cell_type_annotation'"):
        CorpusTaskSettings(tasks=("cell_type_anotation",))


# --- the command --------------------------------------------------------------------------------------------------


def test_the_command_prints_one_object(
    small_corpus: Corpus, tiny_model_folder: Path, tmp_path: Path, command: Callable
) -> None:
    out = tmp_path / "out"
    few = ["--set", "n_per_task=5", "--set", "n_training=20", "--set", "tasks=[cell_generation]"]
    printed = command("evaluate", small_corpus.folder, "--model", tiny_model_folder, "-o", out, *few, "--json").result
    assert {row["task"] for row in printed["results"]} == {"cell_generation"}
    assert printed["not_shown"] == []
    assert printed["output"] == str(out)
    assert command("report", out, "--json").result == {"html": str(out / "report.html")}
    read = command("evaluate", small_corpus.folder, "--model", tiny_model_folder, "-o", out, *few, "--overwrite")
    assert "constant" in read.out


@pytest.mark.parametrize(
    "option",
    [["--label", "cell_type"], ["--layer", "X"], ["--gene-column", "x"], ["--duplicates", "first"], ["--dry-run"]],
)
def test_options_for_files_are_refused_for_a_corpus(
    small_corpus: Corpus, tiny_model_folder: Path, tmp_path: Path, command: Callable, option: list[str]
) -> None:
    line = command(
        "evaluate", small_corpus.folder, "--model", tiny_model_folder, "-o", tmp_path / "out", *option
    ).refusal
    assert f"is a corpus, in which cells, genes and labels are settled; leave out {option[0]}" in line
    assert not (tmp_path / "out").exists()


def test_groups_are_written_cell_by_cell_in_valid_genes(small_corpus: Corpus, model: CellModel, tmp_path: Path) -> None:
    settings = CorpusTaskSettings(n_per_task=3, min_records=3, n_training=20, tasks=("multicell_generation",))
    evaluate_corpus(small_corpus, model, out=tmp_path / "out", settings=settings)
    answers = pd.read_parquet(tmp_path / "out" / "answers.parquet").to_dict("records")
    assert len(answers) == 3
    for row in answers:
        wrote, wanted = row["answer"].split("\n"), row["truth"].split("\n")
        assert len(wrote) == len(wanted)
        for number, (line, true) in enumerate(zip(wrote, wanted, strict=True), start=1):
            mark, _, genes = line.partition(": ")
            assert mark == f"Cell {number}"
            words = genes.split()
            assert len(set(words)) == len(words) == len(true.split()) - 2
            assert all(word in small_corpus.vocabulary for word in words)
