# graft: see README.md.
#   make              build/graft                  make quickstart   train on a real base, show before and after
#   make test         everything, no network needed     make test-peers   live comparison with PEFT and llama.cpp
#   make test-real    real bases end to end, beside PEFT  make test-release  long fuzzing, many kills (hours)
CC      ?= gcc
BUILD   ?= build
PREFIX  ?= /usr/local
VENV     = $(or $(GRAFT_VENV),build/venv)
OPT     ?= -O2
SAN     ?=
WARN     = -Wall -Wextra -Werror -Wshadow -Wstrict-prototypes -Wmissing-prototypes -Wvla
CFLAGS  += -std=c11 -D_GNU_SOURCE -g $(OPT) $(WARN) -ffp-contract=off -fno-math-errno -I. -MMD -MP
LDLIBS   = -lcjson -lyaml -lpcre2-8 -lutf8proc -lcrypto -lm -lpthread -ldl -rdynamic
AVX2     = -O3 -mavx2 -mfma -mf16c -DVEC_AVX2
AVX512   = -O3 -mavx512f -mavx512bw -mavx512vl -mavx512dq -mavx2 -mfma -mf16c -DVEC_AVX512
FOLDERS  = kernels kernels/cpu kernels/meta kernels/late autograd model data configs adapters train

FAST     = $(wildcard kernels/cpu/*_fast.c)
BF16     = $(wildcard kernels/cpu/*_bf16.c)
SOURCES  = $(filter-out %_fast.c %_bf16.c train/main.c,$(wildcard $(FOLDERS:%=%/*.c))) $(wildcard kernels/cuda/*_plan.c)
OBJECTS  = $(SOURCES:%.c=$(BUILD)/%.o) $(FAST:%.c=$(BUILD)/%.c.o) $(FAST:%.c=$(BUILD)/%.avx2.o) \
           $(FAST:%.c=$(BUILD)/%.avx512.o) $(BF16:%.c=$(BUILD)/%.bf16.o)
TESTS    = $(patsubst tests/%.c,$(BUILD)/tests/%,$(wildcard tests/test_*.c))
PEERS    = $(patsubst tests/%.c,$(BUILD)/tests/%,$(wildcard tests/peers/*.c))
FUZZERS  = $(patsubst tests/fuzz/fuzz_%.c,%,$(wildcard tests/fuzz/fuzz_*.c))
SUITES   = $(wildcard tests/test_*.py)
SCRIPTED = $(filter-out tests/test_program.py,$(SUITES))

all: $(BUILD)/graft

$(BUILD)/libgraft.a: $(OBJECTS)
	@rm -f $@ && ar rcs $@ $^
$(BUILD)/graft: $(BUILD)/train/main.o $(BUILD)/libgraft.a
	@echo link $@
	@$(CC) $(CFLAGS) $(SAN) -o $@ $^ $(LDLIBS)
$(BUILD)/%.o: %.c
	@mkdir -p $(@D) && echo cc $<
	@$(CC) $(CFLAGS) $(SAN) -c -o $@ $<
# Fast kernels are compiled once per instruction set; which one runs is decided by cpuid. They see no file, and sanitizers
# would make their compilation take minutes: they go without.
$(BUILD)/%.c.o: %.c
	@mkdir -p $(@D) && echo cc $<
	@$(CC) $(CFLAGS) -O3 -c -o $@ $<
$(BUILD)/%.avx2.o: %.c
	@mkdir -p $(@D) && echo cc $< "(avx2)"
	@$(CC) $(CFLAGS) $(AVX2) -c -o $@ $<
$(BUILD)/%.avx512.o: %.c
	@mkdir -p $(@D) && echo cc $< "(avx512)"
	@$(CC) $(CFLAGS) $(AVX512) -c -o $@ $<
$(BUILD)/%.bf16.o: %.c
	@mkdir -p $(@D) && echo cc $< "(avx512bf16)"
	@$(CC) $(CFLAGS) $(AVX512) -mavx512bf16 -c -o $@ $<
$(BUILD)/tests/%: tests/%.c $(BUILD)/tests/harness.o $(BUILD)/tests/tiny.o $(BUILD)/libgraft.a
	@mkdir -p $(@D) && echo cc $<
	@$(CC) $(CFLAGS) $(SAN) -o $@ $(filter %.c %.o %.a,$^) $(LDLIBS)
# A fuzz target that runs over files instead of a fuzzer's inputs, and the program that writes seeds.
$(BUILD)/replay/%: tests/fuzz/fuzz_%.c tests/fuzz/replay.c $(BUILD)/libgraft.a
	@mkdir -p $(@D) && echo cc $<
	@$(CC) $(CFLAGS) $(SAN) -o $@ $(filter %.c %.a,$^) $(LDLIBS)
$(BUILD)/replay_seeds: tests/fuzz/seeds.c $(BUILD)/libgraft.a
	@echo cc $< && $(CC) $(CFLAGS) $(SAN) -o $@ $(filter %.c %.a,$^) $(LDLIBS)
$(BUILD)/bench/%: bench/%.c $(BUILD)/libgraft.a
	@mkdir -p $(@D) && echo cc $<
	@$(CC) $(CFLAGS) $(SAN) -o $@ $(filter %.c %.o %.a,$^) $(LDLIBS)

# The CUDA plug-in: for GPUs, and once more for the host, where its kernels run without one (tests/cuda_host).
include kernels/cuda/rules.mk

programs: $(BUILD)/graft $(BUILD)/cuda_host/libgraft_cuda.so $(TESTS) $(PEERS) $(BUILD)/tests/make_tiny
# The same program under AddressSanitizer and UndefinedBehaviorSanitizer: the suites of bad input and fuzz seeds run on it.
sanitized:
	@$(MAKE) --no-print-directory CC=clang BUILD=$(BUILD)/asan OPT=-O1 SAN="-fsanitize=address,undefined -fno-sanitize-recover=all" \
	    $(BUILD)/asan/graft $(BUILD)/asan/tests/make_tiny $(BUILD)/asan/replay_seeds $(FUZZERS:%=$(BUILD)/asan/replay/%) \
	    $(patsubst %,$(BUILD)/asan/tests/%,test_gguf test_safetensors test_json test_config test_dataset test_adapter_files test_quant_tables test_base_files test_tokenizer_folders test_packed_checkpoints test_hostile_bases test_gguf_export test_gguf_vocabulary)

deps:
	@bash tests/deps.sh
base: deps
	@bash tests/peers/base.sh
test: deps
	@$(MAKE) --no-print-directory -j2 programs && $(MAKE) --no-print-directory -j2 sanitized
	@BUILD=$(BUILD) bash tests/run.sh $(TESTS) $(SUITES) tests/sanitized.sh
test-peers: base
	@$(MAKE) --no-print-directory -j2 programs
	@bash tests/peers/run.sh
test-real: base # real bases from end to end; fetches Gemma 3 270M (253 MB)
	@$(MAKE) --no-print-directory -j2 programs && bash tests/peers/base.sh gemma && bash tests/peers/run.sh real
test-gpu: cuda # the backend's tests on the first GPU
	@$(MAKE) --no-print-directory -j2 programs
	@GRAFT_TEST_GPU=1 BUILD=$(BUILD) bash tests/run.sh $(BUILD)/tests/test_cuda $(BUILD)/tests/test_cuda_decode $(BUILD)/tests/test_cuda_families tests/test_cuda_program.py
test-release: test # hours: fuzzers, many kills
	@BUILD=$(BUILD) bash tests/release.sh
fixtures: base # committed expectations and tables, made again by the pinned versions of the peers
	@$(MAKE) --no-print-directory -j2 programs && bash tests/peers/venv.sh
	@$(VENV)/bin/python tests/peers/iq_grids.py > kernels/quant_iq_grids.c
	@$(VENV)/bin/python tests/peers/templates.py --dump $(BUILD)/tests/peers/templates_dump --golden tests/fixtures/templates.json
	@$(VENV)/bin/python tests/peers/tokens.py --dump $(BUILD)/tests/peers/tokens_dump --gguf cache/SmolLM2-135M-Instruct.Q4_1.gguf \
	    --golden tests/fixtures/tokens.json
	@$(VENV)/bin/python tests/oracle/tokenizer_folders.py --out tests/fixtures/tokenizers
	@$(VENV)/bin/python tests/peers/tables.py --golden tests/fixtures/tables.json
	@bash tests/peers/llama_cpp.sh && $(VENV)/bin/python tests/oracle/families.py tests/fixtures/families
	@$(VENV)/bin/python tests/oracle/gguf_families.py --fixtures cache/llama.cpp-9993 tests/fixtures/families
	@$(VENV)/bin/python tests/peers/quantized.py --golden tests/fixtures/quantized.json
	@$(VENV)/bin/python tests/oracle/shapes.py --golden tests/fixtures/shapes.json # ten minutes: DeepSeek V3 has 44,544 experts
quickstart: base
	@$(MAKE) --no-print-directory -j2 all
	@bash examples/orders/quickstart.sh
config-docs: $(BUILD)/graft
	@$(BUILD)/graft help --markdown > docs/config.md
format:
	@git ls-files -co --exclude-standard '*.c' '*.h' '*.cu' '*.cuh' '*.cpp' | xargs clang-format -i
install: $(BUILD)/graft
	@install -D $(BUILD)/graft $(DESTDIR)$(PREFIX)/bin/graft && echo $(DESTDIR)$(PREFIX)/bin/graft
clean:
	@rm -rf $(BUILD)

-include $(shell find $(BUILD) -name '*.d' 2>/dev/null)
.PHONY: all programs sanitized deps base test test-peers test-real test-gpu test-release fixtures quickstart config-docs format install clean
.SECONDARY:
