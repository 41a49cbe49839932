"""Genes as private-use characters: one code point of Unicode's planes 15 and 16 for each gene id.

A text that is rendered with them has the same form as one with gene names, and its genes can be found again without
reading words. They never leave the program.
"""

from __future__ import annotations

import re

import numpy as np
from numpy.typing import NDArray

_PLANE_15, _PLANE_16, _PER_PLANE = 0xF0000, 0x100000, 0xFFFE  # the last two code points of a plane are no characters
MAX_CHARACTERS = 2 * _PER_PLANE
FIRST_CHARACTER = chr(_PLANE_15)
LAST_CHARACTER = chr(_PLANE_16 + _PER_PLANE - 1)
_GENE = re.compile(f"[{FIRST_CHARACTER}-{LAST_CHARACTER}]")


def characters_of(gene_ids: NDArray[np.integer]) -> str:
    """Return one character for each gene id, below `MAX_CHARACTERS`."""
    code = gene_ids.astype(np.uint32)
    code += np.uint32(_PLANE_15)
    if len(code) and code.max() >= _PLANE_15 + _PER_PLANE:
        code[code >= _PLANE_15 + _PER_PLANE] += np.uint32(_PLANE_16 - _PLANE_15 - _PER_PLANE)
    return code.tobytes().decode("utf-32-le")


def genes_of(characters: str) -> NDArray[np.uint32]:
    """Return the gene ids of a text that is made of private characters alone; undoes `characters_of`."""
    code = np.frombuffer(bytearray(characters.encode("utf-32-le")), "<u4")
    code -= np.uint32(_PLANE_15)
    if len(code) and code.max() >= _PER_PLANE:
        code[code >= _PER_PLANE] -= np.uint32(_PLANE_16 - _PLANE_15 - _PER_PLANE)
    return code


def has_characters(text: str) -> bool:
    """Tell whether a text holds a private character."""
    return not text.isascii() and max(text) >= FIRST_CHARACTER


def replace_genes(text: str, names: NDArray[np.object_]) -> str:
    """Return the text with the names of the genes; (g,) names by gene id."""
    return _GENE.sub(lambda found: names[genes_of(found[0])[0]], text)
