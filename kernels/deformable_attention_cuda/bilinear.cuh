// Position of a sampling point among pixels: the arithmetic that forward and backward share.
#pragma once

#include "arguments.h"
#include "vectors.cuh"

namespace deformable_attention_cuda {

// The corners of a sample: bits of Sample::code, set for those inside the level.
constexpr int kAboveLeft = 1, kAboveRight = 2, kBelowLeft = 4, kBelowRight = 8;
constexpr int kCornerBits = 4;

// With at most this many tokens, a token's number and the corners' bits fit into 32 bits.
constexpr int64_t kMaxShortTokens = int64_t(1) << 26;

template <typename A, typename Index>
struct Sample {
  Index code;      // the token above left, which may be outside, and the corners' bits below it
  A right, below;  // of that token's centre, in pixels; NaN if the position is
  A weight;
};

template <typename Index, typename A>
__device__ inline Index token_of(const Sample<A, Index>& sample) {
  return sample.code >> kCornerBits;
}

template <typename Index, typename A>
__device__ inline bool has_corner(const Sample<A, Index>& sample, int corner) {
  return (static_cast<int>(sample.code) & corner) != 0;
}

template <typename Index, typename A>
__device__ inline bool has_any_corner(const Sample<A, Index>& sample) {
  return has_corner(sample, kAboveLeft | kAboveRight | kBelowLeft | kBelowRight);
}

// `x` and `y` in pixels, centres at integers. Anything outside, however far, has no corner and no
// gradient. NaN has no corner either, but its fractions make all results NaN.
template <typename Index, typename A>
__device__ inline Sample<A, Index> locate(A x, A y, A weight, const Level& level) {
  Sample<A, Index> sample{0, 0, 0, weight};
  bool inside = x >= -1 && x < level.width && y >= -1 && y < level.height;
  if (!inside) {
    if (x != x || y != y) sample.right = sample.below = x + y;
    return sample;
  }
  A left = floor(x), above = floor(y);
  sample.right = x - left;
  sample.below = y - above;
  int column = static_cast<int>(left), line = static_cast<int>(above);
  bool has_left = column >= 0, has_right = column + 1 < level.width;
  int corners = 0;
  if (line >= 0) corners |= (has_left ? kAboveLeft : 0) | (has_right ? kAboveRight : 0);
  if (line + 1 < level.height) {
    corners |= (has_left ? kBelowLeft : 0) | (has_right ? kBelowRight : 0);
  }
  Index token = static_cast<Index>(level.start) + static_cast<Index>(line) * level.width + column;
  sample.code = token * (1 << kCornerBits) + corners;
  return sample;
}

template <typename A>
struct Corners {
  A above_left, above_right, below_left, below_right;
};

// Bilinear weights times the attention weight.
template <typename A, typename Index>
__device__ inline Corners<A> corner_weights(const Sample<A, Index>& sample) {
  A lower = sample.weight * sample.below, upper = sample.weight - lower;
  A above_right = upper * sample.right, below_right = lower * sample.right;
  return {upper - above_right, above_right, lower - below_right, below_right};
}

// Gradients of the weight, and of x and y in pixels divided by the weight.
template <typename A>
struct PointGradient {
  A weight, x, y;
};

// From the products of each corner's pixel with the output's gradient.
template <typename A, typename Index>
__device__ inline PointGradient<A> differentiate(const Sample<A, Index>& sample,
                                                 const Corners<A>& products) {
  A across_above = products.above_right - products.above_left;
  A across_below = products.below_right - products.below_left;
  A upper = products.above_left + sample.right * across_above;
  A lower = products.below_left + sample.right * across_below;
  return {upper + sample.below * (lower - upper),
          across_above + sample.below * (across_below - across_above), lower - upper};
}

}  // namespace deformable_attention_cuda
