"""What every config starts from: all fields, what they mean, where each value comes from.

A config file calls `base_config()` and changes what differs. Nothing runs from here.
Sources: A.n = e3's paper and code, B.n = E2C's, by section of the developers' notes (../shared/ALGORITHMS.md beside
the checkout; the papers' tables hold the same values); FACTS = their survey of public RL code; PROTOTYPE = their
tiny models; LOG = measured here, LOG.md.
"""

from ml_collections import ConfigDict, config_dict

from e3jax.errors import UserError


def parse_arguments(file: str, argument: str, choices: dict[str, tuple[str, ...]], **others: str) -> dict[str, str]:
    """ "stage=2,model=8b" -> what is given, over `others`; anything else is an error that names the choices.

    `chips=NUMBER` is always possible.
    """
    given = dict(part.partition("=")[::2] for part in argument.split(",")) if argument else {}
    for name, value in given.items():
        allowed = choices[name] if name in choices else ()
        if value not in allowed and not (name == "chips" and value.isdigit() and int(value) > 0):
            raise UserError(
                f"configs/{file}: {name}={value!r} is not one of "
                + "; ".join(f"{n}={'|'.join(v)}" for n, v in choices.items())
                + "; chips=NUMBER"
            )
    return others | given


def base_config() -> ConfigDict:
    """The tiny Countdown setting; `order` and `stages` are left to the config."""
    c = ConfigDict()
    c.seed = 0  # problems, noise and initial weights are functions of it
    c.tokenizer = "words"  # "words": the closed vocabulary of tiny models; else a hub id or directory
    c.order = ()  # stages in the order they run
    c.stages = ConfigDict()

    c.init = ConfigDict()
    c.init.number_embeddings = True  # sines and cosines for number words (LOG)
    c.init.init_from = ""  # RUN/checkpoints/STAGE/STEP, a Hugging Face directory or hub id; "": random

    c.model = ConfigDict()
    c.model.preset = "tiny"  # models/presets.py, or a directory or hub id whose config.json says it
    c.model.dtype = "float32"  # of matmuls and cache; "bfloat16" on accelerators. Masters are float32
    c.model.attention = "auto"  # "splash" on TPU, "cudnn" on GPU in bfloat16, "xla" elsewhere (models/attention.py)
    # "none" | "matmuls" (keep what products with weights made) | "attention" (one T x D array a layer) | "full"
    c.model.remat = "full"  # recompute blocks in the backward pass; on this CPU also faster than storing (LOG)
    c.model.chunk = 8192  # tokens whose logits exist at once

    c.mesh = ConfigDict()
    c.mesh.data = 1
    c.mesh.fsdp = -1  # all devices that are left
    c.mesh.tensor = 1

    c.task = ConfigDict()
    # "calculator" (tiny models) or "paper" (e3's Countdown, real tokenizers): a stage names its `numbers`;
    # "plans": the calculator's problems in E2C's two phases (tiny models);
    # "math" (any set of questions, multiple choice too): its `set`; "multiplication", "products" (tiny): its `digits`
    c.task.form = "calculator"
    c.task.prompt = ""  # of "math" and "multiplication": a name of tasks/prompts.py; Countdown has its own
    c.task.chat = "template"  # the tokenizer's own, if it has one; "plain": Qwen's, without a system prompt
    c.task.thinking = True  # the chat template's enable_thinking; A.3: Qwen3's default
    # where graders look for a boxed answer: "response": </think> must be there, and the last box counts, inside the
    # thinking too (A.4, e3's reward); "after_thinking" (stricter); "anywhere" (models that do not think); "execution":
    # of E2C's two phases, well formed; "e2c_original": E2C's released grader, UNSOUND (rewards/plan.py)
    c.task.where = "response"
    c.task.opening = ""  # behind every prompt of RL and evaluation: "<EXPLORATION>" forces E2C's start, untrained (B.4)
    # tokens set aside for a prompt: longer problems of a set are left out, and it fixes the shapes of RL's rows;
    # 0: the longest prompt of all sets, or a little more than that of some problems without end (train/setup.py)
    c.task.prompt_room = 8

    c.sampler = ConfigDict()
    c.sampler.slots = 128  # rows that decode together
    c.sampler.tensor = 1  # devices that share one copy of the matrices while sampling; the training mesh is another
    c.sampler.block = 16  # decode steps between refills
    c.sampler.prefill_rows = 64  # prompts prefilled together
    c.sampler.cache = "compute"  # keys and values in model.dtype; "int8": half the memory of bfloat16
    c.sampler.top_k = 0  # off in training (A.6)
    c.sampler.top_p = 1.0  # off in training (A.6)

    c.sft = ConfigDict()
    c.sft.aggregation = "token_mean"
    c.sft.position_gap = 768  # responses start up to so many positions late …
    c.sft.gap_rate = 0.5  # … this often, so that RL may think longer than any base trace

    c.grpo = ConfigDict()
    c.grpo.prompts = 16  # per step
    c.grpo.group_size = 8  # responses per prompt
    # A.6: 1.0 for multiplication, .6 for Countdown (Table 5) and math. Own choice: these numbers were measured at 1.0
    c.grpo.temperature = 1.0
    c.grpo.minibatches = 2  # optimiser updates per step; A.6: 4
    c.grpo.rows = 32  # of a micro-batch
    c.grpo.old_logp = "trainer"  # A.5 computes it again; "sampler": what the sampler said, one forward pass less
    c.grpo.parity_alarm = 0.05  # nats: a line when sampler and trainer are further apart on average (own choice)
    c.grpo.samples_logged = 4  # responses per step in samples.jsonl
    c.grpo.advantage = ConfigDict()
    c.grpo.advantage.normalize_std = True  # A.5
    c.grpo.advantage.ddof = 1  # A.5
    c.grpo.advantage.epsilon = 1e-6  # A.5
    c.grpo.weights = ConfigDict()
    c.grpo.weights.aggregation = "sequence_mean"  # A.5 has token_mean; PROTOTYPE: 1/|o| lengthens tiny models
    c.grpo.weights.gradients = "all"  # "positive": GRPOMask; "negative"; "no-eos" (A.5; losses/grpo.py token_weights)
    c.grpo.weights.denominator = "shrunken"  # of what "gradients" leaves; A.5, the reference's
    c.grpo.weights.closing = "<answer>"  # of "no-eos": where a response begins to end; "</think>" for language models
    # "text": wherever the decoded text shows it; "token": A.5, the first token equal to `closing`, its "</" of Llama.
    # Not the default: other tokenizers have no token that begins every "</think>", and "no-eos" would mask nothing
    c.grpo.weights.closing_match = "text"
    c.grpo.e2c = ConfigDict()  # of tokenizers with E2C's tags
    c.grpo.e2c.coefficient = 1.0  # λ, of the plan's tokens (B.4); 1: plain GRPO
    c.grpo.e2c.missing = "plain"  # no plan: λ = 1; "original": λ on the whole response (losses/e2c.py)
    c.grpo.reward = ConfigDict()  # rewards/plan.py shaped
    # a response that the budget cut: "wrong", as an evaluation at that budget counts it; "graded": A.4, what is there
    # counts, so that a boxed guess before the end pays and a policy need not learn to stop
    c.grpo.reward.unfinished = "wrong"
    c.grpo.reward.following = "off"  # "sound", "original": a right answer is worth the share of its plan it followed
    c.grpo.reward.overlong_buffer = 0  # tokens before the budget in which the soft penalty grows; 0: none. B.4: 4096
    c.grpo.reward.overlong_factor = 1.0  # B.4
    c.grpo.loss = ConfigDict()
    c.grpo.loss.clip_low = 0.2  # A.6
    c.grpo.loss.clip_high = 0.5  # A.6 math 8k; Countdown .2
    c.grpo.loss.dual_clip = config_dict.placeholder(object)  # None: off
    c.grpo.loss.dual_clip = 3.0  # A.5
    c.grpo.loss.kl_coef = 0.001  # A.6
    c.grpo.loss.kl_estimator = "k3"  # A.5
    c.grpo.loss.entropy_coef = 0.0  # A.6 Countdown .001 (script) or 0 (Table 5)
    c.grpo.loss.tis_cap = config_dict.placeholder(object)  # None: off; FACTS 1.1 has 2.0

    c.optim = ConfigDict()
    c.optim.weight_decay = 0.01  # A.5
    c.optim.beta1 = 0.9  # e3's code leaves torch's AdamW: .9 and .999
    c.optim.beta2 = 0.95  # own choice: an RL stage of a tiny model has some 100 updates, .999 averages over 1,000
    c.optim.grad_clip = 1.0  # A.5
    c.optim.moments_dtype = "float32"  # of Adam's two averages; "bfloat16" halves them

    c.budget_rule = ConfigDict()  # Eq. 2
    c.budget_rule.budgets = (64, 128, 256)  # A.1: {4k, 8k, 16k} for math; the same doubling
    c.budget_rule.kappa = 1.2  # A.1
    # 1,024 responses, as one step of e3's. With true accuracies .15, .17, .18, .185 at B, 2B, 4B, 8B the choice is
    # right in 97 % of draws; with 1 response a problem in 86 % (simulated: benchmarks/budget_rule.py)
    c.budget_rule.problems = 256
    c.budget_rule.samples = 4  # per problem

    c.eval = ConfigDict()
    c.eval.sets = ConfigDict()
    c.eval.only = ""  # names of sets with commas between them: the others are left out of this call; "": all
    c.eval.problems = 512  # per set, held out; a set that has fewer gives all it has
    c.eval.samples = 1  # responses per problem
    c.eval.budgets = (96, 192, 384)
    c.eval.temperature = 1.0  # own choice: as in training; A.7: .6
    c.eval.pass_ks = (1, 2, 4, 8, 16)
    c.eval.pass_problems = 128  # the first so many problems of a set …
    c.eval.pass_budget = 96  # … at this budget
    c.eval.shown = 10  # responses kept in eval_samples.jsonl

    c.checkpoint = ConfigDict()
    c.checkpoint.every = 20  # steps: what a kill costs at most, in time only; a stage's last step is always saved
    c.checkpoint.keep = 2  # the newest ones …
    c.checkpoint.keep_every = 0  # … and every so many steps; 0: none of these
    c.checkpoint.best = ""  # … and the best RL step by a metric: "reward/mean", or "-loss/kl" for the least; "": none

    c.faults = ConfigDict()
    c.faults.most_skipped = 3  # steps in a row without a finite gradient before the run stops (own choice)

    c.grader = ConfigDict()
    c.grader.workers = 2  # processes per host
    c.grader.timeout_s = 10.0  # per response; tried twice, then it scores 0 with reason "timeout"

    c.log = ConfigDict()
    c.log.tensorboard = True
    c.log.wandb = ""  # project name; "": off
    return c


def sft_stage(*, traces: dict, evaluated: bool, **fields) -> ConfigDict:
    """A supervised stage: numbers or digits, steps, lr, warmup, rows, row_length, and habits (tasks/*_traces.py)."""
    habits = {
        "solution_rate": 0.2,  # PROTOTYPE
        "give_up": 0.35,  # PROTOTYPE
        "persistent": 0.03,
        "persistent_solution_rate": 0.05,
    }
    return ConfigDict({"kind": "sft", "traces": {**habits, **traces}, "evaluated": evaluated, **fields})


def oxa_stage(*, promote: str, suppress: str, **fields) -> ConfigDict:
    """A supervised stage on files (train/oxa.py): steps, lr, warmup, per_step, ul_weight, rows, row_length.

    `promote` alone is SFT on it.
    """
    return ConfigDict({"kind": "oxa", "promote": promote, "suppress": suppress, "evaluated": True, **fields})


def plans_stage(*, solution_rate: float, evaluated: bool, **fields) -> ConfigDict:
    """A supervised stage on traces of tasks/countdown_plans.py: numbers, steps, lr, warmup, rows, row_length."""
    return ConfigDict({"kind": "sft", "traces": {"solution_rate": solution_rate}, "evaluated": evaluated, **fields})


def explorations_stage(*, evaluated: bool, data: dict, **fields) -> ConfigDict:
    """A supervised stage on a set with explorations: steps, lr, warmup, rows, row_length; data: set, part, per_step,
    longer, regulariser, regulariser_share (train/examples.py)."""
    whole = {"part": "both", "longer": "drop", "regulariser": "", "regulariser_share": 0.0}
    return ConfigDict({"kind": "sft", "data": {**whole, **data}, "evaluated": evaluated, **fields})


def grpo_stage(*, budget, **fields) -> ConfigDict:
    """An RL stage: numbers, set or digits; budget (tokens, or 'auto' for Eq. 2), steps, lr; no warm-up (A.5).

    It may say temperature, group_size, e2c and reward for itself.
    """
    stage = ConfigDict({"kind": "grpo", "evaluated": True, "warmup": 0, **fields})
    stage.budget = config_dict.placeholder(object)  # either type may be given on the command line
    stage.budget = budget
    return stage
