"""The bench of feedworks_kernels; needs torch, numpy and (on a GPU) triton alone. `run.py --help`."""
