#!/usr/bin/env bash
# All tests, in an environment that this script makes.
#
#   bash tools/test.sh               everything, in 16 minutes on two cores; needs a machine on which a SLURM may be started
#   bash tools/test.sh --quick       without slow tests and those that need SLURM, a browser, LaTeX; four minutes on two cores
#   bash tools/test.sh --campaign    the long campaigns, which no other run includes: hours, 20 GB of disk, the network
#   bash tools/test.sh --oldest      with the oldest versions of all packages that pyproject.toml allows
#   bash tools/test.sh -k store -x   further arguments go to pytest, which then runs in one process, or as many as -n says
#
# Tests run in a random order; the seed is printed, and --randomly-seed=N repeats it, -p no:randomly keeps the files' order.
# Tests on real scans take them from the folder that HPC_TUMOR_REAL_DATA names, and are skipped where it is not set.
# With HPC_TUMOR_REQUIRE_SLURM=1 the cluster tests fail, rather than being skipped, where no SLURM can be started.
# What commands show and write is compared with tests/net/recorded, byte by byte. After a change that is meant,
# HPC_TUMOR_RECORD=1 python -m pytest tests/net records it anew: read the difference before it is committed.
# A version that others will follow leaves them its stores and runs: python tests/fixtures/make.py DATE
# A campaign goes through all cases of what the other runs have a fixed sample of: a conversion killed at every step, a
# disk that fails from any step on, tens of thousands of damaged files, ranks killed at random with each network on 3, 4
# and 8 ranks; the quick tests with the oldest versions; and an installation from a folder of wheels, without a network.
# Chromium and pdflatex are installed where they are missing, if this is root on Debian. Without them tests are skipped;
# with HPC_TUMOR_REQUIRE_PROGRAMS=1 they fail.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source tools/environment.sh

kind=dev
marks=
others=3 # processes that mostly wait for SLURM
left_out=()
arguments=()
for argument in "$@"; do
    case "$argument" in
    --quick) marks="not slow and not cluster and not browser and not latex and not campaign" others=0 ;;
    --campaign) marks=campaign others=0 ;;
    # What commands show and write, byte by byte, is on record for new versions.
    --oldest) kind=oldest left_out=(--ignore-glob "tests/net/test_[!f]*.py") ;;
    *) arguments+=("$argument") ;;
    esac
done

environment "$kind"
[[ -n "$marks" ]] || python tools/debian_packages.py
# Tests start Python some thousand times: without compiled modules each start would compile this package again.
unset PYTHONDONTWRITEBYTECODE
if [[ ${#arguments[@]} -eq 0 ]]; then
    # One process for each core that this may use, with one thread; each takes some 2 GB.
    export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
    cores="$(python -c 'from hpc_tumor.system.resources import available_cpus; print(min(available_cpus(), 8))')"
    arguments+=(-n "$((cores + others))")
fi
arguments+=(${left_out[@]+"${left_out[@]}"})
[[ -z "$marks" ]] || arguments+=(-m "$marks")
# What a script starts in its background ignores Ctrl-C, and so does all that this starts: tests send it.
pytest='import signal, sys, pytest
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.exit(pytest.main())'
exec python -c "$pytest" ${arguments[@]+"${arguments[@]}"}
