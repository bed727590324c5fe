#!/bin/bash

# Parameters
#SBATCH --account=physics
#SBATCH --cpus-per-task=8
#SBATCH --gres=gpu:4
#SBATCH --job-name=DATE-TIME-unet-ID
#SBATCH --mem=491520M
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=4
#SBATCH --open-mode=append
#SBATCH --output=/somewhere/runs/DATE-TIME-unet-ID/logs/submission/%j_0_log.out
#SBATCH --partition=boost_usr_prod
#SBATCH --requeue
#SBATCH --signal=USR2@600
#SBATCH --time=1440

# setup
hpc_tumor_job=/somewhere/runs/DATE-TIME-unet-ID/logs/submission hpc_tumor_code=/somewhere/runs/.code-UID/CODE.zip
for each in "$hpc_tumor_job" "$hpc_tumor_code"; do [ -O "$each" ] || { echo "error: $each is not yours: it is not run" >&2; exit 1; }; done
trap : USR2
export PYTHONSAFEPATH=1
export PYTHONIOENCODING=utf-8:backslashreplace
export PYTHONPATH=/somewhere/runs/.code-UID/CODE.zip"${PYTHONPATH:+:$PYTHONPATH}"
PYTHON -m hpc_tumor.cluster.batch before "$hpc_tumor_job" || exit $(($? == 10 ? 0 : $?))

# command
export SUBMITIT_EXECUTOR=slurm
srun --unbuffered --output /somewhere/runs/DATE-TIME-unet-ID/logs/submission/%j_%t_log.out --cpus-per-task=8 --kill-on-bad-exit=1 --wait=60 PYTHON -u -m submitit.core._submit /somewhere/runs/DATE-TIME-unet-ID/logs/submission


# teardown
PYTHON -m hpc_tumor.cluster.batch after "$hpc_tumor_job" $?