"""Many cases, many command lines, many settings: batches, workers, sweeps."""
