// What stands in for the PTX of mma.cuh.
#pragma once

#include <stdint.h>

void cuda_host_mma_bf16(float d[4], const uint32_t a[4], const uint32_t b[2]);
void cuda_host_load_matrices(uint32_t r[4], const void *row, bool transposed);
void cuda_host_copy_ahead(void *shared, const void *global, bool valid);
void cuda_host_copy_group();
void cuda_host_copy_wait(int left);
