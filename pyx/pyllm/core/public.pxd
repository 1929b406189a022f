# Classes for other packages: `from pyllm.core cimport Model`. Installed as pyllm/core/__init__.pxd.
from pyllm.core.adapter cimport LoraAdapter
from pyllm.core.batch cimport Batch
from pyllm.core.context cimport Context
from pyllm.core.memory cimport Memory
from pyllm.core.model cimport Model
from pyllm.core.sampler cimport Chain, Sampler
from pyllm.core.vocab cimport Vocab
