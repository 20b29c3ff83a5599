// Every model family on the CUDA backend (on the host unless GRAFT_TEST_GPU is set): logits, loss and gradients of the
// fixtures that transformers and PEFT made, with recomputed layers; a plan that the backend must keep.
#include "tests/cuda_open.h"
#include "tests/family_list.h"

static void on_device(const char *family, const char *base) {
    cuda_choose_plugin();
    struct parity_setup setup = {.base = base, .device = DEVICE_CUDA, .checkpoint = true, .dtype = DTYPE_F32};
    if (!base) compare(family, &setup, TOLERANCE, TOLERANCE_GRADIENT);
}
TEST(every_family) {
    each_base(on_device);
}

TEST_MAIN(CASE(every_family))
