#!/usr/bin/env bash
# All stages of a recipe, one after the other, each with tpu_babysit.sh. The same command continues where it was.
#
#     launch/curriculum.sh [--delete] [--dry-run] RECIPE
#
# RECIPE is a file with one stage a line, as tpu_run.sh takes it (a line that begins with # is a comment; quotes as in a shell, but nothing is
# expanded). Every stage has a --workdir of its own. {last} in a line becomes the previous stage's newest checkpoint, and
# {last:NAME} that of its curriculum stage NAME:
#
#     --config=configs/e3_math.py:stage=1 --workdir=gs://my-bucket/runs/math1
#     --config=configs/e3_math.py:stage=2 --workdir=gs://my-bucket/runs/math2 --config.init.init_from={last}
#
# --delete gives the TPU back after the last stage, or when a stage was given up.

source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

# newest WORKDIR NAME: the checkpoint with the highest step in WORKDIR/checkpoints/NAME/.
newest() {
  local found stages
  found=$(gcloud storage ls "$1/checkpoints/${2:-*}/" | sed -n 's|^\(gs://.*/checkpoints/[^/]*/[0-9][0-9]*\)/$|\1|p')
  [[ $found ]] || die "no checkpoint in $1/checkpoints/${2:-*}/"
  stages=$(awk -F/ '{ print $(NF - 1) }' <<< "$found" | sort -u | tr '\n' ' ')
  [[ $stages == "${stages%% *} " ]] || die "$1 has checkpoints of several stages: write {last:NAME}, NAME one of: $stages"
  awk -F/ '$NF >= top { top = $NF; path = $0 } END { print path }' <<< "$found"
}

# Put the previous stage's checkpoint into WORDS.
resolve() {
  local i name
  for ((i = 0; i < ${#WORDS[@]}; i++)); do
    if [[ ${WORDS[i]} =~ \{last(:([A-Za-z0-9_]+))?\} ]]; then
      name=${BASH_REMATCH[2]:-}
      [[ $previous ]] || bad "$recipe: {last} in the first stage; there is no stage before it"
      if [[ $DRY_RUN ]]; then
        quoted gcloud storage ls "$previous/checkpoints/${name:-*}/"
      else
        WORDS[i]=${WORDS[i]/"${BASH_REMATCH[0]}"/"$(newest "$previous" "$name")"}
      fi
    fi
  done
}

delete=""
options 'delete' "$@"
configure
((${#ARGS[@]} == 1)) || bad "one file of stages, please; see --help"
recipe=${ARGS[0]}
[[ -r $recipe ]] || bad "$recipe: no such file"

lines=() workdirs=" "
while IFS= read -r line || [[ $line ]]; do
  [[ $line =~ ^[[:space:]]*(#|$) ]] || lines+=("$line")
done < "$recipe"
((${#lines[@]})) || bad "$recipe has no stage"

previous=""
for ((stage = 0; stage < ${#lines[@]}; stage++)); do
  WORDS=()
  while IFS= read -r word; do WORDS+=("$word"); done < <(xargs printf '%s\n' <<< "${lines[stage]}")
  [[ ${lines[stage]} == *--workdir=* ]] || bad "$recipe, stage $((stage + 1)): no --workdir=gs://…, which each stage needs for itself"
  resolve
  ARGS=("${WORDS[@]}")
  run_command
  [[ $workdirs != *" $WORKDIR "* ]] || bad "$recipe: two stages with --workdir=$WORKDIR"
  workdirs+="$WORKDIR "
  say "stage $((stage + 1)) of ${#lines[@]}: $(quoted "${WORDS[@]}")"
  flags=(${DRY_RUN:+--dry-run})
  [[ ! $delete ]] || { ((stage + 1 < ${#lines[@]})) || flags+=(--delete); }
  code=0
  "$HERE/tpu_babysit.sh" ${flags[@]+"${flags[@]}"} "${WORDS[@]}" || code=$?
  if ((code)); then
    [[ ! $delete ]] || "$HERE/tpu_delete.sh" --yes
    die "stage $((stage + 1)) was not finished, so the later ones were not begun; the same command continues"
  fi
  previous=$WORKDIR
done
say "all ${#lines[@]} stages are done"
