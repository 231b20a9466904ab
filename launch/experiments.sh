#!/usr/bin/env bash
# Every experiment of configs/experiments, one after the other, then one page of all: runs/experiments/paper.html.
#
#     launch/experiments.sh [--size=cpu|gpu] [--out=runs/experiments] [--dry-run] [NAME…]
#
# Its runs take 4 h 20 min of one CPU core in sum, without the last two (measured run by run, two beside each other on 2
# cores; the script as a whole was not run). Every experiment says its own time when it begins. Killed
# anywhere, the same command goes on. An experiment that fails is left out, the others are made, and the failed ones are named
# at the end (exit status 1). OUT/NAME/progress.log gets a line a minute, OUT/NAME/output.log everything.

source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

ALL=(mask verification coupled budgets eq2 wait ablate_recipe ablate_base ablate_size) # the first ones say most
size=cpu out=runs/experiments
options 'size= out=' "$@"
names=(${ARGS[@]+"${ARGS[@]}"})
cd "$ROOT" || exit
for name in ${names[@]+"${names[@]}"}; do
  [[ -r configs/experiments/$name.py ]] || bad "$name: no such file as configs/experiments/$name.py"
done
((${#names[@]})) || names=("${ALL[@]}")

pid=""
trap '[[ ! $pid ]] || { kill -TERM "$pid" 2> /dev/null; wait "$pid"; }; exit 143' TERM INT
failed=()
for ((i = 0; i < ${#names[@]}; i++)); do
  name=${names[i]}
  command=(python -m e3jax.experiments.run "--config=configs/experiments/$name.py:$size" "--workdir=$out/$name")
  if [[ $DRY_RUN ]]; then
    quoted "${command[@]}"
    continue
  fi
  mkdir -p "$out/$name"
  say "experiment $((i + 1)) of ${#names[@]}: $name; tail -f $out/$name/progress.log"
  if [[ -t 1 ]]; then
    "${command[@]}" &
  else
    "${command[@]}" >> "$out/$name/output.log" 2>&1 &
  fi
  pid=$!
  code=0
  wait "$pid" || code=$?
  pid=""
  ((code == 0)) || { failed+=("$name"); say "$name: failed with status $code, going on with the next"; }
done
[[ ! $DRY_RUN ]] || exit 0
python -m e3jax.report.paper "$out"/*/ "--to=$out/paper.html" > "$out/paper.md" || failed+=("the page of all")
((!${#failed[@]})) || die "not finished: ${failed[*]}; the same command tries again"
say "all done: $out/paper.html, and $out/paper.md for README"
