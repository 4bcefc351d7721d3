// The host code of the CUDA operators for CPU tensors, to be linked with emulated kernels.
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include "cuda_runtime.h"

namespace torch::stable::accelerator {

struct NoGuard {
  explicit NoGuard(int32_t) {}
};

}  // namespace torch::stable::accelerator

inline int no_stream(int32_t, void** stream) {
  *stream = nullptr;
  return 0;
}

// Whether blocks and threads run in the opposite order.
extern "C" __attribute__((visibility("default"))) void reverse_order(int is_reversed) {
  emulated::machine().is_reversed = is_reversed != 0;
}

#define CUDA CPU
#define DeviceGuard NoGuard
#define aoti_torch_get_current_cuda_stream no_stream
#include "../../deformable_attention_cuda/deformable_attention_cuda.cpp"
