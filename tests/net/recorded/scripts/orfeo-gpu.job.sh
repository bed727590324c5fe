#!/bin/bash

# Parameters
#SBATCH --account=physics
#SBATCH --cpus-per-task=12
#SBATCH --gres=gpu:2
#SBATCH --job-name=DATE-TIME-unet-ID
#SBATCH --mem=239616M
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=2
#SBATCH --open-mode=append
#SBATCH --output=WORK/runs/DATE-TIME-unet-ID/logs/submission/%j_0_log.out
#SBATCH --partition=GPU
#SBATCH --requeue
#SBATCH --signal=USR2@360
#SBATCH --time=120

# setup
hpc_tumor_job=WORK/runs/DATE-TIME-unet-ID/logs/submission hpc_tumor_code=WORK/runs/.code-UID/CODE.zip
hpc_tumor_check='import hashlib, os, sys
code = sys.argv[1]
try:
    with open(code, "rb") as file:
        name, owner = hashlib.sha256(file.read()).hexdigest()[:16] + ".zip", os.fstat(file.fileno()).st_uid
    fault = "" if name == os.path.basename(code) else "is damaged: its content is not what was submitted"
    fault = fault if owner == os.geteuid() else "is not yours: it is not run"
except FileNotFoundError:
    fault = "is gone"
except OSError as error:
    fault = "cannot be read: " + str(error.strerror)
if fault:
    print("error: the code of this run", fault + ":", code, file=sys.stderr)
    sys.exit(79)
os.execv(sys.executable, [sys.executable, *sys.argv[2:]])
'
[ -O "$hpc_tumor_job" ] || { echo "error: $hpc_tumor_job is not yours, or gone: it is not run" >&2; exit 1; }
trap : USR2
export PYTHONSAFEPATH=1
export PYTHONIOENCODING=utf-8:backslashreplace
export PYTHONPATH=WORK/runs/.code-UID/CODE.zip"${PYTHONPATH:+:$PYTHONPATH}"
while [[ $PYTHONPATH == *::* ]]; do PYTHONPATH=${PYTHONPATH//::/:}; done; PYTHONPATH=${PYTHONPATH#:} PYTHONPATH=${PYTHONPATH%:}
PYTHON -I -S -c "$hpc_tumor_check" "$hpc_tumor_code" -m hpc_tumor.cluster.node.batch before "$hpc_tumor_job" || exit $(($? == 10 ? 0 : $?))

# command
export SUBMITIT_EXECUTOR=slurm
srun --unbuffered --output WORK/runs/DATE-TIME-unet-ID/logs/submission/%j_%t_log.out --cpus-per-task=12 --kill-on-bad-exit=1 --wait=60 PYTHON -I -S -c "$hpc_tumor_check" "$hpc_tumor_code" -u -m submitit.core._submit WORK/runs/DATE-TIME-unet-ID/logs/submission


# teardown
PYTHON -I -S -c "$hpc_tumor_check" "$hpc_tumor_code" -m hpc_tumor.cluster.node.batch after "$hpc_tumor_job" $?
