"""Every logged number by its name, with what it means. docs/metrics.md is made from here, and tests check runs by it.

A number that is logged is defined here, in one line: unit, range, of what it is a mean. `python -m
e3jax.tools.metrics_page` writes the page. wandb and TensorBoard get the names of metrics.jsonl (log.py).

    undefined("grpo", {"reward/mean", "reward/maen"})    # {"reward/maen"}
"""

from collections.abc import Iterable

ANY = "…"  # stands for a budget, a k, a number of attempts or a way of forcing in a record's name

OPTIM = {
    "optim/grad_norm": "Global norm of the gradient before it is clipped; mean over the step's updates.",
    "optim/lr": "Learning rate of the last update.",
    "optim/skipped": "Share of the step's updates that were left out because their gradient was not finite.",
    "time/step_s": "Seconds of a step, by the clock; of supervised stages the mean since the line before.",
}

GRPO = {
    "reward/mean": "Mean score of a response, in [0, 1]: correctness alone, whatever RL is rewarded with.",
    "reward/std": "Standard deviation of the scores over all responses of the step.",
    "reward/all_zero": "Share of groups whose responses all score 0: without a gradient.",
    "reward/all_one": "Share of groups whose responses all score 1: without a gradient.",
    "reward/following": "Of right responses: mean share of the plan's steps that the execution follows (E2C).",
    "reward/overlong": "Mean soft penalty of responses that come near the budget; 0 or less (E2C, DAPO).",
    "reward/shaped": "Mean of what RL was rewarded with, where that is not the score: following and penalty in it.",
    "length/mean": "Tokens of a response, EOS included.",
    "length/correct": "The same of correct responses.",
    "length/incorrect": "The same of incorrect responses.",
    "length/positive": "The same of responses with a positive advantage.",
    "length/negative": "The same of responses with a negative advantage.",
    "length/p10": "10th percentile of the tokens of a response.",
    "length/p50": "Median of the tokens of a response.",
    "length/p90": "90th percentile of the tokens of a response.",
    "length/max": "Tokens of the longest response.",
    "length/exploration": "Tokens per response between the tags of the plan, tags left out (E2C).",
    "length/execution": "Tokens per response between the tags of the execution, tags left out (E2C).",
    "truncated": "Share of responses that the budget ended. They score 0 and are trained on.",
    "budget": "Most tokens of a response in this stage. Chosen (by hand or by Eq. 2), not measured.",
    "entropy/mean": "Entropy of the sampling distribution, nats, mean over sampled tokens, EOS included.",
    "entropy/correct": "The same over the tokens of correct responses.",
    "entropy/incorrect": "The same over the tokens of incorrect responses.",
    "entropy/positive": "The same over the tokens of responses with a positive advantage.",
    "entropy/negative": "The same over the tokens of responses with a negative advantage.",
    "entropy/exploration": "The same over the plan's tokens, tags left out (E2C).",
    "entropy/execution": "The same over the execution's tokens, tags left out (E2C).",
    "explore/attempts": "Attempts per response. Calculator: proposals. Free text: paragraphs.",
    "explore/unique_attempts": "Distinct attempts per response. Free text: by the first equation of each line.",
    "explore/verifications": "Checks per response. Calculator: verdicts. Free text: sentences that begin with one of "
    'App. N\'s phrases ("Wait", "But wait", "Alternatively", …).',
    "explore/verifications_code": "Free text only: lines that the paper's code counts, which is a broader rule.",
    "explore/equations_per_attempt": "Equations that are worked out, over attempts: a ratio of sums (App. G.1).",
    "explore/give_up": 'Share of responses that ended by themselves, unsolved; calculator: and without a "yes".',
    "explore/repetition": "Mean number of earlier copies of a response's last 100 characters.",
    "explore/verdict_accuracy": 'Calculator only: share of verdicts ("yes", "no") that are right.',
    "explore/false_yes": 'Calculator only: share of "yes" that are wrong.',
    "format/well_formed": "Share of responses with E2C's four tags in order, each once.",
    "loss/total": "What is minimised: Σ weight · [pg + kl_coef · KL − entropy_coef · H]; mean over the step's updates, "
    "like all of loss/.",
    "loss/pg": "Σ weight · clipped policy-gradient term.",
    "loss/kl": "Σ weight · estimate of KL to the model that the stage started from; only where kl_coef is not 0.",
    "loss/entropy": "Σ weight · entropy, nats.",
    "loss/ppo_kl": "Σ weight · (log-prob before the step's updates − log-prob now).",
    "loss/clip_low": "Share of the weight on tokens that the lower clip holds.",
    "loss/clip_high": "Share of the weight on tokens that the upper clip holds.",
    "loss/clip_dual": "Share of the weight on tokens of negative advantage that the dual clip holds.",
    "grad/negative_mass": "Share of Σ weight · abs(advantage) that comes from negative advantages.",
    "grad/masked": "Share of sampled tokens that grpo.weights.gradients takes out of the loss.",
    "parity/logp_max": "Largest abs(sampler's − trainer's log-prob) of a trained token before the first update.",
    "parity/logp_mean": "Mean of the same. Above config.grpo.parity_alarm the run says so.",
    "sampler/occupancy": "Share of decoding slots at work while requests wait.",
    "pack/padding": "Share of the update's computed tokens that are padding.",
    "time/rollout_s": "Seconds of sampling and grading.",
    "time/update_s": "Seconds of log-probs and optimiser updates.",
    "time/first_token_s": "Seconds until the first block of tokens.",
    "time/rollout_tokens_per_s": "Sampled tokens per second of time/rollout_s.",
} | OPTIM

SFT = {
    "loss/total": "Cross-entropy, nats: Σ weight · −log p.",
    "loss/entropy": "Entropy of the model at the trained tokens, nats, by the same weights.",
    "time/tokens_per_s": "Tokens per second, prompts included, padding not.",
} | OPTIM

OXA = {
    "loss/total": "What is minimised: loss/ce + ul_weight · loss/ul.",
    "loss/ce": "Promoted: mean over responses of their mean −log p, nats.",
    "loss/ul": "Suppressed: mean over responses of their mean −log(1 − p), nats, before ul_weight.",
    "loss/entropy_promoted": "Entropy at the promoted responses' tokens, nats, the same means.",
    "loss/entropy_suppressed": "Entropy at the suppressed responses' tokens, nats, the same means.",
    "loss/p_promoted": "Probability of the promoted responses' tokens, the same means.",
    "loss/p_suppressed": "Probability of the suppressed responses' tokens, the same means.",
    "time/tokens_per_s": "Tokens per second, prompts included, padding not.",
} | OPTIM

PK = {
    "length": "E[T], tokens of a trace, exact, within the budget.",
    "reward": "E[r]: the chance that the trace finds a*, exact.",
    "p_stop": "Mean over states of the chance of stopping.",
    "p_best": "Mean over states of the chance of a*.",
    "entropy": "Mean over states of the policy's entropy, nats.",
    "inverse_length": "E[1/T], exact: what constant negative advantage with weight 1/T pushes down.",
}

KINDS = {"grpo": GRPO, "sft": SFT, "oxa": OXA, "pk": PK}  # of lines of metrics.jsonl

REASONS = {
    "correct": "Right.",
    "truncated": "The budget ended the response: it is not graded.",
    "timeout": "Its grader did not answer, twice: too slow, out of memory, dead. No mean of `explore/…` has it in.",
    "no_answer": "No answer where one is looked for.",
    "no_thinking": "No </think> in the response of a model that thinks.",
    "malformed": "The answer is no expression of the task.",
    "wrong_numbers": "Other numbers than the problem's, or not each once.",
    "wrong_value": "Another value.",
    "division_by_zero": "An expression without a value.",
    "too_long": "The answer is longer than the grader reads.",
    "too_big": "Powers, factorials or nesting that would be computed for ever: not parsed.",
    "unreduced": "The right number, not in lowest terms.",
    "not_a_number": "No number, where a number is asked for.",
    "unevaluated": "A sum, product, integral or limit that the problem's answer has not.",
    "unreadable": "No expression at all.",
    "not_an_integer": "A product is asked for, and this is no integer.",
    "not_a_choice": "No single letter that the question has.",
    "wrong_choice": "Another letter.",
    "false_step": "A step of an execution states a wrong value.",
    "format_nested": "E2C: a phase opens inside an open one.",
    "format_repeated": "E2C: a tag whose turn is over.",
    "format_reversed": "E2C: a tag before its turn.",
    "format_no_plan": "E2C: the plan never begins.",
    "format_no_plan_end": "E2C: the plan never ends.",
    "format_no_execution": "E2C: the execution never begins.",
    "format_no_execution_end": "E2C: the execution never ends.",
    "correct_unsound": "Right by E2C's released grader, which is unsound (e3jax/rewards/plan.py).",
    "wrong_value_unsound": "Wrong by that grader.",
    "no_answer_unsound": "No box where that grader looks.",
}

EVAL = {
    "train_budget": "Budget of the stage that ended, tokens; null of a supervised stage and in e3jax.eval.run.",
    "scored.problems": "What the line counts: how many problems,",
    "scored.samples": "how many responses of each,",
    "scored.questions": "a digest of the questions,",
    "scored.answers": "and one of the answers and of what else grades them.",
    "problems": "Problems asked.",
    "samples": "Responses per problem.",
    "temperature": "Of the sampling; so top_k and top_p (e3jax.eval.run).",
    "top_k": "Of the sampling; 0: off.",
    "top_p": "Of the sampling; 1: off.",
    "budgets": "Test budgets, tokens. The longest was generated, the others are read off it.",
    "accuracy.…": "pass@1 at this budget: correct, ended by itself, and at most so many tokens.",
    "accuracy_cut.…": "The same of the first so many tokens, graded as they stand (App. B).",
    "pass_at_k.…": "Unbiased pass@k at pass_at_k_budget.",
    "pass_at_k_bootstrap.…": "The same drawn with replacement, as e3's Table 1, which is lower (eval.run).",
    "pass_at_k_budget": "Tokens.",
    "maj_at_k.…": "Accuracy of the majority of k answers, exact over all choices of k, ties shared; intervals over "
    "problems alone.",
    "distinct_attempts": "Distinct wrong attempts per problem solved at most half the time (Fig. 6, left).",
    "explore.length": "Tokens of a response, EOS included.",
    "explore.truncated": "Share that the longest budget ended.",
    "forcing.….accuracy": "pass@1 of forced responses (stop-T: thinking ends after T tokens; wait-N: N times more).",
    "forcing.….length": "Tokens of a forced response; and of them:",
    "forcing.….forced": "put there,",
    "forcing.….sampled": "drawn,",
    "forcing.….dropped": "drawn and taken away again (not in the length).",
    "forcing.….touched": "Share of responses that anything was put into.",
}

PROBES = {
    "budget": "Most tokens of a response.",
    "base": "The model that distances are measured to.",
    "scored.problems": "What the line counts: how many problems,",
    "scored.samples": "how many responses of each,",
    "scored.questions": "a digest of the questions,",
    "scored.answers": "and one of the answers and of what else grades them.",
    "problems": "Problems asked.",
    "samples": "Responses per problem.",
    "temperature": "Of the sampling; so top_k and top_p.",
    "top_k": "Of the sampling; 0: off.",
    "top_p": "Of the sampling; 1: off.",
    "success": "Share of responses that are right.",
    "asymmetry.chained": "Def. 4.1, left: success of responses that verify.",
    "asymmetry.any": "Def. 4.1, right: success of responses that generate.",
    "asymmetry.without": "Success of responses that generate and do not verify.",
    "asymmetry.difference": "Left − right.",
    "asymmetry.chained_minus_without": "The contrast that the definition does not name.",
    "asymmetry.responses.…": "How many responses are of the kind.",
    "asymmetry.by_chains.….reward": "Success of responses with so many verifications.",
    "asymmetry.by_chains.….responses": "How many these are.",
    "gap.generation": "Share of first attempts that are right.",
    "gap.verification": "Balanced accuracy of verdicts: mean of the two next.",
    "gap.yes_when_right": 'Share of right attempts that are told "yes".',
    "gap.no_when_wrong": 'Share of wrong attempts that are told "no".',
    "chains.….pass_at_k.…": "pass@k when the thinking is cut after so many attempts and must answer (Figs 3, 12).",
    "chains.….completions": "Answers drawn from each cut.",
    "chains.….reached": "Share of responses with so many attempts; the others keep all of theirs.",
    "chains.….kept": "Tokens kept of a response,",
    "chains.….forced": "put behind them,",
    "chains.….dropped": "taken away,",
    "chains.….drawn": "and drawn as the answer.",
    "conditional.dependence": "log p(a_k | a_<k) − log p(a_k | a_<k−1), nats per attempt (App. G.1).",
    "conditional.sharpening": "log p(a_k | a_<k) − log p(a_k−1 | a_<k−1).",
    "conditional.reattempt": "log p(a_k−1 | a_<k): the same attempt once more.",
    "conditional.reattempt_change": "The same against its first time.",
    "conditional.attempts": "How many attempts these are means of.",
    "conditional.by_attempt.….…": "The same five by the attempt's number k.",
    "tokens.entropy": "Nats per token.",
    "tokens.entropy_choice": "Nats per token that chooses an attempt.",
    "tokens.kl": "KL to the base per token, exact over the vocabulary (Fig. 13).",
    "tokens.k1": "The same as k1 estimates it.",
    "tokens.k3": "The same as k3 estimates it, with training's clips.",
    "tokens.end_after_attempt": "Probability, right after an attempt, of ending the thinking or the response.",
    "tokens.end_after_wrong": "The same after a wrong attempt.",
    "tokens.eos_after_attempt": "Probability, right after an attempt, of the ending token alone.",
    "tokens.eos_after_wrong": "The same after a wrong attempt.",
    "tokens.tokens": "How many tokens these are means of.",
    "explore.length": "Tokens of a response, EOS included.",
    "explore.truncated": "Share that the budget ended.",
}

SCALING = {
    "method": "How the tokens are spent (e3jax/scaling/run.py).",
    "judge": 'How plans are judged; "" where none is.',
    "k": "Plans, chains or thoughts per problem.",
    "accuracy": "Share of problems that are right.",
    "tokens": "Sampled tokens per problem.",
    "forced": "Tokens per problem that were put there.",
    "prompt": "Tokens per problem that were read.",
    "sc": "null of self-consistency itself, and where it was not run; else:",
    "sc.k": "Chains of self-consistency at the same mean cost (between two whole numbers: their mixture).",
    "sc.tokens": "Its sampled tokens per problem.",
    "sc.accuracy": "Its accuracy.",
    "sc.difference": "The method's accuracy − its, paired by problem.",
}

BUDGET = {
    "kappa": "κ of Eq. 2.",
    "minimum": "B0 of Eq. 2: mean response length of the model that enters the stage, tokens.",
    "chosen": "The stage's budget, tokens.",
    "satisfied": "Whether a budget kept J(2B) <= κ J(B); if none did, the largest was taken.",
    "rows": "For every budget B: `accuracy` J(B), `accuracy_doubled` J(2B), `ratio` of the two, `satisfied`, "
    "`unsolved` (both are 0), `chosen`, `interval` of the ratio (95 % over problems, paired; null: infinite).",
    "problems": "Problems it was measured on.",
    "samples": "Responses per problem.",
    "remarks": "What a person has to know of the choice: no budget did, nothing was solved, another could as well.",
}

RATES = {
    "index": "Number of the problem in its set.",
    "problem": "Its id.",
    "question": "Digest of its question.",
    "graded": "Digest of its answer, of what else grades it, and of how many samples.",
    "samples": "Responses drawn.",
    "correct": "How many are right.",
    "rate": "correct / samples: the pass rate that easy, medium and hard are made of.",
    "length": "Mean tokens of a response.",
    "truncated": "Share that the budget ended.",
    "reasons.…": "How many responses got this reason.",
}

POOL = {
    "pool": "The teacher's responses or the base model's own.",
    "index": "Number of the response in it.",
    "query": "Its problem.",
    "graded": "Digest of the response, of the answer and of what else grades it.",
    "correct": "Whether it is right.",
    "reason": "Why.",
    "length": "Tokens.",
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
    """Return the names in a line of metrics.jsonl of this kind that are defined nowhere; reasons count by their code.

    >>> sorted(undefined("sft", ["loss/total", "reason/correct", "reason/none", "budget"]))
    ['budget', 'reason/correct', 'reason/none']
    """
    known = set(KINDS[kind])
    if kind == "grpo":
        known |= {f"reason/{code}" for code in REASONS}
    return set(names) - known


def undefined_fields(record: str, line: dict) -> set[str]:
    """Return the dotted fields of a line of RECORDS that are defined nowhere; "…" stands for a key that is a number.

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
