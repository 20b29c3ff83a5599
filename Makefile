# graft: see README.md. `make` builds build/graft; `make test` runs everything that needs no network.
CC      ?= gcc
BUILD   ?= build
OPT     ?= -O2
WARN     = -Wall -Wextra -Werror -Wshadow -Wstrict-prototypes -Wmissing-prototypes -Wvla
CFLAGS  += -std=c11 -D_GNU_SOURCE -g $(OPT) $(WARN) -ffp-contract=off -fno-math-errno -I. -MMD -MP $(SAN)
LDLIBS   = -lcjson -lyaml -lpcre2-8 -lutf8proc -lcrypto -lm -lpthread
SAN     ?=

SOURCES  = $(filter-out %_fast.c train/main.c,$(wildcard kernels/*.c kernels/*/*.c autograd/*.c model/*.c data/*.c configs/*.c adapters/*.c train/*.c))
FAST     = $(wildcard kernels/cpu/*_fast.c)
OBJECTS  = $(SOURCES:%.c=$(BUILD)/%.o) $(FAST:%.c=$(BUILD)/%.c.o) $(FAST:%.c=$(BUILD)/%.avx2.o) $(FAST:%.c=$(BUILD)/%.avx512.o)
TESTS    = $(patsubst tests/%.c,$(BUILD)/tests/%,$(wildcard tests/test_*.c))

all: $(BUILD)/graft

$(BUILD)/libgraft.a: $(OBJECTS)
	@rm -f $@ && ar rcs $@ $^
$(BUILD)/graft: $(BUILD)/train/main.o $(BUILD)/libgraft.a
	$(CC) $(CFLAGS) -o $@ $^ $(LDLIBS)
$(BUILD)/%.o: %.c
	@mkdir -p $(@D)
	$(CC) $(CFLAGS) -c -o $@ $<
# Fast kernels are compiled once per instruction set; which one runs is decided by cpuid.
$(BUILD)/%.c.o: %.c
	@mkdir -p $(@D)
	$(CC) $(CFLAGS) -O3 -c -o $@ $<
$(BUILD)/%.avx2.o: %.c
	@mkdir -p $(@D)
	$(CC) $(CFLAGS) -O3 -mavx2 -mfma -mf16c -DVEC_AVX2 -c -o $@ $<
$(BUILD)/%.avx512.o: %.c
	@mkdir -p $(@D)
	$(CC) $(CFLAGS) -O3 -mavx512f -mavx512bw -mavx512vl -mavx512dq -mavx2 -mfma -mf16c -DVEC_AVX512 -c -o $@ $<
$(BUILD)/tests/%: tests/%.c $(BUILD)/tests/harness.o $(BUILD)/tests/tiny.o $(BUILD)/libgraft.a
	@mkdir -p $(@D)
	$(CC) $(CFLAGS) -o $@ $(filter %.c %.o %.a,$^) $(LDLIBS)

-include $(shell find $(BUILD) -name '*.d' 2>/dev/null)
.PHONY: all
.SECONDARY:
