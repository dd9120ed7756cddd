"""Numbers: image quality, overlap, surfaces, shapes, distances of sets, statistics."""
