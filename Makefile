# make demo    build the binary and run a real merge on the sample in testdata
# make test    every test; needs nothing but Go
# make lint    gofmt, vet, staticcheck
# make peers   regenerate the golden data with PEFT and compare live (needs Python)
#              VLLM=, LLAMA=, LLAMA_BIN=: see testdata/gen/consumers.py, which says what it leaves unchecked without them
#              LLAMA_QUANTIZE=llama-quantize of llama.cpp v0.5.0 compares GGUF files, too,
#              GGUF_MODEL=a real model, with LLAMA and LLAMA_BIN, merges into it and what the runtime makes of them
# make bench   measure speed and memory against cp (docs/performance.md)
# make bench-c measure kernels against OpenBLAS and torch (needs cgo; OPENBLAS=folder of the library)

GO     ?= go
PYTHON ?= python3
BIN    := bin/loratool

.PHONY: build demo test lint peers bench bench-c fuzz docs

build:
	CGO_ENABLED=0 $(GO) build -trimpath -o $(BIN) ./cmd/loratool

demo: build
	@rm -rf bin/demo
	$(BIN) merge --base testdata/demo/base --adapter testdata/demo/adapter -o bin/demo --dry-run
	$(BIN) merge --base testdata/demo/base --adapter testdata/demo/adapter -o bin/demo --verify
	$(BIN) inspect bin/demo

test:
	$(GO) test ./...

lint:
	@out=$$(gofmt -l $$(git ls-files '*.go')); if [ -n "$$out" ]; then echo "gofmt: $$out"; exit 1; fi
	$(GO) vet ./...
	$(GO) run honnef.co/go/tools/cmd/staticcheck@v0.8.2 ./...

peers: build
	$(PYTHON) testdata/gen/peers.py --loratool $(BIN)
	$(PYTHON) testdata/gen/extract_peers.py --loratool $(BIN)
	$(PYTHON) testdata/gen/consumers.py --loratool $(BIN) --vllm "$(VLLM)" --llama "$(LLAMA)" --llama-bin "$(LLAMA_BIN)"
	$(PYTHON) testdata/gen/bnb_golden.py --check
	$(PYTHON) testdata/gen/bnb_peers.py --loratool $(BIN)
	$(PYTHON) testdata/gen/loftq_peers.py --loratool $(BIN)
	$(PYTHON) testdata/gen/tokenizer_peers.py
	$(PYTHON) testdata/gen/to_hf_peers.py --loratool $(BIN) $(if $(GGUF_MODEL),--model "$(GGUF_MODEL)")
	@if [ -n "$(LLAMA)" ] && [ -n "$(LLAMA_BIN)" ]; then $(PYTHON) testdata/gen/convert_peers.py --loratool $(BIN) --llama "$(LLAMA)" --libs "$(LLAMA_BIN)" \
	  && $(PYTHON) testdata/gen/adapter_gguf_peers.py --loratool $(BIN) --llama "$(LLAMA)" --libs "$(LLAMA_BIN)"; \
	else echo "GGUF: conversions not run; LLAMA=source of llama.cpp v0.5.0, LLAMA_BIN=its libraries"; fi
	@if [ -n "$(LLAMA_QUANTIZE)" ]; then $(PYTHON) testdata/gen/ggufquant_peers.py --loratool $(BIN) --quantize "$(LLAMA_QUANTIZE)"; \
	else echo "GGUF: not compared; LLAMA_QUANTIZE=llama-quantize of llama.cpp v0.5.0"; fi
	@if [ -n "$(GGUF_MODEL)" ]; then $(PYTHON) testdata/gen/forward_peers.py --loratool $(BIN) --model "$(GGUF_MODEL)"; fi
	@if [ -n "$(GGUF_MODEL)" ]; then $(PYTHON) testdata/gen/gguf_merge_peers.py --loratool $(BIN) --model "$(GGUF_MODEL)" --llama "$(LLAMA)" --libs "$(LLAMA_BIN)"; \
	else echo "GGUF: merges not compared; GGUF_MODEL=a real model, with LLAMA and LLAMA_BIN"; fi

bench:
	$(GO) run ./internal/bench $(ARGS)

bench-c:
	cd bench && $(GO) run . --openblas "$(OPENBLAS)" --python "$(PYTHON)" $(ARGS)

docs:
	$(GO) run ./internal/docgen docs/cli schemas

# Each fuzz target for a while; FUZZTIME=10m for longer.
FUZZTIME ?= 30s
fuzz:
	@for pkg in $$($(GO) list ./...); do \
	  for f in $$($(GO) test -list '^Fuzz' $$pkg | grep '^Fuzz'); do \
	    $(GO) test -run '^$$' -fuzz "^$$f$$" -fuzztime $(FUZZTIME) $$pkg || exit 1; \
	  done; \
	done
