"""Executes PTX on NumPy: knows nothing of torch, CuPy or notebooks."""
