from Cython.Build import cythonize
from setuptools import Extension, setup

import pyllm

modules = Extension(
    "every_other.*",
    ["every_other/*.pyx"],
    language="c++",
    include_dirs=[pyllm.get_include()],
    library_dirs=[pyllm.get_library_dir()],
    libraries=pyllm.get_libraries(),
    extra_compile_args=["-std=c++17"],
)
setup(packages=["every_other"], ext_modules=cythonize(modules, language_level=3))
