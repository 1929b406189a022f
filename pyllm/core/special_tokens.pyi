import numpy as np
import numpy.typing as npt

from pyllm.core.vocab import Vocab

def tokenize_marked_array(vocab: Vocab, text: bytes, marks: bytes, *, close: bool = True) -> npt.NDArray[np.int32]: ...
