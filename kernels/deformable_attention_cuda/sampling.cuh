// Reads sampling points and their weights; a group's lanes take one point each.
#pragma once

#include "group.cuh"

namespace deformable_attention_cuda {

// Points and weights have value's type, or are float32 if value has half precision. That is a
// branch and not another kernel: each lane takes it once per point, not once per channel.
template <int kCount, typename T>
__device__ inline Numbers<Accumulator<T>, kCount> load_any(const Arguments& args,
                                                           const void* source, int64_t index) {
  if constexpr (sizeof(T) == 2) {
    if (args.points_are_float32) {
      return load<kCount>(static_cast<const float*>(source) + index * kCount);
    }
  }
  return load<kCount>(static_cast<const T*>(source) + index * kCount);
}

template <int kCount, typename T>
__device__ inline void store_any(const Arguments& args, void* target, int64_t index,
                                 const Numbers<Accumulator<T>, kCount>& numbers) {
  if constexpr (sizeof(T) == 2) {
    if (args.points_are_float32) {
      store<kCount>(static_cast<float*>(target) + index * kCount, numbers);
      return;
    }
  }
  store<kCount>(static_cast<T*>(target) + index * kCount, numbers);
}

template <typename T>
__device__ inline Accumulator<T> load_weight(const Arguments& args, int64_t index) {
  return load_any<1, T>(args, args.weights, index).at[0];
}

// A point in pixels, and the pixels by which a step of its location or offset moves it.
template <typename A>
struct Position {
  A x, y, scale_x, scale_y;
};

template <typename T, typename A>
__device__ inline Position<A> position_by_reference(const Arguments& args, const Level& level,
                                                    int64_t query, int level_index,
                                                    int num_points,
                                                    const Numbers<A, 2>& offset) {
  int64_t index = query * args.num_levels + level_index;
  const A* references = static_cast<const A*>(args.reference_points);
  A half = A(0.5);
  if (args.coordinates == 2) {
    Numbers<A, 2> point = load<2>(references + index * 2);
    return {point.at[0] * level.width + offset.at[0] - half,
            point.at[1] * level.height + offset.at[1] - half, 1, 1};
  }
  Numbers<A, 4> box = load<4>(references + index * 4);
  A scale_x = box.at[2] * half / num_points, scale_y = box.at[3] * half / num_points;
  return {(box.at[0] + offset.at[0] * scale_x) * level.width - half,
          (box.at[1] + offset.at[1] * scale_y) * level.height - half, scale_x * level.width,
          scale_y * level.height};
}

template <typename T, bool kIsFused>
__device__ inline Position<Accumulator<T>> read_position(const Arguments& args,
                                                         const Level& level, int64_t query,
                                                         int level_index, int num_points,
                                                         int64_t sample) {
  using A = Accumulator<T>;
  Numbers<A, 2> point = load_any<2, T>(args, args.points, sample);
  if constexpr (kIsFused) {
    return position_by_reference<T>(args, level, query, level_index, num_points, point);
  } else {
    A width = level.width, height = level.height, half = A(0.5);
    return {point.at[0] * width - half, point.at[1] * height - half, width, height};
  }
}

// Turns logits into weights; does nothing to weights.
template <typename A>
struct Softmax {
  A largest = 0, inverse_sum = 1;

  __device__ A weight(A logit) const { return exp(logit - largest) * inverse_sum; }
};

// `first` is the group's first logit; each lane reads every kLanes-th.
template <typename S>
__device__ inline Softmax<typename S::A> find_softmax(const Arguments& args, int64_t first,
                                                      int lane) {
  using A = typename S::A;
  // Loops count from zero, not from the lane, so that known ones unroll.
  int samples = S::samples(args);
  A largest = -A(INFINITY), sum = 0;
#pragma unroll
  for (int i = 0; i < samples; i += S::kLanes) {
    if (S::kSamples == 0 && i + lane >= samples) break;
    A logit = load_weight<typename S::Value>(args, first + i + lane);
    largest = logit > largest ? logit : largest;
  }
  largest = group_max<S::kLanes>(largest);
#pragma unroll
  for (int i = 0; i < samples; i += S::kLanes) {
    if (S::kSamples == 0 && i + lane >= samples) break;
    sum += exp(load_weight<typename S::Value>(args, first + i + lane) - largest);
  }
  return {largest, 1 / group_sum<S::kLanes>(sum)};
}

// Pixels by which a step of its location or offset moves it.
template <typename S>
struct ScaledSample {
  typename S::OneSample sample;
  typename S::A scale_x, scale_y;
};

// Reads the samples of one group.
template <typename S, bool kIsFused>
struct Sampler {
  using T = typename S::Value;
  using A = typename S::A;
  const Arguments& args;
  const Group& group;
  int64_t first;  // index of the group's first sample
  Softmax<A> softmax;

  __device__ Sampler(const Arguments& args, const Group& group)
      : args(args), group(group), first(group.pair(args) * S::samples(args)) {
    if constexpr (kIsFused) softmax = find_softmax<S>(args, first, group.lane);
  }

  __device__ A weight(int sample) const {
    A weight = load_weight<T>(args, first + sample);
    return kIsFused ? softmax.weight(weight) : weight;
  }

  // Without corners where the group has no such sample.
  __device__ ScaledSample<S> read(int index) const {
    bool exists = S::kSamples != 0 || index < S::samples(args);
    if (!exists || !group.is_active) return {};
    int points = S::points(args), level_index = index / points;
    const Level& level = args.levels[level_index];
    Position<A> position = read_position<T, kIsFused>(args, level, group.query, level_index,
                                                      points, first + index);
    return {locate<typename S::Index>(position.x, position.y, weight(index), level),
            position.scale_x, position.scale_y};
  }
};

}  // namespace deformable_attention_cuda
