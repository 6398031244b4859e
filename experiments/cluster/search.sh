#!/usr/bin/env bash
# Put the name of your bucket below. What `ray submit` runs on the head: a search whose study survives the cluster.
set -euo pipefail
cd ~/vgg-search
RAY_ADDRESS=auto python -m vgg_search.run --name first --resume first \
  --storage-path "s3://BUCKET/studies" --num-trials 200 --time-budget 4h
