"""Answers to files of prompts: the same rows however the work was cut, stopped, or spread."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cytoglot.answer_format import AnswerFormat, DistinctWords, FreeText, OneOf
from cytoglot.applications import parquet_parts
from cytoglot.applications.answering import ModelSource, Prompts, answer_prompts, read_prompts
from cytoglot.applications.parquet_parts import map_parts
from cytoglot.cli.main import run
from cytoglot.errors import InputError, UnknownNameError
from cytoglot.lm.generation.generate import sample_answers
from cytoglot.lm.generation.sampling import Sampling
from cytoglot.resume import parts_folder

LABELS = OneOf(options=("type A", "type B"))


@pytest.fixture
def prompts() -> Prompts:
    genes = [f"GENE{i}" for i in range(12)]
    texts = [f"Genes of a cell: {' '.join(genes[: 2 + i % 7])}. The cell type is:" for i in range(11)]
    return Prompts(ids=tuple(f"cell {i}" for i in range(11)), texts=tuple(texts))


@pytest.fixture
def genes(tiny_model) -> DistinctWords:
    return DistinctWords(words=tiny_model.spec.vocabulary.symbols, min_words=2, max_words=4)


def rows(path) -> list[dict[str, Any]]:
    return pq.read_table(path).to_pylist()


def test_rows_are_those_of_sampling(tiny_model, prompts, genes, tmp_path):
    output = tmp_path / "answers.parquet"
    report = answer_prompts(prompts, tiny_model, output, answer_format=genes, n_samples=2, seed=3, part_prompts=4)
    assert (report.n_rows, report.n_rows_written, report.n_parts, report.n_parts_found) == (11, 22, 3, 0)
    expected = sample_answers(
        tiny_model.lm, prompts.texts, genes, sampling=Sampling(seed=3), n_samples=2, keys=prompts.ids
    )
    found = rows(output)
    assert list(found[0]) == ["id", "sample", "answer", "log_prob"]
    assert [(row["id"], row["sample"]) for row in found] == [(one, s) for one in prompts.ids for s in range(2)]
    assert [row["answer"] for row in found] == [answer.text for samples in expected for answer in samples]
    log_probs = [sum(answer.token_log_probs) for samples in expected for answer in samples]
    np.testing.assert_allclose([row["log_prob"] for row in found], log_probs, atol=1e-4)
    assert not parts_folder(output).exists()


class StopsAfter:
    """A generator that is killed in the middle."""

    def __init__(self, inner, n_calls: int) -> None:
        self.inner, self.n_left = inner, [n_calls]

    def settings(self):
        return self.inner.settings()

    def sample(self, prompts, answer_format, n_samples=1, seed=0, *, keys=None):
        if self.n_left[0] == 0:
            raise KeyboardInterrupt
        self.n_left[0] -= 1
        return self.inner.sample(prompts, answer_format, n_samples, seed, keys=keys)


def test_killed_and_gone_on_with_gives_the_same_rows(tiny_model, prompts, genes, tmp_path, caplog):
    options = {"answer_format": genes, "n_samples": 2, "seed": 1, "part_prompts": 2}
    whole = tmp_path / "whole.parquet"
    answer_prompts(prompts, tiny_model, whole, **options)
    output = tmp_path / "answers.parquet"
    with pytest.raises(KeyboardInterrupt):
        answer_prompts(prompts, StopsAfter(tiny_model.lm, 3), output, **options)
    assert not output.exists()
    assert len(list(parts_folder(output).glob("part-*.parquet"))) == 3
    with caplog.at_level("INFO"):
        report = answer_prompts(prompts, StopsAfter(tiny_model.lm, 99), output, **options)
    assert report.n_parts_found == 3
    assert "3 of 6 parts are there from an earlier run" in caplog.text
    assert rows(output) == rows(whole)
    # Finished: nothing is done again.
    assert answer_prompts(prompts, StopsAfter(tiny_model.lm, 0), output, **options).n_parts_found == 6


def test_parts_of_other_settings_are_not_gone_on_with(tiny_model, prompts, genes, tmp_path):
    output = tmp_path / "answers.parquet"
    options = {"answer_format": genes, "part_prompts": 4}
    with pytest.raises(KeyboardInterrupt):
        answer_prompts(prompts, StopsAfter(tiny_model.lm, 1), output, seed=1, **options)
    with pytest.raises(InputError, match=r"unfinished answers.parquet, made with seed 1 \(now 2\);"):
        answer_prompts(prompts, StopsAfter(tiny_model.lm, 9), output, seed=2, **options)
    fewer = Prompts(ids=prompts.ids[:5], texts=prompts.texts[:5])
    with pytest.raises(InputError, match=r"made with another data;"):
        answer_prompts(fewer, StopsAfter(tiny_model.lm, 9), output, seed=1, **options)
    answer_prompts(prompts, StopsAfter(tiny_model.lm, 9), output, seed=2, overwrite=True, **options)
    with pytest.raises(
        InputError, match=r"answers.parquet was made with answer_format.*, seed 2 \(now 1\); pass another output"
    ):
        answer_prompts(prompts, StopsAfter(tiny_model.lm, 9), output, answer_format=LABELS, seed=1, part_prompts=4)
    other = tmp_path / "other.parquet"
    pd.DataFrame({"a": [1]}).to_parquet(other)
    with pytest.raises(InputError, match=r"other.parquet exists and was not written by this command"):
        answer_prompts(prompts, tiny_model, other, **options)


def test_log_likelihoods_are_those_of_scoring(tiny_model, prompts, genes, tmp_path):
    few = Prompts(ids=prompts.ids[:3], texts=prompts.texts[:3])
    for answer_format in (LABELS, genes):
        output = tmp_path / f"{type(answer_format).__name__}.parquet"
        answer_prompts(
            few, tiny_model, output, answer_format=answer_format, n_samples=3, log_likelihood=True, keep_prompts=True
        )
        for row in rows(output):
            expected = tiny_model.log_likelihood([row["prompt"]], [row["answer"]])[0, 0]
            assert row["log_likelihood"] == pytest.approx(expected, abs=1e-4)
            assert row["log_likelihood"] <= row["log_prob"] + 1e-4, "the mask only takes other tokens away"
    with pytest.raises(InputError, match="that of free text is its log_prob"):
        answer_prompts(few, tiny_model, output, answer_format=FreeText(), log_likelihood=True)


def with_other_weights(language):
    import copy

    import torch

    lm = replace(language, model=copy.deepcopy(language.model))
    with torch.no_grad():
        lm.model.get_decoder().layers[0].self_attn.q_proj.weight.mul_(1.01)
    return lm


def test_answers_of_another_model_are_not_taken_for_this_ones(tiny_model, prompts, genes, tmp_path):
    output, options = tmp_path / "answers.parquet", {"answer_format": genes, "part_prompts": 4}
    other = with_other_weights(tiny_model.lm)
    with pytest.raises(KeyboardInterrupt):
        answer_prompts(prompts, StopsAfter(tiny_model.lm, 1), output, **options)
    with pytest.raises(InputError, match=r"unfinished answers.parquet, made with another model; repeat the command"):
        answer_prompts(prompts, StopsAfter(other, 9), output, **options)
    answer_prompts(prompts, StopsAfter(tiny_model.lm, 9), output, **options)
    with pytest.raises(InputError, match=r"answers.parquet was made with another model; pass another output"):
        answer_prompts(prompts, StopsAfter(other, 9), output, **options)


def test_a_folder_whose_weights_change_is_another_model(tiny_model, tiny_model_folder, tmp_path):
    import shutil

    shutil.copytree(tiny_model_folder, tmp_path / "copy")
    there, copy = ModelSource(model=str(tiny_model_folder)), ModelSource(model=str(tmp_path / "copy"))
    assert copy.settings() == there.settings(), "the same content in another place"
    with_other_weights(tiny_model.lm).model.save_pretrained(tmp_path / "copy")
    assert copy.settings() != there.settings()


def test_a_generator_that_does_not_say_what_it_is_is_never_gone_on_with(tmp_path):
    prompts, output = Prompts(ids=("a", "b"), texts=("x", "y")), tmp_path / "answers.parquet"
    answer_prompts(prompts, Echo(), output, answer_format=FreeText())
    first = output.read_bytes()
    with pytest.raises(InputError, match=r"Echo has no settings\(\) that say what decides answers"):
        answer_prompts(prompts, Echo(), output, answer_format=FreeText())
    assert output.read_bytes() == first
    answer_prompts(prompts, Echo(), output, answer_format=FreeText(), overwrite=True)


def test_answers_that_no_file_can_hold_are_kept_without_what_it_cannot(tmp_path):
    class Broken(Echo):
        def generate(self, prompts, answer_format, n_samples=1, seed=0):
            return [["a\0b\ud800"] for _ in prompts]

    answer_prompts(Prompts(ids=("a",), texts=("x",)), Broken(), tmp_path / "a.parquet", answer_format=FreeText())
    assert rows(tmp_path / "a.parquet")[0]["answer"] == "a\ufffdb\ufffd"


class Echo:
    """A plain TextGenerator: its answer tells the prompt and the seed."""

    def generate(self, prompts, answer_format: AnswerFormat, n_samples: int = 1, seed: int = 0) -> list[list[str]]:
        return [[f"{prompt}/{seed}/{i}" for i in range(n_samples)] for prompt in prompts]


def test_a_plain_generator_gets_a_seed_for_each_prompt(tmp_path):
    prompts = Prompts(ids=("a", "b"), texts=("x", "x"))
    output = tmp_path / "answers.parquet"
    answer_prompts(prompts, Echo(), output, answer_format=FreeText(), n_samples=2, seed=5)
    first, second, third, _ = rows(output)
    assert first["answer"].rsplit("/", 1)[0] == second["answer"].rsplit("/", 1)[0] != third["answer"].rsplit("/", 1)[0]
    assert first["log_prob"] is None
    only_b = Prompts(ids=("b",), texts=("x",))
    answer_prompts(only_b, Echo(), tmp_path / "b.parquet", answer_format=FreeText(), n_samples=2, seed=5)
    assert rows(tmp_path / "b.parquet") == rows(output)[2:]
    with pytest.raises(InputError, match="Echo cannot score answers"):
        answer_prompts(prompts, Echo(), tmp_path / "c.parquet", answer_format=LABELS, log_likelihood=True)
    with pytest.raises(InputError, match="pass a ModelSource instead of a generator"):
        answer_prompts(prompts, Echo(), output, answer_format=LABELS, workers=2)


def with_square(part: pa.Table) -> pa.Table:
    numbers = part.column("x").to_numpy()
    return pa.table({"x": numbers, "square": numbers**2})


@pytest.mark.slow
@pytest.mark.filterwarnings(r"ignore:`use_\w+` is deprecated:DeprecationWarning")  # Ray Data warns of its own defaults
def test_ray_data_gives_the_same_rows(tiny_model_folder, prompts, tmp_path):
    pytest.importorskip("ray")
    source = ModelSource(model=str(tiny_model_folder), device="cpu")
    options = {"answer_format": LABELS, "n_samples": 2, "part_prompts": 3, "log_likelihood": True}
    here, there = tmp_path / "here.parquet", tmp_path / "there.parquet"
    answer_prompts(prompts, source, here, **options)
    report = answer_prompts(prompts, source, there, engine="ray", workers=2, **options)
    assert report.n_parts == 4
    for ours, theirs in zip(rows(here), rows(there), strict=True):
        assert {**ours, "log_prob": 0, "log_likelihood": 0} == {**theirs, "log_prob": 0, "log_likelihood": 0}
        assert ours["log_prob"] == pytest.approx(theirs["log_prob"], abs=1e-4)


def test_a_failed_part_leaves_the_others(tmp_path):
    table = pa.table({"x": np.arange(10)})

    def fails_at_six(part: pa.Table) -> pa.Table:
        if 6 in part.column("x").to_pylist():
            raise ValueError("six")
        return with_square(part)

    output = tmp_path / "squares.parquet"
    with pytest.raises(ValueError, match="six"):
        map_parts(fails_at_six, table, output, settings={"a": 1}, part_rows=3)
    assert parquet_parts.n_parts_done(output) == 2
    assert map_parts(with_square, table, output, settings={"a": 1}, part_rows=3).n_parts_found == 2
    assert [row["square"] for row in rows(output)] == [x * x for x in range(10)]
    stored = json.loads(pq.read_schema(output).metadata[b"cytoglot"])
    assert (stored["a"], stored["part_rows"]) == (1, 3)
    with pytest.raises(InputError, match="there are no rows to map"):
        map_parts(with_square, table.slice(0, 0), output, settings={})


def test_settings_of_a_run_that_made_no_part_may_be_corrected(tmp_path):
    table = pa.table({"x": np.arange(3)})

    def refuses(part: pa.Table) -> pa.Table:
        raise InputError("the range is empty")

    with pytest.raises(InputError, match="the range is empty"):
        map_parts(refuses, table, tmp_path / "squares.parquet", settings={"a": 1})
    assert map_parts(with_square, table, tmp_path / "squares.parquet", settings={"a": 2}).n_rows_written == 3


def test_prompts_are_read_from_three_kinds_of_files(tmp_path):
    (tmp_path / "a.txt").write_text("one\ntwo, β\n", encoding="utf-8")
    assert read_prompts(tmp_path / "a.txt") == Prompts(ids=("0", "1"), texts=("one", "two, β"))
    lines = [{"id": 7, "prompt": "one"}, {"id": "x", "prompt": "two\nlines"}]
    (tmp_path / "b.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    assert read_prompts(tmp_path / "b.jsonl") == Prompts(ids=("7", "x"), texts=("one", "two\nlines"))
    pd.DataFrame({"prompt": ["one", "two"], "other": [1, 2]}).to_parquet(tmp_path / "c.parquet")
    assert read_prompts(tmp_path / "c.parquet") == Prompts(ids=("0", "1"), texts=("one", "two"))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", "one\n\ntwo\n", r"1 of 3 prompts are empty, such as that of id '1'"),
        ("a.txt", "", "at least one, found 0"),
        ("a.jsonl", '{"id": "a", "prompt": "x"}\n{"id": "a", "prompt": "y"}', "found 1 repeated, such as 'a'"),
        ("a.jsonl", '{"id": "a", "prompt": "x"}\n{"prompt": "y"}', "rows without an id, such as row 1"),
        ("a.jsonl", '{"id": "a"}', "line 1 of .* must be an object such as"),
        ("a.jsonl", "{", "line 1 of .* is not JSON"),
        ("a.jsonl", '{"prompt": 3}', "prompts must be texts, found 3 in row 0"),
        ("a.csv", "prompt\nx", "must end in .parquet, .jsonl or .txt, found 'a.csv'"),
        ("a.parquet", "no", "cannot be read as .parquet"),
    ],
)
def test_faulty_files_are_named(tmp_path, name, content, message):
    (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(InputError, match=message):
        read_prompts(tmp_path / name)


def test_texts_of_other_encodings(tmp_path):
    (tmp_path / "latin.txt").write_bytes(b"a\xe4\n")
    with pytest.raises(InputError, match=r"latin.txt cannot be read as UTF-8"):
        read_prompts(tmp_path / "latin.txt")
    (tmp_path / "half.jsonl").write_text('{"prompt": "a\\ud800b"}\n', encoding="utf-8")
    with pytest.raises(InputError, match="1 prompts hold half a character"):
        read_prompts(tmp_path / "half.jsonl")
    (tmp_path / "marked.jsonl").write_text('{"prompt": "a\u2028b"}\n', encoding="utf-8-sig")
    assert read_prompts(tmp_path / "marked.jsonl").texts == ("a\u2028b",)


def test_sources_check_themselves():
    with pytest.raises(InputError, match="temperature must be 0"):
        ModelSource(model="m", temperature=float("inf"))
    with pytest.raises(UnknownNameError, match="unknown backend 'vlm'; did you mean 'vllm'"):
        ModelSource(model="x", backend="vlm")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="needs the address of its server"):
        ModelSource(model="x", backend="openai")
    one = ModelSource(model="x")
    assert replace(one, batch_size=3, device="cpu").settings() == one.settings()
    assert replace(one, temperature=0.5).settings() != one.settings()


def test_the_command(tiny_model_folder, prompts, tmp_path, capsys):
    file, output = tmp_path / "prompts.parquet", tmp_path / "answers.parquet"
    pd.DataFrame({"id": prompts.ids, "prompt": prompts.texts}).to_parquet(file)
    arguments = ["answer", str(file), "--model", str(tiny_model_folder), "-o", str(output), "--json"]
    asked = [*arguments, "--format", "distinct_words: 2..4", "--samples", "2", "--chunk-prompts", "5"]
    assert run([*asked, "--dry-run"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["prompts"], told["answers"], told["parts"], told["format"]) == (11, 22, 3, "DistinctWords")
    assert told["prompt_tokens"] > told["longest_prompt_tokens"] > 5
    assert not output.exists()
    assert run(asked) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["answers"], told["parts"], told["parts_from_earlier"]) == (22, 3, 0)
    for row in rows(output):
        words = row["answer"].split(" ")
        assert 2 <= len(set(words)) == len(words) <= 4
    assert run(asked) == 0
    assert json.loads(capsys.readouterr().out)["parts_from_earlier"] == 3
    for extra, message in (
        (["--format", "oneof: A | B"], "unknown answer format 'oneof'"),
        (["--format", "free_text", "--backend", "opnai"], "'opnai' is not one of 'transformers', 'vllm', 'openai'"),
        (["--format", "free_text", "--backend", "openai"], "needs --url, such as"),
        (["--format", "free_text", "--url", "http://x/v1"], "are for --backend openai"),
        (["--format", "free_text", "--engine", "dask"], "'dask' is not one of 'local', 'ray'"),
        (["--format", "free_text", "--seed", "4"], "was made with"),
        (["--format", "free_text", "--model", str(tmp_path / "absent"), "--dry-run"], "absent"),
        (["--format", "free_text", "--backend", "vllm", "--overwrite"], "'vllm', which is not installed"),
    ):
        assert run([*arguments, *extra]) == 2, extra
        assert message in capsys.readouterr().err
