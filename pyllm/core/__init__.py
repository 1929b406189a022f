"""llama.cpp's objects, one class each: models, contexts, batches, samplers, with NumPy arrays and no policy."""
