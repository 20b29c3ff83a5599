# libgraft_cuda.so: build/ for GPUs (make cuda), build/cuda_host for machines without one. Included by the Makefile.
NVCC     ?= $(shell command -v nvcc || echo /usr/local/cuda/bin/nvcc)
CUDA      = $(abspath $(dir $(NVCC))/..)
CUDA_ARCH = 80 89 90
CUDA_C    = $(wildcard kernels/cuda/*.c) # the plans too, which the program has a copy of
CUDA_CU   = $(wildcard kernels/cuda/*.cu)
CUDA_HOST = $(CUDA_C:%.c=$(BUILD)/cuda_host/%.o) $(CUDA_CU:%.cu=$(BUILD)/cuda_host/%.o) \
            $(patsubst %.cpp,$(BUILD)/cuda_host/%.o,$(wildcard tests/cuda_host/*.cpp))
CUDA_GPU  = $(CUDA_C:%.c=$(BUILD)/cuda/%.o) $(CUDA_CU:%.cu=$(BUILD)/cuda/%.o)
HOST_CXX  = -std=c++20 -g -O1 -Wall -Wextra -Werror -ffp-contract=off -fPIC -Itests/cuda_host/include -I. -MMD -MP
NVFLAGS   = -std=c++20 -O3 -fmad=false -lineinfo -I. -Xcompiler -fPIC,-Wall $(foreach a,$(CUDA_ARCH),-gencode arch=compute_$(a),code=sm_$(a)) \
            -gencode arch=compute_90,code=compute_90

cuda: $(BUILD)/libgraft_cuda.so
cuda_host: $(BUILD)/cuda_host/libgraft_cuda.so
$(BUILD)/libgraft_cuda.so: $(CUDA_GPU) kernels/cuda/rules.mk
	@echo link $@
	@$(NVCC) -shared -cudart static -o $@ $(CUDA_GPU) -L$(CUDA)/lib64 -lcublasLt
$(BUILD)/cuda_host/libgraft_cuda.so: $(CUDA_HOST) kernels/cuda/rules.mk
	@echo link $@
	@$(CXX) -shared -Wl,-Bsymbolic -o $@ $(CUDA_HOST)
$(BUILD)/cuda/%.o: %.c
	@mkdir -p $(@D) && echo cc $<
	@$(CC) $(CFLAGS) -fPIC -isystem $(CUDA)/include -c -o $@ $<
$(BUILD)/cuda/%.o: %.cu
	@mkdir -p $(@D) && echo nvcc $<
	@$(NVCC) $(NVFLAGS) -MMD -c -o $@ $<
$(BUILD)/cuda_host/%.o: %.c
	@mkdir -p $(@D) && echo cc $< "(cuda host)"
	@$(CC) $(CFLAGS) -fPIC -Itests/cuda_host/include -c -o $@ $<
$(BUILD)/cuda_host/%.o: %.cu
	@mkdir -p $(@D) && echo cc $< "(cuda host)"
	@$(CXX) $(HOST_CXX) -x c++ -c -o $@ $<
$(BUILD)/cuda_host/%.o: %.cpp
	@mkdir -p $(@D) && echo cc $<
	@$(CXX) $(HOST_CXX) -c -o $@ $<
.PHONY: cuda cuda_host
