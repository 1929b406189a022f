TENSOR_TYPES: tuple[str, ...]
