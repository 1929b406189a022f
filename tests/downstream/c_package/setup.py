from setuptools import Extension, setup

import pyllm

setup(ext_modules=[Extension("likeliest", ["likeliest.c"], include_dirs=[pyllm.get_include()])])
