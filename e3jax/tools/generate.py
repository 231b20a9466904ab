"""Sample a model's responses to prompts: shown on a terminal while they are drawn, and written as JSON lines elsewhere.

    python -m e3jax.tools.generate --model=Qwen/Qwen3-0.6B --prompt='What is 17 * 24?'
    python -m e3jax.tools.generate --model=runs/x/checkpoints/hard/40 --raw --prompt='7 5 2 ?24'
    python -m e3jax.tools.generate --model=models/mine --prompts=problems.jsonl --samples=8 > responses.jsonl

Where stdout is not a terminal, every response is a line, in the order of the prompts, written as soon as that allows:

    {"prompt", "sample", "response", "thinking", "answer", "tokens", "stopped": "end" | "budget", "logp_mean"}

`thinking` and `answer` are the two parts of `response` (tokenizer.split_thinking). `tokens` counts the ending token
too. `logp_mean` is per token, in nats, of the tempered distribution before top_k and top_p.
"""

import json
import math
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import jax
import numpy as np
from absl import flags
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.text import Text

from e3jax.checkpoint.pretrained import Pretrained, load_pretrained
from e3jax.errors import SEEDS, UserError
from e3jax.flags import run_tool
from e3jax.printable import printable
from e3jax.sampler.plan import Sampling
from e3jax.sampler.slots import Events, Requests, sample
from e3jax.sharding import count_slices, make_mesh
from e3jax.tokenizer import split_thinking
from e3jax.tools.prompts import Prompt, make_prompt, read_prompts

BUDGET = 512  # tokens when --budget is not given, if the model's length allows it
PREFILL = 4096  # prompt tokens, about, that are prefilled at once
DIM, NORMAL = "\x1b[2m", "\x1b[0m"


class Words(NamedTuple):
    """The words of a question, and how they become a prompt: the flags of these names."""

    prompt: str | None
    prompts: str | None  # a file
    system: str = ""
    raw: bool = False
    thinking: bool = True


class Draws(NamedTuple):
    """How many responses each prompt gets, and how they are drawn."""

    samples: int
    budget: int | None  # most tokens of a response; None: BUDGET, or what fits
    seed: int
    sampling: Sampling


class Response(NamedTuple):
    """One finished response."""

    prompt: int  # index of its prompt
    sample: int
    text: str
    thinking: str | None
    answer: str
    tokens: int
    stopped: str  # "end" | "budget"
    logp_mean: float


class TextStream:
    """The text of tokens as they come. A character of which some bytes are missing is held back."""

    def __init__(self, decode: Callable[[list[int]], str]):
        self.decode, self.tokens, self.shown = decode, [], 0
        self.first = 0  # tokens before it are shown and done with, so that a long text is not decoded again and again

    def add(self, tokens: list[int]) -> str:
        """Take more tokens; return the text that they complete."""
        self.tokens += tokens
        text = self.decode(self.tokens[self.first :])
        new = self.new(text.rstrip("\N{REPLACEMENT CHARACTER}"))
        tail = self.decode(self.tokens[-64:])
        if len(self.tokens) - self.first > 256 and text.endswith(tail) and len(text) - len(tail) <= self.shown:
            self.first, self.shown = len(self.tokens) - 64, self.shown - (len(text) - len(tail))
        return new

    def rest(self) -> str:
        """Return the text that was held back."""
        return self.new(self.decode(self.tokens[self.first :]))

    def new(self, text: str) -> str:
        """Return what `text` adds to the text that was returned before."""
        new = text[self.shown :]
        self.shown += len(new)
        return new


def choose_budget(given: int | None, *, longest_prompt: int, max_length: int) -> int:
    """Return --budget, or BUDGET as far as the model's length allows; UserError when nothing fits."""
    room = max_length - longest_prompt
    budget = min(BUDGET, max(room, 1)) if given is None else given
    if budget > room:
        advice = f"use --budget={room} or less" if room > 0 else "shorten the prompt"
        raise UserError(
            f"a prompt of {longest_prompt} and a budget of {budget} tokens are more than the model's {max_length}: "
            f"{advice}"
        )
    return budget


def respond(
    pretrained: Pretrained,
    prompts: list[Prompt],
    draws: Draws,
    *,
    on_response: Callable[[int, Response], None],
    on_tokens: Callable[[list[int]], None] | None = None,
) -> None:
    """Sample every prompt; call `on_tokens` with what is drawn, `on_response` when row p · samples + g is complete."""
    model, params, tokenizer = pretrained
    samples, budget, seed, sampling = draws
    stop = tokenizer.stop
    drawn = [([], []) for _ in range(len(prompts) * samples)]  # tokens, log-probs

    def collect(row, new_tokens, new_logps):
        tokens, logps = drawn[row]
        tokens += new_tokens.tolist()
        logps += new_logps.tolist()
        if on_tokens:
            on_tokens(new_tokens.tolist())
        if tokens[-1] in stop or len(tokens) == budget:
            p, g = divmod(row, samples)
            text = tokenizer.decode(tokens)
            stopped = "end" if tokens[-1] in stop else "budget"
            parts = split_thinking(prompts[p].text, text)
            on_response(row, Response(p, g, text, *parts, len(tokens), stopped, float(np.mean(logps))))

    longest = max(len(p.tokens) for p in prompts)
    sample(
        model,
        params,
        Requests([p.tokens for p in prompts], range(len(prompts)), samples, budget),
        replace(sampling, prefill_rows=max(1, PREFILL // longest)),
        key=jax.random.key(seed),
        stop=stop,
        pad=tokenizer.pad,
        events=Events(on_tokens=collect),
    )


def stream(pretrained: Pretrained, prompt: Prompt, draws: Draws) -> None:
    """Show one response on a terminal while it is drawn, with dimmed thinking; then its length and why it stopped."""
    text, finished, times = TextStream(pretrained.tokenizer.decode), [], []

    def write(new):
        sys.stdout.write(
            printable(new, lines=True).replace("<think>", f"{DIM}<think>").replace("</think>", f"</think>{NORMAL}")
        )
        sys.stdout.flush()

    def on_tokens(tokens):
        write(text.add(tokens))
        times.append((time.perf_counter(), len(text.tokens)))

    if prompt.text.rstrip().endswith("<think>"):
        sys.stdout.write(DIM)
    draws = draws._replace(samples=1, sampling=replace(draws.sampling, slots=1, block=4))
    try:
        respond(
            pretrained,
            [prompt],
            draws,
            on_tokens=on_tokens,
            on_response=lambda row, response: finished.append(response),
        )
    finally:  # after Ctrl-C too
        write(text.rest())
        rate = ""
        if len(times) > 1:  # of the median block, because one that compiles takes seconds
            seconds, tokens = np.diff(times, axis=0).T
            rate = f", {np.median(tokens / seconds):.1f} tokens/s"
        ending = {"end": "end of response", "budget": "budget spent (--budget)"}
        why = ending[finished[0].stopped] if finished else "interrupted"
        print(f"{NORMAL}\n\n{DIM}{len(text.tokens)} tokens{rate}, {why}{NORMAL}", flush=True)


def show_all(pretrained: Pretrained, prompts: list[Prompt], draws: Draws) -> None:
    """Show many responses on a terminal, each under its header when it is complete, above a progress bar."""

    def show(row, r):
        question = prompts[r.prompt].question
        title = " ".join((question if isinstance(question, str) else question[-1]["content"]).split())
        of = f"prompt {r.prompt + 1}/{len(prompts)}, sample {r.sample + 1}/{draws.samples}"
        thinking = "" if r.thinking is None else f"{printable(r.thinking, lines=True)}\n\n"
        parts = [
            (f"\n{of}: {printable(title[:60], lines=False)}{'…' if len(title) > 60 else ''}\n", "bold"),
            (thinking, "dim"),
            f"{printable(r.answer, lines=True)}\n",
            (f"{r.tokens} tokens, {r.stopped}", "dim"),
        ]
        progress.console.print(Text.assemble(*parts), soft_wrap=True)
        progress.advance(task)

    with bar(Console(file=sys.stdout)) as progress:
        task = progress.add_task("responses", total=len(prompts) * draws.samples)
        respond(pretrained, prompts, draws, on_response=show)


def write_lines(pretrained: Pretrained, prompts: list[Prompt], draws: Draws) -> None:
    """Write a JSON line for every response to stdout, in order, with the progress bar on stderr."""
    waiting, first = {}, 0

    def write(row):
        r = waiting.pop(row)
        line = {
            "prompt": prompts[r.prompt].question,
            "sample": r.sample,
            "response": r.text,
            "thinking": r.thinking,
            "answer": r.answer,
            "tokens": r.tokens,
            "stopped": r.stopped,
            "logp_mean": r.logp_mean,
        }
        print(json.dumps(line), flush=True)

    def finished(row, response):
        nonlocal first
        waiting[row] = response
        progress.advance(task)
        while first in waiting:
            write(first)
            first += 1

    with bar(Console(stderr=True)) as progress:
        task = progress.add_task("responses", total=len(prompts) * draws.samples)
        try:
            respond(pretrained, prompts, draws, on_response=finished)
        except KeyboardInterrupt:
            for row in sorted(waiting):
                write(row)
            raise


def bar(console: Console) -> Progress:
    """Return a progress bar, shown where the console is a terminal; it does not redirect stdout."""
    columns = TextColumn("{task.description}"), BarColumn(20), MofNCompleteColumn(), TimeElapsedColumn()
    return Progress(*columns, console=console, disable=not console.is_terminal, redirect_stdout=False, transient=True)


def generate(name: str, words: Words, draws: Draws, *, dtype: str) -> None:
    """Load the model, sample it, and show the responses; `dtype` "" takes the backend's."""
    if (words.prompt is None) == (words.prompts is None):
        raise UserError("give either --prompt='…' or --prompts=FILE")
    texts = [words.prompt] if words.prompts is None else read_prompts(words.prompts)
    note = Console(stderr=True)
    if note.is_terminal:
        note.print(printable(f"loading {name}", lines=False), style="dim", highlight=False, markup=False)
    mesh = make_mesh(data=count_slices(), fsdp=-1, tensor=1)
    with jax.set_mesh(mesh):
        dtype = dtype or ("float32" if jax.default_backend() == "cpu" else "bfloat16")
        pretrained = load_pretrained(name, dtype=dtype, mesh=mesh)
        how = dict(raw=words.raw, thinking=words.thinking, system=words.system)
        ready = [make_prompt(pretrained.tokenizer, text, **how) for text in texts]
        longest = max(len(p.tokens) for p in ready)
        most = pretrained.model.config.max_length
        draws = draws._replace(budget=choose_budget(draws.budget, longest_prompt=longest, max_length=most))
        if not sys.stdout.isatty():
            write_lines(pretrained, ready, draws)
        elif len(ready) * draws.samples > 1:
            show_all(pretrained, ready, draws)
        else:
            stream(pretrained, ready[0], draws)


def main() -> None:
    """Check the flags and call `generate` with them."""
    f = flags.FLAGS
    if not all(map(math.isfinite, (f.temperature, f.top_p))):
        raise UserError(f"--temperature={f.temperature} --top_p={f.top_p}: use finite numbers")
    words = Words(f.prompt, f.prompts, f.system, f.raw, f.thinking)
    sampling = Sampling(f.temperature, f.top_k, f.top_p, slots=f.slots)
    generate(f.model, words, Draws(f.samples, f.budget, f.seed, sampling), dtype=f.dtype)


if __name__ == "__main__":
    # the defaults of sampling are those that Qwen3's model card advises for thinking ("Best Practices")
    flags.DEFINE_string("model", None, "Hugging Face directory or hub id, or RUN/checkpoints/STAGE/STEP", required=True)
    flags.DEFINE_string("prompt", None, "the question")
    flags.DEFINE_string("prompts", None, 'file: .txt, one prompt per line; .jsonl, objects with "prompt" or "messages"')
    flags.DEFINE_string("system", "", "system message before every prompt")
    flags.DEFINE_bool("thinking", True, "turn thinking on, where the chat template has that switch (Qwen3)")
    flags.DEFINE_bool("raw", False, "feed the prompt as it is: no chat template, no begin-of-text token")
    flags.DEFINE_integer("samples", 1, "responses per prompt", lower_bound=1)
    flags.DEFINE_integer("budget", None, f"most tokens of a response; default {BUDGET}, or what fits", lower_bound=1)
    flags.DEFINE_float("temperature", 0.6, "of sampling; 0: always the likeliest token", lower_bound=0.0)
    flags.DEFINE_float("top_p", 0.95, "sample from the likeliest tokens of this mass; 1: all", 1e-6, 1.0)
    flags.DEFINE_integer("top_k", 20, "sample from this many likeliest tokens; 0: all", lower_bound=0)
    flags.DEFINE_integer("seed", 0, "the same seed gives the same responses", 0, SEEDS - 1)
    flags.DEFINE_enum("dtype", "", ["", "float32", "bfloat16"], "of weights; default float32 on CPU, else bfloat16")
    flags.DEFINE_integer("slots", 32, "responses drawn at once, with a cache for prompt + budget each", lower_bound=1)
    run_tool(main)
