#!/usr/bin/env bash
# A run on Slurm: Ray starts on every node, and the job runs on the first. Submit it in the repository's folder:
#   sbatch --nodes=4 --gpus-per-node=8 configs/clusters/slurm.sh jobs.train preset=memagent_7b \
#       data.path=… run.folder=… run.name=first resume=auto
# Nodes share the repository with its .venv, and the home folder with Ray's token. With run.name and resume=auto, the
# same command resumes from the last checkpoint (train.checkpoint_every). Where nodes have several networks, HEAD_IP
# names the address of the first node that the others shall use.
#SBATCH --job-name=palimpsest
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
#SBATCH --mem=0
#SBATCH --time=24:00:00
set -euo pipefail
cd "${SLURM_SUBMIT_DIR:?submit this file with sbatch}"
source .venv/bin/activate
export RAY_AUTH_MODE=token
if [ ! -e ~/.ray/auth_token ]; then
    (umask 077 && ray get-auth-token --generate >/dev/null)
fi
ulimit -n "$(ulimit -Hn)"  # Ray opens many files; srun passes this on
export RAY_SYMMETRIC_RUN_CLUSTER_WAIT_TIMEOUT=600  # seconds; the first import from a shared file system takes long
head=${HEAD_IP:-$(hostname -I | cut -d ' ' -f 1)}  # this script runs on the first node
exec srun --kill-on-bad-exit=1 ray symmetric-run --address "$head:6379" --min-nodes "$SLURM_JOB_NUM_NODES" \
    --num-gpus "${SLURM_GPUS_ON_NODE:-0}" -- python -m "$@"
