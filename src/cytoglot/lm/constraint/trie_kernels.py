"""Compiled steps through a trie of words: what a row may take next, and what changes when it has taken a symbol.

What many symbols share is kept from step to step: which words may still begin is a mask that changes by a symbol or
two where a word is used, and inside a word only the few children of a node count. So a step costs what it changes.

Rows of a batch live in slots (r); the axes are those of `word_trie`.
"""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from typing import NamedTuple

import numba
import numpy as np
from numpy.typing import NDArray

# `Slots.at` is one int32 table, not a field for each number, because a kernel then takes one array for it, and a slot
# is copied (`_become`) by copying its first columns. So the order counts: the columns before MAY_CLOSE are state and
# are copied; those from MAY_CLOSE on follow from the state and from the slot's own masks (`_say_next`, `_count`), and
# to copy them would be wrong where the masks differ.
#: Columns of `Slots.at`: node of the trie; its first symbol's node; closing tokens taken; the word before the closing;
#: words used; symbols taken; and the bounds that the row was started with.
NODE, FIRST_NODE, N_CLOSED, LAST_WORD, N_WORDS, N_STEPS, MIN_WORDS, MAX_WORDS, BUDGET = range(9)
#: The columns that differ from a copy of another slot; whether a row's word may be the last, or be followed by one.
MAY_CLOSE, MAY_GO_ON = 9, 10
#: A symbol that may begin words, but not now; else -1. How many symbols may begin words, that one left out.
HIDDEN, N_OPEN = 11, 12
N_COLUMNS = 13

_options = {"cache": True, "nogil": True, "error_model": "numpy"}


class TrieArrays(NamedTuple):
    """The arrays of a `WordTrie`; not to be written to."""

    parent_k: NDArray[np.int32]
    word_k: NDArray[np.int32]
    """Index of the word that ends at a node, else -1."""
    first_child_k: NDArray[np.int32]
    n_children_k: NDArray[np.int32]
    symbol_k: NDArray[np.int32]
    """Symbol that leads to a node from its parent, ascending among siblings; -1 for the root and the sink."""
    end_w: NDArray[np.int32]
    """Node at which each word ends."""
    closing_c: NDArray[np.int32]
    """Symbols that follow the last word: the terminator's, then end of text."""
    n_first: int
    """Number of symbols that can begin a word."""
    depth: int
    """Tokens of the longest word."""


class Slots(NamedTuple):
    """The state of each row."""

    at: NDArray[np.int32]
    """(r, N_COLUMNS)."""
    unused_rk: NDArray[np.int32]
    """Unused words that end at a node or below."""
    is_used_rw: NDArray[np.bool_]
    words_rw: NDArray[np.int32]
    """The words used, in order."""
    open_rs: NDArray[np.bool_]
    """The first symbols that may begin a word."""
    shows_open_r: NDArray[np.bool_]
    """Whether a word may begin now."""
    few_rc: NDArray[np.int32]
    """What else a row may take next: symbols not among those that `open_rs` allows now."""
    n_few_r: NDArray[np.int32]


@numba.njit(**_options)
def advance_rows(trie, slots, slot_b, symbol_b):
    """Take one more symbol for each row, -1 for a token that no answer uses, and say what it may take after it."""
    for b in range(len(slot_b)):
        _advance(trie, slots, slot_b[b], symbol_b[b])
        _say_next(trie, slots, slot_b[b])


@numba.njit(**_options)
def say_next(trie, slots):
    """Say what the row of every slot may take next."""
    for r in range(len(slots.at)):
        _say_next(trie, slots, r)


@numba.njit(**_options)
def move_rows(trie, slots, slot_b, rows, new_slot_b):
    """Let row i go on as row `rows[i]` did; every one finds a slot, so `rows` are at most as many as there are slots.

    A row stays where it was if it is the first to go on from there. The others take slots that are free, whose words
    are exchanged for theirs: what two rows have in common costs nothing.
    """
    is_taken_r = np.zeros(len(slots.at), dtype=np.bool_)
    for i in range(len(rows)):
        slot = slot_b[rows[i]]
        new_slot_b[i] = -1 if is_taken_r[slot] else slot
        is_taken_r[slot] = True
    free = 0
    for i in range(len(rows)):
        if new_slot_b[i] < 0:
            while is_taken_r[free]:
                free += 1
            is_taken_r[free] = True
            new_slot_b[i] = free
            _become(trie, slots, free, slot_b[rows[i]])


@numba.njit(**_options)
def fill_mask(slots, slot_b, allowed_bs):
    """Write which symbols each row may take next."""
    n_first = slots.open_rs.shape[1]
    for b in range(len(slot_b)):
        r = slot_b[b]
        n_shown = n_first if slots.shows_open_r[r] else 0
        # Loops, since assignments to slices take a second longer to compile.
        for symbol in range(n_shown):
            allowed_bs[b, symbol] = slots.open_rs[r, symbol]
        for symbol in range(n_shown, allowed_bs.shape[1]):
            allowed_bs[b, symbol] = False
        for c in range(slots.n_few_r[r]):
            allowed_bs[b, slots.few_rc[r, c]] = True


@numba.njit(**_options)
def _advance(trie, slots, r, symbol):
    at, last = slots.at[r], len(trie.closing_c) - 1
    at[N_STEPS] += 1
    if at[N_CLOSED] > last:
        return
    node, n_closed = at[NODE], at[N_CLOSED]
    word = trie.word_k[node]
    closes_on = n_closed > 0 and symbol == trie.closing_c[n_closed]
    opens_closing = not closes_on and at[MAY_CLOSE] != 0 and symbol == trie.closing_c[0]
    at[N_CLOSED] = n_closed + 1 if closes_on else (1 if opens_closing else 0)
    if opens_closing:
        at[LAST_WORD] = word
    child = _child(trie, node, symbol)
    is_inside = child < len(trie.word_k) - 1
    may_begin = at[MAY_GO_ON] != 0 and not opens_closing and not closes_on
    begins = may_begin and not is_inside and 0 <= symbol < trie.n_first
    completes = at[N_CLOSED] > last
    _show_hidden(slots, r)
    if begins or completes:
        _use(trie, slots, r, at[LAST_WORD] if completes else word)
    following = symbol + 1 if begins else child
    if completes:
        following = len(trie.word_k) - 1
    at[NODE] = following
    if begins or node == 0:
        at[FIRST_NODE] = following


@numba.njit(**_options)
def _child(trie, node, symbol):
    """Return the node that a symbol leads to, the sink where there is none."""
    low = trie.first_child_k[node]
    end = low + trie.n_children_k[node]
    high = end
    while low < high:
        middle = (low + high) // 2
        if trie.symbol_k[middle] < symbol:
            low = middle + 1
        else:
            high = middle
    return low if low < end and trie.symbol_k[low] == symbol else len(trie.word_k) - 1


@numba.njit(**_options)
def _use(trie, slots, r, word):
    """Count a word as used."""
    at = slots.at[r]
    slots.words_rw[r, at[N_WORDS]] = word
    at[N_WORDS] += 1
    _count(trie, slots, r, word, np.int32(-1))


@numba.njit(**_options)
def _count(trie, slots, r, word, change):
    """Add a word to those that a row may use, or take it away."""
    slots.is_used_rw[r, word] = change < 0
    node = trie.end_w[word]
    while node > 0:
        slots.unused_rk[r, node] += change
        if node <= trie.n_first:
            is_open = slots.unused_rk[r, node] > 0
            slots.at[r, N_OPEN] += np.int32(is_open) - np.int32(slots.open_rs[r, node - 1])
            slots.open_rs[r, node - 1] = is_open
        node = trie.parent_k[node]


@numba.njit(**_options)
def _show_hidden(slots, r):
    hidden = slots.at[r, HIDDEN]
    if hidden >= 0:
        slots.open_rs[r, hidden] = True
        slots.at[r, N_OPEN] += 1
        slots.at[r, HIDDEN] = -1


@numba.njit(**_options)
def _say_next(trie, slots, r):
    """Say what a row may take next: at least one symbol, and none that leads into a dead end."""
    at, last = slots.at[r], len(trie.closing_c) - 1
    slots.n_few_r[r] = 0
    slots.shows_open_r[r] = False
    at[MAY_CLOSE], at[MAY_GO_ON] = 0, 0
    if at[N_CLOSED] > last:
        _allow(slots, r, trie.closing_c[last])
        return
    node = at[NODE]
    word = trie.word_k[node]
    ends = word >= 0 and not slots.is_used_rw[r, word]
    n_words = at[N_WORDS] + 1
    is_enough = n_words >= at[MIN_WORDS]
    fits = at[BUDGET] - at[N_STEPS] >= trie.depth + last + 1
    at[MAY_CLOSE] = ends and is_enough
    at[MAY_GO_ON] = ends and n_words < at[MAX_WORDS] and (fits or not is_enough)
    slots.shows_open_r[r] = node == 0 or at[MAY_GO_ON] != 0
    # The word that would end here is not yet counted as used, but must not begin again.
    own = at[FIRST_NODE] - 1
    if ends and slots.shows_open_r[r] and slots.unused_rk[r, at[FIRST_NODE]] == 1:
        slots.open_rs[r, own] = False
        at[N_OPEN] -= 1
        at[HIDDEN] = own
    if node > 0:
        _allow_children(trie, slots, r, node)
    if at[N_CLOSED] > 0:
        _allow(slots, r, trie.closing_c[at[N_CLOSED]])
    if at[MAY_CLOSE] != 0:
        _allow(slots, r, trie.closing_c[0])
    # Only tokens that were forbidden lead to a row without a choice; let it end.
    if slots.n_few_r[r] == 0 and not (slots.shows_open_r[r] and at[N_OPEN] > 0):
        _allow(slots, r, trie.closing_c[last])


@numba.njit(**_options)
def _allow_children(trie, slots, r, node):
    n_few = 0
    shows_open, n_first = slots.shows_open_r[r], trie.n_first
    for child in range(trie.first_child_k[node], trie.first_child_k[node] + trie.n_children_k[node]):
        symbol = trie.symbol_k[child]
        is_open = slots.unused_rk[r, child] > 0
        if is_open and not (shows_open and symbol < n_first and slots.open_rs[r, symbol]):
            slots.few_rc[r, n_few] = symbol
            n_few += 1
    slots.n_few_r[r] = n_few


@numba.njit(**_options)
def _allow(slots, r, symbol):
    """Add a symbol to what a row may take next, once."""
    if slots.shows_open_r[r] and symbol < slots.open_rs.shape[1] and slots.open_rs[r, symbol]:
        return
    for c in range(slots.n_few_r[r]):
        if slots.few_rc[r, c] == symbol:
            return
    slots.few_rc[r, slots.n_few_r[r]] = symbol
    slots.n_few_r[r] += 1


@numba.njit(**_options)
def _become(trie, slots, r, other):
    """Make a slot a copy of another one."""
    at, of = slots.at[r], slots.at[other]
    _show_hidden(slots, r)
    n_same = 0
    while n_same < at[N_WORDS] and n_same < of[N_WORDS] and slots.words_rw[r, n_same] == slots.words_rw[other, n_same]:
        n_same += 1
    for i in range(n_same, at[N_WORDS]):
        _count(trie, slots, r, slots.words_rw[r, i], np.int32(1))
    for i in range(n_same, of[N_WORDS]):
        slots.words_rw[r, i] = slots.words_rw[other, i]
        _count(trie, slots, r, slots.words_rw[r, i], np.int32(-1))
    for column in range(MAY_CLOSE):
        at[column] = of[column]
    _say_next(trie, slots, r)
