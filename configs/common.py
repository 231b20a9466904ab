"""Define every field of a config: what it means, and where its default comes from.

A config file calls `base_config()` and changes what differs. Nothing runs from here.

Sources: docs/algorithms.md has a row for each method and tables of the papers' values. "e3" and "E2C" below mean the
paper or its released code, as that page says; "verl" is public RL code; "ours" means chosen here; a date is an entry of
LOG.md. "Prototype" is a feasibility study of tiny models that preceded this repository and was not kept.
"""

from ml_collections import ConfigDict, config_dict

from e3jax.errors import UserError


def parse_arguments(file: str, argument: str, choices: dict[str, tuple[str, ...]], **others: str) -> dict[str, str]:
    """Parse "stage=2,model=8b" into a dictionary over the defaults in `others`.

    `chips=NUMBER` is always allowed, and a name without choices takes any value but "". Any other name or value is a
    UserError that names the choices.
    """
    given = dict(part.partition("=")[::2] for part in argument.split(",")) if argument else {}
    for name, value in given.items():
        free = name in choices and not choices[name] and value
        right = free or (name == "chips" and value.isdigit() and int(value) > 0)
        if not right and (name not in choices or value not in choices[name]):
            raise UserError(
                f"configs/{file}: {name}={value!r} is not one of "
                + "; ".join(f"{n}={'|'.join(v) or 'TEXT'}" for n, v in choices.items())
                + "; chips=NUMBER"
            )
    return others | given


def base_config() -> ConfigDict:
    """Return the tiny Countdown setting; the config fills in `order` and `stages`."""
    c = ConfigDict()
    c.seed = 0  # problems, noise and initial weights are functions of it
    c.tokenizer = "words"  # "words": the closed vocabulary of the tiny models; otherwise a hub id or a directory
    c.order = ()  # names of stages, in the order they run
    c.stages = ConfigDict()

    c.init = ConfigDict()
    c.init.number_embeddings = True  # sines and cosines for number words (LOG.md, 2026-11-21)
    c.init.init_from = ""  # RUN/checkpoints/STAGE/STEP, a Hugging Face directory or a hub id; "": random

    c.model = ConfigDict()
    # A hub id, a Hugging Face directory or a checkpoint of a run: sets model.preset, tokenizer and init.init_from,
    # which stay as they are here; only init.init_from may be another checkpoint of the same model. A name in
    # models/presets.py sets model.preset alone. "": these fields say it
    c.model.name = ""
    c.model.preset = "tiny"  # a name in models/presets.py, or a directory or hub id with a config.json
    # Of matmuls and cache, not of masters (float32). "auto": "float32", and "bfloat16" on accelerators for a model.name
    c.model.dtype = "auto"
    c.model.attention = "auto"  # "splash" on TPU, "cudnn" on GPU in bfloat16, "xla" elsewhere (models/attention.py)
    # What the backward pass recomputes: "none"; "matmuls": all but products with weights; "attention": all but one TxD
    # array a layer; "full": whole blocks, which on a CPU is also faster than storing them (LOG.md, 2026-11-21). "auto":
    # the fewest operations that fit into memory (train/fit.py)
    c.model.remat = "full"
    c.model.chunk = 8192  # at most so many tokens have their logits in memory at once
    # Low-rank adapters beside frozen matrices (docs/algorithms.md, LoRA): only they are trained. Wants a trained model
    c.model.lora = ConfigDict()
    c.model.lora.rank = 0  # r; 0: off, all parameters are trained. LoRA's paper has 1 to 64 (Table 6), PEFT 8
    c.model.lora.alpha = 32.0  # α; adapters count α / r. "LoRA Without Regret" (Schulman et al. 2025); PEFT has 8
    # PEFT's names, with blanks between. All, as "LoRA Without Regret" advises; LoRA's paper has "q_proj v_proj"
    c.model.lora.matrices = "q_proj k_proj v_proj o_proj gate_proj up_proj down_proj"

    c.mesh = ConfigDict()
    c.mesh.data = 1
    c.mesh.fsdp = -1  # -1: all devices that the other axes leave
    c.mesh.tensor = 1

    c.task = ConfigDict()
    # "calculator": Countdown for tiny models; "paper": e3's Countdown, for real tokenizers; "plans": the calculator's
    # problems in E2C's two phases, for tiny models, and "plans_text" for real tokenizers. A stage names its `numbers`.
    # "math": any set of questions, multiple choice too. A stage names its `set`.
    # "multiplication"; "products", for tiny models. A stage names its `digits`.
    # "own": what task.file stands for.
    c.task.form = "calculator"
    # For "math" and "multiplication", a name in tasks/prompts.py; Countdown has its own. "" with a set: a boxed answer
    # is asked for where the grader wants one and the question does not ask for it (default_prompt there)
    c.task.prompt = ""
    c.task.chat = "template"  # the tokenizer's own template, if it has one; "plain": Qwen's, without a system prompt
    c.task.thinking = True  # enable_thinking of the chat template; on by default in Qwen3, and in e3
    # Where graders look for a boxed answer. "response", e3's reward: a </think> must be there, and the last box counts,
    # even inside the thinking. "after_thinking": stricter. "anywhere": for models that do not think. "execution": in a
    # well-formed response of E2C's two phases. "e2c_original": E2C's released grader, UNSOUND (rewards/plan.py)
    c.task.where = "response"
    c.task.opening = ""  # appended to every prompt of RL and evaluation, untrained: "<EXPLORATION>" forces E2C's start
    # Tokens set aside for a prompt. Longer problems of a set are left out, and it fixes the shapes of RL's rows.
    # 0: measure it, as the longest prompt of all sets; of endless problems, a little more than the longest of some
    # (train/setup.py)
    c.task.prompt_room = 8
    # "FILE.py:FUNCTION", or several with weights, "task, my_rewards.py:is_short*0.2", where "task" is the task's own
    # grader: the reward of RL, and what a run's evaluations count (docs/your-own.md). "": the task's grader alone
    c.task.reward = ""
    # LCPO: a prompt ends with "Think for N tokens.", N drawn between these two; L1 has (100, 4000). (): off
    c.task.lengths = ()
    # "FILE.py" or "FILE.py:NAME": problems, prompt and grader of your own (docs/your-own.md), instead of `form`. Stages
    # that name no `file` of theirs, as an easier part of it, take their problems from it
    c.task.file = ""

    c.environment = ConfigDict()
    # "FILE.py" or "FILE.py:NAME": what is said to the model between its turns (docs/your-own.md). "": one turn
    c.environment.file = ""
    c.environment.turns = 8  # of the model, at most (ours)
    c.environment.turn_tokens = 0  # most tokens of one turn; 0: what the budget of the episode leaves

    c.sampler = ConfigDict()
    c.sampler.slots = 128  # responses that decode together; 0: as many as memory holds (train/fit.py)
    c.sampler.tensor = 1  # devices that share one copy of the matrices while sampling; the training mesh is separate
    c.sampler.block = 16  # decode steps between refills
    c.sampler.prefill_rows = 64  # prompts prefilled together
    c.sampler.cache = "compute"  # keys and values in model.dtype; "int8" takes half the memory of bfloat16
    c.sampler.top_k = 0  # off in training, as in e3 (see grpo.restricted_sampling)
    c.sampler.top_p = 1.0  # off in training, as in e3

    c.sft = ConfigDict()
    c.sft.aggregation = "token_mean"
    c.sft.position_gap = 768  # a response starts up to so many positions late …
    c.sft.gap_rate = 0.5  # … this often, so that RL may think longer than any base trace

    c.grpo = ConfigDict()
    c.grpo.prompts = 16  # per step
    c.grpo.group_size = 8  # responses per prompt
    # DAPO's dynamic sampling: a step draws `prompts` again, at most so often, until so many groups have spread; 1: off
    c.grpo.rounds = 1
    # POLARIS leaves out what was solved more often than .9 in the RL stages before; of a set alone. 1: nothing
    c.grpo.drop_above = 1.0
    # FastCuRL's split: prompts of fewer or more tokens than these two are left out; of a set alone. (): none
    c.grpo.prompt_tokens = ()
    # Responses that a step does not wait for go on in the next ones, for at most so many steps (train/carry_over.py).
    # 0: off, every step waits for its longest response, as in e3. A response takes longest / mean steps: with fewer,
    # steps wait and throw away what was drawn meanwhile (carry/wasted)
    c.grpo.carry_over = 0
    # A group that has gone on for so many steps and is not complete is waited for ("finish"), or thrown away and its
    # problem drawn again ("drop": no step waits, and long responses are trained on too rarely)
    c.grpo.overdue = "finish"
    # The simple alternative: this share of groups is drawn in addition, and those that are complete last are thrown
    # away with what was drawn of them. 0: off
    c.grpo.over_sampling = 0.0
    # e3 has 1.0 for multiplication, .6 for Countdown (Table 5) and mathematics. Ours: this repository's numbers were
    # measured at 1.0
    c.grpo.temperature = 1.0
    c.grpo.minibatches = 2  # optimiser updates per step; e3 has 4
    c.grpo.rows = 32  # packed rows of a micro-batch; 0: as many as memory holds (train/fit.py)
    c.grpo.old_logp = "trainer"  # computed again, as in e3's code; "sampler": the sampler's own, one forward pass less
    # With sampler.top_p or top_k the samples come from another distribution than the trainer's (TRL issue 6789).
    # "refuse" to train on them; "renormalise": the sampler's log-prob is that of what was left, so that loss.tis_cap,
    # old_logp="sampler" or surrogate="dppo_tv" corrects the ratio
    c.grpo.restricted_sampling = "refuse"
    c.grpo.parity_alarm = 0.05  # nats: warn when sampler and trainer differ by more on average (ours)
    c.grpo.samples_logged = 4  # responses per step in samples.jsonl
    c.grpo.advantage = ConfigDict()
    c.grpo.advantage.normalize_std = True  # e3's code (docs/algorithms.md, Group advantages)
    c.grpo.advantage.ddof = 1  # e3's code
    c.grpo.advantage.epsilon = 1e-6  # e3's code
    # "group", e3's; "batch_std", "rloo", "maxrl", "opo", "w_reinforce", "pass_at_k", "best_minus_second",
    # "reinforce_pp" or "brpo" (losses/advantages.py; docs/algorithms.md, Advantages)
    c.grpo.advantage.kind = "group"
    c.grpo.advantage.k = 4  # of "pass_at_k"; 2508.10751
    c.grpo.advantage.positive = 1.0  # factor of A > 0: "w_reinforce" with .1 is 2506.01347's, with 0 its NSR
    c.grpo.advantage.negative = 1.0  # factor of A < 0; 0 is PSR
    c.grpo.advantage.truncated = "train"  # "mask": responses that the budget cut are in no baseline, and have A = 0
    c.grpo.advantage.keep = 0  # GFPO (2508.09726): so many of a group count, the others have A = 0; 0: all
    c.grpo.advantage.keep_by = "shortest"  # or "reward_per_token", GFPO's token efficiency
    c.grpo.advantage.pieces = 4  # of "brpo": budgets that a response is graded at; AnytimeReasoner's script
    c.grpo.advantage.prior = "linear"  # of "brpo", what they are worth; "uniform" or "last", also AnytimeReasoner's
    c.grpo.weights = ConfigDict()
    c.grpo.weights.aggregation = "sequence_mean"  # e3 has "token_mean"; 1/|o| lengthened the prototype's responses
    c.grpo.weights.gradients = "all"  # "positive": GRPOMask; "negative"; "no-eos" (losses/grpo.py token_weights)
    c.grpo.weights.denominator = "shrunken"  # counts what `gradients` keeps, as e3's code; "fixed": all tokens
    c.grpo.weights.closing = "<answer>"  # for "no-eos": where a response begins to end; "</think>" for language models
    # "text": wherever the decoded text shows `closing`. "token", e3's code: the first token equal to `closing`, which
    # there is Llama's "</". Not the default, because other tokenizers have no token that begins every "</think>", and
    # "no-eos" would mask nothing
    c.grpo.weights.closing_match = "text"
    c.grpo.weights.truncated = "train"  # e3; "mask", DAPO's overlong filtering: what the budget cut leaves the loss
    c.grpo.weights.no_spread = "keep"  # e3; "drop": groups without any advantage leave the loss and its denominator
    c.grpo.e2c = ConfigDict()  # for tokenizers with E2C's tags
    c.grpo.e2c.coefficient = 1.0  # λ of the plan's tokens (docs/algorithms.md, λ); 1: plain GRPO
    c.grpo.e2c.missing = "plain"  # without a plan λ is 1; "original": λ on the whole response (losses/e2c.py)
    c.grpo.reward = ConfigDict()  # what RL is rewarded with: rewards/plan.py shaped
    # A response that the budget cut. "wrong", as an evaluation at that budget counts it. "graded", e3's code: what is
    # there counts, so that a boxed guess before the end pays and the policy need not learn to stop
    c.grpo.reward.unfinished = "wrong"
    c.grpo.reward.following = "off"  # "sound", "original": a right answer earns the share of its plan that it followed
    c.grpo.reward.overlong_buffer = 0  # the soft penalty grows over so many last tokens; 0: off; E2C: 4096
    c.grpo.reward.overlong_factor = 1.0  # E2C
    c.grpo.reward.lie_alpha = 0.0  # a wrong response pays so much a token that it is too short; LIE has 3.33e-5; 0: off
    c.grpo.reward.lie_length = 0  # … of so many tokens
    c.grpo.reward.lie_cap = 0.3  # … and at most this; LIE
    # … and any response this, right ones too, if the same ten words come ten times; LIE's code has .6; 0: off
    c.grpo.reward.lie_repetition = 0.0
    c.grpo.reward.lcpo = "off"  # with task.lengths; "exact", "max": LCPO's rewards (L1, 2503.04697)
    # For a token of difference. L1's paper has 3e-4, its code 1/3000 for "exact" and 1/1000 for "max"
    c.grpo.reward.lcpo_alpha = 3e-4
    c.grpo.loss = ConfigDict()
    # "ppo", e3's; "gspo", "gmpo", "cispo", "sapo", "dppo_tv", "pg", "clip_cov", "kl_cov" (losses/surrogates.py;
    # docs/algorithms.md, Surrogates, has their papers' clips), or a function of your own as "module:function"
    c.grpo.loss.surrogate = "ppo"
    c.grpo.loss.clip_low = 0.2  # e3, Tables 4, 5, 8
    c.grpo.loss.clip_high = 0.5  # e3, Table 8 at 8k tokens; its Countdown has .2
    c.grpo.loss.dual_clip = config_dict.placeholder(object)  # None: off
    c.grpo.loss.dual_clip = 3.0  # e3's code; not in its paper; of "ppo" alone
    c.grpo.loss.delta = config_dict.placeholder(object)  # bound on the ratio before the clip, of "ppo" alone (TRL)
    c.grpo.loss.tau_positive = 1.0  # of "sapo"; verl and TRL, as the next
    c.grpo.loss.tau_negative = 1.05
    c.grpo.loss.tv_bound = 0.2  # of "dppo_tv"; prime-rl
    c.grpo.loss.cov_share = 2e-4  # of "clip_cov" and "kl_cov"; verl, as the next
    c.grpo.loss.cov_low = 1.0  # of "clip_cov"
    c.grpo.loss.cov_high = 5.0
    c.grpo.loss.cov_kl_coef = 1.0  # of "kl_cov"
    c.grpo.loss.kl_coef = 0.001  # e3, Tables 4, 5, 8
    c.grpo.loss.kl_estimator = "k3"  # e3's code
    c.grpo.loss.kl_corrected = False  # True: KL times the ratio (TRL's use_bias_correction_kl)
    c.grpo.loss.entropy_coef = 0.0  # e3's Countdown: 0 in Table 5, .001 in the script
    c.grpo.loss.tis_cap = config_dict.placeholder(object)  # None: off, as in e3; verl's cap is 2.0
    c.grpo.loss.tis_level = "token"  # "sequence": product over the response; "sequence_mean": its geometric mean
    c.grpo.loss.tis_mode = "truncate"  # "mask": 0 outside of [tis_floor, tis_cap], TRL's default
    c.grpo.loss.tis_floor = config_dict.placeholder(object)  # None: no lower bound, as in verl and TRL
    # Responses of A < 0 leave pg where the mean log-ratio of sampler to policy is above this (DeepSeek-V3.2, as TRL has
    # it); None: off
    c.grpo.loss.off_policy_kl = config_dict.placeholder(object)

    c.optim = ConfigDict()
    c.optim.weight_decay = 0.01  # e3's code, verl's default
    c.optim.beta1 = 0.9  # e3's code keeps the defaults of torch's AdamW, .9 and .999
    c.optim.beta2 = 0.95  # ours: .999 averages over 1,000 updates, and an RL stage of a tiny model has some 100
    c.optim.grad_clip = 1.0  # e3's code
    c.optim.moments_dtype = "float32"  # of Adam's two averages; "bfloat16" halves their memory

    c.budget_rule = ConfigDict()  # e3 Eq. 2 (docs/algorithms.md, Eq. 2)
    c.budget_rule.budgets = (64, 128, 256)  # e3 has {4k, 8k, 16k} for mathematics: the same doubling
    c.budget_rule.kappa = 1.2  # e3 §6.1
    # 256 problems x 4 are 1,024 responses, as in one step of e3. With true accuracies .15, .17, .18, .185 at B, 2B, 4B,
    # 8B the choice is right in 97 % of draws, with 1 response a problem in 86 % (simulated: benchmarks/budget_rule.py)
    c.budget_rule.problems = 256
    c.budget_rule.samples = 4  # per problem

    c.eval = ConfigDict()
    c.eval.sets = ConfigDict()
    c.eval.only = ""  # names of sets, separated by commas; this call leaves the others out. "": all
    c.eval.problems = 512  # per set, held out; a smaller set gives all it has
    c.eval.samples = 1  # responses per problem
    c.eval.budgets = (96, 192, 384)
    c.eval.temperature = 1.0  # ours: as in training; e3 has .6
    c.eval.pass_ks = (1, 2, 4, 8, 16)
    c.eval.pass_problems = 128  # pass@k is measured on the first so many problems of a set …
    c.eval.pass_budget = 96  # … at this budget
    c.eval.shown = 10  # responses kept in eval_samples.jsonl

    c.checkpoint = ConfigDict()
    c.checkpoint.every = 20  # steps; a kill costs at most these, in time only. A stage's last step is always saved
    c.checkpoint.keep = 2  # keep the newest ones …
    c.checkpoint.keep_every = 0  # … and one every so many steps; 0: none of these
    c.checkpoint.best = ""  # … and the best RL step by a metric: "reward/mean"; "-loss/kl" for the least; "": none

    c.faults = ConfigDict()
    c.faults.most_skipped = 3  # the run stops after so many steps in a row without a finite gradient (ours)

    c.grader = ConfigDict()
    c.grader.workers = 2  # processes per host
    c.grader.timeout_s = 10.0  # per response; it is tried twice, then scores 0 with reason "timeout"

    c.log = ConfigDict()
    c.log.tensorboard = True
    c.log.wandb = ""  # project name; "": off
    return c


def sft_stage(*, traces: dict, evaluated: bool, **fields) -> ConfigDict:
    """Return a supervised stage on made-up traces.

    `fields`: numbers or digits, steps, lr, warmup, rows, row_length. `traces`: most_tokens and the habits of the traces
    (tasks/*_traces.py).
    """
    habits = {
        "solution_rate": 0.2,  # the prototype's
        "give_up": 0.35,  # the prototype's
        "persistent": 0.03,
        "persistent_solution_rate": 0.05,
    }
    return ConfigDict({"kind": "sft", "traces": {**habits, **traces}, "evaluated": evaluated, **fields})


def text_stage(*, traces: dict, evaluated: bool, **fields) -> ConfigDict:
    """Return a supervised stage on made-up traces in text, for language models.

    `fields` as for `sft_stage`. `traces`: most_attempts, most_characters and the habits of the traces
    (tasks/countdown_text.py, tasks/multiplication_text.py). Multiplication has no default for `checked`, which says
    whether it is MULT-V, and wants a solution_rate.
    """
    habits = {
        "solution_rate": 0.0,  # by chance: a feasibility study of 2026-11-29, as the next two
        "give_up": 0.35,
        "persistent": 0.05,
        "persistent_solution_rate": 0.0,
    }
    # a language model has seen long texts: nothing starts late (config.sft)
    late = {"position_gap": 0, "gap_rate": 0.0}
    return ConfigDict({"kind": "sft", "traces": {**habits, **traces}, "evaluated": evaluated, **late, **fields})


def chats_stage(*, data: str, **fields) -> ConfigDict:
    """Return a supervised stage on conversations of a file, a hub id or a prepared set (train/chats.py).

    `fields`: steps, lr, warmup, per_step (examples), rows, row_length; or those that have a value here.
    """
    usual = {
        "columns": "",  # by their names; or "prompt=Frage,response=Antwort"
        "template": "chat",  # the tokenizer's; "none": prompt and response are what the model reads and writes
        "train_on": "answers",  # the assistant's, as TRL's assistant_only_loss; "everything"
        "longer": "drop",  # than row_length; "cut" on the right, as TRL
        "held_out": 0,  # conversations set aside, whose loss is logged
        "evaluated": False,  # loss alone, without a task
    }
    return ConfigDict({"kind": "sft", "data": data, **usual, **fields})


def oxa_stage(*, promote: str, suppress: str, **fields) -> ConfigDict:
    """Return a supervised stage on files (train/oxa.py).

    `fields`: steps, lr, warmup, per_step, ul_weight, rows, row_length. With `promote` alone it is SFT on that file.
    """
    return ConfigDict({"kind": "oxa", "promote": promote, "suppress": suppress, "evaluated": True, **fields})


def plans_stage(*, solution_rate: float, evaluated: bool, **fields) -> ConfigDict:
    """Return a supervised stage on traces of tasks/countdown_plans.py or countdown_plans_text.py.

    `fields`: numbers, steps, lr, warmup, rows, row_length.
    """
    return ConfigDict({"kind": "sft", "traces": {"solution_rate": solution_rate}, "evaluated": evaluated, **fields})


def explorations_stage(*, evaluated: bool, data: dict, **fields) -> ConfigDict:
    """Return a supervised stage on a set with explorations (train/examples.py).

    `fields`: steps, lr, warmup, rows, row_length. `data`: set, part, per_step, longer, regulariser, regulariser_share.
    """
    whole = {"part": "both", "longer": "drop", "regulariser": "", "regulariser_share": 0.0}
    return ConfigDict({"kind": "sft", "data": {**whole, **data}, "evaluated": evaluated, **fields})


def grpo_stage(*, budget, **fields) -> ConfigDict:
    """Return an RL stage without warm-up, as e3's. `budget` is in tokens; 'auto' is Eq. 2.

    `fields`: numbers, set, digits or file; steps, lr. A stage may override any field of config.grpo, subsections too.
    """
    stage = ConfigDict({"kind": "grpo", "evaluated": True, "warmup": 0, **fields})
    stage.budget = config_dict.placeholder(object)  # so that the command line may give either type
    stage.budget = budget
    return stage
