"""The command: stages in order, each evaluated when it ends; killed anywhere, the same command continues.

    python -m e3jax.train.curriculum --config=configs/quickstart.py --workdir=runs/quickstart

e3's coupled curriculum (§6): a stage is (data difficulty, token budget, steps); a budget of 'auto' is chosen by Eq. 2
on the stage's own problems with the model that enters it, and the table it saw is kept in budget.jsonl. Each
stage has its own optimiser, and its KL reference is the model it started from (ALGORITHMS A.6).
"""

from functools import partial

import jax
import numpy as np
from ml_collections import ConfigDict
from rich.table import Table
from rich.text import Text

from e3jax.checkpoint.pretrained import load_params, same_model
from e3jax.eval.in_training import distinct, evaluate, pass_at_ks, sample_line
from e3jax.flags import run_command
from e3jax.metrics.bootstrap import resampled
from e3jax.metrics.extrapolation import accuracy_at_budgets
from e3jax.models.qwen3 import abstract_params, init_params
from e3jax.printable import printable
from e3jax.report.browser import write_samples
from e3jax.report.html import write_report
from e3jax.runtime import barrier, is_main, unless_stopped
from e3jax.sharding import assert_sharded
from e3jax.tasks.sets import chosen_sets
from e3jax.tasks.stream import Stream
from e3jax.tasks.table import TASKS
from e3jax.train import grpo, oxa, sft
from e3jax.train.eq2 import choose_budget, remarks
from e3jax.train.examples import open_examples
from e3jax.train.number_features import number_features
from e3jax.train.setup import Run, make_run

# "Steps" whose noise no training step uses; an evaluation's noise is the same in every stage.
BUDGET_KEY, EVAL_KEY, PASS_KEY = 1_000_001, 1_000_002, 1_000_003


def initial_params(run: Run, *, number_embeddings: bool, init_from: str):
    """Random parameters, or those of a checkpoint or a Hugging Face model; float32, placed on the mesh."""
    like = abstract_params(run.model, run.mesh)
    if init_from:
        same_model(init_from, run.model.config)
        params = load_params(init_from, like)
    else:
        shardings = jax.tree.map(lambda x: x.sharding, like)
        params = jax.jit(lambda: init_params(run.model, jax.random.key(run.seed)), out_shardings=shardings)()
        if number_embeddings:
            params["embed_vd"] = number_features(params["embed_vd"], run.tokenizer.words)
    assert_sharded(params)
    return params


def automatic_budget(
    run: Run,
    params,
    *,
    stage: str,
    stage_index: int,
    draw: Stream,
    first_problem: int,
    incoming_budget: int | None,
    budgets,
    kappa: float,
    problems: int,
    samples: int,
    temperature: float,
    sampler: dict,
) -> int:
    """Choose by Eq. 2 on `problems` training problems of the stage; asked once, then read from budget.jsonl."""
    for line in run.log.read("budget.jsonl"):
        if line["stage"] == stage:
            return line["chosen"]
    grid = sorted({m * b for b in budgets for m in (1, 2)})
    asked = draw(first_problem, problems)
    with run.log.phase(f"{stage}: budget by Eq. 2", total=problems * samples) as phase:
        line, graded = evaluate(
            run.model,
            params,
            run.tokenizer,
            asked,
            key=run.key(stage_index, BUDGET_KEY),
            samples=samples,
            budgets=grid,
            temperature=temperature,
            sampler=sampler,
            read=run.grader.submit,
            on_finished=unless_stopped(phase.advance, f"{stage}, before its first step"),
        )
    accuracy = {b: line["accuracy"][str(b)][0] for b in grid}
    score_pg, length_pg, done_pg = (
        x.reshape(-1, samples) for x in (graded.score_b, graded.response_len_b, graded.rollouts.done)
    )
    draws = resampled(accuracy_at_budgets(score_pg, length_pg, done_pg, grid)) / len(score_pg)
    # B0 (e3 §6.1): mean response length of the incoming model on these problems, at the budget it comes from; a
    # model that never gives up would otherwise fill whatever limit it is measured with
    minimum = float(np.minimum(graded.response_len_b, incoming_budget or max(budgets)).mean())
    chosen, rows = choose_budget(
        accuracy, budgets=budgets, minimum=minimum, kappa=kappa, draws=dict(zip(grid, draws.T))
    )
    satisfied = any(row["chosen"] and row["satisfied"] for row in rows)
    said = remarks(rows, minimum=minimum, kappa=kappa)
    run.log.append(
        "budget.jsonl",
        {
            "stage": stage,
            "kappa": kappa,
            "minimum": minimum,
            "chosen": chosen,
            "satisfied": satisfied,
            "rows": rows,
            "problems": problems,
            "samples": samples,
            "remarks": said,
        },
    )
    run.log.flush()
    run.log.say(f"{stage}: Eq. 2 chose a budget of {chosen} tokens (kappa {kappa})")
    for remark in said:
        run.log.say(f"{stage}: {remark}")
    return chosen


def evaluate_stage(
    run: Run,
    params,
    *,
    stage: str,
    train_budget: int | None,
    sets: dict,
    only: str,
    problems: int,
    samples: int,
    budgets,
    temperature: float,
    pass_ks,
    pass_problems: int,
    pass_budget: int,
    shown: int,
    sampler: dict,
) -> None:
    """Accuracy at every budget and pass@k on every held-out set that `only` names; not those that eval.jsonl has."""
    known = {line["set"] for line in run.log.read("eval.jsonl") if line["stage"] == stage}
    common = dict(temperature=temperature, sampler=sampler, read=partial(run.grader.submit, apart=True))
    chosen = chosen_sets(sets, only, field="eval.only")
    for index, name in enumerate(sorted(sets)):  # a set's noise is its own, whatever is left out
        if name in known or name not in chosen:
            continue
        asked = run.draw_from(sets[name], split="test")(0, problems)  # a set that has fewer gives all
        with run.log.phase(f"{stage}: eval, {name}", total=len(asked) * samples) as phase:
            line, graded = evaluate(
                run.model,
                params,
                run.tokenizer,
                asked,
                key=run.key(index, EVAL_KEY),
                samples=samples,
                budgets=budgets,
                on_finished=unless_stopped(phase.advance, f"{stage}, evaluation"),
                **common,
            )
        with run.log.phase(f"{stage}: pass@k, {name}", total=len(asked[:pass_problems]) * max(pass_ks)) as phase:
            _, many = evaluate(
                run.model,
                params,
                run.tokenizer,
                asked[:pass_problems],
                key=run.key(index, PASS_KEY),
                samples=max(pass_ks),
                budgets=(pass_budget,),
                on_finished=unless_stopped(phase.advance, f"{stage}, evaluation"),
                **common,
            )
        line |= {
            "pass_at_k": pass_at_ks(many, max(pass_ks), pass_ks),
            "pass_at_k_budget": pass_budget,
            "distinct_attempts": distinct(many, max(pass_ks)),
        }
        run.log.keep("eval_samples.jsonl", lambda old, n=name: (old["stage"], old["set"]) != (stage, n))
        for i in range(min(shown, len(asked))):
            run.log.append("eval_samples.jsonl", {"stage": stage, "set": name, **sample_line(graded, i * samples)})
        run.log.append("eval.jsonl", {"stage": stage, "set": name, "train_budget": train_budget, **line})
        run.log.flush()


def final_table(lines: list[dict]) -> Table:
    """Accuracy by problem set, checkpoint and budget, as the terminal shows it; intervals are in the report."""
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
        names = (Text(printable(line[key], lines=False)) for key in ("set", "stage"))  # brackets are no markup
        table.add_row(*names, *accuracy, *cells)
    return table


def main(config: ConfigDict, workdir: str) -> None:
    """Run config.order's stages; ends with the table and RUN/report.html."""
    run = make_run(config, workdir)
    sampler, rl = config.sampler.to_dict(), config.grpo.to_dict()
    first_step, first_problem, budget = 0, 0, None
    with jax.set_mesh(run.mesh), run.grader:
        params = initial_params(run, **config.init)
        for index, name in enumerate(config.order):
            stage = config.stages[name].to_dict()
            kind, evaluated = stage.pop("kind"), stage.pop("evaluated")
            where = dict(stage=name, stage_index=index, first_step=first_step)
            if kind == "sft":
                how = config.sft.to_dict()
                aggregation, examples = how.pop("aggregation"), open_examples(run, stage, **how)
                params = sft.train(
                    run,
                    params,
                    **where,
                    **stage,
                    examples=examples,
                    aggregation=aggregation,
                    optim=config.optim.to_dict(),
                )
            elif kind == "oxa":
                params = oxa.train(run, params, **where, **stage, optim=config.optim.to_dict())
            else:
                draw = run.draw_from(stage.pop(TASKS[run.form].field), split="train")
                asked, stage = stage.pop("budget"), rl | stage  # a stage's own temperature is Eq. 2's too
                if asked == "auto":
                    asked = automatic_budget(
                        run,
                        params,
                        stage=name,
                        stage_index=index,
                        draw=draw,
                        first_problem=first_problem,
                        incoming_budget=budget,
                        temperature=stage["temperature"],
                        sampler=sampler,
                        **config.budget_rule,
                    )
                budget = asked
                params = grpo.train(
                    run,
                    params,
                    **where,
                    **stage,
                    first_problem=first_problem,
                    draw=draw,
                    budget=budget,
                    optim=config.optim.to_dict(),
                    sampler=sampler,
                )
            if evaluated:
                trained_at = budget if kind == "grpo" else None
                evaluate_stage(
                    run, params, stage=name, train_budget=trained_at, sampler=sampler, **config.eval.to_dict()
                )
            first_step += stage["steps"]
            first_problem += stage["steps"] * (stage["prompts"] if kind == "grpo" else rl["prompts"])
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
