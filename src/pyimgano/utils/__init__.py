"""Import paths that scripts know: `datasets` and `splits`. They forward, and hold nothing else."""
