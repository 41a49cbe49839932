"""Answers merged into a tree of tokens: what they share at the beginning is there once.

Axes: m nodes, e edges, a answers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class AnswerTree:
    """Answers merged where they begin alike; node 0 is the root, which stands for the prompt's last token.

    Every node has an edge to at least one next token. The last token of an answer is a node only where a longer
    answer goes on after it.
    """

    token: Ids
    """Token of each node, shape (m,); 0 for the root."""
    depth: Ids
    """Distance from the root, shape (m,)."""
    sees: NDArray[np.bool_]
    """Whether node i may attend to node j: j is i or one of its ancestors, shape (m, m)."""
    edge_node: Ids
    """Node at which each edge starts, shape (e,)."""
    edge_token: Ids
    """Token to which it leads, shape (e,)."""
    answer_edges: tuple[Ids, ...]
    """Edges along each answer; their log-probabilities add up to the answer's."""

    @property
    def n_nodes(self) -> int:
        """Number of nodes m, the root included."""
        return len(self.token)

    @classmethod
    def build(cls, answers: Sequence[Ids]) -> AnswerTree:
        """Merge answers of at least one token each."""
        nodes: dict[tuple[int, ...], int] = {(): 0}
        edges: dict[tuple[int, int], int] = {}
        answer_edges = []
        for answer in answers:
            path = tuple(answer.tolist())
            steps = []
            for k, token in enumerate(path):
                node = nodes.setdefault(path[:k], len(nodes))
                steps.append(edges.setdefault((node, token), len(edges)))
            answer_edges.append(np.array(steps, dtype=np.int64))
        sees = np.eye(len(nodes), dtype=bool)
        for path, node in nodes.items():  # parents come before their children
            if path:
                sees[node] |= sees[nodes[path[:-1]]]
        edge_node, edge_token = np.array(list(edges), dtype=np.int64).T
        return cls(
            token=np.array([path[-1] if path else 0 for path in nodes], dtype=np.int64),
            depth=np.array([len(path) for path in nodes], dtype=np.int64),
            sees=sees,
            edge_node=edge_node,
            edge_token=edge_token,
            answer_edges=tuple(answer_edges),
        )


def split_answers(answers: Sequence[Ids], max_nodes: int) -> list[Ids]:
    """Return groups of answer numbers whose trees have at most `max_nodes` nodes (or a single answer).

    Answers that begin alike stay together, because they are grouped in the order of their tokens.
    """
    groups: list[list[int]] = []
    nodes: set[tuple[int, ...]] = set()
    for i in sorted(range(len(answers)), key=lambda i: tuple(answers[i].tolist())):
        path = tuple(answers[i].tolist())
        own = {path[:k] for k in range(len(path))}
        if not groups or len(nodes | own) > max_nodes:
            groups.append([])
            nodes = set()
        nodes |= own
        groups[-1].append(i)
    return [np.array(group, dtype=np.int64) for group in groups]
