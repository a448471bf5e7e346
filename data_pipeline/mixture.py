"""Which sequence comes next: a position in the stream -> (source, index of the sequence in that source).

The journey of a position: it enters the root of a binary tree as item number `k`. A node that holds `q` sequences,
`q_left` of them on its left, sends exactly `L(m) = floor(m * q_left / q + 1/2)` of its first `m` items left. Item `k`
goes left when `L(k + 1) > L(k)`, and its number there is `L(k)`; otherwise it goes right as number `k - L(k)`. At a
leaf the number is the index in the source. All of it is exact integer arithmetic, so

- `lookup` is a bijection between `[0, total)` and the (source, index) pairs, with no table and no state;
- `count(source, position)` is the same walk with `L` alone;
- after `total` positions every source has given exactly its quota, and the positions behind them go on alike, since
  `L(m + q) = L(m) + q_left`. A run that discards batches reads there.

The root splits text | code, so that pair is never more than half a sequence from its share; below it the trees are
Huffman trees on the quotas, which bounds the deviation of any source by 0.5 * (1/F_1 + 1/F_2 + ...) < 1.7 sequences
(F = Fibonacci numbers: two levels up, a Huffman node is at least as heavy as both subtrees that it could have merged).
Quotas come from `quotas.quotas_for`.
"""

import hashlib
import heapq
import json
from collections.abc import Sequence

from data_pipeline.errors import DataError

KINDS = ("text", "code")


class Mixture:
    """A fixed number of sequences per source, spread evenly over the stream.

    names, kinds ("text" or "code") and quotas (sequences, >= 0, any size) are parallel lists; the index in them is
    the `source_index` everywhere. Raises DataError for lists that do not fit together or hold nothing.
    """

    def __init__(self, names: Sequence[str], kinds: Sequence[str], quotas: Sequence[int]) -> None:
        self.names, self.kinds = list(names), list(kinds)
        self.quotas = [int(quota) for quota in quotas]
        _check(self.names, self.kinds, self.quotas)
        self.total = sum(self.quotas)
        # A node is (2 * q_left, q, 2 * q, left, right); children >= 0 are nodes, ~child is a source index.
        self._nodes: list[tuple[int, int, int, int, int]] = []
        self._root = self._build()
        self._paths = self._leaf_paths()

    def _build(self) -> int:
        sides = []
        for kind in KINDS:
            members = [i for i, k in enumerate(self.kinds) if k == kind and self.quotas[i] > 0]
            if members:
                sides.append(self._huffman(members))
        if len(sides) == 1:
            return sides[0][1]
        return self._join(sides[0], sides[1])[1]

    def _huffman(self, members: list[int]) -> tuple[int, int]:
        # Ties go by name, so that the order of the manifest does not change the stream of equal quotas.
        heap = [(self.quotas[i], self.names[i], ~i) for i in members]
        heapq.heapify(heap)
        while len(heap) > 1:
            light, heavy = heapq.heappop(heap), heapq.heappop(heap)
            weight, node = self._join((heavy[0], heavy[2]), (light[0], light[2]))
            heapq.heappush(heap, (weight, min(light[1], heavy[1]), node))
        return heap[0][0], heap[0][2]

    def _join(self, left: tuple[int, int], right: tuple[int, int]) -> tuple[int, int]:
        total = left[0] + right[0]
        self._nodes.append((2 * left[0], total, 2 * total, left[1], right[1]))
        return total, len(self._nodes) - 1

    def _leaf_paths(self) -> dict[int, list[tuple[int, bool]]]:
        paths: dict[int, list[tuple[int, bool]]] = {}
        stack: list[tuple[int, list[tuple[int, bool]]]] = [(self._root, [])]
        while stack:
            node, path = stack.pop()
            if node < 0:
                paths[~node] = path
                continue
            *_, left, right = self._nodes[node]
            stack += [(left, [*path, (node, True)]), (right, [*path, (node, False)])]
        return paths

    @property
    def num_levels(self) -> int:
        """Nodes on the longest path: the cost of a lookup."""
        return max(len(path) for path in self._paths.values())

    @property
    def content_hash(self) -> str:
        """sha256 of names, kinds and quotas: two mixtures with the same hash deal the same stream."""
        content = json.dumps([self.names, self.kinds, self.quotas], separators=(",", ":"))
        return hashlib.sha256(content.encode()).hexdigest()

    def lookup(self, position: int) -> tuple[int, int]:
        """(source_index, index of the sequence in that source) at `position` >= 0; indices may exceed the quota."""
        if position < 0:
            raise DataError(f"stream position {position}: must be >= 0")
        nodes, node, item = self._nodes, self._root, int(position)
        while node >= 0:
            double_left, total, double_total, left, right = nodes[node]
            given = (item * double_left + total) // double_total
            if ((item + 1) * double_left + total) // double_total > given:
                item, node = given, left
            else:
                item, node = item - given, right
        return ~node, item

    def count(self, source_index: int, position: int) -> int:
        """Sequences of a source among the first `position` (>= 0) of the stream."""
        self._check_prefix(position)
        if not 0 <= source_index < len(self.names):
            raise DataError(f"source index {source_index}: the mixture has sources 0..{len(self.names) - 1}")
        if source_index not in self._paths:
            return 0
        items = int(position)
        for node, goes_left in self._paths[source_index]:
            double_left, total, double_total, _, _ = self._nodes[node]
            given = (items * double_left + total) // double_total
            items = given if goes_left else items - given
        return items

    def counts(self, position: int) -> list[int]:
        """`count` of every source, in order; they sum to `position`."""
        self._check_prefix(position)
        counts = [0] * len(self.names)
        stack = [(self._root, int(position))]
        while stack:
            node, items = stack.pop()
            if node < 0:
                counts[~node] = items
                continue
            double_left, total, double_total, left, right = self._nodes[node]
            given = (items * double_left + total) // double_total
            stack += [(left, given), (right, items - given)]
        return counts

    def _check_prefix(self, position: int) -> None:
        if position < 0:
            raise DataError(f"stream prefix {position}: must be >= 0")


def _check(names: list[str], kinds: list[str], quotas: list[int]) -> None:
    if not len(names) == len(kinds) == len(quotas):
        raise DataError(
            f"mixture: {len(names)} names, {len(kinds)} kinds, {len(quotas)} quotas; one of each per source"
        )
    if len(set(names)) != len(names):
        repeated = next(name for name in names if names.count(name) > 1)
        raise DataError(f"mixture: source name {repeated!r} appears twice; names must differ")
    for name, kind, quota in zip(names, kinds, quotas, strict=True):
        if kind not in KINDS:
            raise DataError(f"mixture: source {name!r} has kind {kind!r}; must be one of {', '.join(KINDS)}")
        if quota < 0:
            raise DataError(f"mixture: source {name!r} has quota {quota}; must be >= 0")
    if sum(quotas) == 0:
        raise DataError(f"mixture: the quotas of all {len(names)} sources are 0; at least one sequence is needed")
