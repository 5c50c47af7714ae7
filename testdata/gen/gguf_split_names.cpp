// gguf-split needs two functions of the whole of libllama; this file takes them
// from the source (NAMES is cut out of src/llama.cpp by gguf_golden.py) so that
// ggml-base is all that must be built.
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <string>

#include "llama.h"

const char * llama_version(void) { return ""; }
const char * llama_commit(void) { return ""; }
const char * llama_compiler(void) { return ""; }
const char * llama_build_target(void) { return ""; }
int llama_build_number(void) { return 0; }

#include NAMES
