# Empty on purpose. A class that is cimported here would be imported by every module of the package while it starts, in
# any order. Other packages cimport from the modules: `from pyllm.core.model cimport Model`.
