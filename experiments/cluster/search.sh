#!/usr/bin/env bash
# What `ray exec` runs on the head: a search whose study survives the cluster. Put the name of your
# bucket below.
set -euo pipefail
cd ~/vgg-search
export RAY_ADDRESS=auto RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=$HOME/.vgg-search/token
# The same command each time: it goes on with the study if there is one
python -m vgg_search.run --name first --resume first \
  --storage-path "s3://BUCKET/studies" --num-trials 200 --time-budget 4h
