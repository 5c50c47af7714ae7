// Prints what llama.cpp makes of a text: its tokens, then the logits of each of them, one line for each, or with "embed"
// the embedding of the whole text. Built and called by convert_peers.py.
#include "ggml-backend.h"
#include "llama.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <sstream>
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

static void print(const float * values, int n) {
    for (int i = 0; i < n; i++) {
        printf("%.9g ", values[i]);
    }
    printf("\n");
}

int main(int argc, char ** argv) {
    if (argc != 5) {
        fail("usage: llama_outputs BACKENDS MODEL TEXTFILE logits|embed");
    }
    bool embed = strcmp(argv[4], "embed") == 0;
    llama_log_set(listen, nullptr);
    ggml_backend_load_all_from_path(argv[1]);
    llama_model * model = llama_model_load_from_file(argv[2], llama_model_default_params());
    if (!model) {
        fail("the model can't be loaded");
    }
    const llama_vocab * vocab = llama_model_get_vocab(model);
    std::stringstream stream;
    stream << std::ifstream(argv[3]).rdbuf();
    std::string text = stream.str();
    std::vector<llama_token> tokens(text.size() + 8);
    int n = llama_tokenize(vocab, text.data(), (int) text.size(), tokens.data(), (int) tokens.size(), true, true);
    if (n <= 0) {
        fail("the text can't be tokenized");
    }
    tokens.resize(n);
    for (llama_token t : tokens) {
        printf("%d ", t);
    }
    printf("\n");
    llama_context_params params = llama_context_default_params();
    params.n_ctx = params.n_batch = params.n_ubatch = 512;
    params.n_threads = params.n_threads_batch = 1;
    params.type_k = params.type_v = GGML_TYPE_F32; // as torch keeps them
    params.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_DISABLED;
    params.embeddings = embed;
    llama_context * context = llama_init_from_model(model, params);
    if (!context) {
        fail("no context");
    }
    llama_batch batch = llama_batch_init(n, 0, 1);
    for (int i = 0; i < n; i++) {
        batch.token[i] = tokens[i];
        batch.pos[i] = i;
        batch.n_seq_id[i] = 1;
        batch.seq_id[i][0] = 0;
        batch.logits[i] = true;
    }
    batch.n_tokens = n;
    if ((embed ? llama_encode(context, batch) : llama_decode(context, batch)) != 0) {
        fail("decoding fails");
    }
    if (embed) {
        const float * pooled = llama_get_embeddings_seq(context, 0);
        if (!pooled) {
            fail("there is no embedding of the text");
        }
        print(pooled, llama_model_n_embd(model));
        return 0;
    }
    for (int i = 0; i < n; i++) {
        print(llama_get_logits_ith(context, i), llama_vocab_n_tokens(vocab));
    }
}
