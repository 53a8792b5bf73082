"""Checks and times the GPU kernels on a machine with an NVIDIA GPU: `make gpu-check`.

It takes what a CUDA machine with PyTorch has, and leaves out, with a reason, what else is missing. Every part runs in a
process of its own under a limit, so that one that crashes, hangs or spoils its CUDA context takes nothing else along.
Results go to `benchmarks/results/gpu_check_<GPU>_<versions>.json` and `.md` as they come.
"""
