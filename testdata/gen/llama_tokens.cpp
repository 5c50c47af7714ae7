// What llama.cpp makes of texts: reads records (u32 length, bytes) from standard input and
// writes a line of ids for each, first without the tokens around it and with control tokens
// as text, then with both. Built and called by llama_tokens.py.
//
//     tokens VOCABULARY.gguf
//
// Without a file: what it knows of every character (flags, lower case, first character of
// what it decomposes to), a line for each.
#include <cstdint>
#include <cstdio>
#include <string>
#include <vector>

#include "llama.h"
#include "unicode.h"

static void silent(enum ggml_log_level, const char *, void *) {}

static void characters() {
    for (uint32_t c = 0; c < 0x110000; c++) {
        printf("%d %x %x\n", unicode_cpt_flags_from_cpt(c).as_uint(), unicode_tolower(c), unicode_cpts_normalize_nfd({c})[0]);
    }
}

int main(int argc, char ** argv) {
    if (argc < 2) {
        characters();
        return 0;
    }
    llama_log_set(silent, nullptr);
    llama_model_params params = llama_model_default_params();
    params.vocab_only = true;
    llama_model * model = llama_model_load_from_file(argv[1], params);
    if (!model) return 1;
    const llama_vocab * vocabulary = llama_model_get_vocab(model);
    uint32_t length;
    while (fread(&length, sizeof(length), 1, stdin) == 1) {
        std::string text(length, 0);
        if (fread(&text[0], 1, length, stdin) != length) return 2;
        for (bool both : {false, true}) {
            std::vector<llama_token> ids(4 * text.size() + 16);
            const int n = llama_tokenize(vocabulary, text.data(), text.size(), ids.data(), ids.size(), both, both);
            if (n < 0) return 3;
            for (int i = 0; i < n; i++) {
                printf(i ? " %d" : "%d", ids[i]);
            }
            printf("\n");
        }
    }
}
