// Lanes of a warp that share one query's head, and the values that they exchange.
#pragma once

#include "arguments.h"
#include "bilinear.cuh"
#include "vectors.cuh"

namespace deformable_attention_cuda {

constexpr int kMaxThreads = 128;
constexpr unsigned kAllLanes = 0xffffffffu;

// How a kernel is specialised.
//
// `kWidth_`: channels of a head, kVector_ for each of kLanes_ lanes; 0: any number, in several
// rounds, and 64-bit indices. `kSamples_`: points of all levels, 4 on each; 0: any number.
template <typename T, int kWidth_, int kSamples_, int kVector_, int kLanes_>
struct Shape {
  using Value = T;
  using A = Accumulator<T>;
  using Index = std::conditional_t<kWidth_ != 0, int32_t, int64_t>;
  using OneSample = Sample<A, Index>;
  static constexpr int kWidth = kWidth_;
  static constexpr int kSamples = kSamples_;
  static constexpr int kVector = kVector_;
  static constexpr int kLanes = kLanes_;
  static constexpr int kPointsPerLevel = 4;
  static_assert(kWidth == 0 || kWidth == kVector * kLanes);
  static_assert(kSamples % kLanes == 0 || kSamples == 0);
  static_assert(kLanes % 2 == 0 && 32 % kLanes == 0);

  __device__ static int width(const Arguments& args) { return kWidth ? kWidth : args.width; }
  __device__ static int points(const Arguments& args) {
    return kSamples ? kPointsPerLevel : args.num_points;
  }
  __device__ static int samples(const Arguments& args) {
    return kSamples ? kSamples : args.num_levels * args.num_points;
  }
};

// The query's head that a thread works on with the other lanes of its group.
struct Group {
  int lane;
  int head;
  int64_t batch;
  int64_t query;  // b * Q + q
  bool is_active;  // if not, the group keeps the warp's collectives complete and writes nothing

  // Of (B, Q, M) tensors.
  __device__ int64_t pair(const Arguments& args) const { return query * args.heads + head; }
};

// A block takes neighbouring queries of one head, and the next block those after them: neighbours
// sample nearby pixels, so a block finds many of them in its L1 cache and parallel blocks in L2.
// With several heads a block would contain fewer queries, which share fewer pixels.
// blockIdx.x counts blocks of queries, image by image, and blockIdx.y heads.
template <int kLanes>
__device__ inline Group find_group(const Arguments& args) {
  unsigned queries_per_block = blockDim.x / kLanes;
  unsigned batch = blockIdx.x / args.blocks_per_image;
  unsigned tile = blockIdx.x - batch * args.blocks_per_image;
  int64_t query = int64_t(tile) * queries_per_block + threadIdx.x / kLanes;
  Group group;
  group.lane = threadIdx.x % kLanes;
  group.head = blockIdx.y;
  group.batch = batch;
  group.is_active = query < args.queries;
  group.query = batch * args.queries + (group.is_active ? query : args.queries - 1);
  return group;
}

// All lanes of the warp must call the following functions together.

template <int kLanes, typename A>
__device__ inline A group_sum(A number) {
#pragma unroll
  for (int distance = kLanes / 2; distance > 0; distance /= 2) {
    number += __shfl_xor_sync(kAllLanes, number, distance, kLanes);
  }
  return number;
}

template <int kLanes, typename A>
__device__ inline A group_max(A number) {
#pragma unroll
  for (int distance = kLanes / 2; distance > 0; distance /= 2) {
    A other = __shfl_xor_sync(kAllLanes, number, distance, kLanes);
    number = other > number ? other : number;
  }
  return number;
}

// The sample of lane `source`, by four shuffles. Computing it again would take each lane several
// slow conversions, and sharing all corners' addresses and weights eight shuffles.
template <int kLanes, typename A, typename Index>
__device__ inline Sample<A, Index> share(const Sample<A, Index>& own, int source) {
  return {__shfl_sync(kAllLanes, own.code, source, kLanes),
          __shfl_sync(kAllLanes, own.right, source, kLanes),
          __shfl_sync(kAllLanes, own.below, source, kLanes),
          __shfl_sync(kAllLanes, own.weight, source, kLanes)};
}

// Sums over lanes of as many gradients as there are lanes: lane i gets the i-th. Each step adds
// halves of the lanes and keeps half of the gradients: 3 * (kLanes - 1) shuffles, a
// log2(kLanes)-th of reducing them one by one.
template <int kDistance, typename A>
__device__ inline A add_across(A first, A second, bool keeps_second) {
  A sent = keeps_second ? first : second;
  A kept = keeps_second ? second : first;
  return kept + __shfl_xor_sync(kAllLanes, sent, kDistance);
}

template <int kDistance, typename A>
__device__ inline PointGradient<A> add_across(const PointGradient<A>& first,
                                              const PointGradient<A>& second, int lane) {
  bool keeps_second = (lane & kDistance) != 0;
  return {add_across<kDistance>(first.weight, second.weight, keeps_second),
          add_across<kDistance>(first.x, second.x, keeps_second),
          add_across<kDistance>(first.y, second.y, keeps_second)};
}

// Iterates over samples; all lanes process the same one.
struct LevelCursor {
  int level = 0, point = 0;

  __device__ void advance(int points) {
    if (++point == points) {
      point = 0;
      ++level;
    }
  }
};

}  // namespace deformable_attention_cuda
