#!/usr/bin/env bash
# Ask for the TPU of launch/env.sh and wait until it is there.
#
#     launch/tpu_create.sh [--dry-run]
#
# Does nothing when it is there already, and waits when it was asked for already: start it again after Ctrl-C.
# Exit status 0: ACTIVE; 3: it was taken away or could not be had, ask again; 1: asking again does not help.

source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

request() {
  local flags=(--node-id="$TPU_NAME" --accelerator-type="$ACCELERATOR" --runtime-version="$RUNTIME" --quiet) out try
  [[ $SPOT == no ]] || flags+=(--spot)
  [[ ! ${NETWORK:-} ]] || flags+=(--network="$NETWORK")
  [[ ! ${SERVICE_ACCOUNT:-} ]] || flags+=(--service-account="$SERVICE_ACCOUNT" --scopes=https://www.googleapis.com/auth/cloud-platform)
  flags+=(${CREATE_FLAGS[@]+"${CREATE_FLAGS[@]}"})
  for ((try = 1; ; try++)); do
    if out=$(call gcloud compute tpus queued-resources create "$TPU_NAME" "${AT[@]}" "${flags[@]}" 2>&1); then
      [[ ! $DRY_RUN ]] || echo "$out"
      return
    fi
    refuse_if_hopeless "$out"
    if ((try >= TRIES)); then
      say "could not ask for $TPU_NAME in $TRIES tries: $out"
      exit 3
    fi
    sleep "$RETRY_S"
  done
}

# End when the message is one that trying again cannot change.
refuse_if_hopeless() {
  case $1 in
    *[Qq]uota*exhausted* | *[Qq]uota*exceeded* | *"Quota limit"*)
      die "no quota for $ACCELERATOR (SPOT=$SPOT) in $ZONE: $1
Ask for more at https://console.cloud.google.com/iam-admin/quotas?project=$PROJECT (spot and on demand have quotas of their
own), or use a zone that has some. Old SUSPENDED and FAILED requests count too: gcloud compute tpus queued-resources list
${AT[*]}"
      ;;
    *PERMISSION_DENIED* | *UNAUTHENTICATED* | *INVALID_ARGUMENT* | *"unrecognized arguments"* | *SERVICE_DISABLED*)
      die "Google Cloud refuses this: $1
Is launch/env.sh right, are the APIs on (launch/README.md, step 1), and are you logged in (gcloud auth login)?"
      ;;
  esac
}

options '' "$@"
no_more_arguments
configure

if [[ $DRY_RUN ]]; then
  request
  quoted gcloud compute tpus queued-resources describe "$TPU_NAME" "${AT[@]}" "--format=value(state.state)"
  exit
fi

before=""
while true; do
  state=$(queue_state)
  [[ $state == "$before" ]] || say "$TPU_NAME ($ACCELERATOR, spot: $SPOT, $ZONE): $state"
  case $state in
    ACTIVE) exit 0 ;;
    ABSENT)
      if [[ $before && $before != ABSENT ]]; then exit 3; fi # somebody deleted it meanwhile
      request
      ;;
    SUSPENDING | SUSPENDED | DELETING)
      say "it was taken away (spot) or deleted; remove what is left with launch/tpu_delete.sh, then ask again"
      exit 3
      ;;
    FAILED)
      why=$(gcloud compute tpus queued-resources describe "$TPU_NAME" "${AT[@]}" "--format=value(state.failedData.error.message)")
      refuse_if_hopeless "$why"
      say "the request failed: $why; remove it with launch/tpu_delete.sh, then ask again"
      exit 3
      ;;
  esac
  before=$state
  sleep "$POLL_S"
done
