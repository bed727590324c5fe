# Sourced by demo.sh and test.sh. Makes the virtual environment .venv, or .venv-oldest, where it is missing or older than
# pyproject.toml, and puts it first on the PATH. The interpreter can be named: PYTHON=/opt/python3.12/bin/python3 bash
# tools/test.sh

say() { printf '%s\n' "$*" >&2; }

# find_python NAME...: the first of these, or what PYTHON names, that is new enough and can make environments.
find_python() {
    local candidate
    for candidate in ${PYTHON:+"$PYTHON"} "$@"; do
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

# environment [dev|oldest]: the environment .venv with the package installed in place, with its development tools if asked
# for. `oldest` is .venv-oldest, with the tests, and with each package at the oldest version that pyproject.toml allows.
environment() {
    local extras="${1:-}" folder=.venv wanted python constraints=()
    local candidates=(python3 python3.14 python3.13 python3.12 python3.11)
    if [[ "$extras" == oldest ]]; then
        extras=test folder=.venv-oldest candidates=(python3.11 python3.12 python3) # old versions are of old Pythons
    fi
    # The checkout's place counts too: an environment does not survive being moved.
    wanted="$(pwd) $(cksum <pyproject.toml)"
    export PATH="$PWD/$folder/bin:$PATH"
    # What has the development tools has all the rest.
    if [[ -x $folder/bin/python ]] && { is_stamped "$wanted" dev || is_stamped "$wanted" "$extras"; }; then
        return
    fi
    if ! $folder/bin/python -m pip --version >/dev/null 2>&1; then
        python="$(find_python "${candidates[@]}")"
        say "Making the virtual environment $folder with $("$python" --version) ..."
        "$python" -m venv --clear $folder
    fi
    if [[ $folder == .venv-oldest ]]; then
        oldest_versions >$folder/versions.txt
        constraints=(--constraint $folder/versions.txt)
    fi
    say "Installing hpc-tumor and what it needs into $folder (minutes the first time, for torch) ..."
    $folder/bin/python -m pip install --disable-pip-version-check --quiet ${constraints[@]+"${constraints[@]}"} \
        --editable ".${extras:+[$extras]}"
    printf '%s\n' "$wanted $extras" >$folder/hpc-tumor.stamp
}

is_stamped() { [[ "$(cat "$folder/hpc-tumor.stamp" 2>/dev/null)" == "$1 $2" ]]; }

# The oldest version of each package that hpc-tumor uses, as pip's constraints.
oldest_versions() {
    python - <<'END'
import re, tomllib

with open("pyproject.toml", "rb") as file:
    project = tomllib.load(file)["project"]
extras = project["optional-dependencies"]
for text in [*project["dependencies"], *extras["tensorboard"], *extras["onnx"]]:
    requirement, *marker = text.split(";")
    name, oldest = re.match(r"(.+?)>=([^,]+)", requirement).groups()
    print(";".join([f"{name}=={oldest}", *marker]))
END
}
