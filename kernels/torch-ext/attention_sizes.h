// Sizes of the operators' tensors, read and checked for all devices.
#pragma once

#include <cstdint>
#include <vector>

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

namespace deformable_attention {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

struct AttentionSizes {
  int64_t batch, queries, tokens, heads, width, levels, points;
  int64_t coordinates;  // of a reference: 2 (x, y) or 4 (cx, cy, w, h); 0 if there are none
};

inline void check_shape(const char* name, const Tensor& tensor, std::vector<int64_t> expected) {
  auto sizes = tensor.sizes();
  bool equal = sizes.size() == expected.size();
  for (size_t i = 0; equal && i < expected.size(); ++i) equal = sizes[i] == expected[i];
  STD_TORCH_CHECK(equal, name, " has a shape that does not match the other arguments");
}

inline bool is_supported(ScalarType type) {
  return type == ScalarType::Float || type == ScalarType::Double || type == ScalarType::Half ||
         type == ScalarType::BFloat16;
}

// Points have the dtype of value, or float32 if value has half precision.
inline void check_point_tensor(const char* name, const Tensor& tensor, const Tensor& value) {
  bool is_half = value.element_size() == 2;
  STD_TORCH_CHECK(tensor.scalar_type() == value.scalar_type() ||
                      (is_half && tensor.scalar_type() == ScalarType::Float),
                  name, " must have the dtype of value, or float32 if value has half precision");
  STD_TORCH_CHECK(tensor.device() == value.device(), name, " is not on the device of value");
}

// value (B, S, M, C), points (B, Q, M, L, K, 2), weights (B, Q, M, L, K), shapes h, w, h, w, ...
inline AttentionSizes read_sizes(const Tensor& value, const Tensor& points, const Tensor& weights,
                                 const std::vector<int64_t>& shapes) {
  STD_TORCH_CHECK(value.dim() == 4, "value must be (B, S, M, C)");
  STD_TORCH_CHECK(weights.dim() == 5, "weights must be (B, Q, M, L, K)");
  STD_TORCH_CHECK(is_supported(value.scalar_type()),
                  "value must be float32, float64, bfloat16 or float16");
  AttentionSizes sizes{value.size(0), weights.size(1), value.size(1),   value.size(2),
                       value.size(3), weights.size(3), weights.size(4), 0};
  check_shape("weights", weights,
              {sizes.batch, sizes.queries, sizes.heads, sizes.levels, sizes.points});
  check_shape("points", points,
              {sizes.batch, sizes.queries, sizes.heads, sizes.levels, sizes.points, 2});
  check_point_tensor("points", points, value);
  check_point_tensor("weights", weights, value);
  STD_TORCH_CHECK(points.scalar_type() == weights.scalar_type(),
                  "points and weights must have one dtype");
  STD_TORCH_CHECK((int64_t)shapes.size() == 2 * sizes.levels,
                  "spatial_shapes must contain h and w of each level");
  int64_t tokens = 0;
  for (int64_t level = 0; level < sizes.levels; ++level) {
    int64_t height = shapes[2 * level], width = shapes[2 * level + 1];
    // 2^24: below it, float32 represents every pixel's number exactly.
    STD_TORCH_CHECK(height > 0 && width > 0 && height < (1 << 24) && width < (1 << 24),
                    "spatial_shapes must be between 1 and 2^24 - 1");
    tokens += height * width;
  }
  STD_TORCH_CHECK(tokens == sizes.tokens, "value must have the tokens of spatial_shapes");
  return sizes;
}

// The same with reference_points (B, Q, L, 2 or 4), which are float64 if value is and float32
// otherwise: eight bits of precision are too few to identify a pixel.
inline AttentionSizes read_sizes(const Tensor& value, const Tensor& reference_points,
                                 const Tensor& offsets, const Tensor& logits,
                                 const std::vector<int64_t>& shapes) {
  AttentionSizes sizes = read_sizes(value, offsets, logits, shapes);
  STD_TORCH_CHECK(reference_points.dim() == 4, "reference_points must be (B, Q, L, 2 or 4)");
  sizes.coordinates = reference_points.size(3);
  STD_TORCH_CHECK(sizes.coordinates == 2 || sizes.coordinates == 4,
                  "reference_points must be (B, Q, L, 2 or 4)");
  check_shape("reference_points", reference_points,
              {sizes.batch, sizes.queries, sizes.levels, sizes.coordinates});
  bool is_double = value.scalar_type() == ScalarType::Double;
  STD_TORCH_CHECK(
      reference_points.scalar_type() == (is_double ? ScalarType::Double : ScalarType::Float),
      "reference_points must be float32, or float64 if value is");
  STD_TORCH_CHECK(reference_points.device() == value.device(),
                  "reference_points is not on the device of value");
  return sizes;
}

// The gradient of the output (B, Q, M * C).
inline void check_gradient(const Tensor& grad, const Tensor& value, const AttentionSizes& sizes) {
  check_shape("grad", grad, {sizes.batch, sizes.queries, sizes.heads * sizes.width});
  STD_TORCH_CHECK(grad.scalar_type() == value.scalar_type() && grad.device() == value.device(),
                  "grad must have the dtype and the device of value");
}

}  // namespace deformable_attention
