#!/usr/bin/env bash
# Renders a manifest on a Slurm allocation: a Ray head on its first node, Ray workers on the others, then the job.
#
#   sbatch slurm.sh
#
# 1. Edit the #SBATCH lines, the environment and the command below. All nodes' GPUs are used.
# 2. The package is in an environment on a file system that all nodes share. --out is a bucket or a shared folder.
# 3. Gated weights: `hf auth login` and `show1-ray fetch show1` once on the login node, with HF_HOME on the shared file
#    system. No token goes in here.
# 4. Ray's token: nodes are shared networks, so Ray is started with RAY_AUTH_MODE=token and a token of this job's own.
#
# Five minutes before the time is up, the job lets what runs land and queues itself again; so does Slurm when it
# preempts the job. It then renders what is missing. A worker node that fails costs what it had in flight.
#SBATCH --job-name=show1-ray
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=32
#SBATCH --exclusive
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR1@300
#SBATCH --requeue
#SBATCH --no-kill
#SBATCH --open-mode=append
#SBATCH --output=show1-ray-%j.log
set -euo pipefail
: "${SLURM_JOB_ID:?is not set: submit this script with sbatch}" "${SLURM_JOB_NUM_NODES:?is not set}"

# source /shared/show1/bin/activate
# export HF_HOME=/shared/huggingface

RAY_AUTH_TOKEN=$(od -An -N32 -tx1 /dev/urandom | tr -d ' \n')
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN

head=$(srun --nodes=1 --ntasks=1 --relative=0 hostname --ip-address | awk '{print $1}')
address="$head:$((20000 + SLURM_JOB_ID % 10000))"
temporary="/tmp/ray-$SLURM_JOB_ID"
trap 'kill $(jobs -p) 2>/dev/null || true' EXIT

srun --nodes=1 --ntasks=1 --relative=0 --overlap \
    ray start --head --block --node-ip-address="$head" --port="${address##*:}" --temp-dir="$temporary" \
    --include-dashboard=false --disable-usage-stats &
ray_head=$!
until ray status --address "$address" >/dev/null 2>&1; do
    kill -0 "$ray_head" || exit 1
    sleep 2
done
workers=$((SLURM_JOB_NUM_NODES - 1))
if ((workers > 0)); then
    srun --nodes="$workers" --ntasks="$workers" --ntasks-per-node=1 --relative=1 --overlap --no-kill \
        ray start --address="$address" --block &
fi

# Workers that are still starting are used as soon as they have joined.
show1-ray render s3://my-bucket/prompts.parquet --out s3://my-bucket/clips \
    --pipeline show1 --address "$address" --gpus 1:32 &
driver=$!

time_is_up=false
trap 'time_is_up=true; kill -INT "$driver"' USR1
code=0
wait "$driver" || code=$?
while kill -0 "$driver" 2>/dev/null; do # the signal ended the wait, not the job
    code=0
    wait "$driver" || code=$?
done
if $time_is_up && ((code != 0)); then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
