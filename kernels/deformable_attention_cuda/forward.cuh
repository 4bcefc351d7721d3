// The output: each lane sums its own channels over all points of its query's head.
#pragma once

#include "sampling.cuh"

namespace deformable_attention_cuda {

// Two columns and two rows of pixels with their weights, rows' times the sample's. A column or row
// outside is not read: the memory belongs to another row, and may be NaN. The one inside is read
// twice with half of its weight, so that loads need no branches; addresses computed in branches
// cost more than all sums.
template <typename A, typename Index>
struct Square {
  Index code;  // the first pixel's token, and the bits below
  A left, right, above, below;
};

constexpr int kHasPixels = 1, kHasRight = 2, kHasBelow = 4;

template <typename A>
__device__ inline void split_weight(bool has_first, bool has_second, A distance, A& first,
                                    A& second) {
  A near = 1 - distance, half = A(0.5) * (has_first ? near : distance);
  bool has_both = has_first && has_second;
  first = has_both ? near : half;
  second = has_both ? distance : half;
}

// Without corners nothing is read, and a NaN position still makes the sum NaN.
template <typename S>
__device__ inline Square<typename S::A, typename S::Index> find_square(
    const Arguments& args, const typename S::OneSample& sample, int index) {
  using A = typename S::A;
  using Index = typename S::Index;
  if (!has_any_corner(sample)) return {0, sample.right, 0, sample.below * sample.weight, 0};
  bool has_left = has_corner(sample, kAboveLeft | kBelowLeft);
  bool has_right = has_corner(sample, kAboveRight | kBelowRight);
  bool has_above = has_corner(sample, kAboveLeft | kAboveRight);
  bool has_below = has_corner(sample, kBelowLeft | kBelowRight);
  Index token = token_of(sample) + (has_left ? 0 : 1);
  if (!has_above) token += args.levels[index / S::points(args)].width;
  Square<A, Index> square;
  square.code = token * (1 << kCornerBits) + kHasPixels +
                (has_left && has_right ? kHasRight : 0) + (has_above && has_below ? kHasBelow : 0);
  split_weight(has_left, has_right, sample.right, square.left, square.right);
  split_weight(has_above, has_below, sample.below, square.above, square.below);
  square.above *= sample.weight;
  square.below *= sample.weight;
  return square;
}

template <int kLanes, typename A, typename Index>
__device__ inline Square<A, Index> share(const Square<A, Index>& own, int source) {
  return {__shfl_sync(kAllLanes, own.code, source, kLanes),
          __shfl_sync(kAllLanes, own.left, source, kLanes),
          __shfl_sync(kAllLanes, own.right, source, kLanes),
          __shfl_sync(kAllLanes, own.above, source, kLanes),
          __shfl_sync(kAllLanes, own.below, source, kLanes)};
}

template <typename S>
struct Pixels {
  Packed<typename S::Value, S::kVector> above_left{}, above_right{}, below_left{}, below_right{};
};

template <typename S>
__device__ inline Pixels<S> load_square(const typename S::Value* pixels, int stride,
                                        int line_width,
                                        const Square<typename S::A, typename S::Index>& square) {
  using Index = typename S::Index;
  Index first = (square.code >> kCornerBits) * stride;
  Index right = square.code & kHasRight ? stride : 0;
  Index below = square.code & kHasBelow ? Index(line_width) * stride : 0;
  Pixels<S> found;
  if (square.code & kHasPixels) {
    found.above_left = load_packed<S::kVector>(pixels + first);
    found.above_right = load_packed<S::kVector>(pixels + first + right);
    found.below_left = load_packed<S::kVector>(pixels + first + below);
    found.below_right = load_packed<S::kVector>(pixels + first + below + right);
  }
  return found;
}

template <typename S>
__device__ inline void accumulate(typename S::A weight,
                                  const Packed<typename S::Value, S::kVector>& packed,
                                  Numbers<typename S::A, S::kVector>& sum) {
  auto numbers = unpack<S::kVector, typename S::Value>(packed);
#pragma unroll
  for (int i = 0; i < S::kVector; ++i) sum.at[i] += weight * numbers.at[i];
}

template <typename S>
__device__ inline void add_square(const Pixels<S>& pixels,
                                  const Square<typename S::A, typename S::Index>& square,
                                  Numbers<typename S::A, S::kVector>& sum) {
  auto above_left = square.above * square.left, above_right = square.above * square.right;
  auto below_left = square.below * square.left, below_right = square.below * square.right;
  accumulate<S>(above_left, pixels.above_left, sum);
  accumulate<S>(above_right, pixels.above_right, sum);
  accumulate<S>(below_left, pixels.below_left, sum);
  accumulate<S>(below_right, pixels.below_right, sum);
}

// The samples' sum for `kVector` channels starting at `pixels`.
template <typename S, bool kIsFused>
__device__ inline Numbers<typename S::A, S::kVector> sum_samples(
    const Arguments& args, const Sampler<S, kIsFused>& sampler,
    const typename S::Value* pixels, bool has_channels) {
  Numbers<typename S::A, S::kVector> sum{};
  int samples = S::samples(args), points = S::points(args), stride = args.heads * S::width(args);
  // Pixels of this many samples are loaded at a time; more would not fit the registers.
  constexpr int kTogether = 2;
  LevelCursor cursor;
  Square<typename S::A, typename S::Index> own{};
#pragma unroll 1
  for (int first = 0; first < samples; first += kTogether) {
    int round = first % S::kLanes;
    if (round == 0) {
      int index = first + sampler.group.lane;
      own = find_square<S>(args, sampler.read(index).sample, index);
    }
    Square<typename S::A, typename S::Index> squares[kTogether];
    Pixels<S> found[kTogether];
#pragma unroll
    for (int i = 0; i < kTogether; ++i) {
      if (S::kSamples == 0 && first + i >= samples) break;
      squares[i] = share<S::kLanes>(own, round + i);
      if (S::kWidth == 0 && !has_channels) squares[i].code = 0;
      found[i] = load_square<S>(pixels, stride, args.levels[cursor.level].width, squares[i]);
      cursor.advance(points);
    }
#pragma unroll
    for (int i = 0; i < kTogether; ++i) {
      if (S::kSamples == 0 && first + i >= samples) break;
      add_square<S>(found[i], squares[i], sum);
    }
  }
  return sum;
}

template <typename S, bool kIsFused>
__global__ void __launch_bounds__(kMaxThreads, 8)
    forward_kernel(const __grid_constant__ Arguments args) {
  using T = typename S::Value;
  Group group = find_group<S::kLanes>(args);
  Sampler<S, kIsFused> sampler(args, group);
  int width = S::width(args);
  const T* value = static_cast<const T*>(args.value) +
                   (group.batch * args.tokens * args.heads + group.head) * width;
  T* output = static_cast<T*>(args.output) + group.pair(args) * width;
  // One round unless the width is unknown at compile time.
  for (int first = 0; first < width; first += S::kLanes * S::kVector) {
    int channel = first + group.lane * S::kVector;
    bool has_channels = channel < width;
    auto sum = sum_samples<S, kIsFused>(args, sampler, keep(value + channel), has_channels);
    if (has_channels && group.is_active) store<S::kVector>(output + channel, sum);
  }
}

}  // namespace deformable_attention_cuda
