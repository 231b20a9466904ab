r"""The mathematics grader on every gold answer and five wrong versions of each, and its speed on mixed responses.

    pip install -e '.[math]' pyarrow
    python benchmarks/graders.py --gold                       # minutes: all of ../shared/data/math
    python benchmarks/graders.py --speed --responses=20000    # 1, 2 and 8 workers, and off the main thread

Results: benchmarks/README.md. tests/test_rewards_math.py does both on less.
"""

import argparse
import json
import random
import re
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter, defaultdict
from pathlib import Path

from e3jax.rewards.extract import Grade
from e3jax.rewards.latex import normal, number, parts
from e3jax.rewards.workers import GraderPool
from e3jax.tasks.grade import grade_one
from e3jax.tasks.problem import Problem

DATA = Path(__file__).parent.parent.parent / "shared/data/math"
JSON_SETS = ("aime24", "aime25", "hmmt25", "math500", "amc")
# what stands before the first term: delimiters, brackets, a name, a dollar sign
BEFORE = re.compile(r"(?:\$|\s|\\left|\\\{|[(\[{]|\\begin\{pmatrix\}|[A-Za-z](?:\(x\))?\s*(?:=|\\in)\s*|\\\$|\\\()*")
KINDS = ("sign", "digit", "swapped", "point", "factor")
TIMED = "benchmarks.graders:timed"


def problem(answer: str, *, where: str = "response") -> Problem:
    return Problem("gold", "math", "?", answer, "?", {"where": where})


def response(answer: str) -> str:
    return rf"<think>Some thinking.</think>The answer is $\boxed{{{answer}}}$."


def gold_answers(folder: Path = DATA) -> dict[str, list[str]]:
    """Set -> the answers as they stand in the files; AMC's floats as text."""
    import pyarrow.parquet

    read = {name: json.loads((folder / f"{name}.json").read_text()) for name in JSON_SETS}
    answers = {name: [str(row["answer"]) for row in rows] for name, rows in read.items()}
    rows = pyarrow.parquet.read_table(folder / "deepscaler_10k.parquet", columns=["reward_model"]).to_pylist()
    return answers | {"deepscaler_10k": [row["reward_model"]["ground_truth"] for row in rows]}


def perturbations(gold: str) -> dict[str, str]:
    r"""Kind -> a wrong answer. A kind that cannot be, or would be right, is left out (words have no sign, -0 is 0).

    >>> list(perturbations("14/3").values())
    ['-14/3', '15/3', '1.4/3', '3/14', '\\frac{28}{3}']
    """
    head = BEFORE.match(gold).end()
    first = re.search(r"\d+", gold)
    exact, kind = number(normal(gold)), parts(normal(gold)).kind
    if exact and exact[0] == 0:
        return {"digit": "1"}
    if re.fullmatch(r"(?:\\text|\\mbox|\$|\s|[{}().']|[A-Za-z]{3,}|\b[A-Z]\b|\b(?:I|II|No)\b)*", gold):
        return {}  # words
    wrong = {}
    rest = gold[head:]
    wrong["sign"] = gold[:head] + (rest.lstrip()[1:] if rest.lstrip().startswith("-") else "-" + rest)
    if re.match(r"\\pm|0(?![\d.])", rest):
        del wrong["sign"]
    if first:
        digit = str((int(first[0][0]) + 1) % 10 or 1) if len(first[0]) == 1 else None
        digits = digit or first[0][:-1] + str((int(first[0][-1]) + 1) % 10)
        wrong["digit"] = gold[: first.start()] + digits + gold[first.end() :]
        moved = "0." + first[0] if len(first[0]) == 1 else first[0][:-1] + "." + first[0][-1]
        tail = gold[first.end() :]
        if re.match(r"\.\d", tail):  # 1.25 -> 12.5, 0.15 -> 01.5
            moved, tail = first[0] + tail[1] + ".", tail[2:] or "0"
        if int(first[0]) or moved[-1] == ".":
            wrong["point"] = gold[: first.start()] + moved + tail
    group = r"\{((?:[^{}]|\{[^{}]*\})*)\}"
    if fraction := re.search(rf"\\([dt]?frac)\s*{group}\s*{group}", gold):
        swapped = rf"\{fraction[1]}{{{fraction[3]}}}{{{fraction[2]}}}"
        wrong["swapped"] = gold[: fraction.start()] + swapped + gold[fraction.end() :]
    elif slash := re.search(r"(\d+)\s*/\s*(\d+)", gold):
        wrong["swapped"] = f"{gold[: slash.start()]}{slash[2]}/{slash[1]}{gold[slash.end() :]}"
    elif exact and abs(exact[0]) != 1:
        value = 1 / exact[0]
        wrong["swapped"] = rf"{'-' if value < 0 else ''}\frac{{{abs(value.numerator)}}}{{{value.denominator}}}"
    elif kind == "" and not re.search(r"[=<>_]|\\le|\\text|\\in(?!f)", gold):
        wrong["swapped"] = rf"\frac{{1}}{{{gold.strip('$')}}}"
    if exact:
        value = 2 * exact[0]
        sign = "-" if value < 0 else ""
        top, bottom = abs(value.numerator), value.denominator
        wrong["factor"] = f"{sign}{top}" if bottom == 1 else rf"{sign}\frac{{{top}}}{{{bottom}}}"
    elif kind == "" and not re.search(r"[=<>_]|\\le|\\text|\\in(?!f)", gold):
        wrong["factor"] = rf"2\left({gold.strip('$')}\right)"
    elif not re.search(r"\\text|[<>_]|=.*0$", gold):
        wrong["factor"] = gold[:head] + r"2 \cdot " + rest
    return wrong


def gold_pass(pool: GraderPool, answers: dict[str, list[str]]) -> dict:
    """Every answer as its own gold, and its wrong versions: counts over rows, and the exceptions (graded once each)."""
    unique = sorted({a for rows in answers.values() for a in rows})
    asked = [(gold, "gold", gold) for gold in unique]
    asked += [(gold, kind, wrong) for gold in unique for kind, wrong in perturbations(gold).items()]
    grades = pool.grade_all([problem(g) for g, _, _ in asked], [response(w) for _, _, w in asked], [True] * len(asked))
    verdict = {(g, kind): grade for (g, kind, _), grade in zip(asked, grades)}
    text = {(g, kind): w for g, kind, w in asked}
    table, exceptions = defaultdict(Counter), []
    for name, rows in answers.items():
        for gold in rows:
            for kind in ("gold", *KINDS):
                if (gold, kind) in verdict:
                    table[name, kind]["n"] += 1
                    table[name, kind]["right"] += (verdict[gold, kind].score == 1.0) == (kind == "gold")
    for (gold, kind), grade in verdict.items():
        if (grade.score == 1.0) != (kind == "gold"):
            exceptions.append((gold, kind, text[gold, kind], grade.reason))
    timeouts = [(g, k) for (g, k), grade in verdict.items() if grade.reason == "timeout"]
    reasons = Counter(grade.reason for grade in grades)
    return {"table": table, "exceptions": exceptions, "timeouts": timeouts, "reasons": reasons}


HOSTILE = (
    "9^9^9^9", "9^{9^{9^{9}}}", "(10^9)!", "((9^9)^9)^9", "99999!!!!", "(" * 500 + "1" + ")" * 500,
    "{" * 400 + "}" * 400,
    r"\sqrt{" * 100 + "2" + "}" * 100, r"\frac{1}{" * 60 + "2" + "}" * 60, "1" * 10_000, "1" * 900, "0." + "3" * 900,
    "1 2 " * 200, r"\sum_{k=1}^{10^9} k", r"\int_0^1 x^{x^x} dx", "x" * 300, "\x00", "5\x00", "５", "²",
    "٣", "∑∫√", "\ud800", "\u202e5",
    "(((((", ")))))", r"\frac", r"\frac{1}", r"\frac{1}{0}", r"\left\left\left", "\\" * 99, r"\pm" * 50,
    "," * 900, "1," * 450, ":" * 900, r"\cup" * 200, r"\begin{pmatrix}" + "&" * 800 + r"\end{pmatrix}", "^" * 500,
    "_" * 500, "-" * 900, "+1" * 400, r"\text{" * 100, "__import__('os').system('true')", "e" * 200, "10^{-10^{10}}",
    "2^{99999999}", "1e999999999", "0.1^{10000}", r"\binom{999999999}{99999999}", "(1+x)^{9999}", r"\sin" * 50,
    r"\infty-\infty", "1/0", "0^0", "nan", "i^i^i", r"x=x=x", "=" * 50, "<" * 50, r"\log_{0} 0", r"\Gamma(10^{9})",
    r"(x+1)^{100}(x+2)^{100}", r"\prod_{n=1}^{99}n", "12345678901234567890^{9999}", r"7^{7^7}\pi", "(2^{9000})^{9000}",
)  # fmt: skip
GOLDS = ("204", r"\frac{14}{3}", r"3\sqrt{13}", r"\left( 3, \frac{\pi}{2} \right)", "x^5 - x^4 + 1", r"1,-2", "y=2x+3")
RIGHT = {
    "204": ("204", "204.0", "0204", r"204 \text{ cm}"), r"\frac{14}{3}": (r"\dfrac{14}{3}", "14/3", r"4\frac{2}{3}"),
    r"3\sqrt{13}": (r"3\sqrt{13}", r"\sqrt{117}", r"3 \cdot \sqrt{13}"), "1,-2": ("-2,1", r"1 \text{ or } -2"),
    r"\left( 3, \frac{\pi}{2} \right)": (r"(3,\frac\pi2)", r"(3, \tfrac{\pi}{2})"), "y=2x+3": ("2x+3", "y-2x=3"),
    "x^5 - x^4 + 1": ("1-x^4+x^5", "x^4(x-1)+1"),
}  # fmt: skip


def mixed(n: int, *, seed: int = 0, hostile: bool = True) -> tuple[list[Problem], list[str], list[bool]]:
    """Responses as a run makes them, up to 62k characters: right, wrong, no answer, truncated, hostile."""
    rng = random.Random(seed)
    problems, texts, done = [], [], []
    for i in range(n):
        gold = "204" if rng.random() < 0.5 else rng.choice(GOLDS)
        length = 62_000 if i % 10 == 0 else rng.randrange(100, 30_000)
        filler = ("Let me see: $x^{2}+1$, so \\frac{1}{2} of {it} (wait). " * (length // 54 + 1))[:length]
        draw = rng.random()
        if draw < 0.4:
            answer = rng.choice(RIGHT[gold])
        elif draw < 0.85:
            answer = rng.choice([*perturbations(gold).values(), str(rng.randrange(1000))])
        else:
            answer = rng.choice(HOSTILE) if hostile else "7"
        box = rf"\boxed{{{answer}}}" if rng.random() < 0.95 else rng.choice(["", r"\boxed{", rf"\boxed {answer}"])
        thinking = filler + (rf" \boxed{{{rng.randrange(99)}}}" if rng.random() < 0.3 else "")
        text = thinking + ("</think>" if rng.random() < 0.95 else "") + " So " + box + "."
        problems.append(problem(gold, where=rng.choice(["response", "after_thinking"])))
        texts.append(text[:62_000] if rng.random() < 0.05 else text)
        done.append(rng.random() < 0.95)
    return problems, texts, done


def timed(problem, text, done) -> Grade:
    """A grader whose reason carries its milliseconds, by the clock and of the processor (a shared machine pauses)."""
    wall, cpu = time.perf_counter(), time.process_time()
    grade = grade_one(problem, text, done)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return Grade(grade.score, f"{grade.reason} {1000 * wall:.3f} {1000 * cpu:.3f}")


def speed(n: int, *, timeout_s: float) -> dict:
    """Time per response in the worker, verdicts with 1, 2 and 8 workers and from another thread, processes left."""
    items = mixed(n)
    verdicts, times, cpu, report = {}, [], [], {}
    for workers in (2, 1, 8):
        start = time.perf_counter()
        with GraderPool(workers=workers, timeout_s=timeout_s, function=TIMED) as pool:
            grades = pool.grade_all(*items)
        report[f"wall seconds, {workers} workers"] = round(time.perf_counter() - start, 1)
        verdicts[workers] = [(grade.score, grade.reason.split()[0]) for grade in grades]
        if workers == 2:
            parted = [grade.reason.split() for grade in grades if " " in grade.reason]
            times, cpu = [float(wall) for _, wall, _ in parted], [float(cpu) for _, _, cpu in parted]
    with GraderPool(workers=2, timeout_s=timeout_s, function=TIMED) as pool:
        thread = threading.Thread(target=lambda: verdicts.update(thread=pool.grade_all(*items)))
        thread.start()
        thread.join()
    verdicts["thread"] = [(grade.score, grade.reason.split()[0]) for grade in verdicts["thread"]]
    times.sort()
    left = subprocess.run(["ps", "-eo", "ppid,stat,args"], capture_output=True, text=True, check=True).stdout
    return report | {
        "responses": n,
        "median ms": statistics.median(times),
        "p99 ms": times[int(0.99 * len(times))],
        "max ms": times[-1],
        "max ms of the processor": max(cpu),
        "timeouts": sum(reason == "timeout" for _, reason in verdicts[2]),
        "verdicts differ": sum(len({v[i] for v in verdicts.values()}) > 1 for i in range(n)),
        "graders left": sum("e3jax.rewards.workers " in line and TIMED in line for line in left.splitlines()),
        "reasons": dict(Counter(reason for _, reason in verdicts[2]).most_common()),
    }


def main() -> None:
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--gold", action="store_true")
    flags.add_argument("--speed", action="store_true")
    flags.add_argument("--responses", type=int, default=20_000)
    flags.add_argument("--workers", type=int, default=2)
    flags.add_argument("--timeout_s", type=float, default=10.0)
    flags.add_argument("--data", type=Path, default=DATA)
    flags.add_argument("--out", type=Path, help="JSON of the exceptions")
    c = flags.parse_args()
    if c.gold:
        start = time.perf_counter()
        with GraderPool(workers=c.workers, timeout_s=c.timeout_s) as pool:
            result = gold_pass(pool, gold_answers(c.data))
        total = defaultdict(Counter)
        for (name, kind), count in result["table"].items():
            print(f"{name:16} {kind:8} {count['right']:6} of {count['n']:6}")
            total["gold" if kind == "gold" else "wrong"].update(count)
        for kind, count in total.items():
            print(f"all {kind}: {count['right']} of {count['n']} = {100 * count['right'] / count['n']:.3f} %")
        for row in result["exceptions"]:
            print(row)
        print("timeouts:", result["timeouts"], dict(result["reasons"]))
        print(f"{time.perf_counter() - start:.0f} s")
        if c.out:
            c.out.write_text(json.dumps(result["exceptions"], indent=1))
    if c.speed:
        for name, value in speed(c.responses, timeout_s=c.timeout_s).items():
            print(f"{name}: {value}")


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent.parent))
    main()
