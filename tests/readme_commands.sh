#!/usr/bin/env bash
# Runs a command of the README's first two, as it stands there: `main` in a fresh clone with no data
# and no settings (the bundled sample then serves), `test` in this checkout.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
mapfile -t commands < <(grep -E '^pip install uv && ' "$root/README.md")
[ "${#commands[@]}" -eq 2 ] || { echo "README must show two commands, got ${#commands[@]}"; exit 1; }

case "${1:-}" in
  test)
    cd "$root"
    bash -euc "${commands[1]}"
    ;;
  main)
    clone=$(mktemp -d)
    trap 'rm -rf "$clone"' EXIT
    git clone -q "$root" "$clone/vgg_search"
    cd "$clone/vgg_search"
    env -u VGG_SEARCH_DATA_DIR -u MLFLOW_TRACKING_URI -u RAY_ADDRESS bash -euc "${commands[0]}"
    test -s mlflow.db
    ls runs/*/report.html runs/*/summary.json runs/*/champion/model.safetensors
    grep '"state": "completed"' runs/*/summary.json
    uv run python -m vgg_search evaluate
    git status --porcelain | (! grep .) || { echo "the main job left files that git sees"; exit 1; }
    ;;
  *) echo "usage: readme_commands.sh main|test"; exit 2 ;;
esac
