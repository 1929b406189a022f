# Declarations of common/json-schema-to-grammar.h, by way of core/grammar.hpp: its JSON is a class of its own there,
# and a text here.

from libcpp cimport bool
from libcpp.string cimport string

from pyllm.includes._translate cimport translate

cdef extern from "grammar.hpp" namespace "pyllm" nogil:
    string schema_to_grammar(const string & schema, bool force_gbnf, string & failure) except +translate
