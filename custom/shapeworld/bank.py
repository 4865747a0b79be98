"""How the frozen lists in splits.json were drawn: `python -m custom.shapeworld.bank` prints the file again.

Every draw is a checksum of a text, so that it is the same with every Python.
"""

import hashlib
import json
import sys
from collections.abc import Iterator, Sequence
from itertools import combinations_with_replacement, pairwise, product

from custom.shapeworld.shapes import SHAPES
from custom.shapeworld.world import PALETTE, PATTERNS, PROPORTIONS, Part, Solid, stands

SPLIT_SIZE = 96
_PER_TRIPLE, _THREE_PARTS = 18, 1504  # captions for every pair of shapes and relation; of three parts in all
_HIDDEN_ORDERS, _HIDDEN_BESIDE, _HIDDEN_STACKS = 16, 8, 8
Triple = tuple[str, str, str]  # (upper, "on", lower), or ("beside" and both shapes in alphabetical order)


def draw(*key: object) -> int:
    """A large number that depends on `key` alone."""
    return int.from_bytes(hashlib.blake2b(repr(key).encode(), digest_size=8).digest(), "big")


def shuffled(items: Sequence, *key: object) -> list:
    """In an order drawn by `key`."""
    return sorted(items, key=lambda item: draw(*key, str(item)))


def triples(solid: Solid) -> set[Triple]:
    """Which shapes of a solid stand in which relation: each part to the one below it, and to the one beside it."""
    stack, *rest = solid.columns
    found = {(upper.shape, "on", lower.shape) for upper, lower in pairwise(stack)}
    for (part,) in rest:
        found |= {_beside(part.shape, other.shape) for other in stack}
    return found


def _beside(a: str, b: str) -> Triple:
    return min(a, b), "beside", max(a, b)


def all_triples() -> list[Triple]:
    """Every order of stacking two shapes, and every pair of shapes beside each other."""
    pairs = list(combinations_with_replacement(sorted(SHAPES), 2))
    return [(a, "on", b) for a, b in product(sorted(SHAPES), repeat=2)] + [_beside(a, b) for a, b in pairs]


def pair_groups() -> dict[str, list[tuple[str, str]]]:
    """All pairs of a colour and a shape: of the student's prompts (7 colours a shape), unseen (2), novel (1).

    The colours go round, so that every colour is in each group with several shapes.
    """
    colors, groups = list(PALETTE), {"train": [], "unseen": [], "novel": []}
    for row, shape in enumerate(SHAPES):
        turned = [colors[(3 * row + k) % len(colors)] for k in range(len(colors))]
        for group, own in zip(groups, (turned[:7], turned[7:9], turned[9:]), strict=True):
            groups[group] += [(color, shape) for color in own]
    return groups


def hidden_triples() -> tuple[set[Triple], set[Triple]]:
    """What neither student nor teachers see: orders whose reverse they see, and relations of pairs that they know.

    The second: shapes beside each other that are seen stacked both ways, and stacks, both ways, of shapes that are seen
    beside each other.
    """
    pairs = shuffled([p for p in combinations_with_replacement(sorted(SHAPES), 2) if p[0] != p[1]], "hidden")
    orders, beside, stacks = (
        pairs[:_HIDDEN_ORDERS],
        pairs[_HIDDEN_ORDERS : _HIDDEN_ORDERS + _HIDDEN_BESIDE],
        pairs[_HIDDEN_ORDERS + _HIDDEN_BESIDE :][:_HIDDEN_STACKS],
    )
    turned = [(a, b) if draw("turn", a, b) % 2 else (b, a) for a, b in orders]
    relations = {_beside(a, b) for a, b in beside} | {(a, "on", b) for p in stacks for a, b in (p, p[::-1])}
    return {(a, "on", b) for a, b in turned}, relations


def _part(shape: str, *key: object, colors: Sequence[str], plain: bool = False) -> Part:
    color = colors[draw("color", shape, *key) % len(colors)]
    pattern, proportion = draw("pattern", shape, *key) % 10, draw("proportion", shape, *key) % 10
    return Part(
        shape,
        color,
        "" if plain or pattern > 3 else PATTERNS[pattern % 2],
        "" if plain or proportion > 3 else list(PROPORTIONS)[proportion % 2],
    )


def _colors(shape: str, known: bool) -> list[str]:
    return [color for color, own in pair_groups()["train"] if own == shape] if known else list(PALETTE)


def _two_parts(triple: Triple, k: int, known: bool) -> Solid | None:
    """The k-th solid of this triple, both colours different; known: of the student's pairs of colour and shape."""
    first, relation, second = triple
    if relation == "beside" and draw("turn", triple, k) % 2:
        first, second = second, first
    one = _part(first, triple, k, 0, colors=_colors(first, known))
    two = _part(second, triple, k, 1, colors=_colors(second, known))
    if one.color == two.color:
        return None
    if relation == "beside" and draw("small", triple, k) % 10 < 4:
        small = draw("which", triple, k) % 2
        one, two = (Part(p.shape, p.color, p.pattern, p.proportion, i == small) for i, p in enumerate((one, two)))
    return Solid((one, two), (relation,)).canonical


def _three_parts(k: int) -> Solid | None:
    shapes = [list(SHAPES)[draw("shape", k, i) % len(SHAPES)] for i in range(3)]
    parts = tuple(_part(shape, "three", k, i, colors=_colors(shape, k % 2 == 0)) for i, shape in enumerate(shapes))
    if len({part.color for part in parts}) < len(parts):
        return None
    return Solid(parts, ("on", "beside" if draw("row", k) % 2 else "on")).canonical


def _until(found: Iterator[Solid | None], n: int, taken: set[str]) -> list[Solid]:
    """The first n solids of a stream whose arrangement in these colours is not there yet."""
    kept: list[Solid] = []
    for solid in found:
        if solid is not None and stands(solid) and (name := _unordered(solid)) not in taken:
            taken.add(name)
            kept.append(solid)
            if len(kept) == n:
                return kept
    return kept


def _unordered(solid: Solid) -> str:
    """The same text for a pair beside each other and its mirror image, which no single picture tells apart."""
    if solid.relations == ("beside",):
        return " beside ".join(sorted(map(str, solid.parts)))
    return str(solid)


def bank(per_triple: int = _PER_TRIPLE, three_parts: int = _THREE_PARTS) -> list[Solid]:
    """All captions: every single solid, and two and three parts with drawn colours, patterns and proportions.

    per_triple: captions for every pair of shapes and relation. three_parts: captions of three parts in all. A bank with
    more of either holds what one with fewer holds.
    """
    singles = [
        Solid((Part(shape, color, pattern, proportion),))
        for shape, color, pattern, proportion in product(SHAPES, PALETTE, ("", *PATTERNS), ("", *PROPORTIONS))
    ]
    taken: set[str] = set()
    hidden = set.union(*hidden_triples())
    for_pairs: list[Solid] = []
    for triple in all_triples():
        stream = (_two_parts(triple, k, known=triple in hidden or k % 2 == 0) for k in range(1000))
        for_pairs += _until(stream, per_triple, taken)
    return singles + for_pairs + _until((_three_parts(k) for k in range(10**5)), three_parts, taken)


def lists() -> dict[str, list[str]]:
    """The captions of every list in splits.json."""
    groups = {name: set(pairs) for name, pairs in pair_groups().items()}
    orders, relations = hidden_triples()
    solids = bank()

    def of(solid: Solid, *names: str) -> bool:
        return {(p.color, p.shape) for p in solid.parts} <= set.union(*(groups[name] for name in names))

    def pick(name: str, candidates: list[Solid]) -> list[str]:
        return list(map(str, shuffled(candidates, "split", name)[:SPLIT_SIZE]))

    plain = [s for s in solids if not triples(s) & (orders | relations)]
    own = [s for s in plain if of(s, "train")]
    three = pick("three_parts", [s for s in own if len(s.parts) == 3])
    own = [s for s in own if str(s) not in three]
    validation = pick("validation", own)
    student = [s for s in own if str(s) not in validation]
    single = [s for s in plain if len(s.parts) == 1]
    return {
        "train": pick("train", student),
        "validation": validation,
        "unseen_pairs": pick("unseen_pairs", [s for s in single if of(s, "unseen")]),
        "novel_pairs": pick("novel_pairs", [s for s in single if of(s, "novel")]),
        "unseen_orders": pick("orders", [s for s in solids if len(s.parts) == 2 and triples(s) & orders]),
        "unseen_relations": pick("relations", [s for s in solids if len(s.parts) == 2 and triples(s) & relations]),
        "three_parts": three,
        "student": list(map(str, student)),
        "teachers": [str(s) for s in plain if of(s, "train", "unseen") and str(s) not in three],
        "bank": list(map(str, solids)),
    }


def frozen() -> str:
    """The text of splits.json: a caption of the bank a line, then the other lists as numbers of its captions."""
    found = lists()
    captions = found.pop("bank")
    number = {caption: i for i, caption in enumerate(captions)}
    rows = {"bank": captions, **{name: [number[c] for c in own] for name, own in found.items()}}
    pieces = [
        f'"{name}": ' + (json.dumps(row, indent=0) if name == "bank" else json.dumps(row)) for name, row in rows.items()
    ]
    return "{\n" + ",\n".join(pieces) + "\n}\n"


if __name__ == "__main__":
    sys.stdout.write(frozen())
