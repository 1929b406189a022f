// pyllm's objects for C, C++ and Rust, without Cython and without linking to anything.
//
//     #include <Python.h>
//     #include "pyllm_api.h"
//
//     const struct pyllm_api * pyllm = pyllm_import();     // NULL with an ImportError set
//     struct llama_context * ctx = pyllm->context(object);  // NULL with an exception set
//
// Rules for compatibility: fields are only appended, and then abi_minor grows. When a field changes or goes, abi_major
// grows, and pyllm_import() of older consumers fails with an error. llama.h's own structs and functions are those of
// the commit that `llama_commit` names: compare it, or use only what rarely changes.
//
// "GIL" marks functions that need the GIL and set a Python exception when they return NULL or -1. The functions of
// llama.h at the end need no GIL, and are llama.cpp's own: they check no arguments, and a failed assertion in them
// ends the process.
#ifndef PYLLM_API_H
#define PYLLM_API_H

#include <stddef.h>
#include <stdint.h>

#include "llama.h"

#define PYLLM_API_MAJOR 1
#define PYLLM_API_MINOR 1
#define PYLLM_API_CAPSULE "pyllm._C_API"

// Numbers the layouts of the classes in the .pxd files: it grows when a field or a C method of a class in `pyllm.core`
// changes. A Cython module that cimports them fits pyllm only where this is pyllm.core.c_api.CLASS_LAYOUT.
#define PYLLM_CLASS_LAYOUT 1

#ifdef __cplusplus
extern "C" {
#endif

struct _object;  // PyObject

struct pyllm_api {
    uint32_t abi_major;
    uint32_t abi_minor;
    size_t   size;  // sizeof(struct pyllm_api) of the installed pyllm

    const char * version;       // pyllm's
    const char * llama_commit;  // llama.cpp's, abbreviated
    const char * build_id;      // equal where ggml's structs have the same layout

    // From Python objects to pointers. The pointer is valid while the object is open. GIL
    struct llama_model *       (*model)(struct _object * model);      // pyllm.Model
    const struct llama_vocab * (*vocab)(struct _object * vocab);      // pyllm.Vocab, or pyllm.Model
    struct llama_context *     (*context)(struct _object * context);  // pyllm.Context
    struct llama_sampler *     (*sampler)(struct _object * sampler);  // pyllm.core.sampler.Sampler

    // The lock of a context: other threads wait. Between the two the GIL may be released. GIL
    int  (*acquire)(struct _object * context);
    void (*release)(struct _object * context);

    // Say that llama_decode was called on the context's pointer: rows that Python read before are stale now. GIL
    int (*outputs_changed)(struct _object * context);

    // Address of any function of llama.h or ggml.h by its name; NULL without an exception if there is none.
    void * (*function)(const char * name);

    // llama.h
    int32_t       (*vocab_n_tokens)(const struct llama_vocab * vocab);
    bool          (*vocab_is_eog)(const struct llama_vocab * vocab, llama_token token);
    int32_t       (*tokenize)(const struct llama_vocab * vocab, const char * text, int32_t text_len,
                              llama_token * tokens, int32_t n_tokens_max, bool add_special, bool parse_special);
    int32_t       (*token_to_piece)(const struct llama_vocab * vocab, llama_token token, char * buf, int32_t length,
                                    int32_t lstrip, bool special);
    int32_t       (*detokenize)(const struct llama_vocab * vocab, const llama_token * tokens, int32_t n_tokens,
                                char * text, int32_t text_len_max, bool remove_special, bool unparse_special);
    struct llama_batch (*batch_init)(int32_t n_tokens, int32_t embd, int32_t n_seq_max);
    void          (*batch_free)(struct llama_batch batch);
    int32_t       (*decode)(struct llama_context * ctx, struct llama_batch batch);
    float *       (*get_logits_ith)(struct llama_context * ctx, int32_t i);
    float *       (*get_embeddings_ith)(struct llama_context * ctx, int32_t i);
    uint32_t      (*n_ctx)(const struct llama_context * ctx);
    uint32_t      (*n_batch)(const struct llama_context * ctx);
    llama_memory_t (*get_memory)(const struct llama_context * ctx);
    void          (*memory_clear)(llama_memory_t mem, bool data);
    bool          (*memory_seq_rm)(llama_memory_t mem, llama_seq_id seq_id, llama_pos p0, llama_pos p1);
    void          (*memory_seq_cp)(llama_memory_t mem, llama_seq_id src, llama_seq_id dst, llama_pos p0, llama_pos p1);
    llama_pos     (*memory_seq_pos_max)(llama_memory_t mem, llama_seq_id seq_id);
    llama_token   (*sampler_sample)(struct llama_sampler * smpl, struct llama_context * ctx, int32_t idx);

    // Since 1.1. Before a call of llama_decode or llama_encode, which may move the output buffer: Python's arrays on it
    // get memory of their own, and llama.cpp forgets its outputs then. Between acquire and release. GIL
    int (*begin_raw)(struct _object * context);
};

#ifdef Py_PYTHON_H
// The table of the installed pyllm; NULL with an exception set where there is none, or one of another major version.
static inline const struct pyllm_api * pyllm_import(void) {
    const struct pyllm_api * api = (const struct pyllm_api *) PyCapsule_Import(PYLLM_API_CAPSULE, 0);
    if (api != NULL && (api->abi_major != PYLLM_API_MAJOR || api->abi_minor < PYLLM_API_MINOR)) {
        PyErr_Format(PyExc_ImportError, "this module was compiled for version %d.%d of pyllm's C API, and pyllm %s has %u.%u",
                     PYLLM_API_MAJOR, PYLLM_API_MINOR, api->version, (unsigned) api->abi_major, (unsigned) api->abi_minor);
        return NULL;
    }
    return api;
}
#endif

#ifdef __cplusplus
}
#endif
#endif
