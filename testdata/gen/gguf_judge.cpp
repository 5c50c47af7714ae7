// The reference's verdict on GGUF files: reads records (u32 length, bytes) from
// standard input and writes a line for each: what the reader says to the header
// alone, what it says when it loads the data too ("accept", "reject" or "abort"
// if a failed assertion ends it), and its first message. Built and called by
// gguf_golden.py.
#include "ggml.h"
#include "gguf.h"

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <sys/wait.h>
#include <unistd.h>
#include <vector>

static std::string messages;

static void listen(ggml_log_level, const char * text, void *) { messages += text; }

// Reads the file in a process of its own and gives the verdict; what is logged goes to first.
static const char * verdict(const std::vector<uint8_t> & file, bool load, std::string & first) {
    int ends[2];
    if (pipe(ends) != 0) {
        return "broken";
    }
    pid_t child = fork();
    if (child == 0) {
        ggml_context * data = nullptr;
        gguf_init_params params = {!load, load ? &data : nullptr};
        gguf_context * ctx = gguf_init_from_buffer(file.data(), file.size() - 1, params);
        ssize_t ignored = write(ends[1], messages.data(), messages.size() < 4096 ? messages.size() : 4096);
        (void) ignored;
        _exit(ctx ? 0 : 1);
    }
    close(ends[1]);
    char text[4096];
    ssize_t n = read(ends[0], text, sizeof(text));
    close(ends[0]);
    first = std::string(text, n > 0 ? n : 0);
    first = first.substr(0, first.find('\n'));
    int status = 0;
    waitpid(child, &status, 0);
    return !WIFEXITED(status) ? "abort" : WEXITSTATUS(status) == 0 ? "accept" : "reject";
}

int main() {
    ggml_log_set(listen, nullptr);
    setenv("GGML_NO_BACKTRACE", "1", 1);  // it would be printed among the verdicts
    uint32_t length;
    while (fread(&length, sizeof(length), 1, stdin) == 1) {
        std::vector<uint8_t> file(length + 1);  // never empty: the reader wants a pointer
        if (fread(file.data(), 1, length, stdin) != length) {
            return 1;
        }
        std::string first, ignored;
        const std::string header = verdict(file, false, first);
        const std::string whole = header == "accept" ? verdict(file, true, ignored) : header;
        for (char & c : first) {
            if (c < ' ' || c > '~') {
                c = '?';
            }
        }
        printf("%s\t%s\t%s\n", header.c_str(), whole.c_str(), first.c_str());
        fflush(stdout);
    }
}
