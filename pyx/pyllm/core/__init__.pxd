# The classes that other packages cimport: `from pyllm.core cimport Context, Model`.
#
# For others are: `require()` (the pointer, or ClosedError), `acquire()` and `release()` (the lock of a context or
# sampler around calls of llama.h), and what docs/howto/extend.md names. All else may change between versions: a
# package that cimports these classes is built for one version of pyllm.
from pyllm.core.adapter cimport LoraAdapter
from pyllm.core.batch cimport Batch
from pyllm.core.context cimport Context
from pyllm.core.memory cimport Memory
from pyllm.core.model cimport Model
from pyllm.core.sampler cimport Chain, Sampler
from pyllm.core.vocab cimport Vocab
