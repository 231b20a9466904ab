"""Supervised fine-tuning on conversations of any data: a file, a set of the hub, a prepared set (tasks/chats.py).

Path to the loss: configs/*.py -> train/curriculum.py -> here -> train/sft.py -> losses/sft.py. A step takes the next
`per_step` examples of an order that is new in every epoch: a function of (seed, step), so that there is nothing to
resume. They are packed into micro-batches of at most `rows` rows, whose gradients add up exactly.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial

import jax
import numpy as np

from e3jax.errors import UserError, need, need_at_least_one, need_choice
from e3jax.losses.sft import sft_loss, sft_weights
from e3jax.models.qwen3 import Qwen3
from e3jax.rollout.likelihood import row_groups
from e3jax.runtime import put
from e3jax.tasks.chat_tokens import ChatStyle, Example, encode_chat, encode_pair, encode_whole
from e3jax.tasks.chats import Chat, named_columns, read_chat
from e3jax.tasks.prompts import qwen3_turn
from e3jax.tasks.sets import need_set, read_all, tell_bad
from e3jax.tasks.stream import at
from e3jax.train.logprobs import forward
from e3jax.train.packing import pack_examples
from e3jax.train.run import Run, Stage
from e3jax.train.sft import fit, sft_gradient

TEMPLATES = ("chat", "none")
TRAINED = ("answers", "everything")


@dataclass(frozen=True, kw_only=True)
class ChatStage(Stage):
    """A supervised stage on conversations: kind "sft" with the name of its data."""

    data: str  # a file, a hub id with its split, a prepared set
    columns: str  # "prompt=Frage,response=Antwort"; "": by their names (tasks/chats.py)
    template: str  # "chat": the tokenizer's; "none": prompt and response are what the model reads and writes
    train_on: str  # "answers": the assistant's, with their ends; "everything"
    longer: str  # than row_length: "drop", or "cut" on the right
    held_out: int  # conversations that are not trained on, and whose loss is logged; 0: none
    per_step: int  # examples
    rows: int  # of a micro-batch
    row_length: int  # tokens
    aggregation: str  # losses/sft.py

    def __post_init__(self):
        super().__post_init__()
        need_set("data", self.data)
        need_choice(self, "template", TEMPLATES)
        need_choice(self, "train_on", TRAINED)
        need_choice(self, "longer", ("drop", "cut"))
        need_choice(self, "aggregation", ("token_mean", "sequence_mean"))
        need_at_least_one(self, "per_step", "rows", "row_length")
        need(self.held_out >= 0, "held_out", self.held_out, "use 0 (none) or more")
        try:
            named_columns(self.columns)
        except ValueError as error:
            need(False, "columns", self.columns, str(error))


def train(run: Run, params, stage: ChatStage):
    """Train `params` on the stage's conversations; return the final parameters."""
    chats = read_chats(run, stage)
    apart = np.random.default_rng([run.seed, len(chats)]).permutation(len(chats))[: stage.held_out]
    kept = np.setdiff1d(np.arange(len(chats)), apart)
    need(len(kept) > 0, f"stages.{stage.name}.held_out", stage.held_out, f"{stage.data} has {len(chats)} conversations")
    examples = encode_all(run, stage, [chats[i] for i in kept])
    epoch = len(examples) / stage.per_step
    run.log.say(
        f"{stage.name}: {len(examples)} examples, {sum(len(x.tokens) for x in examples):,} tokens, of which "
        f"{sum(int(x.trained.sum()) for x in examples):,} are trained; {stage.steps} steps are "
        f"{stage.steps / epoch:.2f} epochs of {epoch:.1f}"
    )
    measure = None
    if stage.held_out:
        batch = make_batch(run, stage, encode_all(run, stage, [chats[i] for i in apart]))
        measure = partial(held_out_loss, run, batch)

    def batch_of(step: int) -> list[list[np.ndarray]]:
        numbers = range(step * stage.per_step, (step + 1) * stage.per_step)
        return make_batch(run, stage, [examples[at(i, len(examples), run.seed)] for i in numbers])

    return fit(run, params, stage, kind="sft", batch_of=batch_of, gradient=sft_gradient, loss={}, measure=measure)


def read_chats(run: Run, stage: ChatStage) -> list[Chat]:
    """Return the conversations of the stage's data; say which forms its rows have."""
    columns = named_columns(stage.columns)
    chats = [chat for _, chat in read_all(stage.data, lambda row: read_chat(row.value, columns=columns))]
    forms = "; ".join(f"{count} as {form}" for form, count in Counter(chat.form for chat in chats).most_common())
    run.log.say(f"{stage.name}: {len(chats)} conversations of {stage.data}, read {forms}")
    if columns and stage.columns:
        run.log.say(f"{stage.name}: columns {stage.columns}, as the config names them")
    return chats


def chat_style(run: Run, stage: ChatStage) -> ChatStyle:
    """Return the tokenizer with its chat template, or with ChatML where config.task.chat is "plain"; UserError."""
    tokenizer, templated = run.tokenizer, run.settings.task.chat != "plain"
    advice = "the tokenizer has no chat template: use 'none' for rows of prompt and response, or task.chat='plain'"
    need(not templated or tokenizer.has_chat, f"stages.{stage.name}.template", stage.template, advice)

    def plain(messages, *, opened: bool, thinking: bool) -> str:
        return "".join(map(qwen3_turn, messages)) + ("<|im_start|>assistant\n" if opened else "")

    render = tokenizer.turns_text if templated else plain
    return ChatStyle(render, tokenizer.encode, tokenizer.stop)


def encode_all(run: Run, stage: ChatStage, chats: list[Chat]) -> list[Example]:
    """Return the examples of conversations that fit a row; say which others there were. UserError where none is left.

    A conversation that cannot be encoded counts as a malformed row (tasks/sets.py).
    """
    kept, long, unanswered, bad = [], 0, 0, []
    style = chat_style(run, stage) if stage.template == "chat" else None
    with run.log.phase(f"{stage.name}: tokens", total=len(chats)) as phase:
        for chat in chats:
            phase.advance(1)
            try:
                encoded = list(encode(run, stage, chat, style))
            except ValueError as error:
                bad.append((f"the conversation that begins {chat.messages[0]['content'][:60]!r}", str(error)))
                continue
            long += sum(len(x.tokens) > stage.row_length for x in encoded)
            most = stage.row_length if stage.longer == "cut" else None
            cut = [Example(*(array[:most] for array in x)) for x in encoded]
            fitting = [x for x in cut if len(x.tokens) <= stage.row_length]
            kept += [x for x in fitting if x.trained.any()]
            unanswered += sum(not x.trained.any() for x in fitting)
    tell_bad(stage.data, len(chats), bad)
    if long:
        what = "left out" if stage.longer == "drop" else "cut"
        rest = f"; left out {unanswered} of them, whose answers lie behind that" if unanswered else ""
        run.log.say(f"{stage.name}: {what} {long} examples of more than row_length={stage.row_length} tokens{rest}")
    if not kept:
        raise UserError(f"config.stages.{stage.name}.row_length={stage.row_length}: no example fits, raise it")
    return kept


def encode(run: Run, stage: ChatStage, chat: Chat, style: ChatStyle | None) -> Iterable[Example]:
    """Return the examples of one conversation; ValueError where it cannot be encoded."""
    everything, tokenizer = stage.train_on == "everything", run.tokenizer
    if style is not None:
        return [encode_whole(chat, style)] if everything else encode_chat(chat, style)
    if chat.pair is None:
        raise ValueError(f"template='none' takes a prompt and a response as texts, this is {chat.form}")
    return [encode_pair(*chat.pair, encode=tokenizer.encode, end=tokenizer.eos, everything=everything)]


def make_batch(run: Run, stage: ChatStage, examples: list[Example]) -> list[list[np.ndarray]]:
    """Return packed micro-batches: tokens, positions, segments and weights over all of them, [rows, width]."""
    return pack_examples(
        examples,
        lambda mask_bt: [sft_weights(mask_bt, aggregation=stage.aggregation)],
        rows=stage.rows,
        width=stage.row_length,
        pad=run.tokenizer.pad,
        groups=row_groups(),
    )


@partial(jax.jit, static_argnames=("model", "chunk"))
def loss_part(model: Qwen3, params, token_bt, position_bt, segment_bt, weight_bt, *, chunk: int):
    """Return a micro-batch's share of the cross-entropy, nats."""
    how = dict(temperature=1.0, chunk=chunk, position_bt=position_bt, segment_bt=segment_bt)
    logp, _ = forward(model, params, token_bt, **how)
    return sft_loss(logp, weight_bt)


def held_out_loss(run: Run, batch: list[list[np.ndarray]], params) -> dict[str, float]:
    """Return the cross-entropy of examples that are not trained on, nats, averaged as the training's."""
    parts = [loss_part(run.model, params, *(put(x, "BT") for x in micro), chunk=run.chunk) for micro in batch]
    return {"loss/held_out": float(sum(float(part) for part in parts))}
