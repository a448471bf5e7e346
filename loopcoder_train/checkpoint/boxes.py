"""Boxes of a tensor: how they intersect, and whether together they cover the tensor exactly once."""

from dataclasses import dataclass
from math import prod

# Also bounds the work that a hostile index can ask for; a tensor has about one box per rank that owns part of it.
MAX_BOXES_PER_TENSOR = 65_536


@dataclass(frozen=True, slots=True)
class Box:
    """Elements [offset, offset + length) along every dim of a tensor."""

    offsets: tuple[int, ...]
    lengths: tuple[int, ...]

    @property
    def volume(self) -> int:
        """Number of elements; 1 for the box of a scalar."""
        return prod(self.lengths)

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Whether the box lies inside a tensor of `shape`."""
        return len(self.offsets) == len(self.lengths) == len(shape) and all(
            offset >= 0 and length >= 0 and offset + length <= size
            for offset, length, size in zip(self.offsets, self.lengths, shape, strict=True)
        )

    def intersection(self, other: "Box") -> "Box | None":
        """The elements that both boxes hold, in coordinates of the whole tensor; None if there are none."""
        starts = tuple(map(max, self.offsets, other.offsets))
        stops = map(min, self._stops(), other._stops())
        lengths = tuple(stop - start for start, stop in zip(starts, stops, strict=True))
        return Box(starts, lengths) if all(length > 0 for length in lengths) else None

    def slices_of(self, inner: "Box") -> tuple[slice, ...]:
        """Slices that pick `inner` out of an array that holds this box."""
        return tuple(
            slice(start - base, start - base + length)
            for start, base, length in zip(inner.offsets, self.offsets, inner.lengths, strict=True)
        )

    def _stops(self) -> list[int]:
        return [offset + length for offset, length in zip(self.offsets, self.lengths, strict=True)]


def cover_fault(shape: tuple[int, ...], boxes: list[Box]) -> str | None:
    """What keeps non-empty `boxes` from covering a tensor of `shape` exactly once; None if they do."""
    if len(boxes) > MAX_BOXES_PER_TENSOR:
        return f"has {len(boxes)} boxes, more than {MAX_BOXES_PER_TENSOR}"
    outside = next((box for box in boxes if not box.fits(shape)), None)
    if outside is not None:
        return f"has {outside} outside its shape {list(shape)}"
    overlap = _find_overlap(shape, boxes)
    if overlap is not None:
        return f"has elements twice: {overlap[0]} and {overlap[1]}"
    covered, wanted = sum(box.volume for box in boxes), prod(shape)
    return None if covered == wanted else f"has {covered} of {wanted} elements"


def _find_overlap(shape: tuple[int, ...], boxes: list[Box]) -> tuple[Box, Box] | None:
    """Sweep along the dim that is cut most often, comparing each box with those still open there only."""
    if not shape:
        return (boxes[0], boxes[1]) if len(boxes) > 1 else None
    dim = max(range(len(shape)), key=lambda candidate: len({box.offsets[candidate] for box in boxes}))
    still_open: list[Box] = []
    for box in sorted(boxes, key=lambda box: box.offsets[dim]):
        still_open = [other for other in still_open if other.offsets[dim] + other.lengths[dim] > box.offsets[dim]]
        for other in still_open:
            if box.intersection(other) is not None:
                return other, box
        still_open.append(box)
    return None
