"""Triton kernels of visionssm. Imported by `visionssm.ops` on first use, never before."""
