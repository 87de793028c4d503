#!/usr/bin/env bash
# Renders a manifest on a Ray cluster that is there already, as a plain Ray job.
#
#   RAY_API_SERVER_ADDRESS=http://head:8265 ./ray_job.sh
#
# 1. The cluster's nodes have this package (jobs/Dockerfile) and reach the bucket. Edit the command at the end.
# 2. Gated weights: HF_TOKEN is in the nodes' own environment or secret (or `hf auth login` was done on each). It does
#    not go in here: what a job is submitted with can be read in Ray's dashboard.
# 3. Ray's token: the cluster's nodes were started with RAY_AUTH_MODE=token and a token in RAY_AUTH_TOKEN or
#    ~/.ray/auth_token (`ray get-auth-token --generate` makes one); this shell needs the same one. Whoever reaches a
#    cluster without a token can run anything on it; RAY_AUTH_MODE=disabled is how to talk to one.
#
# The log is followed; the script fails if the job does. If the connection breaks, the job goes on: `ray job list`,
# `ray job logs -f ID`, `ray job stop ID`. (`show1-ray submit` does the same, and survives a broken connection.)
# Submitted again, it renders what is missing; while it still runs, a second one is refused.
set -euo pipefail

export RAY_AUTH_MODE=${RAY_AUTH_MODE:-token}
export RAY_API_SERVER_ADDRESS=${RAY_API_SERVER_ADDRESS:-http://127.0.0.1:8265}

ray job submit -- \
    show1-ray render s3://my-bucket/prompts.parquet --out s3://my-bucket/clips \
    --pipeline show1 --address auto --gpus 1:16
