#!/usr/bin/env bash
# Start a run on every worker, detached: it goes on when this machine is switched off. The same command continues a run.
#
#     launch/tpu_run.sh [--dry-run] --config=FILE.py[:arg] [--workdir=gs://…] [--module=NAME] [--config.field=value …]
#
# Runs `python -m e3jax.train.curriculum` with these arguments on all workers, then makes sure that it did start on each.
# --module=e3jax.eval.run, e3jax.eval.probes or e3jax.scaling.run evaluates instead, in a --workdir of its own.
# Fails, naming the workers, when it did not (and ends the others, which would wait for them), or when a run is going.

source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

options '' "$@"
configure
run_command

if [[ ! $DRY_RUN ]]; then
  ask_workers ssh_worker bash .e3jax/worker.sh status
  for ((worker = 0; worker < WORKERS; worker++)); do
    if [[ $(< "$TMP/$worker.out") == running* ]]; then
      die "a run is going on worker $worker: $(< "$TMP/$worker.out")
launch/tpu_status.sh shows it, launch/tpu_stop.sh ends it"
    fi
  done
fi
if ! each_worker ssh_worker bash .e3jax/worker.sh start "${COMMAND[@]}"; then
  did_not=$FAILED
  each_worker ssh_worker bash .e3jax/worker.sh signal KILL || say "worker(s)$FAILED could not be told to end"
  die "the run did not start on worker(s)$did_not of $WORKERS; it was ended on the others"
fi
[[ $DRY_RUN ]] || say "started on all $WORKERS workers; launch/tpu_logs.sh --follow, launch/tpu_status.sh"
