"""Prompt and completion in front of a tokenizer: one token per gene everywhere, and a seam that does not move."""

from __future__ import annotations

import pytest
from task_records import SYMBOLS, record_for

from cytoglot.tasks import tasks

tokenizer_module = pytest.importorskip("cytoglot.lm.model.tokenizer")

EXAMPLES = [
    tasks[n].example(record_for(tasks[n]), template=t.name) for n in tasks for t in tasks[n].templates.templates
]


@pytest.fixture(scope="module")
def tokenizer():  # type: ignore[no-untyped-def]
    return tokenizer_module.build_tokenizer(SYMBOLS, [e.prompt for e in EXAMPLES])


def test_every_gene_is_one_token_and_the_terminator_another(tokenizer) -> None:  # type: ignore[no-untyped-def]
    genes = set(tokenizer_module.word_token_ids(tokenizer, SYMBOLS).tolist())
    for example in EXAMPLES:
        ids = tokenizer(example.prompt + example.completion, add_special_tokens=False)["input_ids"]
        text = example.prompt + example.completion
        assert sum(token in genes for token in ids) == sum(text.count(" " + symbol) for symbol in SYMBOLS)
        assert tokenizer.convert_ids_to_tokens(ids[-1:]) == ["."]


def test_prompt_and_completion_tokenize_apart_as_they_do_together(tokenizer) -> None:  # type: ignore[no-untyped-def]
    for example in EXAMPLES:
        together = tokenizer(example.prompt + example.completion, add_special_tokens=False)["input_ids"]
        apart = [tokenizer(t, add_special_tokens=False)["input_ids"] for t in (example.prompt, example.completion)]
        assert together == apart[0] + apart[1]
