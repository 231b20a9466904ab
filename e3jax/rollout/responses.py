"""Responses on disk, each appended as it finishes, so that a restart draws only the missing ones.

A response has a part ("response", or a continuation's name, eval/forcing.py), a problem's index in its set and a sample
number, and these with the seed are all that its noise depends on. Each line carries a digest of the question's tokens:
responses to another question are refused (`Responses.check`). Every start writes files of its own, so a line that a
kill cut short is the last of its file and is left out. In a bucket, where nothing can be appended, a file is written
every half minute.

    responses = Responses(place("runs/x/responses/base/AIME25"))
    responses.check(ids, prompts)
    fill(responses, "response", [Request(0, (0, 1), prompts[0], 4096)], pretrained, sampling, key=key, …)
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
from e3jax.rollout.episodes import sample_episodes
from e3jax.rollout.turns import forced_spans, shown
from e3jax.runtime import is_main, out_of_memory
from e3jax.sampler.plan import PREFILL, Sampling, rows_within
from e3jax.sampler.slots import Events, Requests, sample
from e3jax.storage import append, is_bucket, patiently
from e3jax.types import Rollouts

FLUSH_EVERY_S = 30.0  # in a bucket
AT_ONCE = 4096  # responses of one call: the sampler keeps 13 bytes for each of their tokens until all are drawn
MOST_BYTES = 1 << 26  # of one response's tokens, 4 each: beyond it a line is damaged or a bomb
LINE = {
    "part": str, "problem": int, "sample": int, "id": str, "done": bool, "tokens": str, "question?": str,
    "forced?": [[int, int]],
}  # fmt: skip
SPACE = "Nothing that was drawn before is lost: make room, then give the same command again"


class Response(NamedTuple):
    """What a model drew. Its prompt, forced tokens included, is not kept: the set gives it again."""

    tokens: tuple[int, ...]  # the ending one included
    done: bool  # False: the budget ended it
    forced: tuple[tuple[int, int], ...] = ()  # tokens that an environment put there: [first, behind the last)


class Request(NamedTuple):
    """A prompt in tokens, and which responses to it are wanted."""

    problem: int  # its index in the set; with a sample's number it names the noise
    samples: tuple[int, ...]  # numbers of the responses
    prompt: Sequence[int]
    budget: int  # tokens of a response
    forced: int = 0  # tokens of the prompt that we put into the model's turn (scaling/calls.py counts them apart)


Key = tuple[str, int, int]  # part, problem, sample


def unpacked(data: bytes) -> bytes:
    """Return what zlib packed; raise ValueError where it is longer than any response or is cut short.

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
        self.ids: dict[int, str] = {}  # problem -> the Problem.id that its responses were kept under
        self.questions: dict[int, str] = {}  # problem -> digest of its question's tokens; older lines have none
        self.ids_now: Sequence[str] = ()  # the set as it is now, from `check` on
        self.prompts: Sequence[Sequence[int]] = ()  # its questions in tokens
        files = sorted(directory.glob("*.jsonl"))
        for file in files:
            for number, line in enumerate(read_bytes(file).split(b"\n")[:-1], 1):
                self.read(line, f"{file} line {number}")
        number = max((int(f.stem) for f in files if f.stem.isdigit()), default=-1) + 1  # one may have been removed
        self.file = directory / f"{number:05d}.jsonl"

    def read(self, text: bytes, where: str) -> None:
        """Take in one line of a file; raise UserError where it is not a whole response."""
        try:
            line = parse_json(text)
            if wrong := fault(line, LINE):
                raise ValueError(wrong)
            key = line["part"], line["problem"], line["sample"]
            tokens = np.frombuffer(unpacked(base64.b64decode(line["tokens"])), "<i4").tolist()
            forced = tuple(map(tuple, line["forced"])) if "forced" in line else ()
            self.known[key] = Response(tuple(tokens), line["done"], forced)
            self.ids[line["problem"]] = line["id"]
            if "question" in line:
                self.questions[line["problem"]] = line["question"]
        except (ValueError, zlib.error) as error:
            raise UserError(f"{where} is not a response ({error}): remove the line, it is drawn again") from error

    def check(self, ids: Sequence[str], prompts: Sequence[Sequence[int]] = ()) -> int:
        """Take this set, ids and prompts in tokens, as the one that responses belong to; before `fill`.

        Raise UserError where responses on disk answer other questions. A set that has become shorter or longer is the
        same set. Return how many of its problems have responses without a digest: earlier versions of this file wrote
        none, and such responses are taken for answers to `prompts`.
        """
        self.ids_now, self.prompts = ids, prompts
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

    def add(
        self, new: dict[Key, Response], ids: Sequence[str], texts: Sequence[str], marks: Sequence[list] = ()
    ) -> None:
        """Keep finished responses, with their problems' ids and their texts (for people: texts are not read back).

        `marks`: of each text, the characters that an environment put there.
        """
        self.known |= new
        if not is_main():
            return
        for ((part, problem, number), r), id_, text, mark in zip(new.items(), ids, texts, marks or [[]] * len(new)):
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
            if r.forced:
                line |= {"forced": r.forced, "forced_text": mark}
            if len(self.prompts):
                line["question"] = digest(self.prompts[problem])
            self.waiting += json.dumps(line) + "\n"
        if not self.bucket or time.monotonic() - self.flushed > FLUSH_EVERY_S:
            self.flush()

    def flush(self) -> None:
        """Write the lines that wait."""
        if not self.waiting:
            return
        self.directory.mkdir(parents=True, exist_ok=True)
        write = self.file.write_text if self.bucket else lambda text: append(self.file, text)
        patiently(f"write {self.file}", lambda: write(self.waiting), advice=SPACE)
        if self.bucket:
            self.file = self.directory / f"{int(self.file.stem) + 1:05d}.jsonl"
        self.waiting, self.flushed = "", time.monotonic()

    def missing(self, part: str, requests: Sequence[Request]) -> list[Request]:
        """Return the requests without the samples that are known, and without those of which all are."""
        left = (
            r._replace(samples=tuple(g for g in r.samples if (part, r.problem, g) not in self.known)) for r in requests
        )
        return [r for r in left if r.samples]


def discard(directory: epath.Path) -> None:
    """Remove responses whose results are written and flushed; a later start removes what a kill leaves of them."""
    if is_main() and directory.exists():
        patiently(f"remove {directory}", lambda: directory.rmtree(missing_ok=True))


def fill(
    responses: Responses,
    part: str,
    requests: Sequence[Request],
    pretrained: Pretrained,
    sampling: Sampling,
    *,
    key: jax.Array,
    stop: Sequence,
    on_finished: Callable[[int, int], None],
) -> None:
    """Sample the responses that `requests` lack in `responses`, and keep each of them as soon as it is finished.

    `on_finished(responses, tokens)` hears of progress; it may raise, and what was finished by then is kept. The
    parameters are in the sampling layout; `stop` is as in `sampler/slots.py`.
    """
    model, params, tokenizer = pretrained
    left = responses.missing(part, requests)
    while left:
        many = np.cumsum([len(r.samples) for r in left])
        now, left = left[: max(int((many <= AT_ONCE).sum()), 1)], left[max(int((many <= AT_ONCE).sum()), 1) :]
        row = [(r.problem, g) for r in now for g in r.samples]

        def finished(rows, r, row=row):
            new = {(part, *row[i]): response_of(r, i, turns=sampling.environment is not None) for i in map(int, rows)}
            ids = [responses.ids_now[problem] for _, problem, _ in new]
            texts, marks = zip(*(shown(tokenizer.decode, x.tokens, x.forced) for x in new.values()))
            responses.add(new, ids, texts, marks)
            on_finished(len(new), sum(len(x.tokens) for x in new.values()))

        longest, events = max(len(r.prompt) for r in now), Events(on_finished=finished)
        rows = min(sampling.prefill_rows, rows_within(sampling.prefill_rows * PREFILL, longest))
        budgets = np.repeat([r.budget for r in now], [len(r.samples) for r in now])
        numbers = [r.problem for r in now]
        wanted = Requests([r.prompt for r in now], numbers, [r.samples for r in now], budgets)
        how = replace(sampling, prefill_rows=rows)
        try:
            with out_of_memory(sampling.less_memory):
                if sampling.environment is None:
                    sample(model, params, wanted, how, key=key, stop=stop, pad=tokenizer.pad, events=events)
                else:
                    problems = [sampling.environment.problems[p] for p in numbers]
                    sample_episodes(pretrained, problems, wanted, how, key=key, events=events)
        finally:
            responses.flush()


def response_of(r: Rollouts, i: int, *, turns: bool) -> Response:
    """Return response i of rollouts; `turns`: an environment may have put tokens into it."""
    tokens = tuple(r.tokens[i, r.prompt_len[i] : r.length[i]].tolist())
    return Response(tokens, bool(r.done[i]), tuple(map(tuple, forced_spans(r, i))) if turns else ())
