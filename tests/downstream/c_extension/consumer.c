// A C extension module that uses pyllm's objects through the capsule: it links to nothing.
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "pyllm_api.h"

static const struct pyllm_api * pyllm;

// greedy(context, tokens, n): `n` tokens, under the context's lock, without the GIL while llama.cpp computes.
static PyObject * greedy(PyObject * self, PyObject * arguments) {
    PyObject *object, *list;
    int n;
    if (!PyArg_ParseTuple(arguments, "OO!i", &object, &PyList_Type, &list, &n)) {
        return NULL;
    }
    PyObject * model = PyObject_GetAttrString(object, "model");
    if (!model) {
        return NULL;
    }
    const struct llama_vocab * vocab = pyllm->vocab(model);
    Py_DECREF(model);
    if (!vocab || pyllm->acquire(object) != 0) {
        return NULL;
    }
    PyObject * found = NULL;
    struct llama_context * context = pyllm->context(object);
    if (context) {
        const int n_prompt = (int) PyList_Size(list);
        struct llama_batch batch = pyllm->batch_init(n_prompt > 0 ? n_prompt : 1, 0, 1);
        for (int i = 0; i < n_prompt; i++) {
            batch.token[i] = (llama_token) PyLong_AsLong(PyList_GetItem(list, i));
            batch.pos[i] = i;
            batch.n_seq_id[i] = 1;
            batch.seq_id[i][0] = 0;
            batch.logits[i] = i == n_prompt - 1;
        }
        batch.n_tokens = n_prompt;
        found = PyList_New(0);
        for (int step = 0; step < n; step++) {
            int code, best = 0;
            Py_BEGIN_ALLOW_THREADS
            code = pyllm->decode(context, batch);
            if (code == 0) {
                const float * row = pyllm->get_logits_ith(context, -1);
                for (int i = 1; i < pyllm->vocab_n_tokens(vocab); i++) {
                    best = row[i] > row[best] ? i : best;
                }
            }
            Py_END_ALLOW_THREADS
            if (code != 0) {
                PyErr_Format(PyExc_RuntimeError, "llama_decode returned %d", code);
                Py_CLEAR(found);
                break;
            }
            PyObject * number = PyLong_FromLong(best);
            PyList_Append(found, number);
            Py_DECREF(number);
            batch.token[0] = best;
            batch.pos[0] = n_prompt + step;
            batch.n_seq_id[0] = 1;
            batch.seq_id[0][0] = 0;
            batch.logits[0] = 1;
            batch.n_tokens = 1;
        }
        pyllm->batch_free(batch);
        if (pyllm->outputs_changed(object) != 0) {
            Py_CLEAR(found);
        }
    }
    pyllm->release(object);
    return found;
}

static PyObject * about(PyObject * self, PyObject * none) {
    return Py_BuildValue("IIssns", pyllm->abi_major, pyllm->abi_minor, pyllm->version, pyllm->llama_commit,
                         (Py_ssize_t) pyllm->size, pyllm->function("llama_decode") == (void *) pyllm->decode ? "same" : "other");
}

static PyObject * has(PyObject * self, PyObject * name) {
    return PyBool_FromLong(pyllm->function(PyUnicode_AsUTF8(name)) != NULL);
}

static PyMethodDef methods[] = {
    {"greedy", greedy, METH_VARARGS, NULL},
    {"about", about, METH_NOARGS, NULL},
    {"has", has, METH_O, NULL},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "consumer", NULL, -1, methods};

PyMODINIT_FUNC PyInit_consumer(void) {
    pyllm = pyllm_import();
    return pyllm ? PyModule_Create(&module) : NULL;
}
