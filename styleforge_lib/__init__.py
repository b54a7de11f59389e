"""StyleForge: hand-written CUDA kernels for a style-transfer network, as torch drop-ins."""
