"""Command: train the stages in order and evaluate after each. After a kill, the same command continues.

    python -m e3jax.train.curriculum --config=configs/quickstart.py --workdir=runs/quickstart

e3's coupled curriculum (§6): a stage is (data difficulty, token budget, steps); a budget of 'auto' is chosen by Eq. 2
on the stage's own problems with the model that enters it, and the table it saw is kept in budget.jsonl. Each
stage has its own optimiser, and its KL reference is the model it started from (docs/algorithms.md, GRPO).
"""

from dataclasses import replace
from functools import partial
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict
from rich.table import Table
from rich.text import Text

from e3jax.checkpoint.adapters import Kept, keep_base
from e3jax.checkpoint.pretrained import absolute, digest_at, load_params, same_model
from e3jax.compiling import Compiled
from e3jax.eval.in_training import distinct, evaluate, pass_at_ks, sample_line
from e3jax.flags import run_command
from e3jax.metrics.bootstrap import resampled
from e3jax.metrics.extrapolation import accuracy_at_budgets
from e3jax.models.lora import beside, fresh_adapters
from e3jax.models.number_features import number_features
from e3jax.models.qwen3 import abstract_adapters, abstract_params, init_params
from e3jax.printable import printable
from e3jax.report.browser import write_samples
from e3jax.report.html import write_report
from e3jax.runtime import barrier, from_main, is_main, out_of_memory, unless_stopped
from e3jax.sharding import assert_sharded
from e3jax.tasks.sets import chosen_sets
from e3jax.train import chats, grpo, oxa, sft
from e3jax.train.chats import ChatStage
from e3jax.train.eq2 import choose_budget, remarks
from e3jax.train.grpo import GrpoStage
from e3jax.train.run import Run, Stage
from e3jax.train.selection import problems_of
from e3jax.train.setup import make_run
from e3jax.train.sft import SftStage

# Step numbers beyond any real step: PRNG keys of the budget rule, of evaluation, of pass@k, of fresh adapters. Those of
# an evaluation depend on the set, not on the stage.
BUDGET_KEY, EVAL_KEY, PASS_KEY, ADAPTERS_KEY = 1_000_001, 1_000_002, 1_000_003, 1_000_004


def initial_params(run: Run):
    """Return random parameters, or those of a checkpoint or a Hugging Face model; float32, placed on the mesh.

    With LoRA: these in model.dtype, with fresh adapters beside them.
    """
    init, lora = run.settings.init, run.model.lora
    like = abstract_params(run.model, run.mesh, dtype="float32" if lora is None else run.model.dtype)
    if init.init_from:
        same_model(init.init_from, run.model.config)
        params = load_params(init.init_from, like)
        params = params if lora is None else with_adapters(run, params)
    else:
        shardings = jax.tree.map(lambda x: x.sharding, like)
        params = jax.jit(lambda: init_params(run.model, jax.random.key(run.seed)), out_shardings=shardings)()
        if init.number_embeddings:
            params["embed_vd"] = number_features(params["embed_vd"], run.tokenizer.words)
    assert_sharded(params)
    return params


def with_adapters(run: Run, params):
    """Return frozen parameters with fresh adapters beside them; RUN/hf/adapter.json says what these belong to."""
    lora, base, dtype = run.model.lora, absolute(run.settings.init.init_from), str(run.model.dtype)
    kept = Kept(lora, base, dtype, digest_at(base, params))
    from_main(lambda: keep_base(run.workdir, kept))
    shardings = jax.tree.map(lambda x: x.sharding, abstract_adapters(params, lora, run.mesh))
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), params)
    draw = jax.jit(lambda: fresh_adapters(shapes, lora, run.key(0, ADAPTERS_KEY)), out_shardings=shardings)
    return beside(params, draw())


def automatic_budget(run: Run, params, stage: GrpoStage, *, incoming_budget: int | None) -> int:
    """Choose the stage's budget by Eq. 2 on its own problems; measured once, then read from budget.jsonl.

    `incoming_budget` is the budget of the RL stage before, None where there is none.
    """
    for line in run.log.read("budget.jsonl"):
        if line["stage"] == stage.name:
            return line["chosen"]
    rule = run.settings.budget_rule
    grid = sorted({multiple * b for b in rule.budgets for multiple in (1, 2)})  # B and 2B
    problems = problems_of(run, stage)(stage.first_problem, rule.problems)
    with run.log.phase(f"{stage.name}: budget by Eq. 2", total=rule.problems * rule.samples) as phase:
        line, graded = evaluate(
            run.pretrained(params),
            problems,
            run.sampling(stage.temperature, budget=max(grid)),
            key=run.key(stage.index, BUDGET_KEY),
            samples=rule.samples,
            budgets=grid,
            read=run.grader.submit,
            on_finished=unless_stopped(phase.advance, f"{stage.name}, before its first step"),
        )
    accuracy = {b: line["accuracy"][str(b)][0] for b in grid}
    score_pg, length_pg, done_pg = (
        x.reshape(-1, rule.samples) for x in (graded.score_b, graded.response_len_b, graded.rollouts.done)
    )
    turns = bool(run.settings.environment.file)
    draws = resampled(accuracy_at_budgets(score_pg, length_pg, done_pg, grid, turns=turns)) / len(score_pg)
    # B0 (e3 §6.1): mean response length of the incoming model on these problems, capped at the budget it was
    # trained at; else a model that never stops would make B0 as long as the limit of this measurement
    minimum = float(np.minimum(graded.response_len_b, incoming_budget or max(rule.budgets)).mean())
    chosen, rows = choose_budget(
        accuracy, budgets=rule.budgets, minimum=minimum, kappa=rule.kappa, draws=dict(zip(grid, draws.T))
    )
    line = {"stage": stage.name, "kappa": rule.kappa, "minimum": minimum, "chosen": chosen}
    line["satisfied"] = any(row["chosen"] and row["satisfied"] for row in rows)
    line |= {"rows": rows, "problems": rule.problems, "samples": rule.samples}
    line["remarks"] = remarks(rows, minimum=minimum, kappa=rule.kappa)
    run.log.append("budget.jsonl", line)
    run.log.flush()
    run.log.say(f"{stage.name}: Eq. 2 chose a budget of {chosen} tokens (kappa {rule.kappa})")
    for remark in line["remarks"]:
        run.log.say(f"{stage.name}: {remark}")
    return chosen


def evaluate_stage(run: Run, params, stage: Stage, *, train_budget: int | None) -> None:
    """Measure accuracy at every budget and pass@k on every held-out set; skip sets that eval.jsonl has already."""
    e = run.settings.eval
    known = {line["set"] for line in run.log.read("eval.jsonl") if line["stage"] == stage.name}
    chosen = chosen_sets(e.sets, e.only, field="eval.only")
    for index, name in enumerate(sorted(e.sets)):  # over all sets, so that eval.only does not change a set's noise
        if name in known or name not in chosen:
            continue
        line, samples = evaluate_set(run, params, stage, name, e.sets[name], index=index)
        run.log.keep("eval_samples.jsonl", lambda old, n=name: (old["stage"], old["set"]) != (stage.name, n))
        for sample in samples:
            run.log.append("eval_samples.jsonl", {"stage": stage.name, "set": name, **sample})
        run.log.append("eval.jsonl", {"stage": stage.name, "set": name, "train_budget": train_budget, **line})
        run.log.flush()


def evaluate_set(run: Run, params, stage: Stage, name: str, source: Any, *, index: int) -> tuple[dict, list[dict]]:
    """Return what eval.jsonl records of one set, and the first responses; `index` seeds the set's sampling."""
    e, pretrained = run.settings.eval, run.pretrained(params)
    problems = run.draw_from(source, split="test")(0, e.problems)  # a set that has fewer gives all
    read = partial(run.grader.submit, apart=True)

    def measure(what: str, problems, key_step: int, *, samples: int, budgets):
        with run.log.phase(f"{stage.name}: {what}, {name}", total=len(problems) * samples) as phase:
            return evaluate(
                pretrained,
                problems,
                run.sampling(e.temperature, budget=max(budgets)),
                key=run.key(index, key_step),
                samples=samples,
                budgets=budgets,
                read=read,
                on_finished=unless_stopped(phase.advance, f"{stage.name}, evaluation"),
            )

    pass_samples = max(e.pass_ks)
    line, graded = measure("eval", problems, EVAL_KEY, samples=e.samples, budgets=e.budgets)
    _, pass_graded = measure(
        "pass@k", problems[: e.pass_problems], PASS_KEY, samples=pass_samples, budgets=(e.pass_budget,)
    )
    line["pass_at_k"] = pass_at_ks(pass_graded, pass_samples, e.pass_ks)
    line["pass_at_k_budget"] = e.pass_budget
    line["distinct_attempts"] = distinct(pass_graded, pass_samples)
    decode, number = run.tokenizer.decode, min(e.shown, len(problems))
    return line, [sample_line(graded, i * e.samples, decode) for i in range(number)]


def train_stage(run: Run, params, stage: Stage):
    """Train one stage; return the final parameters."""
    section, model = "grpo" if isinstance(stage, GrpoStage) else f"stages.{stage.name}", run.settings.model
    advice = f"lower config.{section}.rows (now {stage.rows}) or config.model.chunk (now {model.chunk})"
    if model.remat != "full":
        advice += f", or set config.model.remat='full' (now {model.remat!r})"
    with out_of_memory(advice):
        if isinstance(stage, GrpoStage):
            return grpo.train(run, params, stage)
        if isinstance(stage, ChatStage):
            return chats.train(run, params, stage)
        return sft.train(run, params, stage) if isinstance(stage, SftStage) else oxa.train(run, params, stage)


def final_table(lines: list[dict]) -> Table:
    """Return accuracy by problem set, checkpoint and budget, as the terminal shows it; intervals are in the report."""
    budgets = [str(b) for b in lines[0]["budgets"]]
    table = Table(title="accuracy [%] by test budget [tokens]")
    for column in ("problems", "after", *budgets, "attempts", "give-up", "right verdicts"):
        table.add_column(column, justify="left" if column in ("problems", "after") else "right", no_wrap=True)
    for line in sorted(lines, key=lambda x: x["set"]):
        accuracy = [f"{100 * line['accuracy'][b][0]:.1f}" for b in budgets]
        explored = line["explore"]
        verdicts = explored["verdict_accuracy"] if "verdict_accuracy" in explored else None  # free text has none
        right = "–" if verdicts is None else f"{verdicts:.3f}"
        cells = [f"{explored['attempts']:.1f}", f"{explored['give_up']:.2f}", right]
        names = (
            Text(printable(line[key], lines=False)) for key in ("set", "stage")
        )  # so that brackets in names are no markup
        table.add_row(*names, *accuracy, *cells)
    return table


def main(config: ConfigDict, workdir: str) -> None:
    """Run config.order's stages; ends with the table and RUN/report.html."""
    run = make_run(config, workdir)
    previous_budget, compiled = None, Compiled()  # of the RL stage before
    with jax.set_mesh(run.mesh), run.grader:
        params = initial_params(run)
        for stage in run.settings.stages:
            if isinstance(stage, GrpoStage):
                if stage.budget == "auto":
                    stage = replace(stage, budget=automatic_budget(run, params, stage, incoming_budget=previous_budget))
                previous_budget = stage.budget
            params = train_stage(run, params, stage)
            if stage.evaluated:
                trained_at = previous_budget if isinstance(stage, GrpoStage) else None
                evaluate_stage(run, params, stage, train_budget=trained_at)
            if said := compiled.told():
                run.log.say(f"{stage.name}: {said}")
    if lines := run.log.read("eval.jsonl"):
        run.log.console.print(final_table(lines))
    if is_main():
        run.log.say(f"report: {write_report(run.workdir)}")
        if any((run.workdir / name).exists() for name in ("samples.jsonl", "eval_samples.jsonl")):
            run.log.say(f"samples: {write_samples([run.workdir])}")
    run.log.done()
    run.log.close()
    barrier("end")


if __name__ == "__main__":
    run_command(main)
