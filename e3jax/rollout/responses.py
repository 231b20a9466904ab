"""Responses on disk, each appended as it finishes: a restart draws only what is missing.

A response has a part ("response", or a continuation's name, eval/forcing.py), a problem's index in its set and a sample
number, and these with the seed are all that its noise depends on. Each line carries a digest of the question's tokens:
responses to another question are refused (`Responses.check`). Every start writes files of its own, so a line that a
kill cut short is the last of its file and is left out. In a bucket, where nothing can be appended, a file is written
every half minute.

    responses = Responses(place("runs/x/responses/base/AIME25"))
    fill(responses, "response", [Asked(0, (0, 1), tokens, 4096)], model, params, tokenizer, key=key, …)
    responses.known["response", 0, 1].tokens
"""

import base64
import json
import time
import zlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

import jax
import numpy as np
from etils import epath

from e3jax.checkpoint.pretrained import Pretrained
from e3jax.errors import UserError
from e3jax.readers import fault, parse_json, read_bytes
from e3jax.rollout.digests import digest
from e3jax.runtime import is_main
from e3jax.sampler.plan import Sampling
from e3jax.sampler.slots import Events, Requests, sample
from e3jax.storage import append, is_bucket, patiently

FLUSH_EVERY_S = 30.0  # in a bucket
AT_ONCE = 4096  # responses of one call: the sampler keeps 13 bytes for each of their tokens until all are drawn
MOST_BYTES = 1 << 26  # of one response's tokens, 4 each: beyond it a line is damaged or a bomb
PREFILL = 2048  # tokens of a prompt up to which as many rows are prefilled together as the config says
LINE = {"part": str, "problem": int, "sample": int, "id": str, "done": bool, "tokens": str, "question?": str}
SPACE = "Nothing that was drawn before is lost: make room, then give the same command again"


class Response(NamedTuple):
    """What was drawn; its prompt (forced tokens too) is made again from the set."""

    tokens: tuple[int, ...]  # the ending one included
    done: bool  # False: the budget ended it


class Asked(NamedTuple):
    """One prompt, and which of its samples are wanted."""

    problem: int  # index in the set: names the noise
    samples: tuple[int, ...]
    prompt: Sequence[int]
    budget: int  # tokens


Key = tuple[str, int, int]  # part, problem, sample


def unpacked(data: bytes) -> bytes:
    """Return what zlib packed; ValueError where it is more than any response or is cut short.

    >>> unpacked(zlib.compress(b"abcd"))
    b'abcd'
    """
    stream = zlib.decompressobj()
    out = stream.decompress(data, MOST_BYTES)
    if not stream.eof:
        raise ValueError(f"its tokens are cut short, or more than {MOST_BYTES // 4:,}")
    return out


class Responses:
    """All responses of one model on one set, in memory and in a directory. Process 0 writes, every process reads."""

    def __init__(self, directory: epath.Path):
        self.directory, self.bucket = directory, is_bucket(directory)
        self.waiting, self.flushed = "", time.monotonic()
        self.known: dict[Key, Response] = {}
        self.ids: dict[int, str] = {}  # problem -> Problem.id, as it was when it was asked
        self.questions: dict[int, str] = {}  # problem -> digest of its question's tokens; older lines have none
        self.prompts: Sequence[Sequence[int]] = ()  # the questions as they are now, once they were checked
        files = sorted(directory.glob("*.jsonl"))
        for file in files:
            for number, line in enumerate(read_bytes(file).split(b"\n")[:-1], 1):
                self.read(line, f"{file} line {number}")
        number = max((int(f.stem) for f in files if f.stem.isdigit()), default=-1) + 1  # one may have been removed
        self.file = directory / f"{number:05d}.jsonl"

    def read(self, text: bytes, where: str) -> None:
        """One whole line; UserError when it is none."""
        try:
            line = parse_json(text)
            if wrong := fault(line, LINE):
                raise ValueError(wrong)
            key = line["part"], line["problem"], line["sample"]
            tokens = np.frombuffer(unpacked(base64.b64decode(line["tokens"])), "<i4").tolist()
            self.known[key] = Response(tuple(tokens), line["done"])
            self.ids[line["problem"]] = line["id"]
            if "question" in line:
                self.questions[line["problem"]] = line["question"]
        except (ValueError, zlib.error) as error:
            raise UserError(f"{where} is not a response ({error}): remove the line, it is drawn again") from error

    def check(self, ids: Sequence[str], prompts: Sequence[Sequence[int]] = ()) -> int:
        """Raise UserError when what is here answers other questions than these, named by id and in tokens.

        A set that has got shorter, or longer, is the same set. Return how many problems of it have responses without a
        digest: earlier versions of this file wrote none, and such responses are taken for answers to `prompts`.
        """
        self.prompts = prompts
        advice = "bring the old set back, or choose another --workdir for the new one"
        for index in sorted(self.ids):
            if index < len(ids) and ids[index] != self.ids[index]:
                raise UserError(
                    f"{self.directory}: problem {index} was {self.ids[index]!r} and is now {ids[index]!r}: the set has "
                    f"changed, {advice}"
                )
            if index < len(prompts) and self.questions.get(index, digest(prompts[index])) != digest(prompts[index]):
                raise UserError(
                    f"{self.directory} holds responses to another question than problem {index}, {ids[index]!r}, now "
                    f"asks (its words, its chat template or the tokenizer have changed): {advice}"
                )
        return len([index for index in self.ids if index < len(prompts) and index not in self.questions])

    def add(self, new: dict[Key, Response], ids: Sequence[str], texts: Sequence[str]) -> None:
        """Finished responses, with their problems' ids and their texts (for people: they are not read back)."""
        self.known |= new
        if not is_main():
            return
        for ((part, problem, number), r), id_, text in zip(new.items(), ids, texts):
            packed = base64.b64encode(zlib.compress(np.asarray(r.tokens, "<i4").tobytes())).decode()
            line = {
                "part": part,
                "problem": problem,
                "sample": number,
                "id": id_,
                "done": r.done,
                "length": len(r.tokens),
                "text": text,
                "tokens": packed,
            }
            if len(self.prompts):
                line["question"] = digest(self.prompts[problem])
            self.waiting += json.dumps(line) + "\n"
        if not self.bucket or time.monotonic() - self.flushed > FLUSH_EVERY_S:
            self.flush()

    def flush(self) -> None:
        """Write what waits."""
        if not self.waiting:
            return
        self.directory.mkdir(parents=True, exist_ok=True)
        write = self.file.write_text if self.bucket else lambda text: append(self.file, text)
        patiently(f"write {self.file}", lambda: write(self.waiting), advice=SPACE)
        if self.bucket:
            self.file = self.directory / f"{int(self.file.stem) + 1:05d}.jsonl"
        self.waiting, self.flushed = "", time.monotonic()

    def missing(self, part: str, asked: Sequence[Asked]) -> list[Asked]:
        """What of `asked` is not known."""
        left = (
            a._replace(samples=tuple(g for g in a.samples if (part, a.problem, g) not in self.known)) for a in asked
        )
        return [a for a in left if a.samples]


def discard(directory: epath.Path) -> None:
    """Remove responses whose results are written (and flushed); what a kill leaves of them is removed another time."""
    if is_main() and directory.exists():
        patiently(f"remove {directory}", lambda: directory.rmtree(missing_ok=True))


def fill(
    responses: Responses,
    part: str,
    asked: Sequence[Asked],
    pretrained: Pretrained,
    sampling: Sampling,
    *,
    ids: Sequence[str],
    key: jax.Array,
    stop: Sequence,
    on_finished: Callable[[int, int], None],
) -> None:
    """Draw what is missing of `asked`; `on_finished(responses, tokens)` may raise, what was finished is then kept.

    The parameters are in the sampling layout, `ids` are the problems' ids, `stop` is as in `sampler/slots.py`.
    """
    model, params, tokenizer = pretrained
    left = responses.missing(part, asked)
    while left:
        many = np.cumsum([len(a.samples) for a in left])
        now, left = left[: max(int((many <= AT_ONCE).sum()), 1)], left[max(int((many <= AT_ONCE).sum()), 1) :]
        row = [(a.problem, g) for a in now for g in a.samples]

        def finished(rows, r, row=row):
            new = {
                (part, *row[i]): Response(tuple(r.tokens[i, r.prompt_len[i] : r.length[i]].tolist()), bool(r.done[i]))
                for i in map(int, rows)
            }
            texts = [tokenizer.decode(x.tokens) for x in new.values()]
            responses.add(new, [ids[problem] for _, problem, _ in new], texts)
            on_finished(len(new), sum(len(x.tokens) for x in new.values()))

        longest = max(len(a.prompt) for a in now)
        rows = min(sampling.prefill_rows, max(sampling.prefill_rows * PREFILL // longest, 1))
        budgets = np.repeat([a.budget for a in now], [len(a.samples) for a in now])
        try:
            sample(
                model,
                params,
                Requests([a.prompt for a in now], [a.problem for a in now], [a.samples for a in now], budgets),
                replace(sampling, prefill_rows=rows),
                key=key,
                stop=stop,
                pad=tokenizer.pad,
                events=Events(on_finished=finished),
            )
        finally:
            responses.flush()
