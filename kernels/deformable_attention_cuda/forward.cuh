// The output: each lane sums its own channels over all points of its query's head.
#pragma once

#include "sampling.cuh"

namespace deformable_attention_cuda {

// Corners outside are not read: what lies there is another row's, and may be NaN. Loads come
// before sums so that all four are on their way together.
template <typename S>
__device__ inline void add_sample(const typename S::Value* pixels, int stride, int line_width,
                                  const typename S::OneSample& sample,
                                  Numbers<typename S::A, S::kVector>& sum) {
  using Vector = Numbers<typename S::A, S::kVector>;
  using Index = typename S::Index;
  Index above_left = token_of(sample) * stride;
  Index below_left = above_left + Index(line_width) * stride;
  Vector a{}, b{}, c{}, d{};
  if (has_corner(sample, kAboveLeft)) a = load<S::kVector>(pixels + above_left);
  if (has_corner(sample, kAboveRight)) b = load<S::kVector>(pixels + above_left + stride);
  if (has_corner(sample, kBelowLeft)) c = load<S::kVector>(pixels + below_left);
  if (has_corner(sample, kBelowRight)) d = load<S::kVector>(pixels + below_left + stride);
  auto weights = corner_weights(sample);
#pragma unroll
  for (int i = 0; i < S::kVector; ++i) {
    sum.at[i] += weights.above_left * a.at[i] + weights.above_right * b.at[i] +
                 weights.below_left * c.at[i] + weights.below_right * d.at[i];
  }
}

// The samples' sum for `kVector` channels from `pixels` on.
template <typename S, bool kIsFused>
__device__ inline Numbers<typename S::A, S::kVector> sum_samples(
    const Arguments& args, const Sampler<S, kIsFused>& sampler,
    const typename S::Value* pixels, bool has_channels) {
  Numbers<typename S::A, S::kVector> sum{};
  int samples = S::samples(args), points = S::points(args), stride = args.heads * S::width(args);
  // Two samples' pixels are on their way at a time; more would not fit the registers.
  constexpr int kTogether = 2;
  LevelCursor cursor;
  typename S::OneSample own{};
#pragma unroll 1
  for (int first = 0; first < samples; first += kTogether) {
    int round = first % S::kLanes;
    if (round == 0) own = sampler.read(first + sampler.group.lane).sample;
#pragma unroll
    for (int i = 0; i < kTogether; ++i) {
      if (S::kSamples == 0 && first + i >= samples) break;
      auto sample = share<S::kLanes>(own, round + i);
      if (S::kWidth == 0 && !has_channels) sample.code = 0;
      add_sample<S>(pixels, stride, args.levels[cursor.level].width, sample, sum);
      cursor.advance(points);
    }
  }
  return sum;
}

template <typename S, bool kIsFused>
__global__ void __launch_bounds__(kMaxThreads, 4)
    forward_kernel(const __grid_constant__ Arguments args) {
  using T = typename S::Value;
  Group group = find_group<S::kLanes>(args);
  Sampler<S, kIsFused> sampler(args, group);
  int width = S::width(args);
  const T* value = static_cast<const T*>(args.value) +
                   (group.batch * args.tokens * args.heads + group.head) * width;
  T* output = static_cast<T*>(args.output) + group.pair(args) * width;
  // One round unless the width is only known now.
  for (int first = 0; first < width; first += S::kLanes * S::kVector) {
    int channel = first + group.lane * S::kVector;
    bool has_channels = channel < width;
    auto sum = sum_samples<S, kIsFused>(args, sampler, value + channel, has_channels);
    if (has_channels && group.is_active) store<S::kVector>(output + channel, sum);
  }
}

}  // namespace deformable_attention_cuda
