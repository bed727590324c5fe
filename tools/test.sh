#!/usr/bin/env bash
# All tests, in an environment that this script makes.
#
#   bash tools/test.sh               everything; tests of clusters need a machine on which a local SLURM may be started
#   bash tools/test.sh --quick       without slow tests and those that need SLURM, a browser, LaTeX; some six minutes
#   bash tools/test.sh -k store -x   further arguments go to pytest, which then runs in one process, or as many as -n says
#
# Tests run in a random order; the seed is printed, and --randomly-seed=N repeats it, -p no:randomly keeps the files' order.
# Tests on real scans take them from the folder that HPC_TUMOR_REAL_DATA names, and are skipped where it is not set.
# With HPC_TUMOR_REQUIRE_SLURM=1 the cluster tests fail, rather than being skipped, where no SLURM can be started.
# What commands show and write is compared with tests/net/recorded, byte by byte. After a change that is meant,
# HPC_TUMOR_RECORD=1 python -m pytest tests/net records it anew: read the difference before it is committed.
# A version that others will follow leaves them its stores and runs: python tests/fixtures/make.py DATE
# HPC_TUMOR_LONG=N adds the long campaign, which no other run of the tests includes: N rounds in which one of 3, 4 and 8
# ranks is killed at random, twice, each round with another network. Round by round they are the same each time, so a
# larger N adds new ones. By itself: HPC_TUMOR_LONG=6 bash tools/test.sh tests/training/test_exact.py -k killed
# Chromium and pdflatex are installed where they are missing, if this is root on Debian. Without them tests are skipped;
# with HPC_TUMOR_REQUIRE_PROGRAMS=1 they fail.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source tools/environment.sh

quick=
arguments=()
for argument in "$@"; do
    if [[ "$argument" == --quick ]]; then
        quick=1
    else
        arguments+=("$argument")
    fi
done

environment dev
[[ -n "$quick" ]] || python tools/debian_packages.py
# Tests start Python some thousand times: without compiled modules each start would compile this package again.
unset PYTHONDONTWRITEBYTECODE
if [[ ${#arguments[@]} -eq 0 ]]; then
    # One process for each core, with one thread, and three that mostly wait for SLURM.
    export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
    arguments+=(-n "$(($(getconf _NPROCESSORS_ONLN) + (${#quick} ? 0 : 3)))")
fi
[[ -z "$quick" ]] || arguments+=(-m "not slow and not cluster and not browser and not latex")
# What a script starts in its background ignores Ctrl-C, and so does all that this starts: tests send it.
pytest='import signal, sys, pytest
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.exit(pytest.main())'
exec python -c "$pytest" ${arguments[@]+"${arguments[@]}"}
