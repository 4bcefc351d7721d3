// Arguments of the kernels: plain numbers and pointers, without headers of torch or CUDA.
#pragma once

#include <cstdint>

namespace deformable_attention_cuda {

// Levels are passed by value with each launch, so nothing is copied to the device first.
constexpr int kMaxLevels = 64;

struct Level {
  int32_t height, width;
  int64_t start;  // its first token
};

// The value gradient in 64-bit fixed point, whose sums do not depend on their order. Initially
// zero; keys order numbers by magnitude (see fixed_point.cuh).
struct FixedPoint {
  uint32_t grad_key, weight_key;  // of the largest gradient and the largest weight
  uint32_t is_poisoned;           // a contribution was NaN or infinite
};

// "Accumulator" is float64 for float64 tensors and float32 for all others. Layouts: value
// (B, S, M, C), points (B, Q, M, L, K, 2), weights (B, Q, M, L, K), reference_points
// (B, Q, L, coordinates), output and grad (B, Q, M, C); all contiguous and on 16-byte boundaries.
struct Arguments {
  const void* value;
  const void* points;            // locations, or offsets if there are reference_points
  const void* weights;           // or logits if there are reference_points
  const void* reference_points;  // accumulators; null: points are locations
  void* output;

  const void* grad;           // of the output
  void* grad_value;           // accumulators, or int64 if fixed_point is given; initially zero
  void* grad_points;          // like points
  void* grad_weights;         // like weights
  void* grad_samples;         // (B, Q, M, L, K) accumulators, scratch of logits' gradient
  void* grad_pixels;          // (B, Q, M, L, K, 2) accumulators, or null
  void* grad_references;      // like reference_points, or null
  void* converted;            // like value: output of convert_fixed_point
  FixedPoint* fixed_point;    // null: not deterministic

  int64_t batch, queries, tokens;
  int32_t heads, width;       // M and C
  int32_t num_levels, num_points;  // L and K
  int32_t coordinates;        // 2 (x, y), 4 (cx, cy, w, h), or 0 without reference_points
  bool points_are_float32;    // with value in half precision
  uint32_t blocks_per_image;  // filled in by launchers
  Level levels[kMaxLevels];
};

// Each starts kernels on `stream` and returns nullptr, or an error message.
using Launcher = const char* (*)(const Arguments&, void* stream);

struct Launchers {
  Launcher forward;
  Launcher backward;             // needs measure_fixed_point before it if fixed_point is given
  Launcher measure_fixed_point;  // fills fixed_point's keys
  Launcher convert_fixed_point;  // grad_value to converted
};

extern const Launchers kFloat32Launchers;
extern const Launchers kFloat64Launchers;
extern const Launchers kFloat16Launchers;
extern const Launchers kBFloat16Launchers;

}  // namespace deformable_attention_cuda
