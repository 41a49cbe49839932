"""Prompt and completion in front of a tokenizer: one token per gene everywhere, and a seam that does not move."""

from __future__ import annotations

import pytest

from cytoglot.tasks import CellRecord, tasks

tokenizer_module = pytest.importorskip("cytoglot.lm.tokenizer")

GENES = ("MALAT1", "HLA-DRA", "AC093323.3", "NKX2-1", "Actb")
RECORD = CellRecord(genes=GENES, metadata={"cell_type": "CD14+ Mono", "tissue": "lung"}, cell_id="c")
EXAMPLES = [tasks[n].example(RECORD, template=t.name) for n in tasks for t in tasks[n].templates.templates]


@pytest.fixture(scope="module")
def tokenizer():  # type: ignore[no-untyped-def]
    return tokenizer_module.build_tokenizer(GENES, [e.prompt for e in EXAMPLES])


def test_every_gene_is_one_token_and_the_terminator_another(tokenizer) -> None:  # type: ignore[no-untyped-def]
    genes = set(tokenizer_module.word_token_ids(tokenizer, GENES).tolist())
    for example in EXAMPLES:
        ids = tokenizer(example.prompt + example.completion, add_special_tokens=False)["input_ids"]
        assert sum(token in genes for token in ids) == len(GENES)
        assert tokenizer.convert_ids_to_tokens(ids[-1:]) == ["."]


def test_prompt_and_completion_tokenise_apart_as_they_do_together(tokenizer) -> None:  # type: ignore[no-untyped-def]
    for example in EXAMPLES:
        together = tokenizer(example.prompt + example.completion, add_special_tokens=False)["input_ids"]
        apart = [tokenizer(t, add_special_tokens=False)["input_ids"] for t in (example.prompt, example.completion)]
        assert together == apart[0] + apart[1]
