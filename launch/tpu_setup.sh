#!/usr/bin/env bash
# Put the code, its Python packages and the secrets on every worker, in ~/.e3jax. Again after the code has changed:
# what is there already is quick. Refuses while a run is going.
#
#     launch/tpu_setup.sh [--dry-run]
#
# Which code, which extras and which secrets: launch/env.sh.

source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

# This checkout as it is on disk: the commit with its history (the run notes which one it is), and the files themselves.
pack() {
  git -C "$ROOT" rev-parse --quiet --verify HEAD > /dev/null || bad "$ROOT is not a git checkout: set GIT_URL in $LAUNCH_ENV"
  git -C "$ROOT" bundle create --quiet "$TMP/code.bundle" HEAD
  (cd "$ROOT" && git ls-files -z --cached --others --exclude-standard | while IFS= read -r -d '' file; do
    if [[ -e $file || -L $file ]]; then printf '%s\0' "$file"; fi # deleted, but not yet in git's eyes
  done | tar -czf "$TMP/code.tar.gz" --null -T -)
}

# One `export NAME=value` a line, written by the shell itself: a value is in no command line and no output.
write_secrets() {
  local name
  (umask 077 && : > "$TMP/secrets")
  for name in ${SECRETS:-}; do
    [[ $name =~ ^[A-Za-z_][A-Za-z_0-9]*$ ]] || bad "SECRETS has $name in $LAUNCH_ENV: names of variables only, the values stay in your shell"
    [[ ${!name:-} ]] || bad "$name is in SECRETS of $LAUNCH_ENV, but your shell has no value for it: export $name"
    printf 'export %s=%q\n' "$name" "${!name}" >> "$TMP/secrets"
  done
}

options '' "$@"
no_more_arguments
configure

files=("$HERE/worker.sh" "$TMP/secrets")
[[ ${GIT_URL:-} ]] || files+=("$TMP/code.bundle" "$TMP/code.tar.gz")
if [[ $DRY_RUN ]]; then
  echo "# written first, for this user only: ${files[*]:1}"
else
  write_secrets
  [[ ${GIT_URL:-} ]] || pack
  count_workers
  say "worker 0 of $WORKERS first: your ssh key is made and spread if it is new"
  ssh_worker 0 true || die "worker 0 of $TPU_NAME cannot be reached by ssh: launch/README.md, Troubleshooting"
fi
each_worker ssh_worker mkdir -p -m 700 .e3jax || die "no ssh to worker(s)$FAILED of $TPU_NAME: launch/README.md, Troubleshooting"
each_worker copy_worker "${files[@]}" || die "the code could not be copied to worker(s)$FAILED"
[[ $DRY_RUN ]] || say "Python packages: some minutes on a new TPU"
each_worker ssh_worker bash .e3jax/worker.sh setup "${GIT_URL:-}" "${GIT_REF:-}" "$EXTRAS" ||
  die "worker(s)$FAILED could not be set up; what they said is above. Once mended, run launch/tpu_setup.sh again"
[[ $DRY_RUN ]] || say "all $WORKERS workers are ready"
