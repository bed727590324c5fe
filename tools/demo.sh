#!/usr/bin/env bash
# The whole road on made-up data, on this machine, without SLURM and without a GPU: raw scans, stores, training of all seven
# networks, comparison, prediction. Some four minutes on two cores, once the environment is there. Everything is written to demo/.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source tools/environment.sh

step() { printf '\n\033[1m%s\033[0m\n' "$*" >&2; }
[[ -t 2 && -z "${NO_COLOR:-}" ]] || step() { printf '\n%s\n' "$*" >&2; }
export HPC_TUMOR_HINTS=0 # what to type next is written below
run() {
    printf '$ hpc-tumor %s\n' "$*" >&2
    hpc-tumor "$@"
}

step "1/6  Environment"
environment

step "2/6  Raw scans, made up: BraTS-like patients and Brain-MRI-like images"
rm -rf demo
run phantom demo/raw/brats --dataset brats --cases 24 --seed 1 --shape 64,64,32
run phantom demo/raw/brain-mri --dataset brain-mri --cases 480 --seed 1

step "3/6  Stores"
run prepare-data demo/raw/brats demo/brats.zarr
run prepare-data demo/raw/brain-mri demo/brain-mri.zarr

step "4/6  Training: seven runs on this machine, one after another"
# Not the published recipes: smaller images, fewer filters, small batches, and few epochs, so that two cores do.
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

step "5/6  Comparison"
run collect demo/runs --output demo/results
finished=$(find demo/runs -mindepth 2 -maxdepth 2 -name result.json | wc -l)
if ((finished < 7)); then
    say "error: only $finished of 7 runs finished; hpc-tumor logs RUN --runs demo/runs --errors says why."
    exit 1
fi

step "6/6  Prediction: the labels of one patient that the run has never seen, in the space of its scans"
split=$(find demo/runs -path '*-improved-unet-*/split.json')
patient=$(python -c 'import json, sys; print(json.load(open(sys.argv[1]))["parts"]["test"][0])' "$split")
run predict improved-unet "$(find demo/raw/brats -type d -name "$patient")" --runs demo/runs --output demo/predicted

say "All seven networks are trained and compared. Open demo/results/report.html in a browser; tables and figures lie beside it."
