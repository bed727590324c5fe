#!/usr/bin/env bash
# Run the tests in a virtual environment that this script creates.
#
#   bash tools/test.sh               all tests but the campaigns; 23 minutes on two cores; cluster tests start a local SLURM
#   bash tools/test.sh --quick       without slow tests and those that need SLURM, a browser or LaTeX; 4 minutes on two cores
#   bash tools/test.sh --campaign    only the campaigns: hours, 20 GB of disk, network access
#   bash tools/test.sh --oldest      with the oldest versions of all packages that pyproject.toml allows
#   bash tools/test.sh -k store -x   pass arguments to pytest, which then runs in one process unless -n is given
#
# The order of tests is random; its seed is printed: --randomly-seed=N repeats it, -p no:randomly keeps the order of files.
# Tests on real scans read them from the folder HPC_TUMOR_REAL_DATA, and are skipped if it is not set.
# Cluster tests are skipped if no SLURM can be started; with HPC_TUMOR_REQUIRE_SLURM=1 they fail instead.
# The output of commands is compared byte by byte with tests/net/recorded. After an intended change, record it again with
# HPC_TUMOR_RECORD=1 python -m pytest tests/net, and review the difference before you commit it.
# Before a release, keep its stores and runs for the tests of later versions: python tests/fixtures/make.py DATE
# The campaigns test exhaustively what the other tests sample: a conversion killed at every step, a disk that fails from
# any step on, tens of thousands of damaged files, ranks killed at random for each network on 3, 4 and 8 ranks, every
# network compiled for a GPU; also the quick tests with the oldest versions, and an installation from a folder of wheels
# without network access.
# Chromium and pdflatex are installed if they are missing and this is root on Debian. Tests that need them are skipped
# without them, and those of tests/null_gpu without g++ or a torch for CUDA 13; with HPC_TUMOR_REQUIRE_PROGRAMS=1 they fail
# instead.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source tools/environment.sh

kind=dev
marks=
others=3 # additional processes, for tests that mostly wait for SLURM
left_out=()
arguments=()
for argument in "$@"; do
    case "$argument" in
    --quick) marks="not slow and not cluster and not browser and not latex and not campaign" others=0 ;;
    --campaign) marks=campaign others=0 ;;
    # Recorded output is of current versions, so only the fixtures of tests/net are tested.
    --oldest) kind=oldest left_out=(--ignore-glob "tests/net/test_[!f]*.py") ;;
    *) arguments+=("$argument") ;;
    esac
done

environment "$kind"
[[ -n "$marks" ]] || python tools/debian_packages.py
# Tests start Python thousands of times: without .pyc files each start would compile the package again.
unset PYTHONDONTWRITEBYTECODE
if [[ ${#arguments[@]} -eq 0 ]]; then
    # One process with one thread per available core; each needs about 2 GB.
    export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
    cores="$(python -c 'from hpc_tumor.system.resources import available_cpus; print(min(available_cpus(), 8))')"
    arguments+=(-n "$((cores + others))")
fi
arguments+=(${left_out[@]+"${left_out[@]}"})
[[ -z "$marks" ]] || arguments+=(-m "$marks")
# Background jobs of a shell ignore SIGINT, and so would their children; the tests send SIGINT, so restore it.
pytest='import signal, sys, pytest
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.exit(pytest.main())'
exec python -c "$pytest" ${arguments[@]+"${arguments[@]}"}
