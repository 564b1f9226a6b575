# BEiT on a host with NVIDIA GPUs. It takes NVIDIA's container toolkit and a driver for CUDA 13
# (580 or newer). In a clone:
#
#   make wheel
#   docker build --file=docker/gpu.Dockerfile --tag=beit:gpu .
#   docker run --rm --init --gpus=all --volume=/imagenet:/imagenet:ro --volume=beit:/work beit:gpu \
#       train --config=pretrain_imagenet1k:base --workdir=/work/W \
#       --config.data.path=/imagenet/train --config.tokenizer.path=/work/TOKENIZER
#
# Run again after any status but 0 and 2, it goes on.
FROM python:3.13-slim

COPY dist/beit_jax-*.whl /wheel/
RUN pip install --no-cache-dir "$(ls /wheel/*.whl)[cuda,data]" gcsfs s3fs huggingface_hub

# work directories and caches (of the hub, of buckets) outlive the container
RUN useradd --create-home --uid=1000 beit && install --directory --owner=beit /work
USER beit
ENV XDG_CACHE_HOME=/work/.cache
VOLUME /work
WORKDIR /work

ENTRYPOINT ["beit"]
CMD ["--help"]
