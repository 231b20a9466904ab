"""Episodes of several turns: the model speaks, an environment replies, and what it says is put behind the turn.

    [ prompt | turn 1 | reply | turn 2 | reply | turn 3 ]      `sampled` is True on the turns alone

All episodes take a turn together: they are sampled until each turn has ended (rollout/turns.py), the environment is
asked while others are still sampled, and those that go on are sampled again, their prompt the tokens so far. Nothing is
encoded again, so that log-probs of all turns are those of one sequence. Positions only grow, and the noise of a token
is that of (key, problem, sample, position): no noise is used twice, and a killed run draws the same again.

One budget holds for a whole episode, replies included; a reply that does not fit ends it as cut. A reply that begins a
new context (tasks/environment.py Restart) adds that context's tokens to the row. Its noise is that of another problem.

    rollouts = sample_episodes(pretrained, problems, requests, replace(sampling, environment=environment), key=key)
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import jax
import numpy as np

from e3jax.checkpoint.pretrained import Pretrained
from e3jax.errors import UserError, need, need_at_least_one
from e3jax.rewards.workers import GraderPool, Later
from e3jax.rollout.turns import CUT, END, Frame, chat_frame, first_turn, put_behind, turn_end
from e3jax.runtime import gather
from e3jax.sampler.plan import PREFILL, Sampling, at_most, rows_within, size_bucket
from e3jax.sampler.slots import Events, Requests, sample, unsampled, widened
from e3jax.tasks.environment import Reply, load_environment
from e3jax.tasks.problem import Problem
from e3jax.tasks.prompts import qwen3_turn
from e3jax.tasks.table import task_of
from e3jax.types import Rollouts

CONTEXTS = 1 << 20  # problem p's number in the noise of context c is p + c · CONTEXTS
NO_EVENTS = Events()
LOST = Reply(None, lost=True)


@dataclass(frozen=True)
class Turns:
    """What happens between turns: config.environment."""

    file: str  # "FILE.py" or "FILE.py:NAME" (tasks/environment.py); "": a response is one turn
    turns: int  # of the model, at most
    turn_tokens: int  # most tokens of one turn; 0: what the budget leaves

    def __post_init__(self):
        need_at_least_one(self, "turns")
        need(self.turn_tokens >= 0, "turn_tokens", self.turn_tokens, "use 0 (no limit) or more")
        if self.file:
            try:
                load_environment(self.file)
            except UserError as error:
                need(False, "file", self.file, str(error))


NO_TURNS = Turns("", 1, 0)


class Environment(NamedTuple):
    """What replies between turns, ready to be asked."""

    ask: Callable[[Sequence[Problem], Sequence[tuple[str, ...]], Sequence[bool]], Later]
    turns: int
    turn_tokens: int
    stops: tuple[str, ...]  # texts that end a turn
    style: str  # how a reply is put: in the tokenizer's chat "template", or Qwen's, "plain"
    thinking: bool  # of the template
    restarts: bool  # whether a reply may begin a new context
    problems: Sequence[Problem] = ()  # of an evaluation's set, by their number


def open_environment(
    turns: Turns, pool: GraderPool, *, style: str, thinking: bool, restarts: bool
) -> Environment | None:
    """Return what replies between turns, None where config.environment names no file.

    The function of `pool` is one that tasks/environment.py's `answering` makes.
    """
    if not turns.file:
        return None
    ask, stops = partial(pool.submit, reply=True), load_environment(turns.file).stops
    return Environment(ask, turns.turns, turns.turn_tokens, stops, style, thinking, restarts)


def sampling_on(sampling: Sampling, problems: Sequence[Problem]) -> Sampling:
    """Return how responses to a set's problems are sampled: an environment is told which problem it replies to."""
    environment = sampling.environment
    return sampling if environment is None else replace(sampling, environment=environment._replace(problems=problems))


def sample_episodes(
    pretrained: Pretrained,
    problems: Sequence[Problem],
    requests: Requests,
    sampling: Sampling,
    *,
    key: jax.Array,
    events: Events = NO_EVENTS,
) -> Rollouts:
    """Return an episode for each request, prompt-major, as `sample` does; problem p is that of prompt p.

    `sampling.environment` replies between turns. `events.on_finished` hears of episodes that are over.
    """
    episodes = Episodes(pretrained, problems, requests, sampling, key=key, events=events)
    while len(episodes.going):
        episodes.reply(episodes.take_turn())
    return episodes.finish()


class Episodes:
    """The mutable state of one `sample_episodes` call. Axes as in types.py: b is an episode, a row of the rollouts."""

    def __init__(self, pretrained: Pretrained, problems, requests: Requests, sampling: Sampling, *, key, events):
        self.pretrained, self.problems, self.requests, self.sampling = pretrained, problems, requests, sampling
        self.key, self.events, self.environment = key, events, sampling.environment
        prompts, _, samples, budget, _ = requests
        counted = isinstance(samples, int | np.integer)
        numbers = [range(samples)] * len(prompts) if counted else samples
        self.prompt_b = np.repeat(np.arange(len(prompts)), [len(g) for g in numbers])
        self.number_b = np.concatenate([np.asarray(g, np.int32) for g in numbers])
        self.out = unsampled(prompts, [len(g) for g in numbers], pad=pretrained.tokenizer.pad)
        self.limit_b = self.out.prompt_len + np.broadcast_to(budget, len(self.prompt_b)).astype(np.int32)
        self.begin_b, self.context_b = np.zeros((2, len(self.prompt_b)), np.int32)  # where its context begins; which
        self.transcripts: list[list[str]] = [[] for _ in self.prompt_b]
        self.endings = [""] * len(self.prompt_b)  # of the newest turns
        self.going, self.waiting = np.arange(len(self.prompt_b)), []  # episodes that speak; that are replied to
        self.turn, self.stats = 0, []
        self.stops = [stop_tokens(pretrained.tokenizer, text) for text in self.environment.stops]
        self.frame = frame_of(pretrained.tokenizer, self.environment) if any(map(in_chat, problems)) else Frame()

    def encode(self, text: str) -> list[int]:
        """Return the tokens of a text from outside the model, special tokens as text; UserError names whose it is."""
        try:
            return self.pretrained.tokenizer.encode_plain(text)
        except UserError as error:
            raise UserError(f"config.environment.file: {error}") from error

    def room(self, b: np.ndarray) -> np.ndarray:
        """Return how many tokens the next turn of each of the episodes `b` may have."""
        most, context = self.pretrained.model.config.max_length, self.out.length[b] - self.begin_b[b]
        room = np.minimum(self.limit_b[b] - self.out.length[b], most - context)
        return np.minimum(room, self.environment.turn_tokens) if self.environment.turn_tokens else room

    def next_requests(self) -> tuple[Requests, Sampling]:
        """Return what to sample for the next turn, and how; in the first, samples of a problem share its prefill."""
        prompts, ids, samples, *_ = self.requests
        if not self.turn:
            return Requests(prompts, ids, samples, self.room(self.going)), self.sampling
        tokens, going = self.out.tokens, self.going
        contexts = [tokens[b, self.begin_b[b] : self.out.length[b]].tolist() for b in going]
        numbers = [int(ids[self.prompt_b[b]]) + int(self.context_b[b]) * CONTEXTS for b in going]
        rows = min(rows_within(self.sampling.prefill_rows * PREFILL, max(map(len, contexts))), len(going))
        most = self.sampling.prefill_rows, self.sampling.slots
        sampling = replace(self.sampling, prefill_rows=at_most(most[0], rows), slots=at_most(most[1], len(going)))
        return Requests(contexts, numbers, [(int(self.number_b[b]),) for b in going], self.room(going)), sampling

    def take_turn(self) -> dict[int, tuple[Later, int]]:
        """Sample a turn of every episode that goes on; return the replies under way to those of this process."""
        model, params, tokenizer = self.pretrained
        requests, sampling = self.next_requests()
        going, asked, stats = self.going, {}, {}
        self.waiting = []
        sample(
            model,
            params,
            requests,
            sampling,
            key=self.key,
            stop=(*tokenizer.stop, *self.stops),
            pad=tokenizer.pad,
            events=Events(on_finished=lambda rows, r: asked.update(self.hear(going, rows, r)), stats=stats),
        )
        self.stats.append(stats)
        self.turn += 1
        return asked

    def hear(self, going: np.ndarray, rows: np.ndarray, r: Rollouts) -> dict[int, tuple[Later, int]]:
        """Take in turns that have ended, rows of `r`, and ask for replies to those of this process."""
        over = []
        for row in map(int, rows):
            b, first = int(going[row]), int(r.prompt_len[row])
            tokens = r.tokens[row, first : r.length[row]].tolist()
            length, self.endings[b] = turn_end(self.pretrained.tokenizer, tokens, self.environment.stops, self.stops)
            self.append(b, r.tokens[row, first : first + length], of=(r, row, first))
            self.transcripts[b].append(self.pretrained.tokenizer.decode(tokens[:length]))
            self.out.done[b] = self.endings[b] == END
            full = self.out.length[b] >= self.limit_b[b] or self.turn + 1 >= self.environment.turns
            (over if full else self.waiting).append(b)
        self.end(over)
        n, me = jax.process_count(), jax.process_index()
        mine = [b for b in going[rows].tolist() if b % n == me and b not in set(over)]
        problems = [self.problems[self.prompt_b[b]] for b in mine]
        done = [self.endings[b] == END for b in mine]
        later = self.environment.ask(problems, [tuple(self.transcripts[b]) for b in mine], done) if mine else None
        return {b: (later, i) for i, b in enumerate(mine)}

    def append(self, b: int, tokens: Sequence[int], *, of: tuple[Rollouts, int, int] | None = None) -> None:
        """Put tokens behind episode b: forced ones, or sampled ones `of` (rollouts, row, first column)."""
        start, end = int(self.out.length[b]), int(self.out.length[b]) + len(tokens)
        if end > self.out.tokens.shape[1]:
            self.out = widened(self.out, size_bucket(end), self.pretrained.tokenizer.pad)
        self.out.tokens[b, start:end] = tokens
        if of is not None:
            r, row, first = of
            for name in ("logp", "entropy", "sampled"):
                getattr(self.out, name)[b, start:end] = getattr(r, name)[row, first : first + len(tokens)]
        self.out.length[b] = end

    def reply(self, asked: dict[int, tuple[Later, int]]) -> None:
        """Put the replies behind the turns; episodes that the environment or the budget ends are over."""
        mine = {b: later.result()[i] for b, (later, i) in asked.items()}
        replies = {b: reply for part in gather(mine) for b, reply in part.items()}
        going, over = [], []
        for b in sorted(self.waiting):
            reply = replies[b] if isinstance(replies[b], Reply) else LOST  # else what the pool has for lost answers
            (going if self.goes_on(b, reply) else over).append(b)
        self.going = np.array(going, int)
        self.end(over)

    def goes_on(self, b: int, reply: Reply) -> bool:
        """Put one reply behind its turn and return True; return False where the episode is over."""
        if reply.text is None:
            self.out.done[b] = self.endings[b] != CUT and not reply.lost
            return False
        self.need_whole_context(reply)
        words, frame = self.encode(reply.text), self.frame if in_chat(self.problems[self.prompt_b[b]]) else Frame()
        tokens = first_turn(frame, words) if reply.restart else put_behind(frame, words, ending=self.endings[b])
        begin = int(self.out.length[b]) if reply.restart else int(self.begin_b[b])
        end = int(self.out.length[b]) + len(tokens)
        most = self.pretrained.model.config.max_length
        if end >= self.limit_b[b] or not 0 < end - begin < most:
            self.out.done[b] = False
            return False
        self.append(b, tokens)
        self.begin_b[b] = begin
        self.context_b[b] += reply.restart
        self.transcripts[b].append(reply.text)
        return True

    def need_whole_context(self, reply: Reply) -> None:
        """Refuse a new context where an episode is trained on as one sequence."""
        if reply.restart and not self.environment.restarts:
            raise UserError(
                "config.environment.file gave a Restart: in training, and in evaluations within a run, an episode is "
                "one sequence of tokens; python -m e3jax.eval.run evaluates environments that begin new contexts"
            )

    def end(self, over: list[int]) -> None:
        """Tell of episodes that are over."""
        if over and self.events.on_finished:
            self.events.on_finished(np.array(over), self.out)

    def finish(self) -> Rollouts:
        """Return all episodes, cut to the longest, and complete `stats`: counts of all turns, first turn's times."""
        if self.events.stats is not None:
            busy = [stats["occupancy"] for stats in self.stats if not np.isnan(stats["occupancy"])]
            self.events.stats.update(self.stats[0])
            self.events.stats["occupancy"] = float(np.mean(busy)) if busy else float("nan")
            for name in ("prefilled", "shared_pages"):
                self.events.stats[name] = sum(stats[name] for stats in self.stats)
        return widened(self.out, int(self.out.length.max()), self.pretrained.tokenizer.pad)


def stop_tokens(tokenizer, text: str) -> tuple[int, ...]:
    """Return the tokens of a text that ends a turn; UserError where the tokenizer has none for it."""
    try:
        tokens = tuple(tokenizer.encode(text))
    except ValueError as error:
        raise UserError(f"config.environment.file: STOPS has {text!r}: {error}") from error
    if not tokens:
        raise UserError(f"config.environment.file: STOPS has {text!r}, which is no token")
    return tokens


def in_chat(problem: Problem) -> bool:
    """Return whether a problem's prompt is a user's turn."""
    return task_of(problem).chat


def frame_of(tokenizer, environment: Environment) -> Frame:
    """Return the frame of the chat template in which replies are put; an empty one where there is no template."""
    if environment.style == "plain":
        return chat_frame(lambda messages: "".join(map(qwen3_turn, messages)) + "<|im_start|>assistant\n", tokenizer)
    if not getattr(tokenizer, "has_chat", False):
        return Frame()
    return chat_frame(partial(tokenizer.turns_text, opened=True, thinking=environment.thinking), tokenizer)
