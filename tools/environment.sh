# Sourced by demo.sh, test.sh and .ci/run. Creates the virtual environment .venv, or .venv-oldest, if it is missing or
# pyproject.toml has changed, and puts it first on the PATH. PYTHON chooses the interpreter:
# PYTHON=/opt/python3.12/bin/python3 bash tools/test.sh

say() { printf '%s\n' "$*" >&2; }

# find_python NAME...: print the first of $PYTHON and these that is new enough and can create environments.
find_python() {
    local candidate
    for candidate in ${PYTHON:+"$PYTHON"} "$@"; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            if "$candidate" -c 'import ensurepip, venv' 2>/dev/null; then
                command -v "$candidate"
                return
            fi
            say "error: $candidate cannot create virtual environments: install its venv package (Debian: python3-venv)."
            return 1
        fi
    done
    say "error: no Python 3.11 or newer found. Install one (on a cluster: module load python), or name it with PYTHON=..."
    return 1
}

# environment [dev|oldest]: install the package in place into .venv; `dev` adds the development tools. `oldest` uses
# .venv-oldest, with the test dependencies, and each package at the oldest version that pyproject.toml allows.
environment() {
    local extras="${1:-}" folder=.venv wanted python constraints=()
    local candidates=(python3 python3.14 python3.13 python3.12 python3.11)
    if [[ "$extras" == oldest ]]; then
        extras=test folder=.venv-oldest candidates=(python3.11 python3.12 python3) # old versions support only old Pythons
    fi
    # The path is part of the stamp: an environment does not work after the checkout was moved.
    wanted="$(pwd) $(cksum <pyproject.toml)"
    export PATH="$PWD/$folder/bin:$PATH"
    # An environment with the development tools includes everything else.
    if [[ -x $folder/bin/python ]] && { is_stamped "$wanted" dev || is_stamped "$wanted" "$extras"; }; then
        return
    fi
    if ! $folder/bin/python -m pip --version >/dev/null 2>&1; then
        python="$(find_python "${candidates[@]}")"
        say "Creating the virtual environment $folder with $("$python" --version) ..."
        "$python" -m venv --clear $folder
    fi
    if [[ $folder == .venv-oldest ]]; then
        oldest_versions >$folder/versions.txt
        constraints=(--constraint $folder/versions.txt)
    fi
    say "Installing hpc-tumor and its dependencies into $folder (the first time this takes minutes, mostly for torch) ..."
    $folder/bin/python -m pip install --disable-pip-version-check --quiet ${constraints[@]+"${constraints[@]}"} \
        --editable ".${extras:+[$extras]}"
    printf '%s\n' "$wanted $extras" >$folder/hpc-tumor.stamp
}

is_stamped() { [[ "$(cat "$folder/hpc-tumor.stamp" 2>/dev/null)" == "$1 $2" ]]; }

# Print the oldest allowed version of each dependency as pip constraints.
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
