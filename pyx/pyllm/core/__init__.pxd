# Empty on purpose. A class that is cimported here would be imported by every module of the package while it starts, in
# any order. Other packages get public.pxd in this file's place, so that `from pyllm.core cimport Model` works there.
