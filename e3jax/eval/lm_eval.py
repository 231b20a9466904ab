"""EleutherAI's lm-eval on an e3jax model: its tasks, prompts and metrics, our log-probs and responses.

    python -m e3jax.eval.lm_eval --model=runs/x/checkpoints/math/60 --tasks=gsm8k,mmlu --to=results.json
    python -m e3jax.eval.lm_eval --model=Qwen/Qwen3-1.7B --tasks=mine --include_path=tasks/ --limit=20 --to=r.json
    python -m e3jax.eval.lm_eval --model=Qwen/Qwen3-1.7B --tasks=ifeval --chat --thinking --to=r.json \
        --gen_kwargs=max_gen_toks=8192,do_sample=True,temperature=0.6,top_p=0.95,top_k=20

It needs `pip install 'e3jax[lm-eval]'`. Texts become tokens as in lm-eval's own transformers model: context and
continuation are encoded together, and the continuation is what lies behind the context's tokens; a long context loses
its first tokens; an empty one becomes the begin token, or the ending token where there is none. A response ends at the
model's ending token, at the tokens that a string of `until` is usually made of, or at its budget; its text is then cut
at the first such string.
"""

import difflib
import importlib
import json
import logging
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import flags
from rich.console import Console

from e3jax.checkpoint.pretrained import Pretrained, load_pretrained
from e3jax.errors import SEEDS, UserError, first_line
from e3jax.flags import run_tool
from e3jax.printable import printable
from e3jax.rollout.bench import dtype_name
from e3jax.rollout.likelihood import Batching, Scored, log_likelihoods
from e3jax.sampler.layout import sampling_layout
from e3jax.sampler.plan import Sampling, rows_within
from e3jax.sampler.slots import Events, Requests, sample
from e3jax.sharding import AXES, count_slices, make_mesh
from e3jax.storage import patiently, place
from e3jax.tokenizer import split_thinking

BUDGET = 256  # tokens of a response whose task names none: lm-eval's own default
BUDGET_NAMES = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")  # the first one that is given
NEUTRAL = {"num_beams": 1, "repetition_penalty": 1.0, "min_p": 0.0, "num_return_sequences": 1, "use_cache": True}
PREFILL = 4096  # prompt tokens that are prefilled at once, about


@dataclass(frozen=True)
class ModelOptions:
    """The flags that say which model answers, and how."""

    model: str  # Hugging Face directory or hub id, or RUN/checkpoints/STAGE/STEP
    dtype: str
    max_length: int | None  # tokens of context and continuation; None: the model's length
    tokens: int  # of one forward pass on one device, about
    slots: int  # responses at once
    thinking: bool
    seed: int


@dataclass(frozen=True)
class TaskOptions:
    """The flags that say which tasks are run, and how; what they mean is lm-eval's."""

    tasks: Sequence[str]
    include_path: str | None
    limit: int | None
    num_fewshot: int | None
    gen_kwargs: str | None
    chat: bool
    system: str | None


class Settings(NamedTuple):
    """How a task wants its responses."""

    until: tuple[str, ...]  # texts that end a response and do not belong to it
    budget: int  # tokens
    temperature: float  # 0: the likeliest token
    top_k: int
    top_p: float


def read_settings(given: dict[str, Any]) -> Settings:
    """Return lm-eval's generation_kwargs as settings; raise UserError for one that the sampler lacks.

    >>> read_settings({"until": ["Q:"], "do_sample": False, "temperature": 0.7, "max_gen_toks": 32})
    Settings(until=('Q:',), budget=32, temperature=0.0, top_k=0, top_p=1.0)
    """
    left = {name: value for name, value in given.items() if value is not None}
    until = left.pop("until", ())
    budgets = [left.pop(name) for name in BUDGET_NAMES if name in left]
    temperature, sampled = left.pop("temperature", None), left.pop("do_sample", None)
    if temperature is None:
        temperature = 1.0 if sampled else 0.0
    settings = Settings(
        until=tuple(u for u in ([until] if isinstance(until, str) else until) if u),
        budget=int(budgets[0]) if budgets else BUDGET,
        temperature=0.0 if sampled is False else float(temperature),
        top_k=max(int(left.pop("top_k", 0)), 0),
        top_p=float(left.pop("top_p", 1.0)),
    )
    odd = {name: value for name, value in left.items() if name not in NEUTRAL or NEUTRAL[name] != value}
    if odd or settings.budget < 1:
        raise UserError(
            f"generation settings {odd or given}: the sampler has until, max_gen_toks (1 or more), do_sample, "
            "temperature, top_k and top_p; change the task's generation_kwargs, or give --gen_kwargs"
        )
    return settings


def encode(tokenizer, text: str, *, begin: bool | None) -> list[int]:
    """Return the tokens of a text; `begin` None puts the begin token first unless the text starts with it."""
    if begin is None:
        begin = tokenizer.bos is None or not text.startswith(tokenizer.hub.bos_token)
    return tokenizer.encode(text, begin=begin)


def prefix(tokenizer) -> int:
    """Return the token that an empty context is replaced with."""
    return tokenizer.eos if tokenizer.bos is None else tokenizer.bos


def stop_tokens(tokenizer, until: Sequence[str]) -> list[tuple[int, ...]]:
    """Return token sequences that surely mean the end: they spell one of `until`, or are its special token.

    Such a string may also come as part of a longer token. Then sampling goes on, and the text is cut afterwards.
    """
    endings = []
    for text in until:
        tokens = tuple(tokenizer.encode(text))
        special = len(tokens) == 1 and tokenizer.hub.convert_ids_to_tokens(tokens[0]) == text
        if tokens and (special or tokenizer.decode(tokens) == text):
            endings.append(tokens)
    return endings


def cut(text: str, until: Sequence[str]) -> str:
    """Return the text before the first of `until`.

    >>> cut("4\\n\\nQ: and", ["Q:", "\\n\\n"])
    '4'
    """
    return text[: min((at for u in until if (at := text.find(u)) >= 0), default=len(text))]


class Served(NamedTuple):
    """A loaded model, its parameters in the sampling layout, and how it answers."""

    pretrained: Pretrained
    options: ModelOptions
    batching: Batching  # of texts whose log-probs are wanted; its `most` is the longest context with a continuation
    console: Console

    def progress(self, what: str, total: int) -> Callable[[int], None]:
        """Return a function that hears how many more are done, and says so at every twentieth of the total."""
        done = 0

        def heard(n: int) -> None:
            nonlocal done
            before, done = done, done + n
            if done == total or 20 * done // total > 20 * before // total:
                self.console.print(f"{what}: {done} of {total}", style="dim", highlight=False)

        return heard

    def score(self, pairs: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[Scored]:
        """Return the log-likelihoods of (context, continuation) token pairs, and show progress."""
        model, params, _ = self.pretrained
        return log_likelihoods(
            model, params, pairs, self.batching, on_scored=self.progress("log-likelihoods", len(pairs))
        )

    def respond(self, contexts: Sequence[str], kwargs: Sequence[dict[str, Any]]) -> list[str]:
        """Return a response to each context under its generation_kwargs, and show progress."""
        heard, out, groups = self.progress("responses", len(contexts)), [""] * len(contexts), {}
        for i, given in enumerate(kwargs):
            groups.setdefault(read_settings(given), []).append(i)
        seen: dict[str, int] = {}  # a context that comes again (repeats) gets other noise
        for settings, which in groups.items():
            ids = []
            for context in (contexts[i] for i in which):
                seen[context] = seen.get(context, -1) + 1
                ids.append(zlib.crc32(f"{seen[context]} {context}".encode()))
            for i, text in zip(which, generate(self, [contexts[i] for i in which], settings, ids=ids, heard=heard)):
                out[i] = text
        return out


def generate(
    served: Served, prompts: Sequence[str], settings: Settings, *, ids: Sequence[int], heard: Callable[[int], None]
) -> list[str]:
    """Return a response to each prompt, cut at `until`; `ids` name the prompts' noise.

    Of a thinking model it is what follows the thought, "" if the thought never ended. Prompts that leave no room for
    the budget lose their first tokens.
    """
    (model, params, tokenizer), most = served.pretrained, served.batching.most
    thinking, room = served.options.thinking, most - settings.budget
    if room < 1:
        raise UserError(
            f"a budget of {settings.budget} tokens (max_gen_toks) leaves no room for a prompt in {most}: give less in "
            "--gen_kwargs=max_gen_toks=…, or raise --max_length"
        )
    tokens = [(encode(tokenizer, p, begin=None) or [prefix(tokenizer)])[-room:] for p in prompts]
    order = sorted(range(len(tokens)), key=lambda i: -len(tokens[i]))
    stop = [*tokenizer.stop, *([] if thinking else stop_tokens(tokenizer, settings.until))]  # a thought may have "\n\n"
    mesh = jax.sharding.get_mesh()
    groups = 1 if mesh.empty else int(np.prod([mesh.shape[axis] for axis in AXES["J"]]))
    rows = max(min(rows_within(PREFILL, len(tokens[order[0]])), len(order)) // groups, 1) * groups
    slots = served.options.slots
    drawn = sample(
        model,
        params,
        Requests([tokens[i] for i in order], [ids[i] for i in order], 1, settings.budget),
        Sampling(settings.temperature, settings.top_k, settings.top_p, slots=slots, prefill_rows=rows),
        key=jax.random.key(served.options.seed),
        stop=stop,
        pad=tokenizer.pad,
        events=Events(on_finished=lambda rows, _: heard(len(rows))),
    )
    out = [""] * len(prompts)
    for row, i in enumerate(order):
        text = tokenizer.decode(drawn.tokens[row, drawn.prompt_len[row] : drawn.length[row]].tolist())
        out[i] = cut(split_thinking(prompts[i], text)[1] if thinking else text, settings.until)
    return out


def make_lm(served: Served):
    """Return the model as an `lm_eval.api.model.TemplateLM`."""
    needed("lm_eval")
    from lm_eval.api.model import TemplateLM
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

    ours, options, most = served.pretrained.tokenizer, served.options, served.batching.most

    class Adapter(TemplateLM):
        tokenizer = ours.hub
        tokenizer_name = options.model.replace("/", "__")
        eot_token_id, prefix_token_id, max_length = ours.eos, prefix(ours), most

        def get_model_info(self):
            return {"model": options.model, "max_length": most, "thinking": options.thinking, "seed": options.seed}

        def tok_encode(self, string, add_special_tokens=None, **_):
            return encode(ours, string, begin=add_special_tokens)

        def _loglikelihood_tokens(self, requests, **_):
            return [tuple(s) for s in served.score([(context, continuation) for _, context, continuation in requests])]

        def loglikelihood_rolling(self, requests, disable_tqdm=False):
            windows = [
                [
                    make_disjoint_window(w)
                    for w in get_rolling_token_windows(
                        self.tok_encode(r.args[0]), self.prefix_token_id, max_seq_len=most, context_len=1
                    )
                ]
                for r in requests
            ]
            scored = iter(served.score([w for ws in windows for w in ws]))
            return [sum(next(scored).logp for _ in ws) for ws in windows]

        def generate_until(self, requests, disable_tqdm=False):
            return served.respond([r.args[0] for r in requests], [r.args[1] for r in requests])

        def apply_chat_template(self, chat_history, add_generation_prompt=True):
            return ours.apply_chat(
                chat_history, thinking=options.thinking, tokenize=False, go_on=not add_generation_prompt
            )

    return Adapter()


# ---- the command


def needed(module: str):
    """Return lm-eval, or one of its parts; raise UserError where it is not installed."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UserError(f"lm-eval's benchmarks need lm-eval ({error}): pip install 'e3jax[lm-eval]'") from error


def load_tasks(names: Sequence[str], include_path: str | None):
    """Return a TaskManager that has read the data of the named tasks.

    Raise UserError for unknown names, and for data that cannot be had.
    """
    manager_of = needed("lm_eval.tasks").TaskManager
    if include_path is not None and not place(include_path).is_dir():
        raise UserError(f"--include_path={include_path} is no directory: name one with .yaml files of tasks")
    try:
        manager = manager_of(include_path=include_path, include_defaults=False) if include_path else None
        if manager is None or not set(names) <= set(manager.all_subtasks):  # the index of 14,000 tasks takes seconds
            manager = manager_of(include_path=include_path)
    except Exception as error:  # yaml's
        raise UserError(f"--include_path={include_path}: {first_line(error)}") from error
    unknown = [name for name in names if name not in manager.all_tasks]
    if unknown:
        near = difflib.get_close_matches(unknown[0], manager.all_tasks, n=3)
        raise UserError(
            f"lm-eval has no task {', '.join(map(repr, unknown))}: "
            + (f"did you mean {' or '.join(near)}? " if near else "")
            + "`lm-eval ls tasks` lists them; --include_path=DIR adds your own"
        )
    loaded = {"tasks": {}, "groups": {}, "group_map": {}}
    for name in names:
        try:
            for kind, entries in manager.load([name]).items():
                loaded[kind] |= entries
        except ImportError as error:
            raise UserError(f"the task {name!r} needs another package ({error}): pip install it") from error
        except Exception as error:  # of datasets, huggingface_hub, httpx, yaml: no common base
            raise UserError(
                f"the task {name!r} could not be loaded ({type(error).__name__}: {first_line(error)}). Its data come "
                "from the hub unless its yaml says otherwise: run it once where the hub can be reached and copy "
                "$HF_HOME, or give a task of your own with --include_path that has dataset_path: json and "
                "dataset_kwargs: {data_files: …}"
            ) from error
    manager.load = lambda _: loaded  # read once, before the model
    return manager


def evaluate(options: ModelOptions, asking: TaskOptions, *, to: str, samples_to: str | None) -> dict[str, Any]:
    """Load tasks and model, run, and write results and samples; return lm-eval's results without the samples."""
    for library in ("lm_eval", "huggingface_hub"):  # what becomes an error is told once, in a sentence
        logging.getLogger(library).setLevel(logging.ERROR)
    if options.thinking and not asking.chat:
        raise UserError("--thinking is the chat template's: give --chat too")
    console = Console(stderr=True)
    manager = load_tasks(asking.tasks, asking.include_path)
    mesh = make_mesh(data=count_slices(), fsdp=-1, tensor=1)
    with jax.set_mesh(mesh):
        model, params, tokenizer = load_pretrained(options.model, dtype=dtype_name(options.dtype), mesh=mesh)
        most = min(options.max_length or model.config.max_length, model.config.max_length)
        if asking.chat and not tokenizer.has_chat:
            raise UserError(f"--chat: the tokenizer of {options.model} has no chat template, leave it out")
        with sampling_layout(params, tensor=1, dtype=model.dtype) as params:
            batching = Batching(options.tokens * len(jax.devices()), most, tokenizer.pad)
            served = Served(Pretrained(model, params, tokenizer), options, batching, console)
            results = needed("lm_eval.evaluator").simple_evaluate(
                make_lm(served),
                tasks=list(asking.tasks),
                task_manager=manager,
                limit=asking.limit,
                num_fewshot=asking.num_fewshot,
                gen_kwargs=asking.gen_kwargs,
                apply_chat_template=asking.chat,
                system_instruction=asking.system,
                log_samples=samples_to is not None,
            )
    samples = results.pop("samples", {})
    written = write_results(results, samples, to=to, samples_to=samples_to)
    print(printable(needed("lm_eval.utils").make_table(results), lines=True))
    console.print(printable(f"written: {', '.join(written)}", lines=False), style="dim", highlight=False, markup=False)
    return results


def write_results(results: dict, samples: dict[str, list[dict]], *, to: str, samples_to: str | None) -> list[str]:
    """Write the results and, where a file is named for them, every request with its response; return the files."""
    plain = partial(json.dumps, default=needed("lm_eval.utils").handle_non_serializable)
    files = {to: plain(results, indent=2) + "\n"}
    if samples_to is not None:
        lines = [{"task": task, **line} for task, lines in samples.items() for line in lines]
        files[samples_to] = "".join(plain(line) + "\n" for line in lines)
    for path, text in files.items():
        patiently(f"write {path}", lambda path=path, text=text: place(path).write_text(text))
    return list(files)


def main() -> None:
    """Evaluate as the flags say."""
    f = flags.FLAGS
    options = ModelOptions(*(f[field.name].value for field in fields(ModelOptions)))
    asking = TaskOptions(*(f[field.name].value for field in fields(TaskOptions)))
    evaluate(options, asking, to=f.to, samples_to=f.samples_to)


if __name__ == "__main__":
    flags.DEFINE_string("model", None, "Hugging Face directory or hub id, or RUN/checkpoints/STAGE/STEP", required=True)
    flags.DEFINE_list("tasks", None, "names of tasks, groups or tags, with commas between them", required=True)
    flags.DEFINE_string("to", None, "file for the results, .json; gs://… too", required=True)
    flags.DEFINE_string("samples_to", None, "file for every request and response, .jsonl")
    flags.DEFINE_string("include_path", None, "directory with .yaml files of your own tasks")
    flags.DEFINE_integer("limit", None, "the first so many questions of each task; for trying out", lower_bound=1)
    flags.DEFINE_integer("num_fewshot", None, "worked examples before a question; the task's own number", lower_bound=0)
    flags.DEFINE_string("gen_kwargs", None, "NAME=VALUE,… over the tasks' generation_kwargs")
    flags.DEFINE_bool("chat", False, "put questions into the model's chat template")
    flags.DEFINE_bool("thinking", False, "ask for thinking (Qwen3); what follows the thought is graded")
    flags.DEFINE_string("system", None, "system message")
    flags.DEFINE_enum("dtype", "", ["", "float32", "bfloat16"], "of weights; default float32 on CPU, else bfloat16")
    flags.DEFINE_integer("max_length", None, "tokens of context and continuation; the model's length", lower_bound=2)
    flags.DEFINE_integer("tokens", 8192, "tokens per device in one forward pass, about", lower_bound=1)
    flags.DEFINE_integer("slots", 32, "responses at once, each with a cache of prompt + budget", lower_bound=1)
    flags.DEFINE_integer("seed", 0, "of sampled responses", 0, SEEDS - 1)
    run_tool(main)
