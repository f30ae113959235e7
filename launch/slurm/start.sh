#!/usr/bin/env bash
# Runs a stage on all tasks of a Slurm job, and queues the job again where the stage stopped with a checkpoint.
#
#   bash launch/slurm/start.sh pretrain/mlm.py ...       (what the .sbatch scripts do)
#
# srun starts the processes itself, one for each task. torchrun and accelerate launch would start them as well, but they
# end with exit code 1 whatever the stage's is, and so hide that it wants to go on.
#
# Slurm sends TERM to this shell 120 seconds before the time limit; it passes it on. The stage then finishes its step,
# writes a checkpoint and ends with exit code 75, for which the job is queued again; the same command goes on from there.
#
# For DeepSpeed: `export ACCELERATE_USE_DEEPSPEED=true ACCELERATE_DEEPSPEED_CONFIG_FILE=launch/deepspeed/zero2.json` and
# `ACCELERATE_DEEPSPEED_ZERO3_INIT=false` before sbatch.
set -u

STOPPED_WITH_A_CHECKPOINT=75

MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
MASTER_PORT=$((20000 + SLURM_JOB_ID % 10000)) # jobs that share a node meet at different ports
WORLD_SIZE=$SLURM_NTASKS
OMP_NUM_THREADS=${SLURM_CPUS_PER_TASK:-1}
export MASTER_ADDR MASTER_PORT WORLD_SIZE OMP_NUM_THREADS

# --wait: where a process has ended and others hang, they are ended after half an hour; the first may still be publishing.
# --kill-on-bad-exit=0: code 75 of the first to stop is none for which the others, whatever the cluster does by default, are killed.
# shellcheck disable=SC2016 # each task expands its own variables
srun --wait=1800 --kill-on-bad-exit=0 --cpus-per-task="$OMP_NUM_THREADS" \
    bash -c 'export RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID; exec python "$@"' stage "$@" &
processes=$!
trap 'signalled=true; kill -TERM "$processes" 2>/dev/null' TERM

# A signal ends `wait`, though the processes go on.
signalled=true
while "$signalled"; do
    signalled=false
    wait "$processes"
    code=$?
done

if [ "$code" -eq "$STOPPED_WITH_A_CHECKPOINT" ]; then
    echo "stopped with a checkpoint: the job is queued again"
    scontrol requeue "$SLURM_JOB_ID" || exit 1
fi
exit "$code"
