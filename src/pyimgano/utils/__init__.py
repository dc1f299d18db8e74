"""Holds the documented import path of `load_dataset` and nothing else."""
