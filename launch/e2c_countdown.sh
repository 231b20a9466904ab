#!/usr/bin/env bash
# E2C in small, end to end: SFT, RL 1, RL 2 and the scaling table, for several seeds one after the other.
#
#     launch/e2c_countdown.sh [--seeds='0 1 2'] [--out=runs/e2c-countdown] [--dry-run]
#
# 2 quiet CPU cores: about 3 minutes of processor time for training and 8 for scaling a seed. Killed anywhere, the same command goes on.
# OUT/scaling/scaling-seeds-SET.md has means over seeds, scaling-SET.md every seed.

source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

seeds='0 1 2' out=runs/e2c-countdown
options 'seeds= out=' "$@"
no_more_arguments
cd "$ROOT" || exit
models=""
for seed in $seeds; do
  call python -m e3jax.train.curriculum --config=configs/e2c_countdown.py "--config.seed=$seed" "--workdir=$out/seed$seed"
  for stage in sft/1000 rl1/100 rl2/100; do
    models+=",${stage%/*}@$seed=$out/seed$seed/checkpoints/$stage"
  done
done
call python -m e3jax.scaling.run "--config=configs/e2c_countdown_scaling.py:${models#,}" "--workdir=$out/scaling"
