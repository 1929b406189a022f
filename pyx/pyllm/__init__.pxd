# The cimport surface of pyllm.
#
# Foreign names:  from pyllm.includes cimport llama as lib          then lib.llama_decode(...)
# Our classes:    from pyllm.core.context cimport Context           then the object's C-level members
