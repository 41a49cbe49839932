"""The methods of a language model, and its old names."""

from __future__ import annotations

import pytest

import cytoglot as cg
from cytoglot.answer_format import DistinctWords, FreeText, Number, OneOf
from cytoglot.errors import InputError
from cytoglot.lm.backends.causal_lm import CausalLm
from cytoglot.lm.model.language_model import LanguageModel

PROMPTS = ["Cell sentence: ACTB B2M.", "Cell sentence: NKG7."]


def test_it_is_what_load_model_gives(scratch_lm: LanguageModel, tmp_path) -> None:
    scratch_lm.save(tmp_path / "m")
    lm = cg.load_model(tmp_path / "m", device="cpu")
    assert type(lm) is cg.LanguageModel
    assert lm.embed(PROMPTS).shape[0] == lm.log_likelihood(PROMPTS, ["B cell"]).shape[0] == 2


def test_what_a_cell_model_has_names_the_function_that_loads_one(scratch_lm: LanguageModel) -> None:
    with pytest.raises(AttributeError, match=r"no attribute 'spec'; cytoglot\.load_cell_model loads a folder"):
        scratch_lm.spec
    with pytest.raises(AttributeError, match=r"no attribute 'sepc'$"):
        scratch_lm.sepc
    assert not hasattr(scratch_lm, "labels")


def test_formats_are_taken_by_position_and_as_text(scratch_lm: LanguageModel) -> None:
    for given, text in (
        (OneOf(["B cell", "T cell"]), "one_of: B cell | T cell"),
        (Number(0, 1), "number: 0..1"),
        (FreeText(4), "free_text: 4"),
    ):
        assert scratch_lm.generate(PROMPTS, given, seed=3) == scratch_lm.generate(PROMPTS, text, seed=3)
    assert DistinctWords(["A", "B"], 1, 2) == DistinctWords(words=("A", "B"), min_words=1, max_words=2)
    with pytest.raises(ValueError, match="options must be a list of texts, found the text 'B cell'"):
        OneOf("B cell")
    with pytest.raises(InputError, match="expected a list of prompts, found one text of 24 characters"):
        scratch_lm.generate(PROMPTS[0])


def test_temperature_0_always_gives_the_likeliest(scratch_lm: LanguageModel) -> None:
    likeliest = scratch_lm.generate(PROMPTS, "one_of: B cell | T cell", 5, temperature=0)
    assert all(len(set(samples)) == 1 for samples in likeliest)
    drawn = scratch_lm.generate(PROMPTS, "free_text: 8", 5, seed=1)
    assert any(len(set(samples)) > 1 for samples in drawn)


def test_old_names_work_with_a_warning(scratch_lm: LanguageModel) -> None:
    with pytest.warns(FutureWarning, match="CausalLm is LanguageModel now"):
        old = CausalLm(lm=scratch_lm, temperature=0.5)
    assert old.temperature == 0.5
    with pytest.warns(FutureWarning, match="leave out .lm"):
        assert old.lm is old


def test_it_prints_one_line(scratch_lm: LanguageModel) -> None:
    assert repr(scratch_lm).startswith("<LanguageModel: LlamaForCausalLM, 0.")
    assert "\n" not in repr(scratch_lm)
