#!/usr/bin/env bash
# Every experiment of configs/experiments, one after the other, then one page of all: runs/experiments/paper.html.
#
#     launch/experiments.sh [--size=cpu|gpu] [--jobs=1] [--out=runs/experiments] [--dry-run] [NAME…]
#
# --jobs=2 makes two seeds at a time, each on a core of its own: tiny models waste most of a second core.
# The runs take 6 h 50 min of one core in sum, about 4 hours with --jobs=2 (measured experiment by experiment on 2 cores,
# November 2026; ablate_size: 49 minutes of runs, 29 minutes with --jobs=2), oxa about 50 minutes more,
# rivals 123 (38 by the clock with three seeds at a time), carry_over 166 beside other work,
# e2c an estimated 45.
# Every experiment says its own time when it begins. Killed anywhere, the same command goes on. An experiment that fails
# is left out, the others are made, and the failed ones are named at the end (exit status 1). OUT/NAME/progress.log gets
# a line a minute, OUT/NAME/output.log everything; with --jobs they are OUT/NAME/parts/SEED/progress.log and
# OUT/NAME/output-CORE.log as well.

source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

ALL=(mask verification coupled budgets eq2 wait ablate_recipe ablate_on_policy ablate_base ablate_size oxa rivals carry_over e2c) # the first ones say most
size=cpu jobs=1 out=runs/experiments
options 'size= jobs= out=' "$@"
cd "$ROOT" || exit
experiment_names "${ALL[@]}"
[[ $jobs =~ ^[1-9][0-9]*$ ]] || bad "--jobs=$jobs: use 1 or more, at most the number of cores"

# on_core CORE LOG SEED...: these seeds one after the other. What fails is tried again when all seeds are collected.
on_core() {
  local core=$1 log=$2 seed child=""
  trap '[[ ! $child ]] || { kill -TERM "$child"; wait "$child"; }; exit 143' TERM
  for seed in "${@:3}"; do
    taskset -c "$core" "${command[@]}" --config.part=True "--config.seeds=($seed,)" >> "$log" 2>&1 &
    child=$!
    wait "$child" || true
  done
}

# seeds_first: the experiment's seeds, $jobs at a time.
seeds_first() {
  local seeds core
  read -ra seeds <<< "$(python -c "import importlib; \
c = importlib.import_module('configs.experiments.$name').get_config('$size'); print(*c.seeds)")"
  for ((core = 0; core < jobs; core++)); do
    local own=()
    for ((k = core; k < ${#seeds[@]}; k += jobs)); do own+=("${seeds[k]}"); done
    on_core "$core" "$out/$name/output-$core.log" ${own[@]+"${own[@]}"} &
    pids+=($!)
  done
  wait
  pids=()
}

pids=()
trap '((!${#pids[@]})) || { kill -TERM "${pids[@]}" 2> /dev/null; wait; }; exit 143' TERM INT
failed=()
for ((i = 0; i < ${#names[@]}; i++)); do
  name=${names[i]}
  command=(python -m e3jax.experiments.run "--config=configs/experiments/$name.py:$size" "--workdir=$out/$name")
  if [[ $DRY_RUN ]]; then
    quoted "${command[@]}"
    continue
  fi
  mkdir -p "$out/$name"
  say "experiment $((i + 1)) of ${#names[@]}: $name; tail -f $out/$name/$( ((jobs == 1)) || echo "parts/*/")progress.log"
  ((jobs == 1)) || seeds_first
  if [[ -t 1 ]]; then
    "${command[@]}" &
  else
    "${command[@]}" >> "$out/$name/output.log" 2>&1 &
  fi
  pids=($!)
  code=0
  wait "${pids[0]}" || code=$?
  pids=()
  ((code == 0)) || { failed+=("$name"); say "$name: failed with status $code, going on with the next"; }
done
[[ ! $DRY_RUN ]] || exit 0
python -m e3jax.experiments.paper "$out"/*/ "--to=$out/paper.html" > "$out/paper.md" || failed+=("the page of all")
((!${#failed[@]})) || die "not finished: ${failed[*]}; the same command tries again"
say "all done: $out/paper.html, and $out/paper.md for README"
