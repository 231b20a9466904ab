#!/usr/bin/env bash
# End the run on every worker: it finishes its step, saves and exits. The TPU stays, and costs: launch/tpu_delete.sh.
#
#     launch/tpu_stop.sh [--seconds=60] [--kill] [--dry-run]
#
# Waits up to so many seconds for the saved exit. --kill does not ask the run: all since the last checkpoint is lost.

source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

seconds=60 kill="" signal=TERM
options 'seconds= kill' "$@"
no_more_arguments
[[ $seconds =~ ^[0-9]+$ ]] || bad "--seconds=$seconds: a number"
configure
[[ ! $kill ]] || signal=KILL

# The signal goes to all workers before any is waited for: none of them can finish a step without the others.
each_worker ssh_worker bash .e3jax/worker.sh signal "$signal" stopped || die "worker(s)$FAILED could not be told to stop"
each_worker ssh_worker bash .e3jax/worker.sh wait "$seconds" ||
  die "worker(s)$FAILED did not end within $seconds s: launch/tpu_logs.sh --worker=all, and if need be launch/tpu_stop.sh --kill"
