"""What a compiled program moves between chips, and its biggest arrays, read from the text of the optimised HLO.

    text = jax.jit(f).lower(x).compile().as_text()
    inside, across = collectives(text, loops=16, chips=16)
    for kind, traffic in inside.items(): print(kind, traffic.count, traffic.bytes)

`cost_analysis()` counts the body of a loop once; here a body counts as often as the loop runs.

For several slices the TPU compiler writes the program of one: its collectives stay inside, and what crosses the network
is a `send` and a `recv` of its "megascale" runtime. Elsewhere a collective crosses if one of its groups does.
"""

import math
import re
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

ITEM = {
    "pred": 1,
    "s8": 1,
    "u8": 1,
    "bf16": 2,
    "f16": 2,
    "s16": 2,
    "u16": 2,
    "f32": 4,
    "s32": 4,
    "u32": 4,
    "f64": 8,
    "s64": 8,
    "u64": 8,
}
COLLECTIVE = re.compile(r"= (.*?) (all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute)(-start)?\(.*$")
IOTA = r"\(?\[([\d,]+)\](?:T\(([\d,]+)\))?\)?"  # an array of chips: [8], [4,2]T(1,0), or in brackets
CALLED = re.compile(r"(?:calls|to_apply|true_computation|false_computation)=%([\w.\-]+)")


class Traffic(NamedTuple):
    """How often one kind of collective runs, and how many bytes a chip sends in all."""

    count: int
    bytes: float


def computations(text: str) -> tuple[dict[str, list[str]], str]:
    """Return the lines of every computation by name, and the name of the entry."""
    bodies, entry, name = {}, "", None
    for line in text.splitlines():
        head = re.match(r"(ENTRY )?%([\w.\-]+) \(.*\{$", line)
        if head:
            name = head[2]
            bodies[name] = []
            entry = name if head[1] else entry
        elif line == "}":  # compared whole, because a line of a kernel's text may begin with it
            name = None
        elif name is not None:
            bodies[name].append(line)
    return bodies, entry


def loop_count(condition: list[str], otherwise: int) -> int:
    """Return how often a loop runs: the number with which its counter, from 0 in steps of 1, is compared."""
    constants = [int(n) for line in condition for n in re.findall(r"s32\[\]\S* constant\((\d+)\)", line)]
    return max(constants) if constants else otherwise


def runs(text: str, *, loops: int) -> tuple[dict[str, list[str]], dict[str, int]]:
    """Return the lines of every computation and how often each runs; `loops` is for loops whose end the text lacks."""
    bodies, entry = computations(text)
    times = dict.fromkeys(bodies, 0)

    def visit(name: str, n: int) -> None:
        times[name] += n
        for line in bodies[name]:
            loop = re.search(r" while\(.*condition=%([\w.\-]+), body=%([\w.\-]+)", line)
            if loop:
                count = loop_count(bodies[loop[1]], loops)
                visit(loop[2], n * count)
                visit(loop[1], n * (count + 1))
            branches = re.search(r"branch_computations=\{([^}]*)\}", line)
            called = CALLED.findall(line) + (re.findall(r"%([\w.\-]+)", branches[1]) if branches else [])
            for other in called:
                if other in bodies:
                    visit(other, n)

    visit(entry, 1)
    return bodies, times


def array_bytes(shape: str) -> list[int]:
    """Return the bytes of every array in a type as HLO writes it.

    >>> array_bytes("(bf16[2,128]{1,0:T(8,128)(2,1)}, f32[])")
    [512, 4]
    """
    arrays = re.findall(r"\b([a-z]+\d*)\[([\d,]*)\]", shape)
    return [ITEM[t] * math.prod(int(n) for n in dims.split(",") if n) for t, dims in arrays if t in ITEM]


def iota(ids: str, order: str | None) -> np.ndarray:
    """Return chips as HLO writes an array of them: "4,2" is 0 to 7 in that shape; `order` transposes it, "1,0"."""
    sizes = numbers(ids)
    return np.arange(math.prod(sizes)).reshape(sizes).transpose(numbers(order) if order else None)


def numbers(text: str) -> list[int]:
    """Return the integers of "1,2,3"."""
    return [int(n) for n in text.split(",") if n]


def groups(line: str) -> list[list[int]]:
    """Return the groups of chips of a collective in any of HLO's ways to write them; of a permutation, the pairs.

    An empty list means one group of all.

    >>> groups("replica_groups=[2,2]<=[2,2]T(1,0)"), groups("source_target_pairs={{0,1},{1,0}}")
    ([[0, 2], [1, 3]], [[0, 1], [1, 0]])
    """
    named = re.search(rf"replica_groups=mesh\[([^\]]*)\](?:, device_ids={IOTA})? \{{([^}}]*)\}}", line)
    if named:
        axes, ids, order, chosen = named.groups()
        sizes = {axis: int(n) for axis, n in re.findall(r"'([^']*)'=(\d+)", axes)}
        chosen = re.findall(r"'([^']*)'", chosen)
        grid = iota(ids or str(math.prod(sizes.values())), order).reshape(list(sizes.values()))
        last = np.moveaxis(grid, [list(sizes).index(axis) for axis in chosen], range(-len(chosen), 0))
        return last.reshape(-1, math.prod(sizes[axis] for axis in chosen)).tolist()
    counted = re.search(rf"replica_groups=\[([\d,]+)\]<={IOTA}", line)
    if counted:
        shape, ids, order = counted.groups()
        return iota(ids, order).reshape(numbers(shape)).tolist()
    listed = re.search(r"(?:replica_groups|source_target_pairs)=\{((?:\{[\d,]*\},?)*)\}", line)
    return [numbers(group) for group in re.findall(r"\{([\d,]*)\}", listed[1])] if listed else []


def crosses(line: str, chips: int | None) -> bool:
    """Return whether a group of a collective spans several slices, which have `chips` each; None: there is one."""
    if chips is None:
        return False
    listed = groups(line)
    return not listed or any(len({chip // chips for chip in group}) > 1 for group in listed)


class Move(NamedTuple):
    """One collective of a program's text."""

    kind: str
    across: bool  # slices
    times: int  # it runs
    bytes: float  # that a chip sends each time, or the chip that sends most


def sent(kind: str, size: float, n: int) -> float:
    """Return the bytes that a chip of n sends on a ring for `size` bytes: a gather's result, else the operand."""
    return size * {"all-reduce": 2 * (n - 1) / n, "collective-permute": 1.0}.get(kind, (n - 1) / n)


def network_move(line: str, times: int) -> Move | None:
    """Return what a `send` to other slices moves; None for any other line.

    The kind is that of the collective that it is a part of. Groups list slices, "{1,2}x{0:3}", or chips, whose number
    has the slice in front of five digits: {{100000,200000}}; of a permutation, {{100000->200000}}.
    """
    send = re.search(r"= \((.*), u32\[\].* send\(.*_xla_megascale_transfer_type=\"(\w+)\"", line)
    if not send:
        return None
    kinds = {"ONE_TO_ONE": "collective-permute"}
    kind = kinds.get(send[2], send[2].lower().replace("_", "-"))
    target = re.search(r'_xla_megascale_target=("[^"]*"|\{\{.*?\}\})', line)[1]
    listed = re.match(r'"\{([\d,]*)\}x', target)
    chips = re.findall(r"\d+", target.split("}")[0])
    slices = len(numbers(listed[1])) if listed else len({int(chip) // 100_000 for chip in chips})
    size = sum(array_bytes(send[1])) * (slices if kind == "all-gather" else 1)
    return Move(kind, True, times, sent(kind, size, slices))


def moves(text: str, *, loops: int, chips: int | None) -> Iterator[Move]:
    """Yield every collective of a program.

    The TPU compiler writes a reduce-scatter as an all-reduce inside a computation of that name, which counts as a
    reduce-scatter. It also spreads a gather over several fusions, to compute meanwhile; one channel is one gather.
    """
    bodies, times = runs(text, loops=loops)
    seen = set()
    for name, lines in bodies.items():
        for line in lines if times[name] else ():
            if move := network_move(line, times[name]):
                yield move
            match = COLLECTIVE.search(line)
            if not match:
                continue
            kind, together = match[2], groups(line)
            n = len(together[0]) if together else 2
            parts = array_bytes(match[1])
            channel = re.search(r"channel_id=(\d+)", line)
            if channel and name.startswith(("fused_computation", "async_collective_fusion")):
                part_of = (kind, channel[1], sum(parts))
                if part_of in seen:
                    continue
                seen.add(part_of)
            size = max(parts) if match[3] and kind != "all-reduce" else sum(parts)
            if kind == "all-reduce" and name.startswith("all-reduce-scatter"):
                kind = "reduce-scatter"
            elif kind == "reduce-scatter":
                size *= n  # its result is a share of the operand
            yield Move(kind, crosses(line, chips), times[name], sent(kind, size, n))


def collectives(text: str, *, loops: int, chips: int | None = None) -> tuple[dict[str, Traffic], dict[str, Traffic]]:
    """Return the traffic by kind of collective inside slices of so many chips, and across them.

    Of N bytes (a gather's result, else the operand) in a group of n, a chip sends on a ring N(n-1)/n to gather, scatter
    or transpose, twice that to all-reduce, and N to permute.
    """
    inside, across = {}, {}
    for move in moves(text, loops=loops, chips=chips):
        traffic = across if move.across else inside
        old = traffic.get(move.kind, Traffic(0, 0.0))
        traffic[move.kind] = Traffic(old.count + move.times, old.bytes + move.times * move.bytes)
    return inside, across


def biggest_arrays(text: str, count: int = 5) -> list[str]:
    """Return the largest arrays that operations of the entry and of loops make, as "GiB type (where it comes from)"."""
    bodies, times = runs(text, loops=1)
    sizes = {}
    for name, lines in bodies.items():
        if not times[name] or "fused" in name:
            continue
        for line in lines:
            made = re.match(r"\s+(?:ROOT )?%[\w.\-]+ = ([a-z]+\d*\[[\d,]*\])\S* ([\w\-]+)\(", line)
            if made and made[2] not in ("parameter", "get-tuple-element", "bitcast", "tuple", "while"):
                where = re.search(r'op_name="([^"]*)"', line)
                sizes.setdefault(made[1], where[1].rsplit("/", 2)[-2:] if where else [made[2]])
    largest = sorted(sizes, key=lambda shape: -sum(array_bytes(shape)))[:count]
    return [f"{sum(array_bytes(s)) / 2**30:.2f} GiB {s} ({'/'.join(sizes[s])})" for s in largest]
