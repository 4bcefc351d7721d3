// The operators on CUDA: checks, memory and the choice of kernels. They use libtorch's stable ABI
// only, so one build works with several versions of torch.
#include <cstdint>
#include <optional>
#include <tuple>
#include <vector>

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include "../torch-ext/attention_sizes.h"
#include "arguments.h"

namespace deformable_attention {
namespace {

using deformable_attention_cuda::Arguments;
using deformable_attention_cuda::FixedPoint;
using deformable_attention_cuda::kMaxLevels;
using deformable_attention_cuda::Launcher;
using deformable_attention_cuda::Launchers;
using Shapes = std::vector<int64_t>;

struct Inputs {
  Tensor value, points, weights;
  std::optional<Tensor> references;
};

struct Gradients {
  Tensor value, references, points, weights;
};

// Kernels move 16 bytes at a time, but a view may start anywhere.
Tensor align(const Tensor& tensor) {
  Tensor contiguous = torch::stable::contiguous(tensor);
  bool is_aligned = reinterpret_cast<uintptr_t>(contiguous.const_data_ptr()) % 16 == 0;
  return is_aligned ? contiguous : torch::stable::clone(contiguous);
}

Inputs align(const Inputs& inputs) {
  Inputs aligned{align(inputs.value), align(inputs.points), align(inputs.weights), std::nullopt};
  if (inputs.references) aligned.references = align(*inputs.references);
  return aligned;
}

const Launchers& launchers_for(ScalarType type) {
  switch (type) {
    case ScalarType::Float: return deformable_attention_cuda::kFloat32Launchers;
    case ScalarType::Double: return deformable_attention_cuda::kFloat64Launchers;
    case ScalarType::Half: return deformable_attention_cuda::kFloat16Launchers;
    default: return deformable_attention_cuda::kBFloat16Launchers;
  }
}

// Starts one launcher's kernels on the current stream of value's device.
void run(Launcher Launchers::*launcher, const Arguments& args, const Tensor& value) {
  int32_t device = value.get_device_index();
  torch::stable::accelerator::DeviceGuard guard(device);
  void* stream = nullptr;
  STD_TORCH_CHECK(aoti_torch_get_current_cuda_stream(device, &stream) == 0,
                  "the current CUDA stream could not be read");
  const char* error = (launchers_for(value.scalar_type()).*launcher)(args, stream);
  STD_TORCH_CHECK(error == nullptr, "deformable attention did not start: ", error);
}

void check_limits(const AttentionSizes& sizes) {
  constexpr int64_t kInt = INT32_MAX;
  STD_TORCH_CHECK(sizes.levels <= kMaxLevels, "the CUDA kernels take at most ", kMaxLevels,
                  " levels, not ", sizes.levels);
  STD_TORCH_CHECK(sizes.heads <= kInt && sizes.width <= kInt && sizes.points <= kInt &&
                      sizes.heads * sizes.width <= kInt &&
                      sizes.levels * sizes.points <= kInt - kMaxLevels,
                  "the CUDA kernels take less than 2^31 channels and points");
}

Arguments make_arguments(const AttentionSizes& sizes, const Shapes& shapes, const Inputs& inputs) {
  check_limits(sizes);
  Arguments args{};
  args.value = inputs.value.const_data_ptr();
  args.points = inputs.points.const_data_ptr();
  args.weights = inputs.weights.const_data_ptr();
  if (inputs.references) args.reference_points = inputs.references->const_data_ptr();
  args.batch = sizes.batch;
  args.queries = sizes.queries;
  args.tokens = sizes.tokens;
  args.heads = static_cast<int32_t>(sizes.heads);
  args.width = static_cast<int32_t>(sizes.width);
  args.num_levels = static_cast<int32_t>(sizes.levels);
  args.num_points = static_cast<int32_t>(sizes.points);
  args.coordinates = static_cast<int32_t>(sizes.coordinates);
  args.points_are_float32 = inputs.points.scalar_type() == ScalarType::Float;
  int64_t start = 0;
  for (int64_t level = 0; level < sizes.levels; ++level) {
    int64_t height = shapes[2 * level], width = shapes[2 * level + 1];
    args.levels[level] = {static_cast<int32_t>(height), static_cast<int32_t>(width), start};
    start += height * width;
  }
  return args;
}

bool is_empty(const Inputs& inputs) {
  return inputs.value.numel() == 0 || inputs.weights.numel() == 0;
}

Tensor forward(const AttentionSizes& sizes, const Shapes& shapes, const Inputs& given) {
  Shapes output_shape{sizes.batch, sizes.queries, sizes.heads * sizes.width};
  if (is_empty(given)) return torch::stable::new_zeros(given.value, output_shape);
  Inputs inputs = align(given);
  Tensor output = torch::stable::new_empty(inputs.value, output_shape);
  Arguments args = make_arguments(sizes, shapes, inputs);
  args.output = output.mutable_data_ptr();
  run(&Launchers::forward, args, inputs.value);
  return output;
}

Shapes sizes_of(const Tensor& tensor) {
  auto sizes = tensor.sizes();
  return Shapes(sizes.begin(), sizes.end());
}

Tensor make_like(const Tensor& tensor, std::optional<ScalarType> type = std::nullopt) {
  return torch::stable::new_empty(tensor, sizes_of(tensor), type);
}

Tensor make_zeros(const Tensor& tensor, std::optional<ScalarType> type = std::nullopt) {
  return torch::stable::new_zeros(tensor, sizes_of(tensor), type);
}

// An empty tensor in place of a gradient that is not needed.
Tensor make_nothing(const Inputs& inputs) {
  return torch::stable::new_empty(inputs.references ? *inputs.references : inputs.value, {0});
}

Gradients zero_gradients(const Inputs& inputs, bool reference_grad) {
  Tensor references = reference_grad ? make_zeros(*inputs.references) : make_nothing(inputs);
  return {make_zeros(inputs.value), references, make_zeros(inputs.points),
          make_zeros(inputs.weights)};
}

// Sums value's gradient in 64-bit fixed point, which gives the same result in any order.
Tensor run_deterministic(Arguments& args, const Tensor& value) {
  Tensor sums = make_zeros(value, ScalarType::Long), result = make_like(value);
  Tensor fixed_point =
      torch::stable::new_zeros(value, {sizeof(FixedPoint) / sizeof(int32_t)}, ScalarType::Int);
  args.grad_value = sums.mutable_data_ptr();
  args.converted = result.mutable_data_ptr();
  args.fixed_point = static_cast<FixedPoint*>(fixed_point.mutable_data_ptr());
  run(&Launchers::measure_fixed_point, args, value);
  run(&Launchers::backward, args, value);
  run(&Launchers::convert_fixed_point, args, value);
  return result;
}

// Sums half precision in float32: each of many additions would round, and bfloat16 has no atomic
// additions before sm_90.
Tensor run_fast(Arguments& args, const Tensor& value, ScalarType sum_type) {
  Tensor sums = make_zeros(value, sum_type);
  args.grad_value = sums.mutable_data_ptr();
  run(&Launchers::backward, args, value);
  return sum_type == value.scalar_type() ? sums : torch::stable::to(sums, value.scalar_type());
}

Gradients backward(const AttentionSizes& sizes, const Shapes& shapes, const Tensor& given_grad,
                   const Inputs& given, bool reference_grad, bool deterministic) {
  if (is_empty(given)) return zero_gradients(given, reference_grad);
  Inputs inputs = align(given);
  Tensor grad = align(given_grad);
  Gradients grads{inputs.value, make_nothing(inputs), make_like(inputs.points),
                  make_like(inputs.weights)};
  bool is_double = inputs.value.scalar_type() == ScalarType::Double;
  ScalarType sum_type = is_double ? ScalarType::Double : ScalarType::Float;
  // A softmax needs all weights' gradients, which need extra memory only if they would be rounded.
  bool needs_scratch = inputs.references && inputs.weights.scalar_type() != sum_type;
  Tensor samples = needs_scratch ? make_like(inputs.weights, sum_type) : grads.weights;
  Tensor pixels = reference_grad ? make_like(inputs.points, sum_type) : grads.points;
  if (reference_grad) grads.references = make_like(*inputs.references);
  Arguments args = make_arguments(sizes, shapes, inputs);
  args.grad = grad.const_data_ptr();
  args.grad_points = grads.points.mutable_data_ptr();
  args.grad_weights = grads.weights.mutable_data_ptr();
  args.grad_samples = samples.mutable_data_ptr();
  if (reference_grad) {
    args.grad_pixels = pixels.mutable_data_ptr();
    args.grad_references = grads.references.mutable_data_ptr();
  }
  grads.value = deterministic ? run_deterministic(args, inputs.value)
                              : run_fast(args, inputs.value, sum_type);
  return grads;
}

Tensor deformable_attention(const Tensor& value, const Tensor& locations, const Tensor& weights,
                            const Shapes& shapes) {
  AttentionSizes sizes = read_sizes(value, locations, weights, shapes);
  return forward(sizes, shapes, {value, locations, weights, std::nullopt});
}

std::tuple<Tensor, Tensor, Tensor> deformable_attention_backward(
    const Tensor& grad, const Tensor& value, const Tensor& locations, const Tensor& weights,
    const Shapes& shapes, bool deterministic) {
  AttentionSizes sizes = read_sizes(value, locations, weights, shapes);
  check_gradient(grad, value, sizes);
  Inputs inputs{value, locations, weights, std::nullopt};
  Gradients grads = backward(sizes, shapes, grad, inputs, false, deterministic);
  return {grads.value, grads.points, grads.weights};
}

Tensor fused_deformable_attention(const Tensor& value, const Tensor& reference_points,
                                  const Tensor& offsets, const Tensor& logits,
                                  const Shapes& shapes) {
  AttentionSizes sizes = read_sizes(value, reference_points, offsets, logits, shapes);
  return forward(sizes, shapes, {value, offsets, logits, reference_points});
}

std::tuple<Tensor, Tensor, Tensor, Tensor> fused_deformable_attention_backward(
    const Tensor& grad, const Tensor& value, const Tensor& reference_points, const Tensor& offsets,
    const Tensor& logits, const Shapes& shapes, bool reference_grad, bool deterministic) {
  AttentionSizes sizes = read_sizes(value, reference_points, offsets, logits, shapes);
  check_gradient(grad, value, sizes);
  Inputs inputs{value, offsets, logits, reference_points};
  Gradients grads = backward(sizes, shapes, grad, inputs, reference_grad, deterministic);
  return {grads.value, grads.references, grads.points, grads.weights};
}

}  // namespace

// Another macro, so that the namespace's name is expanded before it is pasted.
#define REGISTER_OPERATORS(name, library) STABLE_TORCH_LIBRARY_IMPL(name, CUDA, library)

REGISTER_OPERATORS(TORCH_EXTENSION_NAME, library) {
  library.impl("deformable_attention", TORCH_BOX(&deformable_attention));
  library.impl("deformable_attention_backward", TORCH_BOX(&deformable_attention_backward));
  library.impl("fused_deformable_attention", TORCH_BOX(&fused_deformable_attention));
  library.impl("fused_deformable_attention_backward",
               TORCH_BOX(&fused_deformable_attention_backward));
}

}  // namespace deformable_attention
