"""Text → token ids: the hybrid tokenizer of from-scratch models, and the one place that decides about special tokens.

Who adds what: `encode_prompts` puts in front of a prompt what the tokenizer itself puts there when called plainly
(`<bos>` for our own tokenizer, Gemma and Llama; nothing for GPT-NeoX and GPT-2) and never anything after it.
`encode_completions` adds nothing in front and, when asked, `eos` after. Everything else in the package calls these.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from cytoglot.errors import InputError

BOS, EOS, PAD = "<bos>", "<eos>", "<pad>"
N_BYTES = 256
_PLAIN: dict[str, Any] = {
    "add_special_tokens": False,
    "split_special_tokens": True,
    "return_attention_mask": False,
    "return_token_type_ids": False,
    "verbose": False,
}


def build_tokenizer(
    words: Sequence[str],
    texts: Iterable[str],
    *,
    n_subwords: int = 768,
    context_length: int | None = None,
) -> PreTrainedTokenizerFast:
    """Make a tokenizer in which every word, preceded by a space, is one token and all other text is byte-level BPE.

    The words keep their order and have consecutive ids at the end of the vocabulary (see `word_token_ids`). A word
    is read whole only after a space: at the start of a line it falls to byte-level pieces, as does every unknown
    word. A full stop or other punctuation after a word is a token of its own, even though words may hold full stops,
    hyphens and so on inside (`AC093323.3`, `HLA-DRA`). Any text comes back exactly from
    `decode(encode(text), skip_special_tokens=True)`. Called plainly, the tokenizer adds `<bos>` in front, as Llama's
    and Gemma's do, and nothing after; special tokens spelled out in a text are read as special only by plain
    calls, not by `encode_prompts`.

    Parameters
    ----------
    words
        Distinct, non-empty, without white space; may be empty.
    texts
        What byte-level BPE learns its merges from: prompts and answers. Words in it are left out before training, so
        whole cell sentences do no harm.
    n_subwords
        Upper bound for the number of tokens that are neither words nor special; at least 256, one for each byte.
    context_length
        Stored as `model_max_length`.

    Raises
    ------
    InputError
        Words are empty, repeated or hold white space, or `n_subwords` is below 256.
    """
    _check_words(words, n_subwords)
    splitter, known = _splitter(words), set(words)
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = splitter
    trained.train_from_iterator(
        (" ".join(part for part in text.split(" ") if part.rstrip(".,;:") not in known) for text in texts),
        trainers.BpeTrainer(
            vocab_size=n_subwords, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
        ),
    )
    learned = json.loads(trained.to_str())["model"]
    to_characters = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str
    spelled = [to_characters(" " + word)[0][0] for word in words]
    taken = set(spelled)
    subwords = [piece for piece in sorted(learned["vocab"], key=learned["vocab"].get) if piece not in taken]
    vocabulary = {piece: i for i, piece in enumerate([BOS, EOS, PAD, *subwords, *spelled])}
    merges = [(left, right) for left, right in learned["merges"]]
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, ignore_merges=True))
    backend.pre_tokenizer = splitter
    backend.decoder = decoders.ByteLevel()
    options = {} if context_length is None else {"model_max_length": context_length}
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        add_bos_token=True,
        clean_up_tokenization_spaces=False,
        **options,
    )


def word_token_ids(tokenizer: PreTrainedTokenizerBase, words: Sequence[str]) -> NDArray[np.int64]:
    """Return the token id of each word as it stands after a space, shape (n_words,).

    Raises
    ------
    InputError
        Some words are more than one token in this tokenizer.
    """
    encoded = encode_completions(tokenizer, [" " + word for word in words])
    split = [word for word, ids in zip(words, encoded, strict=True) if len(ids) != 1]
    if split:
        raise InputError(
            f"expected every word to be one token, found {len(split)} of {len(words)} that are several, such as "
            f"{split[0]!r}; use a tokenizer built with these words"
        )
    return np.array([ids[0] for ids in encoded], dtype=np.int64)


def encode_prompts(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[NDArray[np.int64]]:
    """Return the token ids of each prompt, with the tokenizer's own opening tokens in front and nothing after.

    Special tokens spelled out in a text (a tissue named `<eos>`) are read as ordinary characters.
    """
    opening = opening_ids(tokenizer)
    return [np.concatenate([opening, ids]) for ids in _encode_plain(tokenizer, texts)]


def encode_prompts_with_offsets(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]
) -> tuple[list[NDArray[np.int64]], list[NDArray[np.int64]]]:
    """Return the token ids of `encode_prompts` and of each token the characters (first, after the last), shape (t, 2).

    The opening tokens are of no character: (0, 0).

    Raises
    ------
    InputError
        The tokenizer is one of the slow ones, which do not know where in the text a token stands.
    """
    if not tokenizer.is_fast:
        raise InputError(
            f"expected a tokenizer that knows the places of its tokens in the text, found {type(tokenizer).__name__}; "
            "save it as a fast tokenizer (tokenizer.json)"
        )
    if len(texts) == 0:
        return [], []
    opening = opening_ids(tokenizer)
    found = tokenizer(list(texts), return_offsets_mapping=True, **_PLAIN)
    rows = [np.concatenate([opening, np.array(ids, dtype=np.int64)]) for ids in found["input_ids"]]
    before = np.zeros((len(opening), 2), dtype=np.int64)
    places = [np.array(offsets, dtype=np.int64).reshape(-1, 2) for offsets in found["offset_mapping"]]
    return rows, [np.concatenate([before, offsets_t2]) for offsets_t2 in places]


def encode_completions(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], *, eos: bool = False
) -> list[NDArray[np.int64]]:
    """Return the token ids of texts that continue a prompt; `eos` ends each with the end-of-text token.

    A completion starts with a space of its own. Tokenizers that put a space in front of every text (Llama 2) get it
    without that space, so that it stands there once.

    Raises
    ------
    InputError
        `eos` is asked of a tokenizer that has no end-of-text token.
    """
    first = tokenizer.convert_ids_to_tokens(_encode_plain(tokenizer, ["a"])[0].tolist())[0]
    if first.startswith(("▁", "Ġ")):
        texts = [text.removeprefix(" ") for text in texts]
    encoded = _encode_plain(tokenizer, texts)
    if not eos:
        return encoded
    if tokenizer.eos_token_id is None:
        raise InputError("the tokenizer has no end-of-text token; set tokenizer.eos_token or pass a terminator text")
    return [np.append(ids, np.int64(tokenizer.eos_token_id)) for ids in encoded]


def encode_pairs(
    tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], completions: Sequence[str], *, eos: bool = True
) -> list[tuple[NDArray[np.int64], int]]:
    """Return for each prompt with its completion the ids of both, and the number that belong to the prompt.

    Both are encoded apart and joined, so that training, scoring and generation see the same boundary whatever the
    tokenizer would have merged across it.
    """
    encoded = zip(encode_prompts(tokenizer, prompts), encode_completions(tokenizer, completions, eos=eos), strict=True)
    return [(np.concatenate([prompt, completion]), len(prompt)) for prompt, completion in encoded]


def encode_pair(
    tokenizer: PreTrainedTokenizerBase, prompt: str, completion: str, *, eos: bool = True
) -> tuple[NDArray[np.int64], int]:
    """Return `encode_pairs` of one prompt and completion."""
    return encode_pairs(tokenizer, [prompt], [completion], eos=eos)[0]


def plain_ids(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[list[int]]:
    """Return the token ids of texts, to which nothing is added, as a call of the tokenizer gives them."""
    return tokenizer(texts, **_PLAIN)["input_ids"]


def opening_ids(tokenizer: PreTrainedTokenizerBase) -> NDArray[np.int64]:
    """Return the special tokens that the tokenizer puts in front of a text when called plainly (often `<bos>`)."""
    bare = _encode_plain(tokenizer, ["a"])[0].tolist()
    dressed: list[int] = tokenizer("a", add_special_tokens=True)["input_ids"]
    for start in range(len(dressed) - len(bare) + 1):
        if dressed[start : start + len(bare)] == bare:
            return np.array(dressed[:start], dtype=np.int64)
    return np.empty(0, dtype=np.int64)


def padding_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return an id to fill up short rows with: the pad token, else the end-of-text token, else 0."""
    for token_id in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if token_id is not None:
            return int(token_id)
    return 0


def _encode_plain(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[NDArray[np.int64]]:
    if isinstance(texts, str):
        raise InputError(f"expected a list of texts, found one text of {len(texts)} characters; pass [text]")
    if len(texts) == 0:
        return []
    is_plain = isinstance(tokenizer, PreTrainedTokenizerFast)
    if not is_plain or type(tokenizer)._encode_plus is not PreTrainedTokenizerFast._encode_plus:
        return [np.array(ids, dtype=np.int64) for ids in plain_ids(tokenizer, list(texts))]
    # A plain call takes three times as long, since it turns every encoding into lists of all kinds. Settings are left
    # as it leaves them.
    backend = tokenizer.backend_tokenizer
    if backend.truncation is not None:
        backend.no_truncation()
    if backend.padding is not None:
        backend.no_padding()
    if not backend.encode_special_tokens:
        backend.encode_special_tokens = True
    encodings = backend.encode_batch_fast(list(texts), add_special_tokens=False)
    return [np.array(encoding.ids, dtype=np.int64) for encoding in encodings]


def _check_words(words: Sequence[str], n_subwords: int) -> None:
    if n_subwords < N_BYTES:
        raise InputError(f"n_subwords must be at least {N_BYTES}, one for each byte, found {n_subwords}")
    faulty = [word for word in words if not word or re.search(r"\s", word)]
    if faulty:
        raise InputError(
            f"words must be non-empty and free of white space, found {len(faulty)} others, such as {faulty[0]!r}"
        )
    if len(set(words)) != len(words):
        repeated = Counter(words).most_common(1)[0][0]
        raise InputError(f"words must be distinct, found {repeated!r} more than once; drop the repeated ones")


def _splitter(words: Sequence[str]) -> pre_tokenizers.PreTokenizer:
    """Cut text into pieces: a word with its space, a run of punctuation, white space.

    Inside a piece, single characters that occur inside `words` (and always `.`, `-`, `_`) join letters and digits.
    The few words of another shape (`TRB@`) get a pattern of their own, which ends where no letter or digit follows.
    """
    joints = sorted({"-", ".", "_"} | {c for word in words for c in word[1:-1] if not c.isalnum()})
    word = rf"[\p{{L}}\p{{N}}]+(?:[{''.join(map(re.escape, joints))}][\p{{L}}\p{{N}}]+)*"

    def pieces(odd: str) -> pre_tokenizers.PreTokenizer:
        pattern = Regex(rf"{odd} ?{word}| ?[^\s\p{{L}}\p{{N}}]+|\s+(?!\S)|\s+")
        split = pre_tokenizers.Split(pattern, behavior="isolated")
        return pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])

    usual = pieces("")
    odd = [word for word in words if len(usual.pre_tokenize_str(" " + word)) > 1]
    if not odd:
        return usual
    alternatives = "|".join(map(re.escape, sorted(odd, key=len, reverse=True)))
    return pieces(rf" (?:{alternatives})(?![\p{{L}}\p{{N}}])|")
