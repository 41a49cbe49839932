"""Compiled and torch states of a trie of words: the same, step by step; and what holds for every tokenizer."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LogitsProcessorList, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from cytoglot.answer_format import DistinctWords, FreeText, OneOf
from cytoglot.errors import InputError
from cytoglot.lm.constraint.answer_constraint import AllowedSymbols, AnswerConstraint
from cytoglot.lm.constraint.compiled_trie_state import CompiledTrieState
from cytoglot.lm.constraint.constrain import constrain
from cytoglot.lm.constraint.trie_state import TrieState, TrieTensors
from cytoglot.lm.constraint.word_trie import WordTrie, build_trie
from cytoglot.lm.generation.sampling import Sampling, TokenSampler
from cytoglot.lm.model.language_model import LanguageModel
from cytoglot.lm.model.tokenizer import build_tokenizer, encode_completions

GENES = tuple(
    f"{stem}{number}{end}" for stem in ("CD", "TBCE", "AC00", "HLA-D") for number in range(1, 9) for end in ("", ".1")
)


def byte_level(texts: tuple[str, ...], size: int) -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator(
        texts,
        trainers.BpeTrainer(vocab_size=size, special_tokens=["</s>"], initial_alphabet=alphabet, show_progress=False),
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>", clean_up_tokenization_spaces=False)


def unigram(texts: tuple[str, ...], size: int) -> PreTrainedTokenizerFast:
    """SentencePiece's other model, with its ▁ for spaces and one in front of every text."""
    backend = Tokenizer(models.Unigram())
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    backend.decoder = decoders.Metaspace(prepend_scheme="first")
    alphabet = sorted(set("".join(texts)) | set("abcdefghijklmnopqrstuvwxyz0123456789.,-/ "))
    trainer = trainers.UnigramTrainer(
        vocab_size=size,
        special_tokens=["<unk>", "</s>"],
        unk_token="<unk>",
        initial_alphabet=[c.replace(" ", "▁") for c in alphabet],
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="<unk>", eos_token="</s>", clean_up_tokenization_spaces=False
    )


@pytest.fixture(scope="module")
def tokenizers() -> dict[str, PreTrainedTokenizerBase]:
    # Merges are learned from half of the names, so that some are whole, some in pieces.
    texts = tuple(" ".join(GENES[i::8]) + "." for i in range(4)) * 20
    return {
        "hybrid": build_tokenizer(GENES, ["Genes of a cell."], n_subwords=300),
        "byte-level": byte_level(texts, 300),
        "unigram": unigram(texts, 90),
    }


TOKENIZERS = ("hybrid", "byte-level", "unigram")


def torch_state(trie: WordTrie, bounds_b2: np.ndarray, budget_b: np.ndarray) -> TrieState:
    bounds = torch.from_numpy(bounds_b2)
    return TrieState(
        TrieTensors.on(torch.device("cpu"), trie),
        min_words_b=bounds[:, 0],
        max_words_b=bounds[:, 1],
        most_words=int(bounds_b2.max()),
        budget_b=torch.from_numpy(budget_b),
    )


def compiled_state(trie: WordTrie, bounds_b2: np.ndarray, budget_b: np.ndarray) -> CompiledTrieState:
    return CompiledTrieState(trie, min_words_b=bounds_b2[:, 0], max_words_b=bounds_b2[:, 1], budget_b=budget_b)


def spread(allowed: AllowedSymbols, n_symbols: int) -> torch.Tensor:
    """Say the long way what an `AllowedSymbols` says, and check that it says nothing twice."""
    counts_bs = np.zeros((len(allowed.slot_b), n_symbols), dtype=int)
    for row, slot in zip(counts_bs, allowed.slot_b, strict=True):
        if allowed.shows_open_r[slot]:
            row[: allowed.open_rs.shape[1]] += allowed.open_rs[slot]
        np.add.at(row, allowed.few_rc[slot, : allowed.n_few_r[slot]], 1)
    assert counts_bs.max() == 1
    return torch.from_numpy(counts_bs > 0)


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_compiled_and_torch_states_agree_at_every_step(data):
    """Any trie, even of tokens that both begin and continue words; allowed and forbidden tokens; rows that move."""
    spellings = data.draw(
        st.lists(st.lists(st.integers(0, 4), min_size=1, max_size=4).map(tuple), min_size=1, max_size=12, unique=True)
    )
    closing = data.draw(st.sampled_from([(9,), (5, 9), (0, 9), (5, 5, 9)]))
    words = [str(i) for i in range(len(spellings))]
    trie = build_trie(words, [np.array(ids) for ids in spellings], closing=np.array(closing))
    rng = np.random.default_rng(data.draw(st.integers(0, 10**6)))
    n_rows = 6
    bounds_b2 = np.sort(rng.integers(1, len(words) + 1, size=(n_rows, 2)), axis=1)
    budget_b = rng.integers(2, 40, size=n_rows)
    states = [compiled_state(trie, bounds_b2, budget_b), torch_state(trie, bounds_b2, budget_b)]
    for _ in range(25):
        allowed, expected = (state.allowed() for state in states)
        assert torch.equal(allowed, expected)
        assert torch.equal(spread(states[0].allowed_symbols(), trie.n_symbols), expected)
        assert expected.any(dim=1).all()
        assert torch.equal(states[0].is_finished_b, states[1].is_finished_b)
        assert states[0].texts() == states[1].texts()
        assert states[0].word_tokens() == states[1].word_tokens()
        symbols = torch.tensor([int(rng.choice(row.nonzero()[:, 0])) for row in expected])
        symbols[torch.from_numpy(rng.random(len(symbols)) < 0.03)] = int(rng.integers(-1, trie.n_symbols))
        rows = torch.from_numpy(rng.integers(0, len(symbols), size=rng.integers(1, 9)))
        moves = rng.random() < 0.4
        for state in states:
            state.advance(symbols)
            if moves:
                state.select(rows)


def draw_sentences(
    constraint: AnswerConstraint, *, n: int, vocabulary: int, seed: int, scale: float = 5.0
) -> list[list[int]]:
    """Draw answers from random logits; return the tokens of each."""
    generator = torch.Generator().manual_seed(seed)
    state = constraint.start(torch.full((n,), constraint.max_tokens()))
    sampler = TokenSampler(Sampling(seed=seed), [str(row) for row in range(n)], tokens_s=constraint.tokens_s)
    written = []
    while not bool(state.is_finished_b.all()):
        logits = scale * torch.randn((n, vocabulary), generator=generator)
        symbols, _ = sampler.draw(logits, state, with_log_probs=False)
        written.append(constraint.tokens_s[symbols])
        state.advance(symbols)
    return torch.stack(written, dim=1).tolist()


@pytest.mark.parametrize("name", TOKENIZERS)
def test_ten_thousand_sentences_from_random_logits_have_no_invalid_and_no_repeated_word(name, tokenizers):
    """A third of the 10,000 for each tokenizer; judged by the tokenizer's own decoding, not by the state."""
    tokenizer = tokenizers[name]
    constraint = constrain(DistinctWords(words=GENES, min_words=4, max_words=9), tokenizer)
    sentences = draw_sentences(constraint, n=3334, vocabulary=len(tokenizer), seed=1)
    texts = tokenizer.batch_decode(sentences, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    assert all(text.endswith(".") for text in texts)
    chosen = [text.removesuffix(".").split() for text in texts]
    assert sum(word not in GENES for words in chosen for word in words) == 0
    assert sum(len(words) - len(set(words)) for words in chosen) == 0
    assert {len(words) for words in chosen} == set(range(4, 10))
    assert {word for words in chosen for word in words} == set(GENES), "every word can be written"
    ends = {tokens.index(tokenizer.eos_token_id) for tokens in sentences}
    assert max(ends) < constraint.max_tokens()


@pytest.mark.parametrize("name", TOKENIZERS)
def test_a_whole_panel_of_960_genes_can_be_written(name):
    panel = tuple(f"{stem}{number}" for stem in ("CXCL", "IL", "KRT", "COL", "MMP", "TNF") for number in range(160))
    texts = tuple(" ".join(panel[i::16]) for i in range(8))
    tokenizer = {
        "hybrid": lambda: build_tokenizer(panel, ["Genes."], n_subwords=300),
        "byte-level": lambda: byte_level(texts, 400),
        "unigram": lambda: unigram(texts, 200),
    }[name]()
    constraint = constrain(DistinctWords(words=panel, min_words=960, max_words=960), tokenizer)
    (tokens,) = draw_sentences(constraint, n=1, vocabulary=len(tokenizer), seed=2)
    text = tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    assert sorted(text.removesuffix(".").split()) == sorted(panel)


LABELS = (
    "CD4-positive, alpha-beta T cell",
    "CD4-positive, alpha-beta T cell, human",
    "dendritic cell / monocyte",
    "Müller cell",
    "γδ T cell",
    "T細胞",
    "B",
    "B cell",
    "B cell.",
    " ".join(f"very{i % 7}" for i in range(40)),
)


@pytest.mark.parametrize("name", ["hybrid", "byte-level"])
def test_labels_of_any_shape_come_back_as_they_are(name, tokenizers):
    """Commas, slashes, other scripts, 200 tokens, one that begins another; a word vocabulary spells them in bytes."""
    tokenizer = tokenizers[name]
    constraint = constrain(OneOf(options=LABELS), tokenizer)
    assert max(map(len, encode_completions(tokenizer, LABELS))) >= 200
    sentences = draw_sentences(constraint, n=200, vocabulary=len(tokenizer), seed=3, scale=1.0)
    texts = constraint.read(torch.tensor(sentences))
    assert set(texts) == set(LABELS)
    for tokens, text in zip(sentences[:50], texts, strict=False):
        whole = tokens[: tokens.index(tokenizer.eos_token_id)]
        assert whole == encode_completions(tokenizer, [f" {text}."])[0].tolist()


def test_where_nothing_is_forbidden_masked_scores_are_the_scores(tokenizers):
    tokenizer = tokenizers["byte-level"]
    scores = torch.randn(3, len(tokenizer))
    free = constrain(FreeText(max_tokens=9), tokenizer)
    state = free.start(torch.full((3,), 9))
    assert torch.equal(free.mask(scores, state), scores)
    state.advance(torch.tensor([7, free.eos_symbol, 5]))
    masked = free.mask(scores, state)
    assert torch.equal(masked[[0, 2]], scores[[0, 2]])
    assert masked[1].isfinite().nonzero()[:, 0].tolist() == [tokenizer.eos_token_id]
    # Words for every token that there is: at the start nothing is forbidden but the closing (and the unknown).
    spelling = {"</s>": 0, "<unk>": 1, **{f"w{i}": i + 2 for i in range(20)}}
    words_only = Tokenizer(models.WordLevel(spelling, unk_token="<unk>"))
    words_only.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words_only, eos_token="</s>", unk_token="<unk>")
    words = tuple(f"w{i}" for i in range(20))
    constraint = constrain(DistinctWords(words=words, min_words=1, max_words=20), tokenizer, terminator="")
    scores = torch.randn(2, 22)
    state = constraint.start(torch.full((2,), 21))
    assert torch.equal(constraint.mask(scores, state)[:, 2:], scores[:, 2:])
    state.advance(constraint.symbols_of(torch.tensor([4, 9])))
    masked = constraint.mask(scores, state)
    assert (masked == scores).sum(dim=1).tolist() == [20, 20], "all but the word just written, and the unknown"
    assert masked[[0, 1], [4, 9]].isinf().all()


@pytest.mark.parametrize("name", TOKENIZERS)
def test_compiled_and_torch_masks_are_equal(name, tokenizers):
    """float64 scores take the torch road, and so do scores on an accelerator."""
    tokenizer = tokenizers[name]
    constraint = constrain(DistinctWords(words=GENES, min_words=2, max_words=20), tokenizer)
    state = constraint.start(torch.full((40,), constraint.max_tokens()))
    sampler = TokenSampler(Sampling(), [str(i) for i in range(40)], tokens_s=constraint.tokens_s)
    for _ in range(30):
        scores = torch.randn(40, len(tokenizer) + 3)
        masked = constraint.mask(scores, state)
        assert torch.equal(masked.double(), constraint.mask(scores.double(), state))
        state.advance(sampler.draw(scores, state)[0])


def test_masked_scores_keep_their_gradient(tokenizers):
    constraint = constrain(DistinctWords(words=GENES, min_words=1, max_words=2), tokenizers["hybrid"])
    state = constraint.start(torch.tensor([9]))
    scores = torch.zeros((1, len(tokenizers["hybrid"])), requires_grad=True)
    constraint.mask(scores, state).log_softmax(dim=1)[0, constraint.tokens_s[0]].backward()
    n_allowed = int(state.allowed().sum())
    assert scores.grad is not None
    assert scores.grad[0, constraint.tokens_s[0]] == pytest.approx(1 - 1 / n_allowed)
    assert int((scores.grad != 0).sum()) == n_allowed


def test_scores_that_lack_tokens_are_refused(tokenizers):
    constraint = constrain(DistinctWords(words=GENES, min_words=1, max_words=2), tokenizers["hybrid"])
    state = constraint.start(torch.tensor([9]))
    n_tokens = int(constraint.tokens_s.max()) + 1
    with pytest.raises(InputError, match=rf"expected logits of all {n_tokens} tokens, found {n_tokens - 1}; the token"):
        constraint.mask(torch.zeros(1, n_tokens - 1), state)
    assert constraint.mask(torch.zeros(1, n_tokens), state).isfinite().any()


class _FromScratch:
    """A processor by brute force: which tokens go on is looked up in a list of all answers there are."""

    def __init__(self, answers: list[list[int]], prompt_length: int, eos_id: int) -> None:
        self.prompt_length, self.eos_id = prompt_length, eos_id
        self.following: dict[tuple[int, ...], set[int]] = {}
        for tokens in answers:
            for n in range(len(tokens)):
                self.following.setdefault(tuple(tokens[:n]), set()).add(tokens[n])

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        masked = torch.full_like(scores, -torch.inf)
        for row, tokens in enumerate(input_ids[:, self.prompt_length :].tolist()):
            allowed = sorted(self.following.get(tuple(tokens), {self.eos_id}))
            masked[row, allowed] = scores[row, allowed]
        return masked


def beams(
    lm: LanguageModel,
    processor: object,
    n_prompt: int,
    prompts: torch.Tensor,
    *,
    max_new_tokens: int,
    **options: object,
) -> torch.Tensor:
    torch.manual_seed(0)
    ids = lm.model.generate(
        input_ids=prompts,
        attention_mask=torch.ones_like(prompts),
        max_new_tokens=max_new_tokens,
        pad_token_id=lm.pad_id,
        eos_token_id=lm.tokenizer.eos_token_id,
        logits_processor=LogitsProcessorList([processor]),
        num_beams=4,
        num_return_sequences=2,
        **options,
    )
    return ids[:, n_prompt:]


@pytest.mark.parametrize("options", [{"do_sample": False}, {"do_sample": True, "temperature": 3.0}], ids=str)
@pytest.mark.parametrize("which", ["scratch_lm", "hub_like_lm"])
def test_beams_are_those_of_a_brute_force_mask(which, options, request, monkeypatch):
    lm: LanguageModel = request.getfixturevalue(which)
    words = ("ACTB", "CD3D", "CD8A", "CD8", "MT-ND1")
    answer_format = DistinctWords(words=words, min_words=2, max_words=3)
    constraint = constrain(answer_format, lm.tokenizer)
    texts = [f" {a} {b}" for a in words for b in words if a != b]
    texts += [f"{text} {c}" for text in texts for c in words if c not in text.split()]
    answers = [ids.tolist() for ids in encode_completions(lm.tokenizer, [f"{text}." for text in texts], eos=True)]
    prompts = torch.from_numpy(np.stack(encode_completions(lm.tokenizer, ["Genes: GNLY", "Genes: CD8A"])[:1] * 3))
    prompts[1:, 0] += torch.tensor([1, 2])
    n_prompt, budget = prompts.shape[1], constraint.max_tokens()
    started = []
    original = type(constraint).start
    monkeypatch.setattr(type(constraint), "start", lambda *args, **kw: started.append(1) or original(*args, **kw))
    ours = beams(lm, constraint.processor(prompt_length=n_prompt), n_prompt, prompts, max_new_tokens=budget, **options)
    assert len(started) == 1, "no row was read anew, however the beams moved"
    brute = _FromScratch(answers, n_prompt, lm.tokenizer.eos_token_id)
    expected = beams(lm, brute, n_prompt, prompts, max_new_tokens=budget, **options)
    assert torch.equal(ours, expected)
    found = constraint.read(ours)
    assert len(found) == 6
    assert {f" {text}" for text in found} <= set(texts)


@pytest.mark.parametrize("options", [{"do_sample": False}, {"do_sample": True, "temperature": 5.0}], ids=str)
def test_long_beams_stay_valid(options, hub_like_lm):
    lm = hub_like_lm
    constraint = constrain(DistinctWords(words=GENES, min_words=15, max_words=25), lm.tokenizer)
    prompts = torch.arange(10, 26).reshape(4, 4)
    budget = min(constraint.max_tokens(), 200)
    processor = constraint.processor(prompt_length=4, max_new_tokens=budget)
    texts = constraint.read(beams(lm, processor, 4, prompts, max_new_tokens=budget, **options))
    assert None not in texts
    for words in (str(text).split() for text in texts):
        assert set(words) <= set(GENES)
        assert 15 <= len(set(words)) == len(words) <= 25


@pytest.mark.gpu
def test_on_a_gpu_states_and_noise_are_the_same_and_no_step_waits_for_it(tokenizers):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    constraint = constrain(DistinctWords(words=GENES, min_words=3, max_words=9), tokenizers["byte-level"])
    n_vocabulary, names = len(tokenizers["byte-level"]), [str(row) for row in range(50)]
    logits_tbv = 5 * torch.randn((constraint.max_tokens(), 50, n_vocabulary))
    texts = []
    for device in ("cpu", "cuda"):
        state = constraint.start(torch.full((50,), constraint.max_tokens(), device=device))
        sampler = TokenSampler(Sampling(seed=2), names, tokens_s=constraint.tokens_s)
        for step, logits_bv in enumerate(logits_tbv.to(device)):
            # The first step brings tables to the device.
            torch.cuda.set_sync_debug_mode("error" if step else "default")
            try:
                state.advance(sampler.draw(logits_bv, state)[0])
            finally:
                torch.cuda.set_sync_debug_mode("default")
        texts.append(state.texts())
    assert None not in texts[0]
    assert texts[0] == texts[1]
