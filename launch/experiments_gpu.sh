#!/usr/bin/env bash
# The experiments of size lm on a GPU that one has for minutes: what is still missing, in order of what the table of
# claims (docs/claims.md) needs most.
#
#     launch/experiments_gpu.sh [--minutes=9] [--model=DIR] [--size=lm|lm-smoke] [--runs=runs/experiments-lm] [--out=DIR]
#                               [--dry-run] [NAME…]
#
# Works for at most --minutes, saves and stops; the same line goes on from there, until it says "all done" (exit status 0;
# 3 while something is left, 1 if an experiment failed). --minutes=0 does not stop. --out gets the records of finished
# runs, without checkpoints: some MB. Runs of several machines or days are merged by e3jax.experiments.collect; a second
# machine needs RUNS/bases of the first one, with checkpoints, since the arms of a seed must share a base. E2C starts from
# a copy of the model that has its four tags as tokens, RUNS/model-with-tags, which is made before.

source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

ALL=(mask coupled budgets verification rivals e2c oxa eq2 wait)
TAGS="<EXPLORATION>,</EXPLORATION>,<EXECUTION>,</EXECUTION>"
minutes=9 model="" size=lm runs=runs/experiments-lm out=""
options 'minutes= model= size= runs= out=' "$@"
[[ $minutes =~ ^[0-9]+$ ]] || bad "--minutes=$minutes: use a whole number, 0 for no end"
[[ $size == lm || $size == lm-smoke ]] || bad "--size=$size: lm or lm-smoke"
cd "$ROOT" || exit
experiment_names "${ALL[@]}"
export XLA_PYTHON_CLIENT_MEM_FRACTION=${XLA_PYTHON_CLIENT_MEM_FRACTION:-.92} # as launch/countdown_lm.sh
started=$SECONDS tagged=$runs/model-with-tags
model=${model:-HuggingFaceTB/SmolLM2-135M-Instruct} # the recipe's

missing="" failed=()
for name in "${names[@]}"; do
  config=configs/experiments/$name.py:$size,model=$model
  [[ $name != e2c ]] || config=configs/experiments/e2c.py:$size,model=$tagged
  command=(python -m e3jax.experiments.run "--config=$config" "--workdir=$runs/$name")
  if [[ $DRY_RUN ]]; then
    quoted "${command[@]}"
    continue
  fi
  left=$((minutes * 60 - (SECONDS - started) - 30)) # 30 s for the last checkpoint
  ((minutes == 0 || left >= 20)) || { missing=1 && break; }
  if [[ $name == e2c && ! -e $tagged ]]; then
    python -m e3jax.tools.convert "--from=$model" "--to=$tagged" "--add_tokens=$TAGS" || { failed+=(e2c) && continue; }
  fi
  code=0
  if ((minutes)); then timeout --signal=TERM "$left" "${command[@]}" || code=$?; else "${command[@]}" || code=$?; fi
  ((code != 124)) || { missing=1 && break; }
  ((code == 0)) || { failed+=("$name") && say "$name: failed with status $code, going on with the next"; }
done
[[ ! $DRY_RUN ]] || exit 0
[[ ! $out ]] || python -m e3jax.experiments.collect "$runs" "--to=$out" --any_commit || true
((!${#failed[@]})) || die "not finished: ${failed[*]}; the same line tries again"
[[ ! $missing ]] || { say "the time is over: the same line goes on" && exit 3; }
say "all done: python -m e3jax.experiments.paper $runs/*/ --to=$runs/paper.html draws them"
