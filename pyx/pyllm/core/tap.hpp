// What looks into the graph of a context while it is computed: reads tensors by name, and writes what hooks made of them.
#pragma once

#include <cstdint>
#include <cstring>
#include <exception>
#include <stdexcept>
#include <string>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "ggml-backend.h"
#include "ggml.h"

namespace pyllm {

struct tap {
    // A node of the graph, as the listing shows it. Names repeat, so the n-th of a name has the occurrence n.
    struct node {
        std::string name;
        std::string op;
        int         occurrence;
        int         type;
        int64_t     ne[4];
        float       param;  // the first parameter of the operation: the scale of a softmax
    };

    // The values of one tensor, as float32 in the order of ggml: the first dimension is the fastest.
    struct piece {
        int                slot;
        int                type;
        int64_t            ne[4];
        std::vector<float> data;
    };

    struct want {
        int  occurrence;
        int  slot;
        bool read;
        bool hook;
    };

    struct entry {
        int               seen = 0;
        std::vector<want> wants;
    };

    // Takes the GIL. 0: nothing changed, 1: `data` is to be written back, -1: give up.
    int (*hook)(void * owner, int slot, float * data, const int64_t * ne) = nullptr;
    void * owner = nullptr;

    bool active  = false;
    bool listing = false;
    bool failed  = false;

    std::unordered_map<std::string, entry> entries;
    std::unordered_map<std::string, int>   seen;
    std::unordered_set<std::string>        names;  // all names of the first graph, to tell the nearest ones
    std::vector<node>                      nodes;
    std::vector<piece>                     pieces;
    std::vector<int32_t>                   tokens;  // what the graph looked up, in the order of its rows
    std::vector<uint8_t>                   raw;
    std::string                            error;
    entry *                                pending            = nullptr;
    int                                    pending_occurrence = 0;
    bool                                   has_tokens         = false;
    bool                                   names_known        = false;

    void reset() {
        active = listing = failed = has_tokens = false;
        pending = nullptr;
        entries.clear();
        seen.clear();
        nodes.clear();
        pieces.clear();
        tokens.clear();
        error.clear();
    }

    // How often the graph has computed a tensor of this name, of those that were asked for.
    int count(const std::string & name) const {
        const auto found = entries.find(name);
        return found == entries.end() ? 0 : found->second.seen;
    }

    void add(const std::string & name, int occurrence, int slot, bool read, bool with_hook) {
        entries[name].wants.push_back({ occurrence, slot, read, with_hook });
    }

    // Given to llama.cpp. Without the GIL; a node that nobody asked for costs one look into a hash table.
    static bool callback(ggml_tensor * t, bool ask, void * data) {
        tap & self = *static_cast<tap *>(data);
        if (!self.active || self.failed) {
            return !ask;
        }
        try {
            return ask ? self.asked(t) : self.computed(t);
        } catch (const std::exception & e) {
            self.error  = e.what();
            self.failed = true;
        }
        return !ask;
    }

    bool asked(ggml_tensor * t) {
        if (!has_tokens) {
            look_for_tokens(t);
        }
        if (listing) {
            node n;
            n.name       = t->name;
            n.op         = ggml_op_desc(t);
            n.occurrence = seen[n.name]++;
            n.type       = t->type;
            memcpy(n.ne, t->ne, sizeof(n.ne));
            memcpy(&n.param, t->op_params, sizeof(n.param));
            nodes.push_back(n);
        }
        if (!names_known) {
            names.insert(t->name);
        }
        pending         = nullptr;
        const auto found = entries.find(t->name);
        if (found == entries.end()) {
            return false;
        }
        const int occurrence = found->second.seen++;
        for (const want & w : found->second.wants) {
            if (w.occurrence == occurrence) {
                pending            = &found->second;
                pending_occurrence = occurrence;
                return true;
            }
        }
        return false;
    }

    // The rows of the token embeddings are looked up by the first node: its index says which token is in which row.
    void look_for_tokens(const ggml_tensor * t) {
        for (const ggml_tensor * source : t->src) {
            if (source != nullptr && source->op == GGML_OP_NONE && source->type == GGML_TYPE_I32 &&
                strstr(source->name, "inp_tokens") != nullptr && ggml_is_contiguous(source)) {
                tokens.resize(ggml_nelements(source));
                ggml_backend_tensor_get(source, tokens.data(), 0, ggml_nbytes(source));
                has_tokens = true;
                return;
            }
        }
    }

    bool computed(ggml_tensor * t) {
        if (pending == nullptr || ggml_nelements(t) == 0) {
            return true;
        }
        std::vector<float> values(ggml_nelements(t));
        load(t, values.data());
        for (const want & w : pending->wants) {
            if (w.occurrence != pending_occurrence) {
                continue;
            }
            if (w.hook) {
                const int answer = hook(owner, w.slot, values.data(), t->ne);
                if (answer < 0) {
                    failed = true;
                    return true;
                }
                if (answer > 0) {
                    store(t, values.data());
                    load(t, values.data());  // rounded to the type of the tensor
                }
            }
        }
        for (const want & w : pending->wants) {
            if (w.occurrence == pending_occurrence && w.read) {
                piece p;
                p.slot = w.slot;
                p.type = t->type;
                memcpy(p.ne, t->ne, sizeof(p.ne));
                p.data = values;
                pieces.push_back(std::move(p));
            }
        }
        return true;
    }

    // Calls f(offset in bytes, index in the result) for every row along the first dimension.
    template <typename F> static void rows(const ggml_tensor * t, F f) {
        int64_t index = 0;
        for (int64_t i3 = 0; i3 < t->ne[3]; ++i3) {
            for (int64_t i2 = 0; i2 < t->ne[2]; ++i2) {
                for (int64_t i1 = 0; i1 < t->ne[1]; ++i1) {
                    f(i1 * t->nb[1] + i2 * t->nb[2] + i3 * t->nb[3], index);
                    index += t->ne[0];
                }
            }
        }
    }

    void load(const ggml_tensor * t, float * out) {
        if (t->type == GGML_TYPE_F32 && ggml_is_contiguous(t)) {
            ggml_backend_tensor_get(t, out, 0, ggml_nbytes(t));
            return;
        }
        raw.resize(ggml_nbytes(t));
        ggml_backend_tensor_get(t, raw.data(), 0, raw.size());
        const int64_t n = t->ne[0];
        rows(t, [&](size_t offset, int64_t index) {
            const uint8_t * row = raw.data() + offset;
            if (ggml_is_quantized(t->type)) {
                ggml_get_type_traits(t->type)->to_float(row, out + index, n);
                return;
            }
            for (int64_t i = 0; i < n; ++i) {
                out[index + i] = element(t->type, row + i * t->nb[0]);
            }
        });
    }

    // Integers are indices, of experts for example, and ggml does not check all of those that it uses.
    static void check_indices(const ggml_tensor * t, const float * in) {
        const ggml_tensor * root = t->view_src != nullptr ? t->view_src : t;
        if (root->op != GGML_OP_ARGSORT && root->op != GGML_OP_TOP_K) {
            throw std::runtime_error(std::string("a tensor of integers cannot be changed: ") + t->name);
        }
        const int64_t limit = root->src[0]->ne[0];
        for (int64_t i = 0; i < ggml_nelements(t); ++i) {
            if (!(in[i] >= 0 && in[i] < (float) limit) || in[i] != (float) (int64_t) in[i]) {
                throw std::runtime_error(
                    std::string(t->name) + " holds indices from 0 to " + std::to_string(limit - 1) + ", and a hook made " +
                    std::to_string(in[i]) + " of one"
                );
            }
        }
    }

    void store(ggml_tensor * t, const float * in) {
        if (t->type == GGML_TYPE_I8 || t->type == GGML_TYPE_I16 || t->type == GGML_TYPE_I32 || t->type == GGML_TYPE_I64) {
            check_indices(t, in);
        }
        if (t->type == GGML_TYPE_F32 && ggml_is_contiguous(t)) {
            ggml_backend_tensor_set(t, in, 0, ggml_nbytes(t));
            return;
        }
        raw.resize(ggml_nbytes(t));
        // What lies between the rows of a view belongs to others and is written back as it was.
        ggml_backend_tensor_get(t, raw.data(), 0, raw.size());
        rows(t, [&](size_t offset, int64_t index) {
            for (int64_t i = 0; i < t->ne[0]; ++i) {
                set_element(t->type, raw.data() + offset + i * t->nb[0], in[index + i]);
            }
        });
        ggml_backend_tensor_set(t, raw.data(), 0, raw.size());
    }

    template <typename T> static T as(const uint8_t * p) {
        T value;
        memcpy(&value, p, sizeof(value));
        return value;
    }

    template <typename T> static void put(uint8_t * p, T value) { memcpy(p, &value, sizeof(value)); }

    static float element(ggml_type type, const uint8_t * p) {
        switch (type) {
            case GGML_TYPE_F32:  return as<float>(p);
            case GGML_TYPE_F16:  return ggml_fp16_to_fp32(as<ggml_fp16_t>(p));
            case GGML_TYPE_BF16: return ggml_bf16_to_fp32(as<ggml_bf16_t>(p));
            case GGML_TYPE_F64:  return (float) as<double>(p);
            case GGML_TYPE_I8:   return as<int8_t>(p);
            case GGML_TYPE_I16:  return as<int16_t>(p);
            case GGML_TYPE_I32:  return (float) as<int32_t>(p);
            case GGML_TYPE_I64:  return (float) as<int64_t>(p);
            default:             throw std::runtime_error(std::string("cannot read a tensor of type ") + ggml_type_name(type));
        }
    }

    static void set_element(ggml_type type, uint8_t * p, float value) {
        switch (type) {
            case GGML_TYPE_F32:  put(p, value); break;
            case GGML_TYPE_F16:  put(p, ggml_fp32_to_fp16(value)); break;
            case GGML_TYPE_BF16: put(p, ggml_fp32_to_bf16(value)); break;
            case GGML_TYPE_F64:  put(p, (double) value); break;
            case GGML_TYPE_I8:   put(p, (int8_t) value); break;
            case GGML_TYPE_I16:  put(p, (int16_t) value); break;
            case GGML_TYPE_I32:  put(p, (int32_t) value); break;
            case GGML_TYPE_I64:  put(p, (int64_t) value); break;
            default:             throw std::runtime_error(std::string("cannot write a tensor of type ") + ggml_type_name(type));
        }
    }
};

}  // namespace pyllm
