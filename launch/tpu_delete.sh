#!/usr/bin/env bash
# Delete the TPU and the request for it: the costs end here. The run directory in the bucket stays.
#
#     launch/tpu_delete.sh [--yes] [--dry-run]
#
# Asks first unless --yes.

source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

yes=""
options 'yes' "$@"
no_more_arguments
configure

delete=(gcloud compute tpus queued-resources delete "$TPU_NAME" "${AT[@]}" --force --quiet)
if [[ $DRY_RUN ]]; then
  quoted "${delete[@]}"
  exit
fi

state=$(queue_state)
if [[ $state == ABSENT ]]; then
  say "there is no $TPU_NAME in $ZONE"
  exit
fi
if [[ ! $yes ]]; then
  read -r -p "Delete $TPU_NAME ($state, $ACCELERATOR, $PROJECT, $ZONE), whatever runs on it? [y/N] " answer || answer=""
  [[ $answer == [yY]* ]] || die "nothing was deleted"
fi

for ((try = 1; ; try++)); do # one that is just being taken away cannot be deleted yet
  out=$("${delete[@]}" 2>&1) || say "not yet: $out"
  state=$(queue_state)
  [[ $state != ABSENT ]] || break
  ((try < 20)) || die "$TPU_NAME is still $state: it may cost money, delete it at https://console.cloud.google.com/compute/tpus"
  sleep "$POLL_S"
done
say "$TPU_NAME is deleted"
