#!/usr/bin/env bash
# The log of the run on a worker, or on all.
#
#     launch/tpu_logs.sh [--worker=0|all] [--lines=100] [--follow] [--dry-run]
#
# Logs stay on the workers and go with them; metrics, samples and checkpoints are in the run directory.

source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

worker=0 lines=100 follow=""
options 'worker= lines= follow' "$@"
no_more_arguments
[[ $worker == all || $worker =~ ^[0-9]+$ ]] || bad "--worker=$worker: a number from 0, or all"
[[ $lines =~ ^[0-9]+$ ]] || bad "--lines=$lines: a number"
configure

log=(bash .e3jax/worker.sh log "$lines")
if [[ $follow && $worker == all ]]; then
  if [[ $DRY_RUN ]]; then WORKERS=1; else count_workers; fi
  for ((worker = 0; worker < WORKERS; worker++)); do
    ssh_command "$worker" "$(quoted "${log[@]}" -f)"
    if [[ $DRY_RUN ]]; then quoted "${SSH[@]}"; else "${SSH[@]}" < /dev/null 2> /dev/null | sed "s/^/[worker $worker] /" & fi
  done
  wait
elif [[ $follow ]]; then
  ssh_command "$worker" "$(quoted "${log[@]}" -f)"
  call "${SSH[@]}" < /dev/null
elif [[ $worker == all ]]; then
  each_worker ssh_worker "${log[@]}" || die "no log from worker(s)$FAILED"
else
  ssh_worker "$worker" "${log[@]}" || die "no log from worker $worker"
fi
