"""One whole GRPO step (sample, grade, log-probs, update): ours beside Tunix's learner and TRL's trainer.

    python benchmarks/step.py --out=benchmarks/results/step_17m.json
    python benchmarks/step.py --model=tiny --out=benchmarks/results/step_tiny.json
    python benchmarks/step.py --quick

The same weights, prompts, recorded lengths (lengths.py), KL coefficient and grading function; one optimiser update a
step. Each peer runs as itself: Tunix an RLCluster and a GRPOLearner whose vanilla rollout is told where a batch ends
(peers.py), TRL a GRPOTrainer whose rollout_func calls transformers' generate with the stopping criterion. Their loops
cannot be entered a step at a time, so ours runs before and after them. The first step of each compiles and is not
counted.
"""

import argparse
import functools
import statistics
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import jax
import machine
import numpy as np
import ours
import peers
import transformers
from command import add_sampling, add_training, command, keep, parsed
from flax import nnx
from lengths import workload
from training import LOSS, OurTrainer, Work
from transformers_side import END, PAD, torch_roll
from tunix.rl import rl_cluster
from tunix.rl.grpo import grpo_learner
from tunix.rl.rollout import base_rollout, vanilla_rollout

from e3jax.losses.grpo import group_advantages

KL = 0.001
SIDES = ("ours", "tunix", "trl")


def grade(text: str) -> float:
    """1 when the response's numbers add up to an even one: no side can find that easy."""
    return 1.0 - sum(map(int, text.split())) % 2


# ---- ours


def our_step(asked, trainer: OurTrainer, side: ours.Ours, prompts, length_pg, *, seed: int, old_logp: str) -> dict:
    """Sample with the current parameters, grade, update; seconds of the parts."""
    start = time.perf_counter()
    r, _ = ours.roll(
        side,
        prompts,
        length_pg,
        key=seed,
        slots=asked.slots,
        block=asked.block,
        prefill_rows=asked.prefill_rows,
        params=trainer.state.params,
    )
    sampled = time.perf_counter()
    decode = peers.Numbers().decode
    texts = [decode(row[n:end]) for row, n, end in zip(r.tokens, r.prompt_len, r.length)]
    score_pg = np.array([grade(text) for text in texts]).reshape(length_pg.shape)
    advantage = group_advantages(score_pg, normalize_std=True, ddof=1, epsilon=1e-6).reshape(-1)
    # `weight` says here which tokens were sampled; the update divides
    work = Work(r.tokens, r.prompt_len, r.length, r.sampled.astype(np.float32), advantage, r.logp)
    values = trainer.update(
        work,
        rows=asked.rows,
        budget=asked.budget,
        old_logp=old_logp,
        ref_params=side.params,
        loss=replace(LOSS, kl_coef=KL),
    )
    end = time.perf_counter()
    return {
        "seconds": end - start,
        "rollout_s": sampled - start,
        "update_s": end - sampled,
        "parity": values["parity/logp_max"],
    }


# ---- Tunix


class TunixRollout(vanilla_rollout.VanillaRollout):
    """Tunix's vanilla rollout; the batch ends with its longest recorded row, and every row is cut at its length."""

    def __init__(self, rollout_actor, tokenizer, mesh, rollout_config, *, length_b):
        self.length_b, self.at, self.short, self.sampled = length_b, 0, True, 0
        room = rollout_config.max_prompt_length
        self._sampler = peers.tunix_side(rollout_actor, room=room, budget=rollout_config.max_tokens_to_generate)

    def generate(self, prompts, rollout_config, **kwargs):
        length_b = self.length_b[self.at : self.at + len(prompts)]
        self.at, self.sampled = (self.at + len(prompts)) % len(self.length_b), self.sampled + len(prompts)
        length_b = np.minimum(length_b, 2) if self.short else length_b  # the first step only compiles
        self._sampler.longest = int(length_b.max())
        found = super().generate(prompts, rollout_config, **kwargs)
        tokens = [np.asarray(row[:n]) for row, n in zip(found.tokens, length_b)]
        return base_rollout.RolloutOutput(
            text=[self._sampler.tokenizer.decode(row.tolist()) for row in tokens],
            logits=found.logits,
            tokens=tokens,
            left_padded_prompt_tokens=found.left_padded_prompt_tokens,
            logprobs=found.logprobs,
        )


class TimedLearner(grpo_learner.GRPOLearner):
    """Its learner, noting when a step begins."""

    begun = ()

    def _run_global_step(self, *args, **kwargs):
        jax.block_until_ready(nnx.state(self.rl_cluster.actor_trainer.model))
        self.begun = (*self.begun, time.perf_counter())
        self.rl_cluster.rollout.short = len(self.begun) == 1
        super()._run_global_step(*args, **kwargs)


def tunix_steps(asked, path: Path, prompts, length_pg: np.ndarray, steps: int) -> list[float]:
    """Seconds of every step after the first."""
    mesh, room = peers.tunix_mesh(), max(map(len, prompts))
    role = rl_cluster.Role
    config = rl_cluster.ClusterConfig(
        role_to_mesh={role.ACTOR: mesh, role.REFERENCE: mesh, role.ROLLOUT: mesh},
        rollout_engine=functools.partial(TunixRollout, length_b=length_pg.reshape(-1)),
        training_config=rl_cluster.RLTrainingConfig(
            actor_optimizer=peers.tunix_optimizer(),
            eval_every_n_steps=1_000_000,
            max_steps=steps + 1,
            mini_batch_size=len(prompts),
            train_micro_batch_size=1,  # in prompts: one is a group of 8 rows
            rollout_micro_batch_size=max(asked.tunix_batch // length_pg.shape[1], 1),
            compute_logps_micro_batch_size=1,
        ),
        rollout_config=base_rollout.RolloutConfig(
            max_tokens_to_generate=asked.budget,
            max_prompt_length=room,
            kv_cache_size=room + asked.budget,
            temperature=1.0,
            top_p=1.0,
            top_k=None,
            eos_tokens=[-1],
        ),
    )
    actor, reference = (peers.load_tunix(path, remat=asked.tunix_remat) for _ in range(2))
    cluster = rl_cluster.RLCluster(actor=actor, reference=reference, tokenizer=peers.Numbers(), cluster_config=config)
    learner = TimedLearner(
        cluster, peers.tunix_config(kl=KL), reward_fns=lambda prompts, completions, **_: [grade(c) for c in completions]
    )
    text = [peers.Numbers().decode(p) for p in prompts]
    learner.train({"prompts": text} for _ in range(steps + 1))
    jax.block_until_ready(nnx.state(cluster.actor_trainer.model))
    begun = [*learner.begun, time.perf_counter()]
    assert len(begun) == steps + 2, f"Tunix made {len(begun) - 1} steps, not {steps + 1}"
    assert cluster.rollout.sampled == (steps + 1) * length_pg.size, f"Tunix sampled {cluster.rollout.sampled} responses"
    assert cluster.actor_trainer.train_steps == steps + 1, f"Tunix made {cluster.actor_trainer.train_steps} updates"
    return np.diff(begun)[1:].tolist()


# ---- TRL


def words(vocabulary: int):
    """A tokenizer of numbers with blanks between, as transformers has them."""
    import tokenizers

    known = {"<pad>": PAD, "<end>": END} | {str(i): i for i in range(2, vocabulary)}
    inner = tokenizers.Tokenizer(tokenizers.models.WordLevel(known, unk_token="<pad>"))
    inner.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", eos_token="<end>")


class Clock(transformers.TrainerCallback):
    """Seconds of every optimiser step, what it samples included."""

    def __init__(self):
        self.seconds = []

    def on_step_begin(self, *args, **kwargs):
        self.start = time.perf_counter()

    def on_step_end(self, *args, **kwargs):
        self.seconds.append(time.perf_counter() - self.start)


def trl_steps(asked, path: Path, prompts, length_pg: np.ndarray, steps: int) -> list[float]:
    """Seconds of every step after the first."""
    import datasets
    import trl

    length_b, rows = length_pg.reshape(-1), asked.torch_rows
    repeated = [p for p in prompts for _ in range(length_pg.shape[1])]
    clock, tokenizer = Clock(), words(peers.SHAPES[asked.model]["vocab_size"])

    def roll(texts, trainer):
        asked_for = [tokenizer(text)["input_ids"] for text in texts]
        assert asked_for == repeated, "TRL asks for other prompts"
        lengths = length_b if clock.seconds else np.minimum(length_b, 2)  # the first step only warms up
        trainer.model.eval()
        tokens = torch_roll(trainer.model, asked_for, lengths, batch=asked.torch_batch)
        trainer.model.train()
        return {"prompt_ids": asked_for, "completion_ids": [row.tolist() for row in tokens], "logprobs": None}

    with tempfile.TemporaryDirectory() as directory:
        config = trl.GRPOConfig(
            output_dir=directory,
            per_device_train_batch_size=rows,
            gradient_accumulation_steps=len(length_b) // rows,
            num_generations=length_pg.shape[1],
            max_completion_length=asked.budget,
            beta=KL,
            temperature=1.0,
            learning_rate=ours.LR,
            adam_beta1=ours.BETAS[0],
            adam_beta2=ours.BETAS[1],
            weight_decay=ours.DECAY,
            max_grad_norm=ours.GRAD_CLIP,
            optim="adamw_torch_fused",
            lr_scheduler_type="constant",
            bf16=False,
            gradient_checkpointing=False,
            shuffle_dataset=False,
            max_steps=steps + 1,
            save_strategy="no",
            logging_strategy="no",
            report_to=[],
            use_cpu=True,
            disable_tqdm=True,
        )
        trainer = trl.GRPOTrainer(
            model=peers.load_torch(path),
            reward_funcs=lambda prompts, completions, **_: [grade(c) for c in completions],
            args=config,
            train_dataset=datasets.Dataset.from_dict({"prompt": [peers.Numbers().decode(p) for p in prompts]}),
            processing_class=tokenizer,
            rollout_func=roll,
            callbacks=[clock],
        )
        trainer.train()
    assert len(clock.seconds) == steps + 1, f"TRL made {len(clock.seconds)} steps, not {steps + 1}"
    return clock.seconds[1:]


# ---- the comparison


def compare(asked) -> dict:
    """Ours, the peers, ours again."""
    facts = machine.facts()
    machine.say(facts)
    path = peers.checkpoint(asked.model, asked.dir)
    asked.budget = 64 if asked.quick else peers.BUDGETS[asked.model]
    prompts, length_pg = workload(
        prompts=asked.prompts,
        samples=asked.samples,
        budget=asked.budget,
        vocabulary=peers.SHAPES[asked.model]["vocab_size"],
    )
    side = ours.load(path, remat=asked.remat)
    gap = peers.check_logits(side, peers.load_torch(path), peers.load_tunix(path))
    trainer = OurTrainer(side, chunk=asked.chunk, room=max(map(len, prompts)))
    step = functools.partial(our_step, asked, trainer, side, prompts, length_pg)
    parts = {"trainer": [], "sampler": []}

    def own(repeats):
        for repeat in range(repeats):
            for old_logp, found in parts.items():
                found.append(step(seed=repeat, old_logp=old_logp))
                print(f"  ours, old log-probs of the {old_logp}: {found[-1]}", file=sys.stderr, flush=True)

    seconds = {}
    if "ours" in asked.sides:
        step(seed=0, old_logp="trainer")  # compiles
        own(asked.repeats)
    for name, steps in (("tunix", tunix_steps), ("trl", trl_steps)):
        if name in asked.sides:
            seconds[name] = steps(asked, path, prompts, length_pg, asked.repeats)
            print(f"  {name}: {seconds[name]}", file=sys.stderr, flush=True)
    if "ours" in asked.sides:
        own(asked.repeats)
        seconds["ours"] = [p["seconds"] for p in parts["trainer"]]
        seconds["ours, old log-probs of the sampler"] = [p["seconds"] for p in parts["sampler"]]
    return {
        "benchmark": "step",
        "model": asked.model,
        **facts,
        "load_average_after": machine.facts()["load_average"],
        "logits_agree": gap,
        "prompts": len(prompts),
        "responses": length_pg.size,
        "tokens": int(length_pg.sum()),
        "kl_coef": KL,
        "slots": asked.slots,
        "rows": asked.rows,
        "torch_batch": asked.torch_batch,
        "torch_rows": asked.torch_rows,
        "tunix_batch": asked.tunix_batch,
        "tunix_remat": asked.tunix_remat,
        "seconds": seconds,
        "ours_parts": parts,
        "median_s": {name: statistics.median(times) for name, times in seconds.items()},
    }


def table(found: dict) -> None:
    """For benchmarks/README.md."""
    print(f"{found['responses']} responses to {found['prompts']} prompts, {found['tokens']:,} response tokens")
    print("| | seconds, median (least to most) | response tokens/s | ours is faster by |\n|---|---|---|---|")
    median = found["median_s"]
    for name in sorted(median, key=lambda n: not n.startswith("ours")):
        times, s = found["seconds"][name], median[name]
        faster = f"{s / median['ours']:.2f}" if "ours" in median else "–"
        print(f"| {name} | {s:.2f} ({min(times):.2f} to {max(times):.2f}) | {found['tokens'] / s:,.0f} | {faster} |")
    for old_logp, parts in found["ours_parts"].items():
        if parts:
            roll, update, parity = (statistics.median(p[k] for p in parts) for k in ("rollout_s", "update_s", "parity"))
            print(
                f"ours, old log-probs of the {old_logp}: rollout {roll:.2f} s, grades and update {update:.2f} s; "
                f"sampler and trainer differ by at most {parity:.1e}"
            )


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = command(__doc__, repeats=2)
    add_sampling(
        parser,
        torch="TRL: responses that generate samples together",
        tunix="responses that its sampler decodes together",
    )
    add_training(parser, torch_rows="TRL: rows of a micro-batch")
    parser.add_argument("--sides", type=lambda text: text.split(","), default=list(SIDES))
    asked = parsed(parser)
    total = asked.prompts * asked.samples
    asked.torch_batch, asked.tunix_batch = min(asked.torch_batch, total), min(asked.tunix_batch, total)
    return asked


def main() -> None:
    asked = arguments()
    found = compare(asked)
    table(found)
    keep(found, asked.out)


if __name__ == "__main__":
    main()
