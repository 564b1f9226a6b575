"""From examples to batches of pixels. TensorFlow is imported here and nowhere else."""

import os

# TensorFlow greets with lines that help nobody; its oneDNN kernels are not used for images.
os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
os.environ.setdefault('TF_ENABLE_ONEDNN_OPTS', '0')
# else it loads Keras at once, which takes two seconds
os.environ.setdefault('TF_USE_LEGACY_KERAS', '1')
