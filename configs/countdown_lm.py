"""Run e3 on a real language model and one GPU: search traces in text, two coupled RL stages, extrapolation.

    python -m e3jax.train.curriculum --config=configs/countdown_lm.py:model=models/smollm2-135m --workdir=runs/lm
    launch/countdown_lm.sh does this from the model's download on, in slices of some minutes.

Arguments: model=DIRECTORY or hub id, of Qwen3, Qwen2.5, Llama or SmolLM2 (default: SmolLM2-135M-Instruct of the hub;
docs/recipes/countdown.md shows how to get it without the hub); size=full|smoke; chips=1, devices that rows are meant
for (8 and 16 for v5litepod-8 and -16). Slots, rows of RL and remat follow from the device's memory, and the log says
what they are (train/fit.py); a GPU of 24 GB holds Qwen3-0.6B with XLA_PYTHON_CLIENT_MEM_FRACTION=.92, as the script
sets it (estimated, not run).

Not run on a GPU as it stands. Measured in a feasibility run (one H200, seed 0, 2026-11-29, throwaway scripts around the
same priming and stage "easy"; docs/recipes/countdown.md has the table): priming 119 s, 60 steps of RL 229 s, of a step
of 3.8 s 2.0 rollouts and 1.6 update, 65 s of compiling; accuracy at 512, 1,024, 2,048 tokens: primed 20.1, 20.3, 20.3 %
on 3 numbers, after "easy" 71.1, 80.1, 84.2; on 4 numbers, which RL never saw, 3.5, 3.5, 3.5, then 31.2, 51.0, 59.6.
The smoke size with the real model, from nothing on two quiet CPU cores: 3 min 52 s (2026-11-30).
On v5e:2x4 (compiled 2026-11-30, not run; --config.task.prompt_room=160), most GiB per chip, where 14 of 16 may be used:
                                                     traces   easy: gradient, decode   hard: gradient, decode, admit
    SmolLM2-135M, 512 slots, remat="matmuls"           2.94        4.87, 2.55              13.39,  5.21,  9.51
    Qwen3-0.6B, 344 slots, remat="attention"           4.00        5.65, 5.95              11.17, 13.00, 12.78
Rows are what memory holds: 128 x 672 tokens in "easy", 112 and 128 x 2,304 in "hard" (its budget at most 2,048 tokens);
the prefill of Qwen3-0.6B's "hard" takes 12.99. Of its "easy" no other programs were compiled.

Sources: "study" is the feasibility study of 2026-11-29 above; docs/algorithms.md, e3, has the paper's values (Table 5).
"""

from configs.common import base_config, grpo_stage, parse_arguments, text_stage

CHOICES = {"model": (), "size": ("full", "smoke")}  # of a model any
MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"


def get_config(argument: str = ""):
    given = parse_arguments("countdown_lm.py", argument, CHOICES, model=MODEL, size="full", chips="1")
    chips = int(given["chips"])
    c = base_config()
    c.order = ("traces", "easy", "hard")
    # The paper's base is a Llama-3.2-3B fine-tuned on search traces. Habits: study, as text_stage has them
    c.stages.traces = text_stage(
        numbers=(3, 4),
        steps=300,  # study
        lr=3e-4,  # study
        warmup=20,  # ours
        rows=-(-24 // chips) * chips,  # 49k tokens, some 130 traces; study: 128 traces
        row_length=2048,  # study
        traces={"most_attempts": 24, "most_characters": 1800},  # study has 24 attempts; the rest is what a row holds
        evaluated=True,
    )
    # e3 §6: easy data at a short budget, then harder data at the budget that Eq. 2 chooses
    c.stages.easy = grpo_stage(numbers=(3,), budget=512, steps=60, lr=1e-5)  # study
    c.stages.hard = grpo_stage(numbers=(3, 4), budget="auto", steps=60, lr=1e-5)  # ours: as many steps again

    c.task.form = "paper"
    c.task.prompt_room = 0  # measured: 145 tokens with SmolLM2's tokenizer
    c.model.name = given["model"]  # computes in bfloat16 on accelerators
    c.model.remat = "auto"
    c.model.chunk = 2048 * chips  # Qwen3's 151,936 logits take 3 GB so

    c.grpo.prompts, c.grpo.group_size = 64, 8  # study
    c.grpo.minibatches = 4  # study, e3
    c.grpo.rows = 0
    c.grpo.weights.aggregation = "sequence_mean"  # study
    c.grpo.loss.kl_coef = 0.001  # study, Table 5
    c.grpo.loss.clip_high = 0.5  # study; Table 5 has .2

    c.sampler.slots = 0
    c.sampler.block = 64  # ours: the device waits for the host once a block; where slots can be refilled it ends early
    c.sampler.prefill_rows = 64

    c.budget_rule.budgets = (512, 1024, 2048)  # stage "easy"'s, and the doubling of the paper's 4k, 8k, 16k
    c.budget_rule.samples = 2  # of 256 problems

    c.eval.sets = {"3 numbers": (3,), "4 numbers": (4,)}
    c.eval.problems = 512  # study
    c.eval.budgets = (512, 1024, 2048)  # 1, 2, 4 times the budget of "easy"
    c.eval.pass_ks = (1, 2, 4, 8)
    c.eval.pass_budget = 512
    c.eval.pass_problems = 128

    c.checkpoint.every = 50  # steps of one to four seconds on an H200 (study)
    c.checkpoint.keep = 1
    if given["size"] == "smoke":
        smoke(c)
    return c


def smoke(c) -> None:
    """Shrink every stage to two steps that two CPU cores take with a real model; nothing is learnt."""
    c.stages.traces.steps = c.stages.easy.steps = c.stages.hard.steps = 2
    c.stages.traces.warmup = 1
    c.stages.traces.rows, c.stages.traces.row_length = 2, 640
    c.stages.traces.traces.most_characters = 440
    c.stages.easy.budget = 24
    c.grpo.prompts, c.grpo.group_size, c.grpo.minibatches, c.grpo.samples_logged = 2, 2, 1, 2
    c.sampler.slots, c.sampler.prefill_rows = 4, 2
    c.budget_rule.problems, c.budget_rule.samples, c.budget_rule.budgets = 2, 1, (16, 24)
    c.eval.problems, c.eval.budgets = 2, (24, 48)
    c.eval.pass_ks, c.eval.pass_problems, c.eval.pass_budget = (1, 2), 2, 24
    c.eval.shown = 2
    c.checkpoint.every = 1
