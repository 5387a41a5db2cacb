#!/usr/bin/env bash
# The GPU machine's Python without a GPU: does every part of the kit import and run before the day it counts?
# Run in the project's root behind `make gpu-kit`; takes 6 GB in $1 (default ${TMPDIR:-/tmp}/gpu-kit) and ten minutes.
set -euo pipefail
replica=${1:-${TMPDIR:-/tmp}/gpu-kit}
if [ ! -e "$replica/ready" ]; then
    "${PYTHON312:-python3.12}" -m venv "$replica"
    "$replica/bin/pip" --disable-pip-version-check install --quiet torch==2.11.0 transformers==5.17.0 \
        accelerate==1.15.0 huggingface_hub==1.33.0 tokenizers==0.23.2 numpy==2.5.2 safetensors==0.8.0 peft pyarrow \
        pandas xxhash aiohttp psutil httpx jinja2 nvidia-ml-py prometheus-client rich einops pytest hypothesis
    "$replica/bin/pip" --disable-pip-version-check uninstall --quiet --yes \
        pydantic pydantic-core annotated-types typing-inspection
    touch "$replica/ready"
fi
rm -rf "$replica/site" "$replica/out"
"$replica/bin/python" -m pip install --quiet --no-index --no-deps --no-compile --no-cache-dir --upgrade \
    --target "$replica/site" .whl/*.whl
export PYTHONPATH="$replica/site:$PWD/.kit/shim" OUT="$replica/out" OMP_NUM_THREADS=1
echo "== as on a machine without a GPU: exit code 3 is right"
"$replica/bin/python" .kit/run.py --budget 60 --only environment && exit 1 || [ $? = 3 ]
echo "== every step on tiny shapes"
GPUKIT_REHEARSE=1 nice "$replica/bin/python" .kit/run.py --budget 900
