// Number types, and loads and stores of several neighbours by one instruction.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

namespace deformable_attention_cuda {

// Sums are kept in float32, and in float64 for float64.
template <typename T>
struct AccumulatorOf {
  using type = float;
};
template <>
struct AccumulatorOf<double> {
  using type = double;
};
template <typename T>
using Accumulator = typename AccumulatorOf<T>::type;

__device__ inline float widen(float number) { return number; }
__device__ inline double widen(double number) { return number; }
__device__ inline float widen(__half number) { return __half2float(number); }
__device__ inline float widen(__nv_bfloat16 number) { return __bfloat162float(number); }

__device__ inline void narrow(float number, float& result) { result = number; }
__device__ inline void narrow(double number, double& result) { result = number; }
__device__ inline void narrow(float number, __half& result) { result = __float2half_rn(number); }
__device__ inline void narrow(float number, __nv_bfloat16& result) {
  result = __float2bfloat16_rn(number);
}

// The type of one load or store, by its number of bytes.
template <int kBytes>
struct WordOf;
template <>
struct WordOf<2> {
  using type = unsigned short;
};
template <>
struct WordOf<4> {
  using type = unsigned int;
};
template <>
struct WordOf<8> {
  using type = uint2;
};
template <>
struct WordOf<16> {
  using type = uint4;
};

// `kCount` numbers, a power of two. More than 16 bytes take several words.
template <typename A, int kCount>
struct Numbers {
  A at[kCount];
};

template <typename T, int kCount>
constexpr int kWordBytes = kCount * sizeof(T) < 16 ? int(kCount * sizeof(T)) : 16;

// The same with the layout of memory.
template <typename T, int kCount>
struct Packed {
  typename WordOf<kWordBytes<T, kCount>>::type at[kCount * sizeof(T) / kWordBytes<T, kCount>];
};

// The same address, which the compiler then keeps in registers instead of computing it at each use.
template <typename T>
__device__ inline const T* keep(const T* address) {
#ifdef __CUDACC__
  asm("" : "+l"(address));
#endif
  return address;
}

// Reads through the read-only path: the kernel must not write the memory.
template <int kCount, typename T>
__device__ inline Packed<T, kCount> load_packed(const T* source) {
  using Word = typename WordOf<kWordBytes<T, kCount>>::type;
  constexpr int kPerWord = sizeof(Word) / sizeof(T);
  Packed<T, kCount> result;
#pragma unroll
  for (int first = 0; first < kCount; first += kPerWord) {
    result.at[first / kPerWord] = __ldg(reinterpret_cast<const Word*>(source + first));
  }
  return result;
}

template <int kCount, typename T>
__device__ inline Numbers<Accumulator<T>, kCount> unpack(const Packed<T, kCount>& packed) {
  T elements[kCount];
  memcpy(elements, packed.at, sizeof(elements));
  Numbers<Accumulator<T>, kCount> result;
#pragma unroll
  for (int i = 0; i < kCount; ++i) result.at[i] = widen(elements[i]);
  return result;
}

template <int kCount, typename T>
__device__ inline Numbers<Accumulator<T>, kCount> load(const T* source) {
  return unpack<kCount, T>(load_packed<kCount>(source));
}

template <int kCount, typename T>
__device__ inline void store(T* target, const Numbers<Accumulator<T>, kCount>& numbers) {
  using Word = typename WordOf<kWordBytes<T, kCount>>::type;
  constexpr int kPerWord = sizeof(Word) / sizeof(T);
#pragma unroll
  for (int first = 0; first < kCount; first += kPerWord) {
    T elements[kPerWord];
#pragma unroll
    for (int i = 0; i < kPerWord; ++i) narrow(numbers.at[first + i], elements[i]);
    Word word;
    memcpy(&word, elements, sizeof(Word));
    *reinterpret_cast<Word*>(target + first) = word;
  }
}

// Number of neighbouring accumulators in one atomic addition: from sm_90 on, four floats.
template <typename A, int kVector>
__device__ constexpr int atomic_width() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  return sizeof(A) == 4 && kVector % 4 == 0 ? 4 : 1;
#else
  return 1;
#endif
}

template <typename A>
__device__ inline void atomic_add(A* target, const Numbers<A, 1>& numbers) {
  atomicAdd(target, numbers.at[0]);
}

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
__device__ inline void atomic_add(float* target, const Numbers<float, 4>& numbers) {
  const float* at = numbers.at;
  atomicAdd(reinterpret_cast<float4*>(target), make_float4(at[0], at[1], at[2], at[3]));
}
#endif

}  // namespace deformable_attention_cuda
