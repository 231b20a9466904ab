#!/usr/bin/env bash
# See a run through to its end: create the TPU if there is none, set it up, start the run, watch it; when the TPU is
# taken away, get another one and continue. Ends when the run has written WORKDIR/DONE.
#
#     launch/tpu_babysit.sh [--delete] [--dry-run] --config=FILE.py[:arg] [--workdir=gs://…] [--module=NAME] \
#         [--config.field=value …]
#
# --module=e3jax.eval.run, e3jax.eval.probes or e3jax.scaling.run sees an evaluation through instead of training.
# --delete gives the TPU back when the run is done, or has been given up. Ctrl-C ends the watching, not the run; the same
# command watches again. Gives up, with the end of the log, when the run finds its input bad (exit status 2) or fails
# MAX_FAILURES times (3) in a row without a new line in metrics.jsonl or new responses. tpu_stop.sh ends the run and this with it.

source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
MAX_FAILURES=${MAX_FAILURES:-3}
GRACE=${GRACE:-4} # looks at a run that has ended on some workers only, before it is ended on the others

# Lines of metrics (training), and files of kept responses (evaluations).
progress() {
  {
    gcloud storage cat "$WORKDIR/metrics.jsonl" 2> /dev/null || true
    gcloud storage ls "$WORKDIR/responses/**" 2> /dev/null || true
  } | wc -l | tr -d ' '
}

end() { # STATUS MESSAGE
  say "$2"
  if [[ $delete ]]; then
    "$HERE/tpu_delete.sh" --yes
  elif [[ $(queue_state) != ABSENT ]]; then
    say "$TPU_NAME is still there, and costs: launch/tpu_delete.sh"
  fi
  exit "$1"
}

give_up() { # WORKER MESSAGE
  say "the end of worker $1's log:"
  ssh_worker "$1" bash .e3jax/worker.sh log 40 >&2 || true
  end 1 "$2"
}

# Count one end of the run that nobody asked for; give up after too many that brought it no further.
failed() { # WORKER MESSAGE
  local now
  now=$(progress)
  if ((now > best)); then failures=0 best=$now; fi
  failures=$((failures + 1))
  say "$2 ($failures of $MAX_FAILURES without progress; $now lines of metrics or files of responses)"
  ((failures < MAX_FAILURES)) || give_up "$1" "given up: $failures failures in a row without progress"
}

# Look at the workers once, and do the next thing.
look() {
  local worker out status running=0 ended="" sick="" all_saved=1
  if ! (ask_workers ssh_worker bash .e3jax/worker.sh status); then return; fi # no READY machines (now): look again
  WORKERS=$(cat "$TMP"/*.status | wc -l)
  for ((worker = 0; worker < WORKERS; worker++)); do
    out=$(tail -n 1 "$TMP/$worker.out") status=$(< "$TMP/$worker.status")
    if [[ $status == 255 ]]; then
      say "worker $worker cannot be reached"
      return
    elif [[ $status != 0 || $out == unprepared ]]; then
      prepare
      return
    elif [[ $out == running* ]]; then
      running=$((running + 1))
      [[ $out == *" ${COMMAND[*]}" ]] || end 1 "another run is going on $TPU_NAME, not this one: $out"
    elif [[ $out == "exit 2" && $started ]]; then
      give_up "$worker" "given up: the run says that its input is wrong, so the next try would say so too"
    elif [[ $out == stopped* && $started ]]; then
      end 3 "stopped by launch/tpu_stop.sh; the same command continues it"
    else
      ended=$worker
      if [[ $out != "exit 0" ]]; then sick=$worker all_saved=""; fi
    fi
  done
  if ((running == WORKERS)); then
    started=1 uneven=0
  elif ((running > 0)); then
    uneven=$((uneven + 1))
    say "the run has ended on worker ${sick:-$ended}, and goes on on $running others"
    if ((uneven >= GRACE)); then
      uneven=0
      each_worker ssh_worker bash .e3jax/worker.sh signal KILL || true
    fi
  elif ! finished; then
    if [[ $started ]]; then failed "${sick:-$ended}" "the run has ended on all workers${all_saved:+, saved,} and is not done"; fi
    begin
  fi
}

prepare() {
  if ! "$HERE/tpu_setup.sh"; then setup_failed; fi
}

setup_failed() {
  [[ $(queue_state) != ACTIVE ]] || failed 0 "the workers could not be set up"
}

begin() {
  started=1 uneven=0
  "$HERE/tpu_run.sh" "${ARGS[@]}" || say "it did not start everywhere"
}

delete=""
options 'delete' "$@"
configure
run_command

if [[ $DRY_RUN ]]; then
  quoted gcloud storage ls "$WORKDIR/DONE"
  "$HERE/tpu_create.sh" --dry-run
  "$HERE/tpu_setup.sh" --dry-run
  "$HERE/tpu_run.sh" --dry-run "${ARGS[@]}"
  echo "# then, every $POLL_S s, until the first command finds DONE:"
  "$HERE/tpu_status.sh" --dry-run "--workdir=$WORKDIR"
  [[ ! $delete ]] || "$HERE/tpu_delete.sh" --dry-run
  exit
fi

failures=0 best=$(progress) started="" uneven=0
finished || queue_state > /dev/null # not logged in, a wrong project: said at once, not waited out
while ! finished; do
  state=$(queue_state) || state=UNKNOWN # no network here: the run does not mind
  case $state in
    ACTIVE)
      read -r machines _ < <(node 2> /dev/null) || machines=UNKNOWN
      case $machines in
        PREEMPTED | TERMINATED)
          say "$TPU_NAME was taken away"
          "$HERE/tpu_delete.sh" --yes
          continue
          ;;
        READY) look ;;
      esac
      ;;
    UNKNOWN) ;;
    SUSPENDING | SUSPENDED | FAILED | DELETING)
      say "$TPU_NAME was taken away or could not be had ($state): asking again"
      "$HERE/tpu_delete.sh" --yes || say "it is not deleted yet"
      ;;
    *) # ABSENT, or waiting in the queue
      started="" failures=0 code=0
      "$HERE/tpu_create.sh" || code=$?
      [[ $code == 0 || $code == 3 ]] || exit "$code"
      [[ $code == 3 ]] || continue
      ;;
  esac
  sleep "$POLL_S"
done
end 0 "done: $WORKDIR"
