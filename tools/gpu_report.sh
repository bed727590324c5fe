#!/usr/bin/env bash
# Measure and check everything worth knowing of this machine's GPU, in at most eight minutes: tools/gpu_report.sh --help.
# Output: gpu-report/report.md and report.json, complete at any time; Ctrl-C or SIGTERM end it early.
# Uses $PYTHON, or the active python3, if it has all packages (nothing is installed then), else the environment .venv.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source tools/environment.sh

# Print the modules that an interpreter lacks of those that the report imports.
lacking() {
    "$1" - <<'END'
import importlib.util, sys
needed = "torch numpy numcodecs google_crc32c nibabel h5py isal PIL safetensors scipy pydantic platformdirs"
print(*(name for name in needed.split() if importlib.util.find_spec(name) is None))
END
}

python="${PYTHON:-python3}"
missing="$(lacking "$python" 2>/dev/null || echo torch)"
if [[ -n "$missing" && " $missing " != *" torch "* && -n "${PYTHON:-}" ]]; then
    say "error: $PYTHON has torch but lacks $missing: install them, or unset PYTHON to use the environment .venv."
    exit 1
elif [[ -n "$missing" ]]; then
    say "$python lacks $missing: using the environment .venv"
    environment
    python=python
fi
export PYTHONPATH="$PWD:$PWD/tools${PYTHONPATH:+:$PYTHONPATH}"
exec "$python" -m gpu_report "$@"
