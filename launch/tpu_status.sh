#!/usr/bin/env bash
# What the TPU is doing, what each worker is doing, how far the run is, and whether it is done.
#
#     launch/tpu_status.sh [--workdir=gs://…] [--dry-run]

source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

workdir=""
options 'workdir=' "$@"
no_more_arguments
configure
WORKDIR=${workdir:-$WORKDIR}
in_bucket

last_line=(gcloud storage cat --range=-20000 "$WORKDIR/metrics.jsonl")
if [[ $DRY_RUN ]]; then
  quoted gcloud compute tpus queued-resources describe "$TPU_NAME" "${AT[@]}" "--format=value(state.state)"
  each_worker ssh_worker bash .e3jax/worker.sh status
  quoted "${last_line[@]}"
  quoted gcloud storage ls "$WORKDIR/DONE"
  exit
fi

state=$(queue_state)
echo "TPU      $TPU_NAME, $ACCELERATOR, spot: $SPOT, $ZONE: $state"
if [[ $state == ACTIVE ]]; then
  (count_workers) 2> /dev/null || echo "         but its machines are not READY: $(node 2>&1 || true)"
  if (ask_workers ssh_worker bash .e3jax/worker.sh status) 2> /dev/null; then
    for out in "$TMP"/*.out; do
      worker=$(basename "$out" .out)
      status=$(< "$TMP/$worker.status")
      [[ $status != 127 ]] || echo "not set up: launch/tpu_setup.sh" > "$out"
      echo "worker $worker $(tail -n 1 "$out")"
    done | sort -k2n
  fi
fi
echo "run      $WORKDIR"
echo "metrics  $({ "${last_line[@]}" 2> /dev/null || echo none yet; } | tail -n 1)"
if finished; then echo "DONE     yes"; else echo "DONE     no"; fi
