// Sums value's gradient in accumulators, or in 64-bit fixed point, whose sums are the same in any
// order.
//
// The unit of fixed point is a power of two. The largest possible sum, of all samples of an image
// with the largest weight and the largest gradient on one pixel, fits into 64 bits.
#pragma once

#include "arguments.h"
#include "vectors.cuh"

namespace deformable_attention_cuda {

// Orders numbers by magnitude; NaN comes last, infinity before it. float64: the upper half.
__device__ inline uint32_t key_of(float number) { return __float_as_uint(number) & 0x7fffffffu; }
__device__ inline uint32_t key_of(double number) {
  return static_cast<uint32_t>(__double2hiint(number)) & 0x7fffffffu;
}

template <typename A>
constexpr int kMantissaBits = sizeof(A) == 4 ? 23 : 20;  // in a key
template <typename A>
constexpr uint32_t kInfiniteKey = sizeof(A) == 4 ? 0x7f800000u : 0x7ff00000u;

// All numbers of this key or a smaller one are below 2 to this power.
template <typename A>
__device__ inline int exponent_above(uint32_t key) {
  int exponent = static_cast<int>(key >> kMantissaBits<A>);
  return (exponent > 0 ? exponent : 1) - (sizeof(A) == 4 ? 126 : 1022);
}

template <typename A>
__device__ inline bool is_poisoned(const FixedPoint& fixed_point) {
  return fixed_point.is_poisoned || fixed_point.grad_key >= kInfiniteKey<A> ||
         fixed_point.weight_key >= kInfiniteKey<A>;
}

// Contributions are multiplied by 2 to this power. A softmax's weights are at most 1.
template <typename A>
__device__ inline int find_exponent(const Arguments& args) {
  long long samples = args.queries * args.num_levels * args.num_points;
  int count_bits = 64 - __clzll(samples);
  int weight_bits =
      args.reference_points ? 1 : exponent_above<A>(args.fixed_point->weight_key);
  int product_bits = weight_bits + exponent_above<A>(args.fixed_point->grad_key);
  int most = sizeof(A) == 4 ? 128 : 1024;  // larger products are infinite, and poison the sum
  return 62 - count_bits - (product_bits < most ? product_bits : most);
}

__device__ inline long long to_integer(float number) { return __float2ll_rn(number); }
__device__ inline long long to_integer(double number) { return __double2ll_rn(number); }

// Adds to accumulators starting at `first`, up to four neighbours at a time.
template <typename A>
struct FloatingSum {
  A* target;

  __device__ FloatingSum(const Arguments& args, int64_t first)
      : target(static_cast<A*>(args.grad_value) + first) {}

  template <int kVector>
  __device__ static constexpr int width() {
    return atomic_width<A, kVector>();
  }

  template <typename Index, int kCount>
  __device__ void add(Index index, const Numbers<A, kCount>& numbers) const {
    atomic_add(target + index, numbers);
  }
};

template <typename A>
struct FixedSum {
  using Element = unsigned long long;
  Element* target;
  FixedPoint* fixed_point;
  int exponent;

  __device__ FixedSum(const Arguments& args, int64_t first)
      : target(static_cast<Element*>(args.grad_value) + first),
        fixed_point(args.fixed_point),
        exponent(find_exponent<A>(args)) {}

  template <int kVector>
  __device__ static constexpr int width() {
    return 1;
  }

  template <typename Index>
  __device__ void add(Index index, const Numbers<A, 1>& numbers) const {
    A number = numbers.at[0];
    if (key_of(number) >= kInfiniteKey<A>) {
      fixed_point->is_poisoned = 1;  // the order of writers doesn't matter
      return;
    }
    atomicAdd(target + index, static_cast<Element>(to_integer(ldexp(number, exponent))));
  }
};

template <typename T>
__device__ inline uint32_t largest_key(const T* numbers, int64_t count) {
  uint32_t largest = 0;
  int64_t step = int64_t(gridDim.x) * blockDim.x;
  for (int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; i < count; i += step) {
    uint32_t key = key_of(load<1>(numbers + i).at[0]);
    largest = key > largest ? key : largest;
  }
  return largest;
}

// All lanes of a warp must call it.
__device__ inline void raise_key(uint32_t* target, uint32_t key) {
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2) {
    uint32_t other = __shfl_xor_sync(0xffffffffu, key, distance);
    key = other > key ? other : key;
  }
  if (threadIdx.x % 32 == 0) atomicMax(target, key);
}

template <typename T>
__global__ void measure_kernel(const __grid_constant__ Arguments args) {
  int64_t pairs = args.batch * args.queries * args.heads;
  raise_key(&args.fixed_point->grad_key,
            largest_key(static_cast<const T*>(args.grad), pairs * args.width));
  if (args.reference_points) return;
  int64_t count = pairs * args.num_levels * args.num_points;
  uint32_t key = sizeof(T) == 2 && args.points_are_float32
                     ? largest_key(static_cast<const float*>(args.weights), count)
                     : largest_key(static_cast<const T*>(args.weights), count);
  raise_key(&args.fixed_point->weight_key, key);
}

template <typename T>
__global__ void convert_kernel(const __grid_constant__ Arguments args) {
  using A = Accumulator<T>;
  int64_t count = args.batch * args.tokens * args.heads * args.width;
  int64_t step = int64_t(gridDim.x) * blockDim.x;
  int exponent = -find_exponent<A>(args);
  bool is_nan = is_poisoned<A>(*args.fixed_point);
  for (int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; i < count; i += step) {
    A sum = static_cast<A>(static_cast<const long long*>(args.grad_value)[i]);
    narrow(is_nan ? A(NAN) : ldexp(sum, exponent), static_cast<T*>(args.converted)[i]);
  }
}

}  // namespace deformable_attention_cuda
