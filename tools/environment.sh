# Sourced by demo.sh and test.sh. Makes the virtual environment .venv where it is missing or older than pyproject.toml,
# and puts it first on the PATH. The interpreter can be named: PYTHON=/opt/python3.12/bin/python3 bash tools/test.sh

say() { printf '%s\n' "$*" >&2; }

# A Python that is new enough and can make environments.
find_python() {
    local candidate
    for candidate in ${PYTHON:+"$PYTHON"} python3 python3.14 python3.13 python3.12 python3.11; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            if "$candidate" -c 'import ensurepip, venv' 2>/dev/null; then
                command -v "$candidate"
                return
            fi
            say "error: $candidate cannot make virtual environments: install its venv package (Debian: python3-venv)."
            return 1
        fi
    done
    say "error: no Python 3.11 or newer found. Install one (on a cluster: module load python), or name it with PYTHON=..."
    return 1
}

# environment [dev]: the environment with the package installed in place, with its development tools if asked for.
environment() {
    local extras="${1:-}" wanted python
    # The checkout's place counts too: an environment does not survive being moved.
    wanted="$(pwd) $(cksum <pyproject.toml)"
    export PATH="$PWD/.venv/bin:$PATH"
    # What has the development tools has all the rest.
    if [[ -x .venv/bin/python ]] && { is_stamped "$wanted" dev || is_stamped "$wanted" "$extras"; }; then
        return
    fi
    if ! .venv/bin/python -m pip --version >/dev/null 2>&1; then
        python="$(find_python)"
        say "Making the virtual environment .venv with $("$python" --version) ..."
        "$python" -m venv --clear .venv
    fi
    say "Installing hpc-tumor and what it needs into .venv (minutes the first time, for torch) ..."
    .venv/bin/python -m pip install --disable-pip-version-check --quiet --editable ".${extras:+[$extras]}"
    printf '%s\n' "$wanted $extras" >.venv/hpc-tumor.stamp
}

is_stamped() { [[ "$(cat .venv/hpc-tumor.stamp 2>/dev/null)" == "$1 $2" ]]; }
