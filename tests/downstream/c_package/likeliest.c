#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include "pyllm_api.h"

static const struct pyllm_api * pyllm;

/* likeliest(context, token): decodes one more token and returns the likeliest next one. */
static PyObject * likeliest(PyObject * self, PyObject * arguments) {
    PyObject * object;
    int token, code = -1, best = 0;
    if (!PyArg_ParseTuple(arguments, "Oi", &object, &token)) {
        return NULL;
    }
    PyObject * model = PyObject_GetAttrString(object, "model");
    const struct llama_vocab * vocab = model ? pyllm->vocab(model) : NULL;
    Py_XDECREF(model);
    if (!vocab || pyllm->acquire(object) != 0) {  /* not a pyllm.Context: an exception is set */
        return NULL;
    }
    struct llama_context * context = pyllm->context(object);  /* NULL with an exception set after close() */
    if (context && pyllm->begin_raw(object) == 0) {
        Py_BEGIN_ALLOW_THREADS
        struct llama_batch batch = pyllm->batch_init(1, 0, 1);
        batch.n_tokens = 1;
        batch.token[0] = token;
        batch.pos[0] = pyllm->memory_seq_pos_max(pyllm->get_memory(context), 0) + 1;
        batch.n_seq_id[0] = 1;
        batch.seq_id[0][0] = 0;
        batch.logits[0] = 1;
        code = pyllm->decode(context, batch);
        pyllm->batch_free(batch);
        const float * row = code == 0 ? pyllm->get_logits_ith(context, -1) : NULL;
        for (int i = 1; row && i < pyllm->vocab_n_tokens(vocab); i++) {
            best = row[i] > row[best] ? i : best;
        }
        Py_END_ALLOW_THREADS
        if (pyllm->outputs_changed(object) == 0 && code != 0) {
            PyErr_Format(PyExc_RuntimeError, "llama_decode returned %d", code);
        }
    }
    pyllm->release(object);
    return PyErr_Occurred() ? NULL : PyLong_FromLong(best);
}

static PyMethodDef methods[] = {{"likeliest", likeliest, METH_VARARGS, NULL}, {NULL, NULL, 0, NULL}};
static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "likeliest", NULL, -1, methods};

PyMODINIT_FUNC PyInit_likeliest(void) {
    pyllm = pyllm_import();  /* an ImportError where the table's major version differs */
    return pyllm ? PyModule_Create(&module) : NULL;
}
