#!/usr/bin/env bash
# Try a run on this machine as a pod would run it: several processes, the same command in each. No TPU, no launch/env.sh.
#
#     launch/local.sh [--processes=2] [--devices=2] [--module=e3jax.eval.run] [--dry-run] --config=configs/smoke.py \
#         --workdir=runs/local
#
# --devices simulated CPU devices per process; paths are those of the repository. Ctrl-C (or SIGTERM) goes to every process. Fails when one of them does.

source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

processes=2 devices=2 module=${MODULES[0]}
options 'processes= devices= module=' "$@"
known_module "$module"
[[ $processes =~ ^[1-9][0-9]*$ && $devices =~ ^[1-9][0-9]*$ ]] || bad "--processes=$processes --devices=$devices: numbers from 1"
[[ " ${ARGS[*]-}" == *" --config="* && " ${ARGS[*]-}" == *" --workdir="* ]] || bad "--config=FILE.py and --workdir=DIR, please; see --help"

free_port="import socket; s = socket.socket(); s.bind(('localhost', 0)); print(s.getsockname()[1])"
if [[ $DRY_RUN ]]; then port=12345; else port=$(python -c "$free_port"); fi
shared=(JAX_PLATFORMS=cpu "JAX_NUM_CPU_DEVICES=$devices" PYTHONUNBUFFERED=1)
if ((processes > 1)); then shared+=("JAX_COORDINATOR_ADDRESS=localhost:$port" "JAX_NUM_PROCESSES=$processes"); fi

[[ $DRY_RUN ]] || cd "$ROOT" || exit
pids=()
for ((i = 0; i < processes; i++)); do
  command=(env "${shared[@]}")
  if ((processes > 1)); then command+=("JAX_PROCESS_ID=$i"); fi
  command+=(python -m "$module" "${ARGS[@]}")
  if [[ $DRY_RUN ]]; then
    quoted "${command[@]}"
  else
    "${command[@]}" > >(sed -u "s/^/[process $i] /") 2>&1 &
    pids+=($!)
  fi
done
[[ ! $DRY_RUN ]] || exit 0

trap 'kill -TERM "${pids[@]}" 2> /dev/null || true' TERM INT
worst=0
for pid in "${pids[@]}"; do
  code=0
  wait "$pid" || code=$?
  while kill -0 "$pid" 2> /dev/null; do # that was the trap: wait again
    code=0
    wait "$pid" || code=$?
  done
  ((code <= worst)) || worst=$code
done
exit "$worst"
