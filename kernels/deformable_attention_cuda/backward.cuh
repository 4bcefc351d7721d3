// All gradients: a group's lanes share its samples' gradients, and add to value's atomically.
#pragma once

#include "fixed_point.cuh"
#include "sampling.cuh"

namespace deformable_attention_cuda {

// The output's gradient for a lane's channels. A known width is read once, in two layouts:
// `gathering` has the channels whose pixels the lane reads, kVector in a row; `scattering` those
// that it adds to value's gradient, so few in a row that lanes reach neighbouring addresses.
template <typename S, int kAtomicWidth>
struct OutputGradient {
  using T = typename S::Value;
  using Vector = Numbers<typename S::A, S::kVector>;
  using Part = Numbers<typename S::A, kAtomicWidth>;
  static constexpr bool kIsKept = S::kWidth != 0;
  static constexpr int kParts = S::kVector / kAtomicWidth;
  const T* source;
  Vector kept;
  Part kept_parts[kParts];

  __device__ OutputGradient(const T* source, int lane) : source(source) {
    if constexpr (kIsKept) {
      kept = load<S::kVector>(source + lane * S::kVector);
#pragma unroll
      for (int part = 0; part < kParts; ++part) {
        kept_parts[part] = load<kAtomicWidth>(source + (part * S::kLanes + lane) * kAtomicWidth);
      }
    }
  }

  __device__ Vector gathering(int channel) const {
    if constexpr (kIsKept) {
      return kept;
    } else {
      return load<S::kVector>(source + channel);
    }
  }

  __device__ Part scattering(int part, int channel) const {
    if constexpr (kIsKept) {
      return kept_parts[part];
    } else {
      return load<kAtomicWidth>(source + channel);
    }
  }
};

template <typename A, int kCount>
__device__ inline A dot(const Numbers<A, kCount>& first, const Numbers<A, kCount>& second) {
  A sum = first.at[0] * second.at[0];
#pragma unroll
  for (int i = 1; i < kCount; ++i) sum += first.at[i] * second.at[i];
  return sum;
}

// Offsets of a sample's corners, to be added only to pointers at corners that exist.
template <typename Index>
struct CornerOffsets {
  Index above_left, above_right, below_left, below_right;
};

template <typename S>
__device__ inline CornerOffsets<typename S::Index> corner_offsets(
    const typename S::OneSample& sample, int stride, int line_width) {
  using Index = typename S::Index;
  Index above = token_of(sample) * stride, below = above + Index(line_width) * stride;
  return {above, above + stride, below, below + stride};
}

// Adds one lane's channels to the products of corners' pixels with the output's gradient.
template <typename S>
__device__ inline void add_products(const typename S::Value* pixels,
                                    const CornerOffsets<typename S::Index>& offsets,
                                    const typename S::OneSample& sample,
                                    const Numbers<typename S::A, S::kVector>& grad,
                                    Corners<typename S::A>& products) {
  Numbers<typename S::A, S::kVector> a{}, b{}, c{}, d{};
  if (has_corner(sample, kAboveLeft)) a = load<S::kVector>(pixels + offsets.above_left);
  if (has_corner(sample, kAboveRight)) b = load<S::kVector>(pixels + offsets.above_right);
  if (has_corner(sample, kBelowLeft)) c = load<S::kVector>(pixels + offsets.below_left);
  if (has_corner(sample, kBelowRight)) d = load<S::kVector>(pixels + offsets.below_right);
  products.above_left += dot(a, grad);
  products.above_right += dot(b, grad);
  products.below_left += dot(c, grad);
  products.below_right += dot(d, grad);
}

template <int kCount, typename Sum, typename Index, typename A>
__device__ inline void add_scaled(const Sum& sum, Index index, A weight,
                                  Numbers<A, kCount> numbers) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) numbers.at[i] *= weight;
  sum.add(index, numbers);
}

template <typename S, typename Sum, int kCount>
__device__ inline void scatter(const Sum& sum, int channel,
                               const CornerOffsets<typename S::Index>& offsets,
                               const typename S::OneSample& sample,
                               const Corners<typename S::A>& weights,
                               const Numbers<typename S::A, kCount>& grad) {
  if (has_corner(sample, kAboveLeft)) {
    add_scaled(sum, channel + offsets.above_left, weights.above_left, grad);
  }
  if (has_corner(sample, kAboveRight)) {
    add_scaled(sum, channel + offsets.above_right, weights.above_right, grad);
  }
  if (has_corner(sample, kBelowLeft)) {
    add_scaled(sum, channel + offsets.below_left, weights.below_left, grad);
  }
  if (has_corner(sample, kBelowRight)) {
    add_scaled(sum, channel + offsets.below_right, weights.below_right, grad);
  }
}

// Values that all samples of a group share.
template <typename S, typename Sum>
struct Backward {
  using A = typename S::A;
  using T = typename S::Value;
  using Gradient = OutputGradient<S, Sum::template width<S::kVector>()>;
  static constexpr int kAtomicWidth = Sum::template width<S::kVector>();
  const Arguments& args;
  int lane;
  const T* value;  // at the group's head of its image's first token
  Sum sum;         // at the same place
  Gradient grad;

  __device__ Backward(const Arguments& args, const Group& group)
      : Backward(args, group,
                 (group.batch * args.tokens * args.heads + group.head) * S::width(args)) {}

  __device__ Backward(const Arguments& args, const Group& group, int64_t first)
      : args(args),
        lane(group.lane),
        value(static_cast<const T*>(args.value) + first),
        sum(args, first),
        grad(static_cast<const T*>(args.grad) + group.pair(args) * S::width(args), group.lane) {}

  // One sample's gradient from this lane's channels; adds to value's.
  __device__ PointGradient<A> visit(const typename S::OneSample& sample, int line_width) const {
    Corners<A> products{0, 0, 0, 0};
    // The branch also prevents that the compiler starts samples early and spills registers.
    if (has_any_corner(sample)) {
      auto offsets = corner_offsets<S>(sample, args.heads * S::width(args), line_width);
      multiply(sample, offsets, products);
      add(sample, offsets);
    }
    return differentiate(sample, products);
  }

  // Loops count from zero, not from the lane, so that known ones unroll.
  __device__ void multiply(const typename S::OneSample& sample,
                           const CornerOffsets<typename S::Index>& offsets,
                           Corners<A>& products) const {
    int width = S::width(args);
#pragma unroll
    for (int first = 0; first < width; first += S::kLanes * S::kVector) {
      int channel = first + lane * S::kVector;
      if (S::kWidth == 0 && channel >= width) break;
      add_products<S>(value + channel, offsets, sample, grad.gathering(channel), products);
    }
  }

  __device__ void add(const typename S::OneSample& sample,
                      const CornerOffsets<typename S::Index>& offsets) const {
    constexpr int kStep = S::kLanes * kAtomicWidth;
    auto weights = corner_weights(sample);
    int width = S::width(args);
#pragma unroll
    for (int first = 0; first < width; first += kStep) {
      int channel = first + lane * kAtomicWidth;
      if (S::kWidth == 0 && channel >= width) break;
      scatter<S>(sum, channel, offsets, sample, weights, grad.scattering(first / kStep, channel));
    }
  }
};

// The gradients of the next kCount samples, lane `first` having read the first of them, summed
// over the group: see add_across.
template <typename S, int kCount, typename Sum>
__device__ inline PointGradient<typename S::A> visit_samples(
    const Backward<S, Sum>& backward, const typename S::OneSample& own, LevelCursor& cursor,
    int first) {
  if constexpr (kCount == 1) {
    const Arguments& args = backward.args;
    if (S::kSamples == 0 && cursor.level == args.num_levels) return {0, 0, 0};
    int line_width = args.levels[cursor.level].width;
    cursor.advance(S::points(args));
    return backward.visit(share<S::kLanes>(own, first), line_width);
  } else {
    auto low = visit_samples<S, kCount / 2>(backward, own, cursor, first);
    auto high = visit_samples<S, kCount / 2>(backward, own, cursor, first + kCount / 2);
    return add_across<kCount / 2>(low, high, backward.lane);
  }
}

// The gradients of a lane's own weights until all of the group are known: in registers if their
// number is known, else in `grad_samples`, where each lane reads only what it wrote.
template <typename S>
struct OwnGradients {
  using A = typename S::A;
  static constexpr int kRounds = S::kSamples / S::kLanes;
  A* scratch;
  A kept[kRounds ? kRounds : 1];

  __device__ void set(int round, int sample, A number) {
    if constexpr (kRounds == 0) {
      scratch[sample] = number;
    } else {
      // An index unknown at compile time would put the array into slow local memory.
#pragma unroll
      for (int i = 0; i < kRounds; ++i) kept[i] = i == round ? number : kept[i];
    }
  }

  __device__ A get(int round, int sample) const {
    if constexpr (kRounds == 0) {
      return scratch[sample];
    } else {
      return kept[round];
    }
  }
};

// Of locations and weights, or offsets and logits.
template <typename S, bool kIsFused>
struct PointGradientWriter {
  using T = typename S::Value;
  using A = typename S::A;
  const Arguments& args;
  const Sampler<S, kIsFused>& sampler;
  OwnGradients<S> own;
  A product = 0;  // of weights with their gradients

  __device__ PointGradientWriter(const Arguments& args, const Sampler<S, kIsFused>& sampler)
      : args(args), sampler(sampler), own{static_cast<A*>(args.grad_samples) + sampler.first, {}} {}

  __device__ void write(int round, int sample, const PointGradient<A>& gradient,
                        const ScaledSample<S>& owned) {
    if (sample >= S::samples(args) || !sampler.group.is_active) return;
    int64_t index = sampler.first + sample;
    A weight = owned.sample.weight, x = gradient.x * weight, y = gradient.y * weight;
    store_any<2, T>(args, args.grad_points, index, {x * owned.scale_x, y * owned.scale_y});
    if constexpr (kIsFused) {
      own.set(round, sample, gradient.weight);
      product += weight * gradient.weight;
      if (args.grad_pixels) store<2>(static_cast<A*>(args.grad_pixels) + index * 2, {x, y});
    } else {
      store_any<1, T>(args, args.grad_weights, index, {gradient.weight});
    }
  }

  // Of logits, once all samples are written.
  __device__ void finish() {
    if constexpr (kIsFused) {
      A mean = group_sum<S::kLanes>(product);
      if (!sampler.group.is_active) return;
      int samples = S::samples(args);
#pragma unroll
      for (int first = 0; first < samples; first += S::kLanes) {
        int i = first + sampler.group.lane;
        if (S::kSamples == 0 && i >= samples) break;
        A gradient = sampler.weight(i) * (own.get(first / S::kLanes, i) - mean);
        store_any<1, T>(args, args.grad_weights, sampler.first + i, {gradient});
      }
    }
  }
};

template <typename S, bool kIsFused, template <typename> class Sum>
__global__ void __launch_bounds__(kMaxThreads, 6)
    backward_kernel(const __grid_constant__ Arguments args) {
  Group group = find_group<S::kLanes>(args);
  Sampler<S, kIsFused> sampler(args, group);
  Backward<S, Sum<typename S::A>> backward(args, group);
  PointGradientWriter<S, kIsFused> writer(args, sampler);
  LevelCursor cursor;
  // Not unrolled over rounds: code for all samples would not fit the instruction cache.
#pragma unroll 1
  for (int first = 0; first < S::samples(args); first += S::kLanes) {
    auto own = sampler.read(first + group.lane);
    auto gradient = visit_samples<S, S::kLanes>(backward, own.sample, cursor, 0);
    writer.write(first / S::kLanes, first + group.lane, gradient, own);
  }
  writer.finish();
}

}  // namespace deformable_attention_cuda
