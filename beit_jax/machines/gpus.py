"""Kinds of GPU: what XLA has to know of one to compile for it where there is none, and the rates of
the roofline."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Gpu:
    """Of a kind of GPU."""

    # what XLA compiles for
    name: str
    capability: tuple[int, int]  # CUDA's
    cores: int  # streaming multiprocessors
    lanes: int  # of a core, in float32
    shared_memory: int  # of a core
    l2_cache: int
    hertz: float
    memory: int  # bytes
    bandwidth: float  # of the memory, bytes/s
    # NVIDIA's data sheets, dense: FLOP/s in bfloat16 (TF32: half of it) and in float32, bytes/s
    # that NVLink brings to a GPU
    bfloat16: float
    float32: float
    nvlink: float
    # shares of the peak in bfloat16 and of the bandwidth that large products and copies reach
    product: float
    copy: float


# What XLA compiles for is what the driver says of each GPU: xla/backends/gpu/target_config/specs of
# XLA's repository (Apache-2.0), 2026-11; the H200's memory is nvidia-smi's. Sheets: A100 80GB SXM,
# H100 SXM, H200 SXM, HGX B200. Measured: products 790 TFLOP/s (H100, H200), copies 3.0 TB/s (H100)
# and 4.3 (H200); A100 and B200 are given the H100's shares.
_PRODUCT, _COPY = 790 / 989, 3.0 / 3.35
GPUS = {
    'a100': Gpu(
        'NVIDIA A100-SXM4-80GB', (8, 0), 108, 64, 167_936, 41_943_040, 1.41e9, 85_100_068_864,
        2.03904e12, 312e12, 19.5e12, 300e9, _PRODUCT, _COPY,
    ),
    'h100': Gpu(
        'NVIDIA H100 80GB HBM3', (9, 0), 132, 128, 233_472, 52_428_800, 1.98e9, 84_942_979_072,
        3.35232e12, 989e12, 67e12, 450e9, _PRODUCT, _COPY,
    ),
    'h200': Gpu(
        'NVIDIA H200', (9, 0), 132, 128, 233_472, 52_428_800, 1.98e9, 150_754_820_096,
        4.8e12, 989e12, 67e12, 450e9, _PRODUCT, 4.3 / 4.8,
    ),
    'b200': Gpu(
        'NVIDIA B200', (10, 0), 148, 128, 233_472, 132_644_864, 1.965e9, 191_514_411_008,
        7.67232e12, 2250e12, 75e12, 900e9, _PRODUCT, _COPY,
    ),
}  # fmt: skip
# How many times as long as by the roofline, by kind of operation; 1 until it is measured.
FACTORS = {
    'product': 1.0,
    'batched product': 1.0,
    'convolution': 1.0,
    'attention': 1.0,  # cuDNN's
    'other': 1.0,
    'collective': 1.0,
}


def target_config(gpu: Gpu) -> str:
    """XLA's GpuTargetConfigProto as text, for `topologies.get_topology_desc`; with every figure of
    XLA's own files the program was the same, to the letter."""
    major, minor = gpu.capability
    features = 'ACCELERATED_FEATURES' if major >= 9 else 'NONE'
    return f"""
gpu_device_info {{
  cuda_compute_capability {{ major: {major} minor: {minor} feature_extension: {features} }}
  core_count: {gpu.cores}
  fpus_per_core: {gpu.lanes}
  shared_memory_per_core: {gpu.shared_memory}
  shared_memory_per_block: 49152
  shared_memory_per_block_optin: {gpu.shared_memory - 1024}
  l2_cache_size: {gpu.l2_cache}
  clock_rate_ghz: {gpu.hertz / 1e9}
  device_memory_size: {gpu.memory}
  memory_bandwidth: {round(gpu.bandwidth)}
  threads_per_warp: 32
  threads_per_block_limit: 1024
  threads_per_core_limit: 2048
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 }}
device_description_str: "{gpu.name}"
"""
