// A program without Python: tokenizes a text and prints the likeliest next token.
#include <cstdio>
#include <cstring>
#include <vector>

#include "ggml-backend.h"
#include "llama.h"

int main(int argc, char ** argv) {
    if (argc != 3) {
        return 2;
    }
    ggml_backend_load_all_from_path(PYLLM_BACKEND_DIR);
    llama_model * model = llama_model_load_from_file(argv[1], llama_model_default_params());
    if (!model) {
        return 1;
    }
    const llama_vocab * vocab = llama_model_get_vocab(model);
    std::vector<llama_token> tokens(std::strlen(argv[2]) + 8);
    const int n = llama_tokenize(vocab, argv[2], (int) std::strlen(argv[2]), tokens.data(), (int) tokens.size(), true, true);
    llama_context_params params = llama_context_default_params();
    params.n_ctx = 64;
    params.n_threads = params.n_threads_batch = 1;
    llama_context * context = llama_init_from_model(model, params);
    if (!context || n <= 0 || llama_decode(context, llama_batch_get_one(tokens.data(), n)) != 0) {
        return 1;
    }
    const float * row = llama_get_logits_ith(context, -1);
    int best = 0;
    for (int i = 1; i < llama_vocab_n_tokens(vocab); i++) {
        best = row[i] > row[best] ? i : best;
    }
    std::printf("%d %d\n", n, best);
    llama_free(context);
    llama_model_free(model);
    return 0;
}
