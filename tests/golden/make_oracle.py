"""Write tests/golden/oracle.json: what verl and TRL themselves compute on a small ragged batch, in float64 on a CPU.

    python -m venv oracle && oracle/bin/pip install torch==2.13.0 verl==0.9.1 trl==1.16.0
    oracle/bin/python tests/golden/make_oracle.py

Both projects' packages are called, none of their code is copied. The batch is drawn from a seed; gradients are those of
the log-probs. A line in VERL or TRL is another loss: its key, and what the project's own config is given.
`--inputs=FILE` takes the batch of another such file, to compare what is made of it.

TRL has no function of its own for advantages and for the weights against its sampler: the formulas are written out here
(with its `nanstd`), and the script stops when TRL's source says otherwise.
"""

import argparse
import inspect
import json
from collections import defaultdict
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from trl.trainer import grpo_trainer
from verl.trainer.ppo import core_algos
from verl.trainer.ppo.rollout_corr_helper import compute_rollout_correction_weights
from verl.workers.config import ActorConfig, PolicyLossConfig

PATH = Path(__file__).parent / "oracle.json"
SEED, PROMPTS, SAMPLES, LENGTH = 22, 3, 4, 7
ARRAYS = ("logprob", "old_logprob", "ref_logprob", "rollout_logprob", "mask", "reward")
# key: (the loss's registered name, aggregation, fields of ActorConfig, cap of truncated importance weights)
VERL = {
    "vanilla|token-mean|clip0.2/0.2|c3": ("vanilla", "token-mean", (0.2, 0.2, 3.0), None),
    "vanilla|seq-mean-token-mean|clip0.2/0.2|c3": ("vanilla", "seq-mean-token-mean", (0.2, 0.2, 3.0), None),
    "vanilla|seq-mean-token-sum|clip0.2/0.2|c3": ("vanilla", "seq-mean-token-sum", (0.2, 0.2, 3.0), None),
    "vanilla|seq-mean-token-sum-norm|clip0.2/0.2|c3": ("vanilla", "seq-mean-token-sum-norm", (0.2, 0.2, 3.0), None),
    "vanilla|token-mean|clip0.2/0.28|c10 (DAPO)": ("vanilla", "token-mean", (0.2, 0.28, 10.0), None),
    "vanilla|token-mean|clip0.2/0.28|c3|token TIS cap 2": ("vanilla", "token-mean", (0.2, 0.28, 3.0), 2.0),
    "gspo|clip3e-4/4e-4": ("gspo", "seq-mean-token-mean", (3e-4, 4e-4, 3.0), None),
    "gspo|clip0.2/0.2": ("gspo", "seq-mean-token-mean", (0.2, 0.2, 3.0), None),
    "cispo|token-mean|clip0.2/0.28": ("cispo", "token-mean", (0.2, 0.28, 3.0), None),
    "sapo|tau1.0/1.05": ("sapo", "seq-mean-token-mean", (0.2, 0.2, 3.0), None),
    "gpg|token-mean": ("gpg", "token-mean", (0.2, 0.2, 3.0), None),
    "geo_mean|clip0.4/0.4": ("geo_mean", "seq-mean-token-mean", (0.4, 0.4, 3.0), None),
    "dppo_tv|delta.2": ("dppo_tv", "token-mean", (0.2, 0.2, 20.0), None),
    "clip_cov|all of .1...6": ("clip_cov", "token-mean", (0.2, 0.2, 3.0), None),
    "kl_cov|share .2": ("kl_cov", "token-mean", (0.2, 0.2, 3.0), None),
}
# of Clip-Cov and KL-Cov: all of the band, so that nothing is drawn; the defaults' share is less than a token here
POLICY_LOSS = dict(clip_cov_ratio=1.0, clip_cov_lb=0.1, clip_cov_ub=0.6, kl_cov_ratio=0.2, ppo_kl_coef=1.0)
# key: what differs from TRAINER, the attributes of GRPOTrainer that its loss reads
TRL = {
    "grpo|token|eps0.2/0.2": {"loss_type": "grpo"},
    "bnpo|token|eps0.2/0.2": {"loss_type": "bnpo"},
    "dr_grpo|token|eps0.2/0.2": {"loss_type": "dr_grpo"},
    "dapo|token|eps0.2/0.2": {"loss_type": "dapo"},
    "dapo|token|eps0.2/0.28|delta4": {"loss_type": "dapo", "epsilon_high": 0.28, "args": {"delta": 4.0}},
    "grpo|sequence (GSPO)|eps0.2/0.2": {"loss_type": "grpo", "importance_sampling_level": "sequence"},
    "grpo|sequence (GSPO)|eps3e-4/4e-4": {
        "loss_type": "grpo", "importance_sampling_level": "sequence", "epsilon_low": 3e-4, "epsilon_high": 4e-4
    },
    "cispo|eps_max5": {"loss_type": "cispo", "epsilon_high": 5.0},
    "sapo": {"loss_type": "sapo"},
    "vespo": {"loss_type": "vespo"},
    "dapo|beta0.04 k3": {"loss_type": "dapo", "beta": 0.04},
    "dapo|beta0.04 k3 bias-corrected": {"loss_type": "dapo", "beta": 0.04, "args": {"use_bias_correction_kl": True}},
    "dapo|IS token_truncate max1.3": {"loss_type": "dapo", "weights": ("token_truncate", None, 1.3)},
    "dapo|IS token_mask 0.7..1.3": {"loss_type": "dapo", "weights": ("token_mask", 0.7, 1.3)},
    "dapo|IS sequence_mask max1.5": {"loss_type": "dapo", "weights": ("sequence_mask", None, 1.5)},
    "dapo|off_policy_mask 0.05": {"loss_type": "dapo", "off_policy_mask_threshold": 0.05},
}  # fmt: skip
TRAINER = dict(
    beta=0.0,
    epsilon_low=0.2,
    epsilon_high=0.2,
    importance_sampling_level="token",
    max_completion_length=10,
    top_entropy_quantile=1.0,
    off_policy_mask_threshold=None,
    use_vllm=False,
    aux_loss_enabled=False,
    current_gradient_accumulation_steps=1,
    _entropy_bonus_enabled=False,
)
STATIC = ("get_off_policy_mask", "get_gamma_weights")  # methods that the loss calls
ARGS = dict(
    delta=None,
    use_bias_correction_kl=False,
    steps_per_generation=1,
    sapo_temperature_pos=1.0,
    sapo_temperature_neg=1.05,
    vespo_k_pos=2.0,
    vespo_lambda_pos=3.0,
    vespo_k_neg=3.0,
    vespo_lambda_neg=2.0,
)


def draw() -> dict[str, list]:
    """A batch whose ratios reach every clip; rows of 1 to LENGTH tokens; a prompt that all responses solve."""
    rng = np.random.default_rng(SEED)
    rows = PROMPTS * SAMPLES
    logp = -np.abs(rng.normal(0.9, 0.7, (rows, LENGTH)))
    length = rng.integers(1, LENGTH + 1, rows)
    length[:2] = LENGTH, 1
    reward = rng.integers(0, 2, rows).astype(float)
    reward[:SAMPLES] = 1.0, 0.1, 0.0, 0.0
    reward[-SAMPLES:] = 1.0
    inputs = {
        "logprob": logp,
        "old_logprob": logp - rng.normal(0.0, 0.7, logp.shape),
        "ref_logprob": logp - rng.normal(0.0, 0.4, logp.shape),
        "rollout_logprob": logp - rng.normal(0.0, 0.8, logp.shape),
        "mask": (np.arange(LENGTH) < length[:, None]).astype(float),
        "reward": reward,
    }
    group = np.repeat(np.arange(PROMPTS), SAMPLES).tolist()
    return {name: np.round(values, 4).tolist() for name, values in inputs.items()} | {"group": group}


def advantages(x) -> dict[str, list[float]]:
    """Row by row, by both projects' rules."""
    rewards = torch.zeros_like(x.mask)
    rewards[:, 0] = x.reward
    made = {
        "verl_grpo": core_algos.compute_grpo_outcome_advantage(rewards, x.mask, x.group),
        "verl_grpo_no_std (dr_grpo)": core_algos.compute_grpo_outcome_advantage(
            rewards, x.mask, x.group, norm_adv_by_std_in_grpo=False
        ),
        "verl_rloo": core_algos.compute_rloo_outcome_advantage(rewards, x.mask, x.group),
        "verl_opo": core_algos.compute_opo_outcome_advantage(rewards, x.mask, x.group),
        "verl_grpo_passk": core_algos.compute_grpo_passk_outcome_advantage(rewards, x.mask, x.group, config={}),
        "verl_reinforce_plus_plus_baseline": core_algos.compute_reinforce_plus_plus_baseline_outcome_advantage(
            rewards, x.mask, x.group
        ),
    }
    return {name: values[0][:, 0].tolist() for name, values in made.items()} | {
        "trl_group (formula)": trl_advantages(x.reward, of="group"),
        "trl_batch (formula)": trl_advantages(x.reward, of="batch"),
    }


def need_source(*lines: str) -> None:
    """Stop when TRL's source, of which a formula is written out here, lacks one of these lines."""
    source = inspect.getsource(grpo_trainer.GRPOTrainer._generate_and_score_completions)
    for line in lines:
        assert line in source, f"TRL has no {line!r} any more"


def trl_advantages(reward, *, of: str) -> list[float]:
    """Groups of SAMPLES: (R - mean) / (std + 1e-4), std of the group or of the batch."""
    need_source("advantages = rewards - mean_grouped_rewards", "advantages = advantages / (std_rewards + 1e-4)")
    grouped = reward.view(-1, SAMPLES)
    std = grpo_trainer.nanstd(grouped, dim=1)[:, None] if of == "group" else grpo_trainer.nanstd(reward, dim=0)
    return ((grouped - grouped.mean(1, keepdim=True)) / (std + 1e-4)).flatten().tolist()


def trl_weights(x, mode: str, least: float | None, most: float) -> torch.Tensor:
    """Importance weights of the old policy against the sampler, [B, T] or [B, 1]."""
    need_source('in ["sequence_mask", "sequence_truncate"]', "per_token_logps_diff.sum(dim=-1, keepdim=True)")
    difference = (x.old_logprob - x.rollout_logprob) * x.mask
    ratio = (difference.sum(-1, keepdim=True) if mode.startswith("sequence") else difference).exp()
    if mode.endswith("truncate"):
        return ratio.clamp(min=least, max=most)
    return ratio.masked_fill((ratio > most) | (ratio < (least or 0.0)), 0.0)


def verl_loss(x, advantage, name: str, aggregation: str, clip, tis_cap):
    """(loss, metrics) as verl's actor gets them."""
    low, high, dual = clip
    config = ActorConfig(
        strategy="fsdp",
        rollout_n=SAMPLES,
        ppo_micro_batch_size_per_gpu=1,
        clip_ratio=low,
        clip_ratio_low=low,
        clip_ratio_high=high,
        clip_ratio_c=dual,
        policy_loss=PolicyLossConfig(loss_mode=name, **POLICY_LOSS),
    )
    weights = None
    if tis_cap is not None:
        weights, _ = compute_rollout_correction_weights(x.old_logprob - x.rollout_logprob, x.mask, "token", tis_cap)
    return core_algos.get_policy_loss_fn(name)(
        x.old_logprob, x.logprob, advantage[:, None].expand_as(x.mask), x.mask, aggregation, config, weights
    )


def trl_loss(x, advantage, changes):
    """(loss, metrics): GRPOTrainer's own `_compute_loss`, with these log-probs in place of a model's.

    `changes` beside its attributes: "args", those of its config; "weights", what `trl_weights` takes.
    """
    changes = dict(changes)
    args, weights = changes.pop("args", {}), changes.pop("weights", None)
    if weights:
        changes |= dict(
            use_vllm=True, vllm_importance_sampling_correction=True, vllm_importance_sampling_mode=weights[0]
        )
    metrics = {"train": defaultdict(list)}
    accelerator = SimpleNamespace(num_processes=1, gather=lambda x: x, reduce=lambda x, reduction: x)
    trainer = SimpleNamespace(
        **TRAINER | changes,
        args=SimpleNamespace(**ARGS | args),
        accelerator=accelerator,
        _metrics=metrics,
        model=SimpleNamespace(training=True),
        _get_per_token_logps_and_entropies=lambda *_, **__: (x.logprob, torch.zeros_like(x.mask), None),
        **{name: getattr(grpo_trainer.GRPOTrainer, name) for name in STATIC},
    )
    nothing = torch.zeros((len(x.mask), 0))
    loss = grpo_trainer.GRPOTrainer._compute_loss(
        trainer,
        None,
        {
            "prompt_ids": nothing,
            "prompt_mask": nothing,
            "completion_ids": torch.zeros_like(x.mask),
            "completion_mask": x.mask,
            "advantages": advantage,
            "old_per_token_logps": x.old_logprob,
            "ref_per_token_logps": x.ref_logprob,
            "num_items_in_batch": x.mask.sum(),
            "sampling_per_token_logps": x.rollout_logprob,
        }
        | ({"importance_sampling_ratio": trl_weights(x, *weights)} if weights else {}),
    )
    return loss, {name: values[0] for name, values in metrics["train"].items()}


def entry(x, loss, metrics) -> dict:
    """What a test compares: the loss, its gradient by the log-probs, what the project logs beside it."""
    (grad,) = torch.autograd.grad(loss, x.logprob)
    assert loss.dtype == grad.dtype == torch.float64
    return {"loss": loss.item(), "grad": grad.tolist(), "metrics": metrics}


def kl(x, estimator: str) -> dict:
    """verl's estimator: every token, the mean over tokens, the mean's gradient."""
    per_token = core_algos.kl_penalty(x.logprob, x.ref_logprob, estimator)
    mean = core_algos.agg_loss(per_token, x.mask, "token-mean")
    (grad,) = torch.autograd.grad(mean, x.logprob)
    return {"token_mean": mean.item(), "grad": grad.tolist(), "per_token": (per_token * x.mask).tolist()}


def oracle(inputs: dict) -> dict:
    """Everything."""
    x = SimpleNamespace(**{name: torch.tensor(inputs[name], dtype=torch.float64) for name in ARRAYS})
    x.group, x.logprob = np.array(inputs["group"]), x.logprob.requires_grad_()
    rules = advantages(x)
    advantage = torch.tensor(rules["verl_grpo"], dtype=torch.float64)  # both projects are fed these
    return {
        "made_by": f"tests/golden/make_oracle.py, seed {SEED}",
        "versions": {name: version(name) for name in ("verl", "trl", "torch", "numpy")},
        "inputs": inputs,
        "advantages": rules,
        "verl": {key: entry(x, *verl_loss(x, advantage, *options)) for key, options in VERL.items()},
        "kl": {estimator: kl(x, estimator) for estimator in ("k1", "k2", "k3")},
        "trl": {key: entry(x, *trl_loss(x, advantage, changes)) for key, changes in TRL.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--inputs", help="a file whose batch is taken instead of a drawn one")
    parser.add_argument("--to", default=str(PATH))
    given = parser.parse_args()
    made = oracle(json.loads(Path(given.inputs).read_text())["inputs"] if given.inputs else draw())
    clipped = made["verl"][next(iter(VERL))]["metrics"]
    assert min(clipped["actor/pg_clipfrac"], clipped["actor/pg_clipfrac_lower"]) > 0, "no token reaches a clip"
    lines = (f" {json.dumps(key)}: {json.dumps(value)}" for key, value in made.items())
    Path(given.to).write_text("{\n" + ",\n".join(lines) + "\n}\n")
    print(given.to, made["versions"], clipped)


if __name__ == "__main__":
    main()
