#!/bin/sh
# Makes requirements.lock anew: everything but torch and what only its CUDA builds need. Needs uv.
set -eu
cd "$(dirname "$0")"
left_out=$(for name in torch torchaudio torchcodec triton cuda-bindings cuda-pathfinder cuda-toolkit \
	nvidia-cublas nvidia-cuda-cupti nvidia-cuda-nvrtc nvidia-cuda-runtime nvidia-cudnn-cu13 nvidia-cufft nvidia-cufile \
	nvidia-curand nvidia-cusolver nvidia-cusparse nvidia-cusparselt-cu13 nvidia-nccl-cu13 nvidia-nvjitlink \
	nvidia-nvshmem-cu13 nvidia-nvtx; do echo "--no-emit-package $name"; done)
# shellcheck disable=SC2086 # a list of words
"${UV:-uv}" pip compile --quiet --universal --generate-hashes --no-annotate --no-header --python-version 3.11 \
	--override overrides.txt $left_out requirements.in -o requirements.lock
