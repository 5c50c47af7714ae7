// Prints the logits that llama.cpp computes: model, adapter ("-" for none), tokens. One line for each token.
// Built and called by consumers.py.
#include "ggml-backend.h"
#include "llama.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

static void fail(const char * what) {
    fprintf(stderr, "%s\n", what);
    exit(1);
}

static void listen(ggml_log_level level, const char * text, void *) {
    if (level >= GGML_LOG_LEVEL_WARN) {
        fputs(text, stderr);
    }
}

int main(int argc, char ** argv) {
    if (argc < 5) {
        fail("usage: lora_logits BACKENDS MODEL ADAPTER TOKEN...");
    }
    llama_log_set(listen, nullptr);
    ggml_backend_load_all_from_path(argv[1]);
    llama_model * model = llama_model_load_from_file(argv[2], llama_model_default_params());
    if (!model) {
        fail("the model can't be loaded");
    }
    std::vector<llama_token> tokens;
    for (int i = 4; i < argc; i++) {
        tokens.push_back(atoi(argv[i]));
    }
    llama_context_params params = llama_context_default_params();
    params.n_ctx = params.n_batch = params.n_ubatch = 512;
    params.n_threads = params.n_threads_batch = 1;
    params.type_k = params.type_v = GGML_TYPE_F32; // as torch keeps them
    params.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_DISABLED;
    llama_context * context = llama_init_from_model(model, params);
    if (!context) {
        fail("no context");
    }
    if (strcmp(argv[3], "-") != 0) {
        llama_adapter_lora * adapter = llama_adapter_lora_init(model, argv[3]);
        float scale = 1;
        if (!adapter || llama_set_adapters_lora(context, &adapter, 1, &scale) != 0) {
            fail("the adapter can't be loaded");
        }
    }
    llama_batch batch = llama_batch_init((int) tokens.size(), 0, 1);
    for (size_t i = 0; i < tokens.size(); i++) {
        batch.token[i] = tokens[i];
        batch.pos[i] = (llama_pos) i;
        batch.n_seq_id[i] = 1;
        batch.seq_id[i][0] = 0;
        batch.logits[i] = true;
    }
    batch.n_tokens = (int) tokens.size();
    if (llama_decode(context, batch) != 0) {
        fail("decoding fails");
    }
    int n = llama_vocab_n_tokens(llama_model_get_vocab(model));
    for (size_t i = 0; i < tokens.size(); i++) {
        const float * logits = llama_get_logits_ith(context, (int) i);
        for (int j = 0; j < n; j++) {
            printf("%.9g ", logits[j]);
        }
        printf("\n");
    }
}
