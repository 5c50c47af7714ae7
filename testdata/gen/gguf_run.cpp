// Runs a GGUF model, with or without a LoRA adapter, for gguf_merge_peers.py: prints the
// number of tokens of a prompt and of the vocabulary, the logits behind each token, and
// the text that follows when the likeliest token is taken each time.
//
//     run MODEL [ADAPTER]
#include <algorithm>
#include <cstdio>
#include <string>
#include <vector>

#include "ggml-cpu.h"
#include "llama.h"

static const char * prompt = "The capital of France is a city on the river Seine. It is known for";

static void silent(enum ggml_log_level, const char *, void *) {}

int main(int argc, char ** argv) {
    llama_log_set(silent, nullptr);
    ggml_backend_register(ggml_backend_cpu_reg());
    llama_model * model = llama_model_load_from_file(argv[1], llama_model_default_params());
    if (!model) return 1;
    llama_context_params params = llama_context_default_params();
    params.n_ctx = 256;
    params.n_threads = params.n_threads_batch = 2;
    llama_context * context = llama_init_from_model(model, params);
    if (argc > 2) {
        llama_adapter_lora * lora = llama_adapter_lora_init(model, argv[2]);
        float scale = 1;
        if (!lora || llama_set_adapters_lora(context, &lora, 1, &scale) != 0) return 2;
    }
    const llama_vocab * vocabulary = llama_model_get_vocab(model);
    const int size = llama_vocab_n_tokens(vocabulary);
    std::vector<llama_token> tokens(64);
    const std::string text(prompt);
    tokens.resize(llama_tokenize(vocabulary, text.data(), text.size(), tokens.data(), tokens.size(), true, false));

    const int n = tokens.size();
    fwrite(&n, 4, 1, stdout);
    fwrite(&size, 4, 1, stdout);
    llama_batch batch = llama_batch_init(n, 0, 1);
    for (int i = 0; i < n; i++) {
        batch.token[i] = tokens[i];
        batch.pos[i] = i;
        batch.n_seq_id[i] = 1;
        batch.seq_id[i][0] = 0;
        batch.logits[i] = true;
    }
    batch.n_tokens = n;
    if (llama_decode(context, batch) != 0) return 3;
    for (int i = 0; i < n; i++) {
        fwrite(llama_get_logits_ith(context, i), 4, size, stdout);
    }
    int last = n - 1;
    for (int step = 0; step < 32; step++) {
        const float * logits = llama_get_logits_ith(context, last);
        llama_token next = std::max_element(logits, logits + size) - logits;
        char piece[256];
        fwrite(piece, 1, llama_token_to_piece(vocabulary, next, piece, sizeof piece, 0, true), stdout);
        batch.token[0] = next;
        batch.pos[0] = n + step;
        batch.n_tokens = 1;
        batch.logits[0] = true;
        if (llama_decode(context, batch) != 0) return 4;
        last = 0;
    }
    return 0;
}
