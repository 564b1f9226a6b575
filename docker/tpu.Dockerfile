# BEiT on a TPU VM, or on TPU nodes of GKE (examples/gke/tpu-v5e.yaml). In a clone:
#
#   make wheel
#   docker build --file=docker/tpu.Dockerfile --tag=beit:tpu .
#   docker run --rm --init --privileged --net=host --volume=/mnt/shared:/work beit:tpu \
#       train --config=pretrain_imagenet1k:base --workdir=/work/W \
#       --config.data.name=tfds --config.data.path=gs://BUCKET/imagenet2012/5.1.0 \
#       --config.tokenizer.path=/work/TOKENIZER
#
# On a pod the same line on every worker; user 1000 has to be allowed to write to /mnt/shared. Run
# again after any status but 0 and 2, it goes on.
FROM python:3.13-slim

COPY dist/beit_jax-*.whl /wheel/
RUN pip install --no-cache-dir "$(ls /wheel/*.whl)[tpu,data]" gcsfs s3fs huggingface_hub

# work directories and caches (of the hub, of buckets) outlive the container
RUN useradd --create-home --uid=1000 beit && install --directory --owner=beit /work
USER beit
ENV XDG_CACHE_HOME=/work/.cache
VOLUME /work
WORKDIR /work

ENTRYPOINT ["beit"]
CMD ["--help"]
