"""Ask a model: its response streams on a terminal; everything else is JSON lines.

    python -m e3jax.tools.generate --model=Qwen/Qwen3-0.6B --prompt='What is 17 * 24?'
    python -m e3jax.tools.generate --model=runs/x/checkpoints/hard/40 --raw --prompt='7 5 2 ?24'
    python -m e3jax.tools.generate --model=models/mine --prompts=problems.jsonl --samples=8 > responses.jsonl

Where stdout is no terminal, a line for every response, in the order of the prompts and as soon as it allows:

    {"prompt", "sample", "response", "thinking", "answer", "tokens", "stopped": "end" | "budget", "logp_mean"}

`thinking` and `answer` are the two parts of `response` (tokenizer.split_thinking); `tokens` counts the ending one;
`logp_mean` is per token, in nats, of the tempered distribution before top_k and top_p.
"""

import json
import math
import sys
import time
from collections.abc import Callable
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
from e3jax.sampler.slots import sample
from e3jax.sharding import make_mesh
from e3jax.tokenizer import split_thinking
from e3jax.tools.prompts import Prompt, make_prompt, read_prompts

BUDGET = 512  # when --budget is not given, if the model's length allows it
PREFILL = 4096  # prompt tokens that are prefilled at once, about
DIM, NORMAL = "\x1b[2m", "\x1b[0m"


class Response(NamedTuple):
    """One finished response."""

    prompt: int  # index
    sample: int
    text: str
    thinking: str | None
    answer: str
    tokens: int
    stopped: str  # "end" | "budget"
    logp_mean: float


class TextStream:
    """Text of tokens as they come; a character whose bytes have not all come is held back."""

    def __init__(self, decode: Callable[[list[int]], str]):
        self.decode, self.tokens, self.shown = decode, [], 0
        self.first = 0  # tokens before it are shown and forgotten: a long text is not decoded again and again

    def add(self, tokens: list[int]) -> str:
        """What can be read now and could not before."""
        self.tokens += tokens
        text = self.decode(self.tokens[self.first :])
        new = self.new(text.rstrip("\N{REPLACEMENT CHARACTER}"))
        tail = self.decode(self.tokens[-64:])
        if len(self.tokens) - self.first > 256 and text.endswith(tail) and len(text) - len(tail) <= self.shown:
            self.first, self.shown = len(self.tokens) - 64, self.shown - (len(text) - len(tail))
        return new

    def rest(self) -> str:
        """What was held back."""
        return self.new(self.decode(self.tokens[self.first :]))

    def new(self, text: str) -> str:
        new = text[self.shown :]
        self.shown += len(new)
        return new


def choose_budget(asked: int | None, *, longest_prompt: int, max_length: int) -> int:
    """--budget, or BUDGET as far as the model's length allows; UserError when it does not."""
    room = max_length - longest_prompt
    budget = min(BUDGET, max(room, 1)) if asked is None else asked
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
    *,
    samples: int,
    budget: int,
    seed: int,
    slots: int,
    block: int,
    temperature: float,
    top_k: int,
    top_p: float,
    on_response: Callable[[int, Response], None],
    on_tokens: Callable[[list[int]], None] | None = None,
) -> None:
    """Sample every prompt; hears of tokens as they are drawn, of response p · samples + g when it is complete."""
    model, params, tokenizer = pretrained
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
        [p.tokens for p in prompts],
        ids=range(len(prompts)),
        key=jax.random.key(seed),
        samples=samples,
        budget=budget,
        stop=stop,
        pad=tokenizer.pad,
        slots=min(slots, len(drawn)),
        block=block,
        prefill_rows=min(len(prompts), max(1, PREFILL // longest)),
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        on_tokens=collect,
    )


def stream(pretrained: Pretrained, prompt: Prompt, **sampling) -> None:
    """One response on a terminal while it is drawn, its thinking dimmed; then how long it is and why it stopped."""
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
    try:
        respond(
            pretrained,
            [prompt],
            samples=1,
            slots=1,
            block=4,
            on_tokens=on_tokens,
            on_response=lambda row, response: finished.append(response),
            **sampling,
        )
    finally:  # Ctrl-C too
        write(text.rest())
        rate = ""
        if len(times) > 1:  # the median block's: one that compiles takes seconds
            seconds, tokens = np.diff(times, axis=0).T
            rate = f", {np.median(tokens / seconds):.1f} tokens/s"
        ending = {"end": "end of response", "budget": "budget spent (--budget)"}
        why = ending[finished[0].stopped] if finished else "interrupted"
        print(f"{NORMAL}\n\n{DIM}{len(text.tokens)} tokens{rate}, {why}{NORMAL}", flush=True)


def show_all(pretrained: Pretrained, prompts: list[Prompt], *, samples: int, **sampling) -> None:
    """Many responses on a terminal, each under its header when it is complete, above a progress bar."""

    def show(row, r):
        asked = prompts[r.prompt].asked
        title = " ".join((asked if isinstance(asked, str) else asked[-1]["content"]).split())
        of = f"prompt {r.prompt + 1}/{len(prompts)}, sample {r.sample + 1}/{samples}"
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
        task = progress.add_task("responses", total=len(prompts) * samples)
        respond(pretrained, prompts, samples=samples, block=16, on_response=show, **sampling)


def write_lines(pretrained: Pretrained, prompts: list[Prompt], *, samples: int, **sampling) -> None:
    """A JSON line for every response on stdout, in order; the progress bar is on stderr."""
    waiting, first = {}, 0

    def write(row):
        r = waiting.pop(row)
        line = {
            "prompt": prompts[r.prompt].asked,
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
        task = progress.add_task("responses", total=len(prompts) * samples)
        try:
            respond(pretrained, prompts, samples=samples, block=16, on_response=finished, **sampling)
        except KeyboardInterrupt:
            for row in sorted(waiting):
                write(row)
            raise


def bar(console: Console) -> Progress:
    """A progress bar where the console is a terminal; it leaves stdout alone."""
    columns = TextColumn("{task.description}"), BarColumn(20), MofNCompleteColumn(), TimeElapsedColumn()
    return Progress(*columns, console=console, disable=not console.is_terminal, redirect_stdout=False, transient=True)


def generate(
    name: str,
    *,
    prompt: str | None,
    prompts: str | None,
    system: str,
    raw: bool,
    thinking: bool,
    samples: int,
    budget: int | None,
    dtype: str,
    slots: int,
    **sampling,
) -> None:
    """Load, ask, show; arguments are the flags."""
    if (prompt is None) == (prompts is None):
        raise UserError("give either --prompt='…' or --prompts=FILE")
    if not all(map(math.isfinite, (sampling["temperature"], sampling["top_p"]))):
        raise UserError(f"--temperature={sampling['temperature']} --top_p={sampling['top_p']}: use finite numbers")
    asked = [prompt] if prompts is None else read_prompts(prompts)
    note = Console(stderr=True)
    if note.is_terminal:
        note.print(printable(f"loading {name}", lines=False), style="dim", highlight=False, markup=False)
    mesh = make_mesh(data=1, fsdp=-1, tensor=1)
    with jax.set_mesh(mesh):
        dtype = dtype or ("float32" if jax.default_backend() == "cpu" else "bfloat16")
        pretrained = load_pretrained(name, dtype=dtype, mesh=mesh)
        ready = [make_prompt(pretrained.tokenizer, a, raw=raw, thinking=thinking, system=system) for a in asked]
        sampling["budget"] = choose_budget(
            budget, longest_prompt=max(len(p.tokens) for p in ready), max_length=pretrained.model.config.max_length
        )
        if not sys.stdout.isatty():
            write_lines(pretrained, ready, samples=samples, slots=slots, **sampling)
        elif len(ready) * samples > 1:
            show_all(pretrained, ready, samples=samples, slots=slots, **sampling)
        else:
            stream(pretrained, ready[0], **sampling)


def main() -> None:
    """Flags to `generate`."""
    f = flags.FLAGS
    generate(
        f.model,
        prompt=f.prompt,
        prompts=f.prompts,
        system=f.system,
        raw=f.raw,
        thinking=f.thinking,
        samples=f.samples,
        budget=f.budget,
        dtype=f.dtype,
        slots=f.slots,
        seed=f.seed,
        temperature=f.temperature,
        top_k=f.top_k,
        top_p=f.top_p,
    )


if __name__ == "__main__":
    # sampling's defaults are Qwen3's advice for thinking (its model card, "Best Practices")
    flags.DEFINE_string("model", None, "Hugging Face directory or hub id, or RUN/checkpoints/STAGE/STEP", required=True)
    flags.DEFINE_string("prompt", None, "what to ask")
    flags.DEFINE_string("prompts", None, 'file: .txt, a prompt a line; .jsonl, objects with "prompt" or "messages"')
    flags.DEFINE_string("system", "", "system message before every prompt")
    flags.DEFINE_bool("thinking", True, "ask for thinking, where the chat template knows how (Qwen3)")
    flags.DEFINE_bool("raw", False, "feed the prompt as it is: no chat template, no begin-of-text token")
    flags.DEFINE_integer("samples", 1, "responses per prompt", lower_bound=1)
    flags.DEFINE_integer("budget", None, f"most tokens of a response; {BUDGET}, or what fits", lower_bound=1)
    flags.DEFINE_float("temperature", 0.6, "of sampling; 0: always the likeliest token", lower_bound=0.0)
    flags.DEFINE_float("top_p", 0.95, "sample from the likeliest tokens of this mass; 1: all", 1e-6, 1.0)
    flags.DEFINE_integer("top_k", 20, "sample from this many likeliest tokens; 0: all", lower_bound=0)
    flags.DEFINE_integer("seed", 0, "same seed, same responses", 0, SEEDS - 1)
    flags.DEFINE_enum("dtype", "", ["", "float32", "bfloat16"], "of weights; default float32 on CPU, else bfloat16")
    flags.DEFINE_integer("slots", 32, "responses at once, each with a cache of prompt + budget", lower_bound=1)
    run_tool(main)
