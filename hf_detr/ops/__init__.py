"""Multi-scale deformable attention, the loader of its compiled kernels, and box operations."""
