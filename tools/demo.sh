#!/usr/bin/env bash
# Demonstrate every step on synthetic data, on this machine, without SLURM or a GPU: raw scans, stores, training of all seven
# networks, comparison, prediction. Takes about five minutes on two cores, once .venv is installed. All output goes to demo/.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source tools/environment.sh

step() { printf '\n\033[1m%s\033[0m\n' "$*" >&2; }
[[ -t 2 && -z "${NO_COLOR:-}" ]] || step() { printf '\n%s\n' "$*" >&2; }
export HPC_TUMOR_HINTS=0 # the next command is printed anyway
run() {
    printf '$ hpc-tumor %s\n' "$*" >&2
    hpc-tumor "$@"
}

step "1/6  Install the Python environment .venv (skipped if it is up to date)"
environment

step "2/6  Generate synthetic raw scans in the layouts of BraTS and Brain Tumor MRI"
rm -rf demo
run phantom demo/raw/brats --dataset brats --cases 24 --seed 1 --shape 64,64,32
run phantom demo/raw/brain-mri --dataset brain-mri --cases 480 --seed 1

step "3/6  Convert the raw scans to Zarr stores"
run prepare-data demo/raw/brats demo/brats.zarr
run prepare-data demo/raw/brain-mri demo/brain-mri.zarr

step "4/6  Train seven networks on this machine, one after another"
# Not the published recipes: smaller images and batches, fewer filters and epochs, so that two cores are enough.
images=(--cluster local --runs demo/runs --data demo/brain-mri.zarr)
run submit "${images[@]}" --model cnn --set epochs=6 --set batch_size=16 --set learning_rate=1e-3
run submit "${images[@]}" --model alexnet --set epochs=8 --set batch_size=16
images+=(--set image_size=32 --set batch_size=32)
run submit "${images[@]}" --model vgg16 --set epochs=8 --set learning_rate=2e-4
run submit "${images[@]}" --model vit --set epochs=16 --set learning_rate=5e-5 --set augment=false
volumes=(--cluster local --runs demo/runs --data demo/brats.zarr --set batch_size=4 --set filters=8 --set epochs=10)
volumes+=(--set learning_rate=5e-3 --set weight_decay=0 --set schedule=cosine --set loss=dice-bce --set clip_gradients=1)
run submit "${volumes[@]}" --model unet --gpus 2
run submit "${volumes[@]}" --model improved-unet --model attention-unet
run status --runs demo/runs --watch

step "5/6  Compare the runs: tables, figures and a report"
run collect demo/runs --output demo/results
finished=$(find demo/runs -mindepth 2 -maxdepth 2 -name result.json | wc -l)
if ((finished < 7)); then
    say "error: only $finished of 7 runs finished. See hpc-tumor logs RUN --runs demo/runs --errors."
    exit 1
fi

step "6/6  Predict the tumour labels of a test patient, which the network was not trained on"
split=$(find demo/runs -path '*-improved-unet-*/split.json')
patient=$(python -c 'import json, sys; print(json.load(open(sys.argv[1]))["parts"]["test"][0])' "$split")
run predict improved-unet "$(find demo/raw/brats -type d -name "$patient")" --runs demo/runs --output demo/predicted

say "Done: seven networks trained and compared. Open demo/results/report.html in a browser; tables and figures are beside it."
