# Declarations of foreign C and C++ headers, and nothing else: one header is one .pxd, in the order of the header.
# Cimport a whole header under a qualified name, `from pyllm.includes cimport llama as lib`; never a star.
# tests/declarations compares every one of these files with the headers that llama_cpp_src/PIN.toml names.
