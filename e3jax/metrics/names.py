"""Every logged number by its name, with what it means. docs/metrics.md is made from here, and tests check runs by it.

Every number that is logged is defined here in one line: its unit, its range, and what it is a mean of. `python -m
e3jax.tools.metrics_page` writes the page. wandb and TensorBoard get the names of metrics.jsonl (log.py).

    undefined("grpo", {"reward/mean", "reward/maen"})    # {"reward/maen"}
"""

from collections.abc import Iterable

ANY = "…"  # in a name, stands for a budget, a k, a number of attempts, a way of forcing or a function of the user's

OPTIM = {
    "optim/grad_norm": "Global norm of the gradient before it is clipped, mean over the step's updates.",
    "optim/lr": "Learning rate of the last update.",
    "optim/skipped": "Share of the step's updates that were skipped because their gradient was not finite.",
    "time/step_s": "Seconds of a step by the clock; in supervised stages the mean since the line before.",
    "memory/device_gib": "Most memory so far of process 0's fullest device, GiB; not on CPUs, which do not tell.",
    "memory/host_gib": "Most memory so far of process 0 itself, GiB.",
}

GRPO = {
    "reward/mean": "Mean score of a response, in [0, 1]: correctness alone, whatever else RL rewards. With a "
    "config.task.reward, the mean of that, which may be any number.",
    "reward/std": "Standard deviation of the scores over all responses of the step.",
    "reward/all_zero": "Share of groups whose responses all score 0, which gives no gradient.",
    "reward/all_one": "Share of groups whose responses all score 1, which gives no gradient.",
    "reward/following": "Mean share of the plan's steps that the execution follows, over right responses (E2C).",
    "reward/overlong": "Mean soft penalty of responses that come near the budget; 0 or less (E2C, DAPO).",
    "reward/own/…": "Mean of one part of config.task.reward, before its weight; reasons are its functions' own.",
    "reward/too_short": "Mean penalty of wrong responses that end early; 0 or less (LIE).",
    "reward/repetition": "Mean penalty of responses that say the same ten words ten times; 0 or less (LIE).",
    "reward/length_error": "Mean distance of a response from the length that its prompt asks for, tokens (LCPO).",
    "reward/shaped": "Mean reward that RL used, where it is not the score: with plan-following and length penalties.",
    "drawn/problems": "Problems drawn in the step, with dynamic sampling (grpo.rounds). The other numbers are of "
    "those that it trains on.",
    "drawn/spread": "Share of the drawn problems whose responses do not all score alike.",
    "drawn/reward": "Mean score of all drawn responses: reward/mean is of a selection.",
    "drawn/tokens": "Tokens sampled for all drawn responses.",
    "carry/groups": "Groups that go on in the next step (config.grpo.carry_over).",
    "carry/age": "Updates between the draw of a trained token and this step, mean over tokens.",
    "carry/oldest": "The same of the oldest trained token.",
    "carry/wasted": "Share of the tokens drawn in this step that are thrown away (over_sampling, carry_over).",
    "length/mean": "Mean tokens of a response, EOS included.",
    "length/correct": "The same, over correct responses.",
    "length/incorrect": "The same, over incorrect responses.",
    "length/positive": "The same, over responses with a positive advantage.",
    "length/negative": "The same, over responses with a negative advantage.",
    "length/p10": "10th percentile of the tokens of a response.",
    "length/p50": "Median of the tokens of a response.",
    "length/p90": "90th percentile of the tokens of a response.",
    "length/max": "Tokens of the longest response.",
    "length/exploration": "Mean tokens of a response between the tags of the plan, without the tags (E2C).",
    "length/execution": "Mean tokens of a response between the tags of the execution, without the tags (E2C).",
    "turns/mean": "Turns of the model in an episode; only with a config.environment, as the next two.",
    "turns/sampled": "Mean tokens of an episode that the model sampled. length/… and budget count all of its tokens.",
    "turns/forced": "Mean tokens of an episode that its environment put there.",
    "truncated": "Share of responses that the budget ended. They score 0, and are trained on unless "
    "grpo.weights.truncated says otherwise.",
    "budget": "Most tokens that a response may have in this stage. Chosen, by hand or by Eq. 2, not measured.",
    "entropy/mean": "Entropy of the sampling distribution in nats, mean over sampled tokens, EOS included.",
    "entropy/correct": "The same over the tokens of correct responses.",
    "entropy/incorrect": "The same over the tokens of incorrect responses.",
    "entropy/positive": "The same over the tokens of responses with a positive advantage.",
    "entropy/negative": "The same over the tokens of responses with a negative advantage.",
    "entropy/exploration": "The same over the plan's tokens, without the tags (E2C).",
    "entropy/execution": "The same over the execution's tokens, without the tags (E2C).",
    "explore/attempts": "Attempts per response: proposals of traces, paragraphs of free text.",
    "explore/unique_attempts": "Distinct attempts per response; in free text, by the first equation of each line.",
    "explore/verifications": "Checks per response: verdicts of traces; sentences of free text that begin "
    'with a phrase of App. N ("Wait", "But wait", "Alternatively", …).',
    "explore/verifications_code": "Language models only: lines that the paper's code counts, by a broader rule.",
    "explore/false_equations": "Language models only: share of the equations in the text that do not hold "
    "(tasks/written_arithmetic.py).",
    "explore/equations_per_attempt": "Equations that are worked out per attempt, a ratio of sums (App. G.1).",
    "explore/give_up": 'Share of responses that ended by themselves unsolved (traces: and without a "yes").',
    "explore/repetition": "Mean number of earlier copies of a response's last 100 characters.",
    "explore/verdict_accuracy": 'Traces only: share of verdicts ("yes", "no"; "That is 43", "Not 43") that are right.',
    "explore/false_yes": 'Traces only: share of "yes" that are wrong.',
    "format/well_formed": "Share of responses with E2C's four tags in order, each once.",
    "loss/total": "What is minimised: Σ weight · [pg + kl_coef · KL − entropy_coef · H]; mean over the step's updates, "
    "like all of loss/.",
    "loss/pg": "Σ weight · policy-gradient term of grpo.loss.surrogate, clipped by default.",
    "loss/kl": "Σ weight · estimate of the KL to the model that the stage started from; only where kl_coef is not 0.",
    "loss/entropy": "Σ weight · entropy, nats.",
    "loss/ppo_kl": "Σ weight · (log-prob before the step's updates − log-prob now).",
    "loss/clip_low": "Share of the weight on tokens whose ratio the lower clip bounds; 0 for surrogates without one.",
    "loss/clip_high": "Share of the weight on tokens whose ratio the upper clip bounds; 0 for surrogates without one.",
    "loss/clip_dual": "Share of the weight on tokens of negative advantage that the dual clip holds back.",
    "grad/negative_mass": "Share of Σ weight · abs(advantage) that comes from negative advantages.",
    "grad/masked": "Share of sampled tokens that grpo.weights leaves out of the loss.",
    "parity/logp_max": "Largest abs(sampler's log-prob − trainer's) of a trained token before the first update.",
    "parity/logp_mean": "Mean of the same; above config.grpo.parity_alarm the run says so. With "
    "restricted_sampling it holds the mass that top-p and top-k leave out.",
    "sampler/occupancy": "Share of decoding slots that are in use while requests wait.",
    "sampler/prefilled": "Prompt tokens whose keys and values were computed.",
    "sampler/shared_pages": "Pages of the cache (64 positions) that responses read of their prompts without a copy.",
    "pack/padding": "Share of the tokens that the update computes which are padding.",
    "time/rollout_s": "Seconds of sampling and grading.",
    "time/update_s": "Seconds of log-probs and optimiser updates.",
    "time/first_token_s": "Seconds until the first block of tokens.",
    "time/rollout_tokens_per_s": "Tokens of the trained responses per second of time/rollout_s.",
} | OPTIM

SFT = {
    "loss/total": "Cross-entropy, nats: Σ weight · −log p.",
    "loss/held_out": "Cross-entropy of the stage's held_out conversations, averaged in the same way.",
    "loss/entropy": "Entropy of the model at the trained tokens in nats, with the same weights.",
    "time/tokens_per_s": "Tokens per second, with prompts and without padding.",
} | OPTIM

OXA = {
    "loss/total": "What is minimised: loss/ce + ul_weight · loss/ul.",
    "loss/ce": "Promoted responses: mean over responses of their mean −log p, nats.",
    "loss/ul": "Suppressed responses: mean over responses of their mean −log(1 − p), nats, before ul_weight.",
    "loss/entropy_promoted": "Entropy at the promoted responses' tokens in nats, averaged in the same way.",
    "loss/entropy_suppressed": "Entropy at the suppressed responses' tokens in nats, averaged in the same way.",
    "loss/p_promoted": "Probability of the promoted responses' tokens, averaged in the same way.",
    "loss/p_suppressed": "Probability of the suppressed responses' tokens, averaged in the same way.",
    "time/tokens_per_s": "Tokens per second, with prompts and without padding.",
} | OPTIM

PK = {
    "length": "E[T]: tokens of a trace within the budget, exact.",
    "reward": "E[r]: the chance that the trace finds a*, exact.",
    "p_stop": "Mean over states of the chance of stopping.",
    "p_best": "Mean over states of the chance of a*.",
    "entropy": "Mean over states of the policy's entropy in nats.",
    "inverse_length": "E[1/T], exact: a constant negative advantage with weight 1/T pushes this down.",
}

KINDS = {"grpo": GRPO, "sft": SFT, "oxa": OXA, "pk": PK}  # kinds of lines of metrics.jsonl

REASONS = {
    "correct": "The answer is right.",
    "own": "Scored by functions of config.task.reward, or a task of the user's own, that give no reason.",
    "truncated": "The budget ended the response, which is not graded.",
    "timeout": "The grader failed twice: too slow, out of memory, or dead. Means of `explore/…` leave these out.",
    "no_answer": "There is no answer where the grader looks for one.",
    "no_thinking": "The response of a model that thinks has no </think>.",
    "malformed": "The answer is not an expression of the task.",
    "wrong_numbers": "The answer does not use each of the problem's numbers exactly once, and no others.",
    "wrong_value": "The answer has another value.",
    "division_by_zero": "The expression has no value.",
    "too_long": "The answer is longer than the grader reads.",
    "too_big": "Powers, factorials or nesting would take forever to compute, so the answer is not parsed.",
    "unreduced": "The number is right, but not in lowest terms.",
    "not_a_number": "The problem wants a number, and the answer is none.",
    "unevaluated": "The answer has a sum, product, integral or limit that the problem's answer lacks.",
    "unreadable": "The answer is not an expression.",
    "not_an_integer": "The problem wants a product, and the answer is not an integer.",
    "not_a_choice": "The answer is not one of the question's letters.",
    "wrong_choice": "The answer is another letter.",
    "false_step": "A step of an execution states a wrong value.",
    "format_nested": "E2C: a phase opens inside an open one.",
    "format_repeated": "E2C: a tag comes after its turn is over.",
    "format_reversed": "E2C: a tag comes before its turn.",
    "format_no_plan": "E2C: the plan never begins.",
    "format_no_plan_end": "E2C: the plan never ends.",
    "format_no_execution": "E2C: the execution never begins.",
    "format_no_execution_end": "E2C: the execution never ends.",
    "correct_unsound": "Right by E2C's released grader, which is unsound (e3jax/rewards/plan.py).",
    "wrong_value_unsound": "Wrong by that grader.",
    "no_answer_unsound": "There is no box where that grader looks.",
}

EVAL = {
    "train_budget": "Budget in tokens of the stage that ended; null after a supervised stage and in e3jax.eval.run.",
    "scored.problems": "Number of problems that the line counts.",
    "scored.samples": "Number of responses to each of them.",
    "scored.questions": "Digest of the questions.",
    "scored.answers": "Digest of the answers and of whatever else the grader reads.",
    "problems": "Number of problems.",
    "samples": "Responses per problem.",
    "temperature": "Temperature of sampling (this, top_k and top_p: e3jax.eval.run).",
    "top_k": "Top-k of sampling; 0 is off.",
    "top_p": "Top-p of sampling; 1 is off.",
    "budgets": "Test budgets in tokens. The longest was generated, and the others are read off it.",
    "accuracy.…": "pass@1 at this budget: the response is correct, ended by itself, and has at most this many tokens.",
    "accuracy_cut.…": "The same for the first tokens of a response up to the budget, graded as they stand (App. B).",
    "pass_at_k.…": "Unbiased pass@k at pass_at_k_budget.",
    "pass_at_k_bootstrap.…": "The same, drawn with replacement as in e3's Table 1, which is lower (eval.run).",
    "pass_at_k_budget": "The budget of pass@k, tokens.",
    "reward": "Mean of config.reward over responses, whatever its range; only with one (e3jax.eval.run).",
    "maj_at_k.…": "Accuracy of the majority of k answers, exact over all choices of k, with ties shared; intervals are "
    "over problems alone.",
    "distinct_attempts": "Distinct wrong attempts per problem solved at most half the time (Fig. 6, left).",
    "explore.length": "Tokens of a response, EOS included.",
    "explore.truncated": "Share of responses that the longest budget ended.",
    "forcing.….accuracy": "pass@1 of forced responses (stop-T: thinking ends after T tokens; wait-N: N times more).",
    "forcing.….length": "Tokens of a forced response.",
    "forcing.….forced": "Of these, tokens that were put there.",
    "forcing.….sampled": "Of these, tokens that were drawn.",
    "forcing.….dropped": "Tokens that were drawn and taken away again, which are not in the length.",
    "forcing.….touched": "Share of responses into which anything was put.",
}

PROBES = {
    "budget": "Most tokens that a response may have.",
    "base": "The model to which distances are measured.",
    "scored.problems": "Number of problems that the line counts.",
    "scored.samples": "Number of responses to each of them.",
    "scored.questions": "Digest of the questions.",
    "scored.answers": "Digest of the answers and of whatever else the grader reads.",
    "problems": "Number of problems.",
    "samples": "Responses per problem.",
    "temperature": "Temperature of sampling.",
    "top_k": "Top-k of sampling; 0 is off.",
    "top_p": "Top-p of sampling; 1 is off.",
    "success": "Share of responses that are right.",
    "asymmetry.chained": "Def. 4.1, left: success of responses that verify.",
    "asymmetry.any": "Def. 4.1, right: success of responses that generate.",
    "asymmetry.without": "Success of responses that generate and do not verify.",
    "asymmetry.difference": "The left side minus the right side of Def. 4.1.",
    "asymmetry.chained_minus_without": "chained − without: a contrast that the definition does not name.",
    "asymmetry.responses.…": "How many responses are of the kind.",
    "asymmetry.by_chains.….reward": "Success of responses with this many verifications.",
    "asymmetry.by_chains.….responses": "How many responses these are.",
    "gap.generation": "Share of first attempts that are right.",
    "gap.verification": "Balanced accuracy of verdicts: the mean of the next two.",
    "gap.yes_when_right": 'Share of right attempts that get the verdict "yes".',
    "gap.no_when_wrong": 'Share of wrong attempts that get the verdict "no".',
    "chains.….pass_at_k.…": "pass@k when thinking is cut after this many attempts and must answer (Figs 3, 12).",
    "chains.….completions": "Answers drawn from each cut.",
    "chains.….reached": "Share of responses that have this many attempts; the others keep all of theirs.",
    "chains.….kept": "Tokens of a response that were kept.",
    "chains.….forced": "Tokens that were put behind these.",
    "chains.….dropped": "Tokens that were taken away.",
    "chains.….drawn": "Tokens that were drawn as the answer.",
    "conditional.dependence": "log p(a_k | a_<k) − log p(a_k | a_<k−1), nats per attempt (App. G.1).",
    "conditional.sharpening": "log p(a_k | a_<k) − log p(a_k−1 | a_<k−1).",
    "conditional.reattempt": "log p(a_k−1 | a_<k): making the same attempt once more.",
    "conditional.reattempt_change": "The same, minus its log-prob when it was made first.",
    "conditional.attempts": "Number of attempts that these are means over.",
    "conditional.by_attempt.….…": "The same five for the k-th attempt.",
    "tokens.entropy": "Nats per token.",
    "tokens.entropy_choice": "Nats per token that chooses an attempt.",
    "tokens.kl": "KL to the base per token, exact over the vocabulary (Fig. 13).",
    "tokens.k1": "The same, estimated by k1.",
    "tokens.k3": "The same, estimated by k3 with training's clips.",
    "tokens.end_after_attempt": "Probability, right after an attempt, of ending the thinking or the response.",
    "tokens.end_after_wrong": "The same after a wrong attempt.",
    "tokens.eos_after_attempt": "Probability, right after an attempt, of the ending token alone.",
    "tokens.eos_after_wrong": "The same after a wrong attempt.",
    "tokens.tokens": "Number of tokens that these are means over.",
    "explore.length": "Tokens of a response, EOS included.",
    "explore.truncated": "Share of responses that the budget ended.",
}

SCALING = {
    "method": "How the tokens are spent (e3jax/scaling/run.py).",
    "judge": 'How plans are judged; "" where they are not.',
    "k": "Plans, chains or thoughts per problem.",
    "accuracy": "Share of problems that are right.",
    "tokens": "Sampled tokens per problem.",
    "forced": "Tokens per problem that were forced.",
    "prompt": "Prompt tokens per problem.",
    "sc": "Self-consistency at the same mean cost; null for self-consistency itself and where it was not run.",
    "sc.k": "Its chains; between two whole numbers it is their mixture.",
    "sc.tokens": "Its sampled tokens per problem.",
    "sc.accuracy": "Its accuracy.",
    "sc.difference": "The method's accuracy minus that of self-consistency, paired by problem.",
}

BUDGET = {
    "kappa": "κ of Eq. 2.",
    "minimum": "B0 of Eq. 2: mean response length of the model that enters the stage, tokens.",
    "chosen": "The stage's budget, tokens.",
    "satisfied": "Whether a budget kept J(2B) <= κ J(B); if none did, the largest was taken.",
    "rows": "For every budget B: `accuracy` J(B), `accuracy_doubled` J(2B), `ratio` of the two, `satisfied`, "
    "`unsolved` (both are 0), `chosen`, `interval` of the ratio (95 % over problems, paired; null: infinite).",
    "problems": "Number of problems on which it was measured.",
    "samples": "Responses per problem.",
    "remarks": "What a person has to know about the choice: no budget satisfied Eq. 2, nothing was solved, or "
    "another budget would do as well.",
}

RATES = {
    "index": "Number of the problem in its set.",
    "problem": "Its id.",
    "question": "Digest of its question.",
    "graded": "Digest of its answer, of whatever else the grader reads, and of the number of samples.",
    "samples": "Responses drawn.",
    "correct": "How many are right.",
    "rate": "correct / samples: the pass rate by which problems are easy, medium or hard.",
    "length": "Mean tokens of a response.",
    "truncated": "Share of responses that the budget ended.",
    "reasons.…": "How many responses got this verdict.",
}

POOL = {
    "pool": "Whether the responses are the teacher's or the base model's.",
    "index": "Number of the response in its pool.",
    "query": "Its problem.",
    "graded": "Digest of the response, of the answer and of whatever else the grader reads.",
    "correct": "Whether it is right.",
    "reason": "The grader's verdict.",
    "length": "Tokens of the response.",
    "ppl": "Perplexity under the base model: e^(mean −log p); null where it was not needed.",
}

RECORDS = {
    "eval.jsonl": EVAL,
    "budget.jsonl": BUDGET,
    "probes.jsonl": PROBES,
    "cells of scaling.jsonl": SCALING,
    "rates.jsonl": RATES,
    "pool.jsonl": POOL,
}


def undefined(kind: str, names: Iterable[str]) -> set[str]:
    """Return the names in a line of metrics.jsonl of this kind that are not defined; reasons count by their code.

    >>> sorted(undefined("sft", ["loss/total", "reason/correct", "reason/none", "budget"]))
    ['budget', 'reason/correct', 'reason/none']
    """
    known = set(KINDS[kind])
    if kind == "grpo":
        known |= {f"reason/{code}" for code in REASONS}
    return {name for name in names if name not in known and f"{name.rpartition('/')[0]}/{ANY}" not in known}


def undefined_fields(record: str, line: dict) -> set[str]:
    """Return the dotted fields of a line of RECORDS that are not defined; "…" stands for a key that is a number.

    `explore.NAME` may be what training logs as explore/NAME, and names with a "/" themselves.

    >>> undefined_fields("eval.jsonl", {"accuracy": {"96": [0.1, 0.0, 0.2]}, "explore": {"attempts": 2.0, "odd": 1.0}})
    {'explore.odd'}
    """
    known = set(RECORDS[record]) | {"stage", "set", "checkpoint"}
    known |= {f"explore.{name.removeprefix('explore/')}" for name in [*GRPO, *(f"reason/{code}" for code in REASONS)]}
    return {name for name in dotted(line) if not any(fits(name, one) for one in known)}


def dotted(tree: dict, prefix: str = "") -> list[str]:
    """Return the dotted names of a tree's leaves: ["a.b"] for {"a": {"b": 1}}."""
    out = []
    for key, value in tree.items():
        out += dotted(value, f"{prefix}{key}.") if isinstance(value, dict) else [prefix + key]
    return out


def fits(name: str, pattern: str) -> bool:
    """Return whether a name fits a pattern part by part, "…" being any.

    >>> fits("accuracy.96", "accuracy.…"), fits("accuracy.96.low", "accuracy.…")
    (True, False)
    """
    parts, wanted = name.split("."), pattern.split(".")
    return len(parts) == len(wanted) and all(w in (ANY, p) for p, w in zip(parts, wanted))
