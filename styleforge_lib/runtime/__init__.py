"""CUDA text becomes something to launch, on a GPU or on NumPy."""
