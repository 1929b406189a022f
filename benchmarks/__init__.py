"""pyllm beside llama.cpp's own programs; `make bench` runs all of it."""
