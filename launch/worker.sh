#!/usr/bin/env bash
# One worker's side of launch/. tpu_setup.sh copies it to ~/.e3jax on every worker; the other scripts call it by ssh.
#
#     worker.sh setup GIT_URL GIT_REF EXTRAS  code (an empty URL: the copy beside this file) and its Python packages
#     worker.sh start COMMAND...    detached; fails unless it still runs, or has ended with 0, CHECK_S seconds later
#     worker.sh status              idle | running PID COMMAND | exit N | stopped N | lost | unprepared
#     worker.sh signal TERM|KILL [stopped]    to the run; "stopped" notes that a person wanted it
#     worker.sh wait SECONDS        until the run has ended; fails when it has not
#     worker.sh log LINES [-f]      the last lines of its log

set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

fail() {
  echo "$*" >&2
  exit 1
}

# The run and whatever it started hold this lock for as long as one of them lives: no stale pid can be mistaken for it.
running() { [[ -e run/lock ]] && ! flock --nonblock run/lock true; }

note() { if [[ -e run/$1 ]]; then cat "run/$1"; else echo "?"; fi; }

status() {
  if running; then
    echo "running $(note pid) $(note command)"
  elif [[ -e run/stopped ]]; then
    echo "stopped $(note exit)"
  elif [[ -e run/exit ]]; then
    echo "exit $(note exit)"
  elif [[ ! -e ready ]]; then
    echo unprepared
  elif [[ -e run/command ]]; then
    echo "lost" # killed from outside, or the machine was restarted
  else
    echo idle
  fi
}

setup() {
  local url=$1 ref=$2 extras=$3
  ! running || fail "a run is going: launch/tpu_stop.sh first"
  rm -f ready
  chmod 600 secrets
  export PATH=$HOME/.local/bin:$PATH
  git init --quiet src
  if [[ $url ]]; then git -C src fetch --quiet --depth=1 "$url" "$ref"; else git -C src fetch --quiet "$PWD/code.bundle" HEAD; fi
  git -C src checkout --quiet --force --detach FETCH_HEAD
  git -C src clean --quiet --force -d
  if [[ ! $url ]]; then # what is on disk there, not what was committed
    git -C src ls-files -z | (cd src && xargs -0 rm -f)
    tar -xzf code.tar.gz -C src
  fi
  command -v uv > /dev/null || python3 -m pip install --quiet --user uv # the image's Python is too old; uv brings one
  [[ -x venv/bin/python ]] || uv venv --quiet --python 3.12 venv
  uv pip install --quiet --python venv/bin/python --editable "src[$extras]"
  (cd src && ../venv/bin/python -c "import e3jax.train.curriculum")
  touch ready
  echo "ready: $(git -C src rev-parse --short HEAD)"
}

start() {
  local waited=0
  [[ -e ready ]] || fail "not set up: launch/tpu_setup.sh"
  ! running || fail "a run is going already: $(status)"
  mkdir -p run
  rm -f run/exit run/pid run/stopped
  echo "$*" > run/command
  nohup setsid bash worker.sh child "$@" >> run/log 2>&1 < /dev/null &
  until [[ -s run/pid || $waited == 100 ]]; do
    sleep 0.1
    waited=$((waited + 1))
  done
  sleep "${CHECK_S:-3}"
  if ! running && [[ $(note exit) != 0 ]]; then
    tail -n 20 run/log
    fail "ended at once: exit $(note exit)"
  fi
  status
}

child() {
  local status=0 pid
  exec 9> run/lock
  flock --nonblock 9 || fail "another run is going"
  trap : TERM HUP # a machine that shuts down signals this shell too, which has the exit status still to write
  echo "=== $(date -u +%FT%TZ) $(note command)"
  # shellcheck source=/dev/null
  source ./secrets
  export PATH=$PWD/venv/bin:$PATH PYTHONUNBUFFERED=1
  cd src
  "$@" &
  pid=$!
  echo "$pid" > ../run/pid
  wait "$pid" || status=$?
  while kill -0 "$pid" 2> /dev/null; do # that was the trap: wait again
    status=0
    wait "$pid" || status=$?
  done
  cd ..
  echo "$status" > run/exit
  echo "=== $(date -u +%FT%TZ) exit $status"
}

signal() {
  if ! running; then
    echo "no run is going: $(status)"
    return
  fi
  [[ ${2:-} != stopped ]] || touch run/stopped
  if [[ $1 == KILL ]]; then # with everything it started; nobody is left to write the exit status
    echo 137 > run/exit
    kill -KILL -- "-$(ps -o pgid= -p "$(note pid)" | tr -d ' ')"
  else
    kill "-$1" "$(note pid)"
  fi
  echo "SIG$1 sent"
}

wait_for_end() {
  local end=$((SECONDS + $1))
  while running && ((SECONDS < end)); do sleep 0.5; done
  status
  ! running || fail "still running after $1 s"
}

case ${1:-} in
  setup | start | status | child | signal) "$@" ;;
  wait) wait_for_end "$2" ;;
  log) tail -n "$2" ${3:+"$3"} run/log ;;
  *) fail "worker.sh: ${1:-nothing} is not one of setup start status signal wait log" ;;
esac
