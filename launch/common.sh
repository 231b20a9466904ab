# shellcheck shell=bash
# What the launch scripts share: options, configuration, quoting, gcloud, and one command on every worker.

set -euo pipefail
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck disable=SC2034  # for the scripts that use it
ROOT=$(dirname "$HERE")
POLL_S=${POLL_S:-30}       # between two looks at the TPU
RETRY_S=${RETRY_S:-5}      # before a call that failed is made again
TRIES=${TRIES:-3}          # calls of gcloud before it counts as failed
SSH_BATCH=${SSH_BATCH:-16} # workers that are spoken to at once; each is one gcloud process on this machine
DRY_RUN="" ARGS=()

say() { echo "$(date +%H:%M:%S) $*" >&2; }

die() {
  echo "error: $*" >&2
  exit 1
}

bad() { # what the person typed or wrote in env.sh; never worth a second try
  echo "error: $*" >&2
  exit 2
}

# quoted WORD...: the words as one line that a shell reads back as the same words.
quoted() {
  local line
  line=$(printf '%q ' "$@")
  echo "${line% }"
}

# call COMMAND...: run it; with --dry-run print it instead.
call() { if [[ $DRY_RUN ]]; then quoted "$@"; else "$@"; fi; }

# options 'yes worker=' "$@": --yes sets yes=1, --worker=3 sets worker=3, wherever they stand; the others, in order, are
# left in ARGS. --help prints the comment at the top of the script.
options() {
  local known=" $1 " name
  shift
  while (($#)); do
    name=${1#--} name=${name%%=*}
    case $1 in
      --help | -h)
        sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0"
        exit 0
        ;;
      --dry-run) DRY_RUN=1 ;;
      --*=*) if [[ $known == *" $name= "* ]]; then printf -v "$name" %s "${1#*=}"; else ARGS+=("$1"); fi ;;
      --*) if [[ $known == *" $name "* ]]; then printf -v "$name" %s 1; else ARGS+=("$1"); fi ;;
      *) ARGS+=("$1") ;;
    esac
    shift
  done
}

# experiment_names ALL...: set `names` to the experiments that ARGS names, to ALL where it names none.
experiment_names() {
  local name
  names=(${ARGS[@]+"${ARGS[@]}"})
  for name in ${names[@]+"${names[@]}"}; do
    [[ -r $ROOT/configs/experiments/$name.py ]] || bad "$name: no such file as configs/experiments/$name.py"
  done
  ((${#names[@]})) || names=("$@")
}

no_more_arguments() { ((${#ARGS[@]} == 0)) || bad "${ARGS[0]}: not an option of $(basename "$0"); see --help"; }

# Read launch/env.sh (or $LAUNCH_ENV) and check what every script needs.
configure() {
  local name
  export LAUNCH_ENV=${LAUNCH_ENV:-$HERE/env.sh}
  [[ -e $LAUNCH_ENV ]] || bad "$LAUNCH_ENV is not there: cp $HERE/env.sh.example $HERE/env.sh, and fill it in"
  # shellcheck source=/dev/null
  source "$LAUNCH_ENV"
  for name in PROJECT ZONE TPU_NAME ACCELERATOR RUNTIME SPOT WORKDIR EXTRAS; do
    [[ ${!name:-} ]] || bad "$name is empty in $LAUNCH_ENV; launch/env.sh.example says what it is"
  done
  [[ $TPU_NAME =~ ^[a-z]([-a-z0-9]*[a-z0-9])?$ ]] || bad "TPU_NAME=$TPU_NAME: lower-case letters, digits and - only"
  [[ $SPOT == yes || $SPOT == no ]] || bad "SPOT=$SPOT: yes or no"
  in_bucket
  [[ $DRY_RUN ]] || command -v gcloud > /dev/null || bad "gcloud is not installed: https://cloud.google.com/sdk/docs/install"
  AT=("--project=$PROJECT" "--zone=$ZONE")
  if [[ $DRY_RUN ]]; then
    TMP=/tmp/e3jax-launch # named, not made
  else
    TMP=$(mktemp -d) # only this user can read it
    trap 'rm -rf "$TMP"' EXIT
  fi
}

in_bucket() {
  WORKDIR=${WORKDIR%/}
  [[ $WORKDIR == gs://?* ]] || bad "WORKDIR=$WORKDIR: a gs:// path, because every worker writes to it and it must outlive the TPU"
}

# What may run on all workers, with --module=NAME: training, and evaluations of its checkpoints.
MODULES=(e3jax.train.curriculum e3jax.eval.run e3jax.eval.probes e3jax.scaling.run)

known_module() { [[ " ${MODULES[*]} " == *" $1 "* ]] || bad "--module=$1: use one of ${MODULES[*]}"; }

# ARGS (--config=… --workdir=… --module=…) -> COMMAND, the same on every worker and at every start, and WORKDIR.
run_command() {
  local arg config="" workdir="" module=${MODULES[0]} rest=()
  for arg in ${ARGS[@]+"${ARGS[@]}"}; do
    case $arg in
      --config=*) config=1 ;;
      --workdir=*) workdir=1 WORKDIR=${arg#*=} ;;
      --module=*)
        module=${arg#*=}
        continue
        ;;
      --*=*) ;;
      *) bad "$arg: write --name=value, in quotes when the value has blanks" ;;
    esac
    rest+=("$arg")
  done
  [[ $config ]] || bad "no --config=FILE.py: what should be run?"
  known_module "$module"
  in_bucket
  COMMAND=(python -m "$module" "${rest[@]}")
  [[ $workdir ]] || COMMAND+=("--workdir=$WORKDIR")
}

# What the request for the TPU is: ABSENT, WAITING_FOR_RESOURCES, PROVISIONING, ACTIVE, SUSPENDED (taken away), FAILED, …
queue_state() {
  local out try
  for ((try = 1; ; try++)); do
    if out=$(gcloud compute tpus queued-resources describe "$TPU_NAME" "${AT[@]}" "--format=value(state.state)" 2>&1); then
      echo "${out##*$'\n'}"
      return
    elif [[ $out == *NOT_FOUND* ]]; then
      echo ABSENT
      return
    fi
    ((try < TRIES)) || die "gcloud cannot say what $TPU_NAME is doing: $out"
    sleep "$RETRY_S"
  done
}

# READY, PREEMPTED, … and the number of workers: v5e slices of more than 8 chips have one for every 4 chips, but it is
# asked for, not computed.
node() {
  gcloud compute tpus tpu-vm describe "$TPU_NAME" "${AT[@]}" "--format=value(state,networkEndpoints.len())"
}

# Set WORKERS.
count_workers() {
  local state
  node > "$TMP/node" || die "$TPU_NAME is not there, or gcloud cannot reach it: launch/tpu_status.sh, launch/tpu_create.sh"
  read -r state WORKERS < "$TMP/node" || true
  [[ $state == READY && $WORKERS -gt 0 ]] || die "$TPU_NAME is $state, not READY: launch/tpu_status.sh"
}

ssh_command() { # WORKER REMOTE -> SSH
  SSH=(gcloud compute tpus tpu-vm ssh "$TPU_NAME" "${AT[@]}" "--worker=$1" --quiet --ssh-flag=-oServerAliveInterval=30
    ${SSH_FLAGS[@]+"${SSH_FLAGS[@]}"} "--command=$2")
}

# ssh_worker WORKER COMMAND...: run it there; its output and its exit status, or 255 when it could not be reached.
# The remote shell itself reports the status: gcloud's own cannot tell "the command failed" from "no connection", and
# only the latter is tried again.
ssh_worker() {
  local worker=$1 out try
  ssh_command "$worker" "$(quoted "${@:2}") 2>&1; echo worker-exit \$?"
  if [[ $DRY_RUN ]]; then
    quoted "${SSH[@]}"
    return
  fi
  for ((try = 1; ; try++)); do
    out=$("${SSH[@]}" < /dev/null 2> "$TMP/$worker.err") || true
    if [[ $out =~ worker-exit\ ([0-9]+)$ ]]; then
      printf %s "${out%worker-exit*}"
      return "${BASH_REMATCH[1]}"
    fi
    ((try < TRIES)) || break
    sleep "$RETRY_S"
  done
  cat "$TMP/$worker.err"
  echo "could not be reached in $TRIES tries"
  return 255
}

# copy_worker WORKER FILE...: into its ~/.e3jax.
copy_worker() {
  local scp=(gcloud compute tpus tpu-vm scp "${@:2}" "$TPU_NAME:.e3jax/" "${AT[@]}" "--worker=$1" --quiet
    ${SSH_FLAGS[@]+"${SSH_FLAGS[@]}"}) try
  for ((try = 1; ; try++)); do
    if call "${scp[@]}"; then return; fi
    ((try < TRIES)) || return 255
    sleep "$RETRY_S"
  done
}

# ask_workers FUNCTION ARGUMENT...: FUNCTION WORKER ARGUMENT... for every worker, side by side, not one gcloud for all of
# them: so each has its own output ($TMP/WORKER.out) and status ($TMP/WORKER.status), and only the failed are retried.
ask_workers() {
  local worker status
  count_workers
  for ((worker = 0; worker < WORKERS; worker++)); do
    {
      status=0
      "$1" "$worker" "${@:2}" || status=$?
      echo "$status" > "$TMP/$worker.status"
    } > "$TMP/$worker.out" 2>&1 &
    (((worker + 1) % SSH_BATCH)) || wait
  done
  wait
}

# each_worker FUNCTION ARGUMENT...: the same, with each worker's output shown; fails with their numbers in FAILED when it
# failed on any. --dry-run shows worker 0's command.
each_worker() {
  local worker
  FAILED=""
  if [[ $DRY_RUN ]]; then
    echo "# on every worker; here on worker 0:"
    "$1" 0 "${@:2}"
    return
  fi
  ask_workers "$@"
  for ((worker = 0; worker < WORKERS; worker++)); do
    sed "s/^/[worker $worker] /" "$TMP/$worker.out" >&2
    [[ $(< "$TMP/$worker.status") == 0 ]] || FAILED+=" $worker"
  done
  [[ ! $FAILED ]]
}

finished() { gcloud storage ls "$WORKDIR/DONE" > /dev/null 2>&1; }
