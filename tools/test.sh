#!/usr/bin/env bash
# All tests, in an environment that this script makes.
#
#   bash tools/test.sh               everything; tests of clusters need a machine on which a local SLURM may be started
#   bash tools/test.sh --quick       without the slow tests and those that need SLURM; under four minutes
#   bash tools/test.sh -k store -x   further arguments go to pytest
#
# Tests on real scans take them from the folder that HPC_TUMOR_REAL_DATA names, and are skipped where it is not set.
# With HPC_TUMOR_REQUIRE_SLURM=1 the cluster tests fail, rather than being skipped, where no SLURM can be started.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source tools/environment.sh

arguments=()
for argument in "$@"; do
    if [[ "$argument" == --quick ]]; then
        arguments+=(-m "not slow and not cluster")
    else
        arguments+=("$argument")
    fi
done

environment dev
exec python -m pytest ${arguments[@]+"${arguments[@]}"}
