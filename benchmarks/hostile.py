r"""Hostile responses: what a policy may write that nobody meant it to, and every function that reads such text.

    python benchmarks/hostile.py --growth                     # every reader on long texts of every kind
    python benchmarks/hostile.py --texts=20000                # the slowest ms per 10^5 characters; nothing raises

A function that is not linear in its text holds up the process that it runs in. In the trainer of many hosts that ends
the run, and a resume draws the same tokens. Whoever writes a new reader of text adds a line to READERS;
tests/test_hostile.py, which does both of the above on less, says when that was forgotten.
"""

import argparse
import random
import re
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent.parent))

from e3jax.eval import scoring
from e3jax.eval.attempts import token_spans
from e3jax.eval.lm_eval import cut
from e3jax.metrics import exploration, reading
from e3jax.phases import TAGS, read_tokens, write_text
from e3jax.printable import printable
from e3jax.report.browser import text_spans
from e3jax.rewards import plan
from e3jax.rewards.repetition import most_repeats
from e3jax.rollout.turns import shown_pieces, turn_end
from e3jax.scaling import choosing, react
from e3jax.tasks.grade import grade_one
from e3jax.tasks.problem import Problem
from e3jax.tasks.table import task_of
from e3jax.tasks.written_arithmetic import false_equations
from e3jax.tokenizer import pieces, split_thinking

SIZES = (20_000, 100_000, 200_000)  # characters
FRAGMENTS = (
    "\n",
    " ",
    " \n",
    "\n\n",
    "\r\n",
    "\t",
    "\t*#",
    "\x1c",
    "\u00a0",
    "\u2003\u2028",
    "\v\f ",
    "7",
    "0",
    "9!",
    "7 ",
    "1.1.1.1.",
    "1. ",
    "1.",
    "1.\n",
    "1)\n",
    "step ",
    "step\n",
    "Step 1: a\n",
    "1. a b c d\n",
    "**",
    "(",
    ")",
    "()",
    "{",
    "}",
    "{}",
    "[",
    "\\",
    "\\{",
    "\\\\",
    "\\boxed{",
    "\\boxed ",
    "\\boxed{1}",
    "\\fbox{",
    "<answer>",
    "</answer>",
    "<answer>7 + 5 * 2</answer>",
    "<think>",
    "</think>",
    "Wait, ",
    "wait\n",
    ". But wait",
    "Alternatively. ",
    "approximation",
    "\\frac",
    "\\frac{1}{",
    "\\frac12",
    "\\text{",
    "\\text{ cm}",
    "\\left(",
    "\\sqrt",
    "^",
    "^{",
    "_{",
    "$",
    "$a",
    "$a=1$ is wrong. ",
    "\\(",
    "\\(a",
    "a,b,c",
    "1,",
    "1,000,",
    ",",
    ";",
    ":",
    "...",
    ".",
    "!",
    "?",
    "=",
    " = ",
    "1=",
    "1+1=",
    "1 + 1 = 2",
    "1 + 1 = ",
    "+ ",
    "-",
    "- ?3 ",
    "+ 5 ?7 ",
    "x",
    "ab",
    "a=",
    "a b ",
    "is wrong ",
    "not ",
    "answer is ",
    "answer: A ",
    "yes ",
    "no ",
    "= ",
    "= 3 yes ",
    "7 + 5 * 2 = 12 24 ?24 0 yes ",
    "1 2 = ",
    "?24 ",
    "Undo * 2: 24 / 2 = 12. ",
    "Try 7 + 5 * 2: ",
    "Wait, try 7 + 5 - 2: 7 + 5 = 12, 12 - 2 = 10. Not 24.\n\n",
    "Alternatively, ",
    "try (",
    "That is 24. ",
    "multiply 6 by 7",
    "the product is 42. ",
    "1,234",
    "6 * 7 = 42 = ",
    "e\u0301",
    "\u0301",
    "😀",
    "\u202e",
    "²",
    "٣",
    "５",
    "ﬁ",
    "İ",
    "Σ",
    "\u0000",
    "\ufffd",
    *TAGS,
    "".join(TAGS),
    TAGS[0] + TAGS[0],
    "!important",
    "&",
    "\\cup",
    "\\pm",
    "or ",
    "and ",
    "%",
    "'",
    '"',
    "&amp;",
    "-->",
    "1e9",
    "10^",
    "/",
    "1/",
    "1 / 0 ",
)
# what the trainer's and the tools' own forms expect in front, so that a reader goes on into what follows
OPENINGS = ("", "1", "1.", "$", "step", "wait", "<answer>", "\\boxed{", TAGS[0], "".join(TAGS[:3]), "\\(a is wrong")
ENDINGS = ("", "\n", "}", "</answer>", "</think>\\boxed{7}", "yes", TAGS[3], ".", "$", "=")
TRACED = "Try 7 + 5 - 2: 7 + 5 = 12, 12 - 2 = 10. Not 24.\n\n"  # so that what follows is read as a trace in text
COUNTDOWN_WORDS = "Using the numbers [7, 5, 2], create an equation that equals 24."
NUMBERS = {"numbers": (7, 5, 2), "target": 24}
PROBLEMS = {
    "countdown": Problem("p", "countdown", "?", "24", "?", NUMBERS | {"form": "paper"}),
    "calculator": Problem("p", "countdown", "7 5 2 ?24", "24", "?", NUMBERS | {"form": "calculator"}),
    "plans": Problem("p", "countdown_plans", "7 5 2 ?24", "24", "?", NUMBERS),
    "plans in text": Problem("p", "countdown_plans_text", "?", "24", "?", NUMBERS),
    "products": Problem("p", "products", "4 7 * 8", "376", "?", {"form": "products", "a": 47, "b": 8}),
    "number": Problem("p", "math", "?", "7", "?", {"where": "anywhere"}),
    "expression": Problem("p", "math", "?", r"x^2 - \frac{1}{2}", "?", {"where": "response"}),
    "list": Problem("p", "math", "?", r"(1,2), (3,\frac{\pi}{2}]", "?", {"where": "after_thinking"}),
    "set": Problem("p", "math", "?", r"1,-2", "?", {"where": "response"}),
    "two phases": Problem("p", "math", "?", r"\frac{14}{3}", "?", {"where": "execution"}),
    "e2c_original": Problem("p", "math", "?", r"\frac{14}{3}", "?", {"where": "e2c_original"}),
    "mcq": Problem("p", "mcq", "?", "C", "?", {"where": "anywhere"}),
    "multiplication": Problem("p", "multiplication", "?", "42", "?", {"where": "anywhere"}),
}


class Reader(NamedTuple):
    """A function of model text, and the most ms per 10^5 characters that it may take."""

    read: Callable[[str], object]
    most_ms: float


def twice(text: str) -> str:
    """A response of two phases that are both the text."""
    return write_text(text, text)


def boxed(text: str) -> str:
    """The text as an answer."""
    return rf"</think>\boxed{{{text}}}"


def characters(tokens: Sequence[int]) -> str:
    """Stands for a tokenizer's decode: a token is a character."""
    return "".join(map(chr, tokens))


def tokens(text: str) -> list[int]:
    """What `characters` decodes."""
    return [ord(c) for c in text]


def taken_in(problem: Problem, wrap: Callable[[str], str] = str) -> Callable[[str], object]:
    """A grader."""
    return lambda text: grade_one(problem, wrap(text), True)


def voted_in(problem: Problem, wrap: Callable[[str], str] = str) -> Callable[[str], object]:
    """A vote."""
    return lambda text: scoring.answer_of(problem, wrap(text))


def followed(name: str, how: str) -> Callable[[str], object]:
    """A plan and its execution."""
    return lambda text: plan.plan_share(PROBLEMS[name], twice(text), how, task_of(PROBLEMS[name]).followed)


IN_TRAINER = {
    "pieces": lambda text: pieces(characters, tokens(text[:2048])),  # of the responses that are logged
    "shown in turns": lambda text: shown_pieces(characters, tokens(text[:2048]), [[9, 99], [999, 1111]]),
    "end of a turn": lambda text: turn_end(
        SimpleNamespace(decode=characters, stop=(0,)), tokens(text) or [0], ("</calc>", "7"), []
    ),
    "phases of tokens": lambda text: read_tokens(tokens(text[::4]), tokens("<>/1"), begun=False),  # 4 characters each
}
IN_WORKERS = {
    **{f"grade {name}": taken_in(p) for name, p in PROBLEMS.items()},
    **{
        f"grade a boxed {name}": taken_in(PROBLEMS[name], boxed)
        for name in ("number", "expression", "list", "set", "mcq", "multiplication", "e2c_original")
    },
    **{
        f"grade an answer {name}": taken_in(PROBLEMS[name], lambda text: f"<answer>{text}</answer>")
        for name in ("countdown", "calculator", "products")
    },
    **{
        f"grade two phases {name}": taken_in(PROBLEMS[name], twice) for name in ("two phases", "plans", "plans in text")
    },
    **{
        f"features {name}": lambda text, p=PROBLEMS[name]: exploration.explore(p, text, done=True, correct=False)
        for name in ("number", "calculator", "products", "countdown", "multiplication", "plans in text")
    },
    **{
        f"parts {name}": lambda text, p=PROBLEMS[name]: reading.take_apart(p, text)
        for name in ("number", "calculator", "products", "countdown", "multiplication", "plans in text")
    },
    **{
        f"plan share {how}, {name}": followed(name, how)
        for how in ("sound", "original")
        for name in ("number", "plans", "plans in text")
    },
    "repeats": most_repeats,
    "plan share untagged": lambda text: plan.plan_share(PROBLEMS["number"], text, "original", plan.followed),
}
IN_COMMANDS = {
    "unsound": lambda text: plan.original_correct(r"\frac{1}{2}", text),
    **{
        f"calls {name}": lambda text, p=PROBLEMS[name]: exploration.detect(p, text, close="</think>")
        for name in ("countdown", "calculator", "products", "number", "multiplication")
    },
    "false equations": false_equations,
    "places in a trace": lambda text: exploration.attempt_spans(PROBLEMS["countdown"], TRACED + text, close="</think>"),
    "equations of a trace": lambda text: exploration.equations(PROBLEMS["countdown"], TRACED + text),
    **{f"vote {name}": voted_in(PROBLEMS[name]) for name in ("countdown", "plans", "plans in text", "number")},
    **{f"vote boxed {name}": voted_in(PROBLEMS[name], boxed) for name in ("number", "mcq")},
    "vote two phases": voted_in(PROBLEMS["plans"], twice),
    "token spans": lambda text: token_spans(PROBLEMS["number"], tokens(text), characters, close="</think>"),
    "accepted, a box": lambda text: react.accepted(PROBLEMS["number"], text, rule="box"),
    "accepted, a form": lambda text: react.accepted(PROBLEMS["plans"], text, rule="form"),
    "stuck": lambda text: react.stuck_words(text, text, "a question"),
    "taken back": lambda text: react.negated_formulas(text + " is wrong"),
    "next plan": lambda text: react.next_plan(
        stuck=True, current=text, refined=text[1:], tried=[text], unused={0: text}, words={"a"}
    ),
    "judged": lambda text: choosing.nearest(text, [text[1:], "7"]),
    "cut": lambda text: cut(text, ["\n\nQ:", "</s>"]),
    "thinking": lambda text: split_thinking("7*8?", text),
    "on the terminal": partial(printable, lines=True),
}
IN_REPORTS = {
    "spans": lambda text: text_spans("7*8? <think>", text),
    "spans of a calculator": lambda text: text_spans("7 5 2 ?24", text),
    "spans of a trace": lambda text: text_spans(COUNTDOWN_WORDS, TRACED + text),
    "spans of a product": lambda text: text_spans("Multiply 6 and 7.", text),
    "spans to a question": lambda text: text_spans(text, "1 + 2 = 3 ?3 0 yes"),
}
READERS = {
    **{name: Reader(read, 50.0) for name, read in IN_TRAINER.items()},
    **{name: Reader(read, 250.0) for name, read in IN_WORKERS.items()},  # within grader.timeout_s whatever they meet
    **{name: Reader(read, 1000.0) for name, read in (IN_COMMANDS | IN_REPORTS).items()},
}


def repeated(fragment: str, size: int) -> str:
    """`size` characters of a fragment."""
    return (fragment * (size // len(fragment) + 1))[:size]


def mixture(rng: random.Random, size: int) -> str:
    """About `size` characters: runs of one fragment, of a few in turn, or of all in disorder."""
    out, room = [rng.choice(OPENINGS)], size
    while room > 0:
        part = min(room, int(size ** rng.random()) + 1)
        few = [rng.choice(FRAGMENTS) for _ in range(rng.choice((1, 1, 2, 3, 8)))]
        if rng.random() < 0.7:
            out.append(repeated("".join(few), part))
        else:
            out.append("".join(rng.choice(few) for _ in range(part // max(map(len, few)) + 1)))
        room -= len(out[-1])
    return "".join([*out, rng.choice(ENDINGS)])


def hostile(count: int, *, seed: int, longest: int) -> list[str]:
    """Mixtures of 10 to `longest` characters, their lengths even on a logarithmic scale."""
    rng = random.Random(seed)
    return [mixture(rng, int(10 * (longest / 10) ** rng.random())) for _ in range(count)]


def seconds(reader: Reader, text: str, *, repeats: int = 1) -> float:
    """The least time of this thread: what else runs on the machine does not count."""
    least = float("inf")
    for _ in range(repeats):
        start = time.thread_time()
        reader.read(text)
        least = min(least, time.thread_time() - start)
    return least


def slow_growth(reader: Reader, make: Callable[[int], str], sizes: Sequence[int] = SIZES) -> str:
    """What is wrong with a reader's time on texts that `make` makes of `sizes`, "" for nothing.

    Five times the text may take 12 times as long, ten times 30: quadratic work takes 25 and 100. A reader that takes
    less than a millisecond for the shortest is fast enough, whatever it does: quadratic, 25 ms for 10^5 characters.
    """
    for repeats in (1, 3, 10, 30):  # another program on the same caches slows one try down, not all
        times = [seconds(reader, make(sizes[0]), repeats=repeats)]
        if times[0] < 0.001:
            return ""
        for size in sizes[1:]:
            if times[-1] < 2.0:  # what is longer would take minutes
                times.append(seconds(reader, make(size), repeats=repeats))
        ratio = 1.2 * (sizes[-1] / sizes[0]) ** 1.4
        grows = len(times) < len(sizes) or times[-1] > ratio * times[0]
        slow = any(1e8 * t > reader.most_ms * max(size, SIZES[1]) for t, size in zip(times, sizes))
        if not grows and not slow:
            return ""
    said = ", ".join(f"{size:,}: {1000 * t:.1f} ms" for size, t in zip(sizes, times))
    return f"{'not linear' if grows else f'above {reader.most_ms:.0f} ms per 10^5 characters'} ({said})"


def growth(
    name: str, *, openings: Sequence[str] = ("",), fragments: Sequence[str] = FRAGMENTS, sizes: Sequence[int] = SIZES
) -> list[str]:
    """Kinds of text that a reader is too slow on."""
    wrong = []
    for opening in openings:
        for fragment in fragments:
            said = slow_growth(READERS[name], lambda n, a=opening, f=fragment: a + repeated(f, n), sizes)
            if said:
                wrong.append(f"{name} on {opening!r} and {fragment!r} again and again: {said}")
    return wrong


def survey(texts: list[str]) -> tuple[dict[str, float], list[str]]:
    """Return each reader's slowest ms per 10^5 characters, to which shorter texts count; and what raised, at what."""
    slowest, raised = dict.fromkeys(READERS, 0.0), []
    for number, text in enumerate(texts, 1):
        if number % 500 == 0:
            worst = max(slowest, key=slowest.get)
            print(f"{number} of {len(texts)} texts, {worst} {slowest[worst]:.1f} ms", file=sys.stderr, flush=True)
        for name, reader in READERS.items():
            try:
                taken, size = seconds(reader, text), max(len(text), SIZES[1])
                if 1e8 * taken / size > slowest[name]:
                    slowest[name] = 1e8 * min(taken, seconds(reader, text, repeats=3)) / size
            except Exception as error:
                raised.append(f"{name}: {type(error).__name__}: {error} at {text[:80]!r} …, {len(text)} characters")
    return slowest, raised


def main() -> None:
    """Print what was measured; exit 1 where a reader raised or was too slow."""
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--growth", action="store_true", help="every reader on every kind")
    flags.add_argument("--texts", type=int, default=0, help="mixtures that all readers get")
    flags.add_argument("--longest", type=int, default=100_000, help="characters")
    flags.add_argument("--seed", type=int, default=0)
    flags.add_argument("--only", default="", help="regular expression: readers whose names have it in them")
    c = flags.parse_args()
    for name in [name for name in READERS if not re.search(c.only, name)]:
        del READERS[name]
    wrong = [said for name in READERS if c.growth for said in growth(name, openings=OPENINGS)]
    if c.texts:
        slowest, raised = survey(hostile(c.texts, seed=c.seed, longest=c.longest))
        for name, ms in sorted(slowest.items(), key=lambda x: -x[1]):
            print(f"{ms:8.2f} ms per 10^5 characters  {name}")
        wrong += raised + [name for name, ms in slowest.items() if ms > READERS[name].most_ms]
    print("\n".join(wrong) or "nothing raised, nothing was too slow")
    raise SystemExit(bool(wrong))


if __name__ == "__main__":
    main()
