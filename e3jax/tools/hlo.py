"""What a compiled program moves between chips, and its biggest arrays, read from the text of the optimised HLO.

    text = jax.jit(f).lower(x).compile().as_text()
    for kind, traffic in collectives(text, loops=16).items(): print(kind, traffic.count, traffic.bytes)

`cost_analysis()` counts the body of a loop once; here a body counts as often as the loop runs.
"""

import math
import re
from typing import NamedTuple

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
                visit(loop[2], n * loop_count(bodies[loop[1]], loops))
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


def group_size(line: str) -> int:
    """Return the number of chips in one group of a collective."""
    named = re.search(r"replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}", line)
    if named:
        sizes = dict(re.findall(r"'([^']*)'=(\d+)", named[1]))
        return math.prod(int(sizes[axis]) for axis in re.findall(r"'([^']*)'", named[2]))
    counted = re.search(r"replica_groups=\[\d+,(\d+)\]", line)
    listed = re.search(r"replica_groups=\{\{([\d,]+)\}", line)
    return int(counted[1]) if counted else len(listed[1].split(",")) if listed else 2


def collectives(text: str, *, loops: int) -> dict[str, Traffic]:
    """Return the traffic by kind of collective.

    Of N bytes (a gather's result, else the operand) in a group of n, a chip sends on a ring N(n-1)/n to gather, scatter
    or transpose, twice that to all-reduce, and N to permute. The TPU compiler writes a reduce-scatter as an all-reduce
    inside a computation of that name, which counts as a reduce-scatter. It also spreads a gather over several fusions,
    to compute meanwhile; one channel counts as one gather.
    """
    bodies, times = runs(text, loops=loops)
    traffic, seen = {}, set()
    for name, lines in bodies.items():
        for line in lines if times[name] else ():
            match = COLLECTIVE.search(line)
            if not match:
                continue
            kind, n = match[2], group_size(line)
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
            share = {"all-reduce": 2 * (n - 1) / n, "collective-permute": 1.0}.get(kind, (n - 1) / n)
            old = traffic.get(kind, Traffic(0, 0.0))
            traffic[kind] = Traffic(old.count + times[name], old.bytes + times[name] * size * share)
    return traffic


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
