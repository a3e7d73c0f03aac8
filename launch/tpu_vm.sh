#!/bin/bash
# One run on all hosts of a Cloud TPU slice:
#   TPU_NAME=my-slice ZONE=europe-west4-b launch/tpu_vm.sh [more flags for main.py]
# Started again, it goes on where the last checkpoint stands.

set -eu
: "${TPU_NAME:?the slice, as gcloud compute tpus tpu-vm list names it}" "${ZONE:?its zone}"

# The same command on every host (--worker=all); on each of them lies a clone of this project in
# ~/kd_jax with its environment (make .venv/installed, then .venv/bin/pip install "jax[tpu]").
# --distributed: JAX asks the TPU's metadata who the others are.
# /mnt/shared: a file system that all hosts have mounted (NFS): work directory, cache and data.
# data.batch: a multiple of the slice's chips; or let chips share a volume: train.spatial_shards.
gcloud compute tpus tpu-vm ssh "$TPU_NAME" --zone="$ZONE" --worker=all --command="
  cd ~/kd_jax && .venv/bin/python main.py \
    --distributed \
    --config=configs/brats21.py \
    --config.data.root=/mnt/shared/BraTS2021 \
    --config.data.cache=/mnt/shared/cache \
    --config.data.batch=16 \
    --workdir=/mnt/shared/runs/brats21-fold0 \
    $*"
