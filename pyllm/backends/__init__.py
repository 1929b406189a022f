"""Where backend modules (CPU variants, CUDA, Vulkan, …) come from."""
