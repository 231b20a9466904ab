#!/usr/bin/env bash
# The same run on GKE, through xpk (pip install xpk), on a cluster that `xpk cluster create` made.
#
#     launch/xpk.sh [--dry-run] --config=FILE.py[:arg] [--workdir=gs://…] [--config.field=value …]
#
# xpk lays this checkout on XPK_IMAGE and starts one container per worker. Kubernetes does what tpu_babysit.sh does elsewhere.

source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

options '' "$@"
configure
run_command

install=$(quoted pip install --quiet -e ".[$EXTRAS]")
call xpk workload create --project="$PROJECT" --zone="$ZONE" --cluster="$XPK_CLUSTER" --workload="$TPU_NAME" \
  --tpu-type="$ACCELERATOR" --num-slices="${XPK_SLICES:-1}" --max-restarts=50 --base-docker-image="$XPK_IMAGE" \
  --script-dir="$ROOT" \
  --command="$install && exec $(quoted "${COMMAND[@]}")"
