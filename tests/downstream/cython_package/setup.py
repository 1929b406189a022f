from Cython.Build import cythonize
from setuptools import Extension, setup

import pyllm

setup(
    name="every-other",
    version="1.0",
    py_modules=[],
    ext_modules=cythonize(
        Extension(
            "every_other",
            ["every_other.pyx"],
            language="c++",
            include_dirs=[pyllm.get_include()],
            library_dirs=[pyllm.get_library_dir()],
            libraries=pyllm.get_libraries(),
            extra_compile_args=["-std=c++17"],
        ),
        language_level=3,
    ),
)
