"""Masks over the next token: what they admit, under our engine and under transformers.generate."""

from __future__ import annotations

import copy
import itertools
import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import LogitsProcessorList, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from cytoglot.answer_format import AnswerFormat, DistinctWords, FreeText, Number, OneOf
from cytoglot.errors import InputError
from cytoglot.lm.constraint.answer_constraint import AnswerConstraint, AnswerState
from cytoglot.lm.constraint.constrain import constrain
from cytoglot.lm.constraint.number import NumberGrammar
from cytoglot.lm.constraint.word_trie import build_trie
from cytoglot.lm.model.language_model import LanguageModel
from cytoglot.lm.model.tokenizer import build_tokenizer, encode_completions

#: Words that begin others, hold the terminator, or share tokens in many ways.
AWKWARD = ("CD3", "CD3D", "CD3D.1", "CD3D.", "TBCE", "TBCE.1", "HLA-DRA", "HLA-DRB1", "A", "AB", "ABC", "B", ".")


def piece_tokenizer(*, lowercase: bool = False) -> PreTrainedTokenizerFast:
    """SentencePiece style: spaces are part of pieces, one is put in front of every text, characters as fallback."""
    characters = sorted(set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.-,: "))
    pieces = ["<unk>", "<s>", "</s>", *(c.replace(" ", "▁") for c in characters)]
    merges = [
        ("▁", "C"),
        ("▁C", "D"),
        ("D", "3"),
        ("▁", "A"),
        ("▁A", "B"),
        ("H", "L"),
        ("HL", "A"),
        ("D", "R"),
        ("▁", "1"),
    ]
    pieces += ["".join(pair) for pair in merges]
    backend = Tokenizer(models.BPE(vocab={p: i for i, p in enumerate(pieces)}, merges=merges, unk_token="<unk>"))
    if lowercase:
        backend.normalizer = normalizers.Lowercase()
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    backend.decoder = decoders.Metaspace(prepend_scheme="first")
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        clean_up_tokenization_spaces=False,
    )


@pytest.fixture(scope="module")
def tokenizers(
    word_tokenizer: PreTrainedTokenizerFast, byte_tokenizer: PreTrainedTokenizerFast
) -> dict[str, PreTrainedTokenizerBase]:
    return {
        "whole words": build_tokenizer([word for word in AWKWARD if word != "."], ["some text"], n_subwords=300),
        "other words": word_tokenizer,
        "bytes": byte_tokenizer,
        "pieces": piece_tokenizer(),
    }


TOKENIZERS = ("whole words", "other words", "bytes", "pieces")


def run(state: AnswerState, tokens: torch.Tensor, choose: np.random.Generator, *, steps: int) -> list[list[int]]:
    """Let a drunkard choose among what is allowed; return the tokens of each row up to end of text."""
    written: list[list[int]] = [[] for _ in state.texts()]
    for _ in range(steps):
        if bool(state.is_finished_b.all()):
            break
        allowed = state.allowed()
        assert allowed.any(dim=1).all()
        symbols = torch.tensor([int(choose.choice(row.nonzero()[:, 0])) for row in allowed])
        for row, symbol, done in zip(written, symbols.tolist(), state.is_finished_b.tolist(), strict=True):
            if not done:
                row.append(int(tokens[symbol]))
        state.advance(symbols)
    return written


def answers_of(constraint: AnswerConstraint, *, n: int, seed: int) -> list[tuple[str, list[int]]]:
    state = constraint.start(torch.full((n,), constraint.max_tokens()))
    written = run(state, constraint.tokens_s, np.random.default_rng(seed), steps=constraint.max_tokens())
    texts = state.texts()
    assert None not in texts, "every row ends within the tokens that the constraint asks for"
    return list(zip(texts, written, strict=True))  # type: ignore[arg-type]


def all_answers(constraint: AnswerConstraint) -> set[str]:
    """Walk every path that the constraint allows."""
    found, paths = set(), [[]]
    while paths:
        longer: list[list[int]] = []
        for path in paths:
            state = constraint.start(torch.tensor([constraint.max_tokens()]))
            for symbol in path:
                state.advance(torch.tensor([symbol]))
            if bool(state.is_finished_b):
                found.add(str(state.texts()[0]))
            else:
                longer += [[*path, int(symbol)] for symbol in state.allowed()[0].nonzero()[:, 0]]
        paths = longer
    return found


def spelled(tokenizer: PreTrainedTokenizerBase, tokens: list[int]) -> str:
    """Return what tokens add after a letter."""
    anchor = encode_completions(tokenizer, ["a"])[0].tolist()
    options = {"skip_special_tokens": True, "clean_up_tokenization_spaces": False}
    return tokenizer.decode([*anchor, *tokens], **options)[len(tokenizer.decode(anchor, **options)) :]


@pytest.mark.parametrize("name", TOKENIZERS)
def test_words_are_distinct_known_and_as_many_as_asked(name, tokenizers):
    tokenizer = tokenizers[name]
    words = AWKWARD[:-1]
    answer_format = DistinctWords(words=words, min_words=2, max_words=5)
    lengths = set()
    for text, tokens in answers_of(constrain(answer_format, tokenizer), n=200, seed=1):
        chosen = text.split(" ")
        assert set(chosen) <= set(words)
        assert len(set(chosen)) == len(chosen)
        lengths.add(len(chosen))
        assert spelled(tokenizer, tokens) == f" {text}."
        assert tokens[-1] == tokenizer.eos_token_id
    assert lengths == {2, 3, 4, 5}


@pytest.mark.parametrize("name", TOKENIZERS)
def test_every_arrangement_of_words_that_begin_each_other_can_be_written(name, tokenizers):
    words = ("CD3", "CD3D", "CD3D.1", "TBCE")
    constraint = constrain(DistinctWords(words=words, min_words=1, max_words=3), tokenizers[name])
    expected = {" ".join(some) for n in (1, 2, 3) for some in itertools.permutations(words, n)}
    assert all_answers(constraint) == expected


@pytest.mark.parametrize("name", TOKENIZERS)
def test_using_all_words_never_ends_in_a_blind_alley(name, tokenizers):
    words = AWKWARD[:-1]
    constraint = constrain(DistinctWords(words=words, min_words=len(words), max_words=len(words)), tokenizers[name])
    for text, _ in answers_of(constraint, n=100, seed=2):
        assert sorted(text.split(" ")) == sorted(words)


@pytest.mark.parametrize("name", TOKENIZERS)
def test_words_are_spelled_as_the_tokenizer_spells_them(name, tokenizers):
    tokenizer = tokenizers[name]
    constraint = constrain(DistinctWords(words=("HLA-DRA", "TBCE"), min_words=2, max_words=2), tokenizer)
    spellings = {tuple(tokens) for _, tokens in answers_of(constraint, n=30, seed=3)}
    expected = encode_completions(tokenizer, [" HLA-DRA TBCE.", " TBCE HLA-DRA."], eos=True)
    assert spellings == {tuple(ids.tolist()) for ids in expected}


@pytest.mark.parametrize("terminator", ["", ".", " |", ".."])
def test_the_terminator_stands_behind_the_last_word(terminator, tokenizers):
    for tokenizer in (tokenizers["whole words"], tokenizers["bytes"]):
        constraint = constrain(
            DistinctWords(words=("CD3", "CD3D", "CD3D."), min_words=1, max_words=2), tokenizer, terminator=terminator
        )
        for text, tokens in answers_of(constraint, n=50, seed=4):
            assert spelled(tokenizer, tokens) == f" {text}{terminator}"


@pytest.mark.parametrize("name", TOKENIZERS)
def test_options_that_begin_each_other_can_all_be_chosen(name, tokenizers):
    options = ("CD4 T", "CD4 T naive", "CD4 T. Naive", "NK", "NK.", "B cell, plasma")
    constraint = constrain(OneOf(options=options), tokenizers[name])
    assert all_answers(constraint) == set(options)
    for text, tokens in answers_of(constraint, n=20, seed=5):
        assert tokens == encode_completions(tokenizers[name], [f" {text}."], eos=True)[0].tolist()


@settings(max_examples=60, deadline=None)
@given(
    words=st.lists(st.text(alphabet="AB1.-", min_size=1, max_size=4), min_size=1, max_size=8, unique=True),
    bounds=st.tuples(st.integers(1, 8), st.integers(1, 8)),
    seed=st.integers(0, 1000),
)
def test_any_words_in_pieces(words, bounds, seed):
    few, many = sorted(min(bound, len(words)) for bound in bounds)
    tokenizer = piece_tokenizer()
    constraint = constrain(DistinctWords(words=tuple(words), min_words=few, max_words=many), tokenizer)
    for text, tokens in answers_of(constraint, n=5, seed=seed):
        chosen = text.split(" ")
        assert len(set(chosen)) == len(chosen)
        assert set(chosen) <= set(words)
        assert few <= len(chosen) <= many
        assert spelled(tokenizer, tokens) == f" {text}."
        assert constraint.read(torch.tensor([tokens])) == [text]


def test_rows_may_differ_in_how_many_words_they_want(tokenizers):
    constraint = constrain(DistinctWords(words=AWKWARD[:-1], min_words=1, max_words=12), tokenizers["bytes"])
    bounds = torch.tensor([[1, 1], [3, 3], [12, 12], [2, 4]])
    state = constraint.start(torch.full((4,), constraint.max_tokens()), bounds_b2=bounds)
    run(state, constraint.tokens_s, np.random.default_rng(6), steps=constraint.max_tokens())
    lengths = [len(str(text).split(" ")) for text in state.texts()]
    assert lengths[:3] == [1, 3, 12]
    assert 2 <= lengths[3] <= 4


def test_a_short_budget_ends_answers_early_but_not_before_the_fewest_words(tokenizers):
    constraint = constrain(DistinctWords(words=AWKWARD[:-1], min_words=2, max_words=12), tokenizers["bytes"])
    budget = constraint.enough_tokens()
    state = constraint.start(torch.full((200,), budget))
    written = run(state, constraint.tokens_s, np.random.default_rng(7), steps=budget)
    texts = state.texts()
    assert None not in texts
    assert max(map(len, written)) <= budget
    assert min(len(str(text).split(" ")) for text in texts) == 2
    assert budget == constraint.enough_tokens(2) < constraint.max_tokens()


@pytest.mark.parametrize("name", TOKENIZERS)
@pytest.mark.parametrize(("low", "high"), [(0, 1), (-3.5, 12), (0.25, 0.25), (-2, -1), (98, 104)])
def test_numbers_lie_in_their_range_and_are_plainly_written(name, low, high, tokenizers):
    tokenizer = tokenizers[name]
    constraint = constrain(Number(low=low, high=high), tokenizer)
    for text, tokens in answers_of(constraint, n=60, seed=8):
        assert low <= float(text) <= high
        assert re.fullmatch(r"-?(0|[1-9]\d*)(\.\d{1,6})?", text)
        assert spelled(tokenizer, tokens) == f" {text}."


@pytest.mark.parametrize(("low", "high"), [(-3.2, 12.5), (0, 1), (-5, -2), (0.25, 0.3), (7, 7), (95, 105), (0, 0)])
def test_the_grammar_of_numbers_is_that_of_a_list_of_all_of_them(low, high):
    def write(tenths: int) -> list[str]:
        sign, whole, decimal = "-" * (tenths < 0), abs(tenths) // 10, abs(tenths) % 10
        return [f" {sign}{whole}.{decimal}."] + [f" {sign}{whole}."] * (decimal == 0)

    texts = {text for tenths in range(-200, 1200) if low <= tenths / 10 <= high for text in write(tenths)}
    grammar = NumberGrammar(low, high, terminator=".", decimals=1)
    front, begun = [""], {""}
    while front:
        front = [text + c for text in front for c in " -.0123456789" if grammar.begins(text + c)]
        begun |= set(front)
    assert {text for text in begun if grammar.completes(text)} == texts
    assert begun == {text[:n] for text in texts for n in range(len(text) + 1)}
    assert max(map(len, texts)) <= grammar.longest


def test_free_text_is_only_limited_in_length(tokenizers):
    tokenizer = tokenizers["bytes"]
    constraint = constrain(FreeText(max_tokens=5), tokenizer)
    state = constraint.start(torch.tensor([9, 9, 3]))
    assert state.allowed().all()
    hello, end = encode_completions(tokenizer, [" hello"])[0].tolist(), tokenizer.eos_token_id
    rows = [[*hello, end][:5], [hello[0]] * 5, [hello[0]] * 5]
    for tokens in itertools.zip_longest(*rows, fillvalue=end):
        state.advance(constraint.symbols_of(torch.tensor(tokens)))
    assert state.is_finished_b.all()
    assert state.texts()[2] == tokenizer.decode([hello[0]] * 3).strip()
    assert state.allowed().sum(dim=1).tolist() == [1, 1, 1]


def test_read_says_none_of_what_is_no_answer(tokenizers):
    tokenizer = tokenizers["whole words"]
    constraint = constrain(DistinctWords(words=("CD3", "TBCE", "A"), min_words=2, max_words=3), tokenizer)
    texts = [" CD3 A.", " CD3 CD3.", " CD3.", " CD3 B.", " CD3 A", " CD3 A TBCE."]
    rows = [ids.tolist() for ids in encode_completions(tokenizer, texts, eos=True)]
    width = max(map(len, rows))
    padded = torch.tensor([row + [tokenizer.pad_token_id] * (width - len(row)) for row in rows])
    assert constraint.read(padded) == ["CD3 A", None, None, None, None, "CD3 A TBCE"]
    number = constrain(Number(low=0, high=10), tokenizer)
    rows = [ids.tolist() for ids in encode_completions(tokenizer, [" 7.", " 11.", " 7"], eos=True)]
    assert [number.read(torch.tensor([row]))[0] for row in rows] == ["7", None, None]


def test_selected_rows_go_on_as_before(tokenizers):
    for answer_format in (
        DistinctWords(words=AWKWARD[:-1], min_words=3, max_words=6),
        Number(low=-5, high=500),
        FreeText(max_tokens=20),
    ):
        constraint = constrain(answer_format, tokenizers["bytes"])
        one, other = (constraint.start(torch.full((4,), constraint.max_tokens())) for _ in range(2))
        run(one, constraint.tokens_s, np.random.default_rng(9), steps=4)
        run(other, constraint.tokens_s, np.random.default_rng(9), steps=4)
        one.select(torch.tensor([3, 1]))
        assert torch.equal(one.allowed(), other.allowed()[[3, 1]])


FORMATS: tuple[AnswerFormat, ...] = (
    DistinctWords(words=AWKWARD[:-1], min_words=3, max_words=8),
    OneOf(options=("CD4 T", "CD4 T naive", "NK", "B cell")),
    Number(low=-1, high=20.5),
    FreeText(max_tokens=7),
)


@pytest.mark.parametrize("answer_format", FORMATS, ids=lambda one: type(one).__name__)
@pytest.mark.parametrize("options", [{}, {"do_sample": True, "temperature": 5.0}, {"num_beams": 3}], ids=str)
@pytest.mark.parametrize("which", ["scratch_lm", "hub_like_lm"])
def test_answers_of_transformers_generate_are_valid(which, answer_format, options, prompts, request):
    lm: LanguageModel = request.getfixturevalue(which)
    constraint = constrain(answer_format, lm.tokenizer)
    tokenizer = copy.deepcopy(lm.tokenizer)  # the fixture is shared
    tokenizer.padding_side = "left"
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    inputs = tokenizer(list(prompts[:3]), return_tensors="pt", padding=True)
    inputs.pop("token_type_ids", None)
    n_prompt = inputs["input_ids"].shape[1]
    torch.manual_seed(0)
    ids = lm.model.generate(
        **inputs,
        **{"do_sample": False, **options},
        max_new_tokens=constraint.max_tokens(),
        pad_token_id=lm.pad_id,
        eos_token_id=lm.tokenizer.eos_token_id,
        logits_processor=LogitsProcessorList([constraint.processor(prompt_length=n_prompt)]),
    )
    texts = constraint.read(ids[:, n_prompt:])
    assert None not in texts
    for text in map(str, texts):
        match answer_format:
            case DistinctWords(words=words):
                assert 3 <= len(set(text.split(" "))) == len(text.split(" ")) <= 8
                assert set(text.split(" ")) <= set(words)
            case OneOf(options=known):
                assert text in known
            case Number(low=low, high=high):
                assert low <= float(text) <= high


def test_a_processor_leaves_scores_alone_and_can_serve_again(tokenizers):
    tokenizer = tokenizers["whole words"]
    constraint = constrain(DistinctWords(words=("CD3", "TBCE", "A"), min_words=1, max_words=2), tokenizer)
    processor = constraint.processor(prompt_length=2)
    prompt = torch.zeros((1, 2), dtype=torch.int64)
    scores = torch.zeros((1, len(tokenizer)))

    def allowed(text: str) -> set[str]:
        ids = torch.from_numpy(encode_completions(tokenizer, [text])[0]) if text else torch.empty(0, dtype=torch.int64)
        masked = processor(torch.cat([prompt, ids[None]], dim=1), scores)
        return set(tokenizer.convert_ids_to_tokens((masked[0] == 0).nonzero()[:, 0].tolist()))

    assert allowed("") == {"ĠCD3", "ĠTBCE", "ĠA"}
    assert allowed(" CD3") == {"ĠTBCE", "ĠA", "."}
    assert allowed(" CD3.") == {"<eos>"}
    assert allowed(" A TBCE") == {"."}, "other tokens than before: read anew"
    assert allowed("") == {"ĠCD3", "ĠTBCE", "ĠA"}
    assert (scores == 0).all()


def test_tries_are_built_once(tokenizers):
    words = tuple(f"G{i}" for i in range(50))
    one = constrain(DistinctWords(words=words, min_words=1, max_words=2), tokenizers["bytes"])
    other = constrain(DistinctWords(words=words, min_words=3, max_words=9), tokenizers["bytes"])
    assert one.tokens_s is other.tokens_s


def test_bad_input_is_refused(tokenizers):
    two = DistinctWords(words=("A", "a"), min_words=1, max_words=1)
    with pytest.raises(InputError, match=r"cannot tell 'A' from 'a': both are tokens \["):
        constrain(two, piece_tokenizer(lowercase=True))
    with pytest.raises(InputError, match=r"found 1 of 2 that the tokenizer drops or does not know, such as 'é'"):
        constrain(DistinctWords(words=("A", "é"), min_words=1, max_words=1), tokenizers["pieces"])
    for low, high in ((1, 0), (float("nan"), 1), (0, float("inf"))):
        with pytest.raises(InputError, match="finite bounds with low <= high, found low="):
            constrain(Number(low=low, high=high), tokenizers["bytes"])
    with pytest.raises(InputError, match=r"no number of at most 6 decimals lies between 1e-09 and 2e-09"):
        constrain(Number(low=1e-9, high=2e-9), tokenizers["bytes"])
    with pytest.raises(InputError, match="max_tokens must be at least 1, found 0"):
        constrain(FreeText(max_tokens=0), tokenizers["bytes"])
    words_only = Tokenizer(models.WordLevel({"<unk>": 0, "A": 1, "</s>": 2}, unk_token="<unk>"))
    bare = PreTrainedTokenizerFast(tokenizer_object=words_only, unk_token="<unk>")
    with pytest.raises(InputError, match="no end-of-text token, which ends an answer"):
        constrain(OneOf(options=("A",)), bare)
    bare.eos_token = "</s>"
    with pytest.raises(InputError, match=r"cannot write any number: it has no token for \['-', '\.', '0'"):
        constrain(Number(low=0, high=1), bare)
    with pytest.raises(InputError, match=r"drops or does not know"):
        build_trie(("x",), [np.empty(0, dtype=np.int64)], closing=np.array([0]))
