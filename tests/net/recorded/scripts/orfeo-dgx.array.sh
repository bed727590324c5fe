#!/bin/bash

# Parameters
#SBATCH --account=physics
#SBATCH --array=0-20%4
#SBATCH --cpus-per-task=16
#SBATCH --gres=gpu:8
#SBATCH --job-name=hpc-tumor-ID
#SBATCH --mem=952320M
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=8
#SBATCH --open-mode=append
#SBATCH --output=WORK/runs/.submissions-UID/DATE-TIME-ID/%A_%a_0_log.out
#SBATCH --partition=DGX
#SBATCH --requeue
#SBATCH --signal=USR2@600
#SBATCH --time=9000

# setup
hpc_tumor_job=WORK/runs/.submissions-UID/DATE-TIME-ID hpc_tumor_code=WORK/runs/.code-UID/CODE.zip
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
srun --unbuffered --output WORK/runs/.submissions-UID/DATE-TIME-ID/%A_%a_%t_log.out --cpus-per-task=16 --kill-on-bad-exit=1 --wait=60 PYTHON -I -S -c "$hpc_tumor_check" "$hpc_tumor_code" -u -m submitit.core._submit WORK/runs/.submissions-UID/DATE-TIME-ID


# teardown
PYTHON -I -S -c "$hpc_tumor_check" "$hpc_tumor_code" -m hpc_tumor.cluster.node.batch after "$hpc_tumor_job" $?
