// Chooses a kernel's specialisation and its grid, and starts it.
#pragma once

#include "backward.cuh"
#include "forward.cuh"
#include "references.cuh"

namespace deformable_attention_cuda {

inline const char* launch(void (*kernel)(Arguments), int64_t blocks, int64_t rows, int threads,
                          void* stream, const Arguments& args) {
  if (blocks > 0x7fffffff) return "there are too many queries for one launch";
  if (rows > 0xffff) return "there are too many heads for one launch";
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(blocks), static_cast<unsigned>(rows));
  config.blockDim = dim3(threads);
  config.stream = static_cast<cudaStream_t>(stream);
  cudaError_t error = cudaLaunchKernelEx(&config, kernel, args);
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

// A block for every `per_block` of `count` items.
inline int64_t blocks_for(int64_t count, int64_t per_block) {
  return (count + per_block - 1) / per_block;
}

inline const char* launch_over_items(void (*kernel)(Arguments), int64_t count, void* stream,
                                     const Arguments& args) {
  return launch(kernel, blocks_for(count, kMaxThreads), 1, kMaxThreads, stream, args);
}

// For kernels that iterate over all items with any number of blocks.
inline const char* launch_over_range(void (*kernel)(Arguments), int64_t count, void* stream,
                                     const Arguments& args) {
  int64_t blocks = blocks_for(count, kMaxThreads);
  return launch(kernel, blocks < 4096 ? blocks : 4096, 1, kMaxThreads, stream, args);
}

// One group of lanes for each query's head. A block's queries share pixels in L1 (512 threads
// are not faster than 128 on an H200); a decoder's few queries are spread over smaller blocks so
// that no multiprocessor stays idle.
inline const char* launch_over_groups(void (*kernel)(Arguments), int lanes, void* stream,
                                      Arguments args) {
  constexpr int64_t kEnoughBlocks = 1024;
  constexpr int kMinThreads = 64;
  int threads = kMaxThreads;
  auto blocks_per_image = [&] { return blocks_for(args.queries, threads / lanes); };
  int64_t rows = args.batch * args.heads;
  while (threads > kMinThreads && blocks_per_image() * rows < kEnoughBlocks) threads /= 2;
  args.blocks_per_image = static_cast<uint32_t>(blocks_per_image());
  return launch(kernel, blocks_per_image() * args.batch, args.heads, threads, stream, args);
}

// 32-bit offsets within one image: corners outside stay below 2^31 too.
inline bool is_short(const Arguments& args) {
  return args.tokens < kMaxShortTokens &&
         args.tokens * args.heads * args.width < (int64_t(1) << 30);
}

// Calls `visit` with a Shape for any width and any number of samples.
template <typename T, typename Visit>
const char* with_general_shape(const Arguments& args, const Visit& visit) {
  constexpr int kVector = 16 / sizeof(T), kLanes = 8;
  if (args.width % kVector == 0) return visit(Shape<T, 0, 0, kVector, kLanes>());
  return visit(Shape<T, 0, 0, 1, kLanes>());
}

// The same with a Shape made for the arguments, if there is one.
template <typename T, typename Visit>
const char* with_best_shape(const Arguments& args, const Visit& visit) {
  constexpr int kVector = 16 / sizeof(T);
  if constexpr (sizeof(T) < 8) {
    bool is_usual = args.num_levels == 4 && args.num_points == 4;
    if (is_short(args)) {
      if (args.width == 16 && is_usual) return visit(Shape<T, 16, 16, kVector, 16 / kVector>());
      if (args.width == 32 && is_usual) return visit(Shape<T, 32, 16, kVector, 32 / kVector>());
      if (args.width == 64 && is_usual) return visit(Shape<T, 64, 16, kVector, 64 / kVector>());
      if (args.width == 32) return visit(Shape<T, 32, 0, kVector, 32 / kVector>());
    }
  }
  return with_general_shape<T>(args, visit);
}

template <typename T>
const char* start_forward(const Arguments& args, void* stream) {
  return with_best_shape<T>(args, [&](auto shape) {
    using S = decltype(shape);
    auto kernel = args.reference_points ? forward_kernel<S, true> : forward_kernel<S, false>;
    return launch_over_groups(kernel, S::kLanes, stream, args);
  });
}

template <typename T>
const char* start_gradients(const Arguments& args, void* stream) {
  bool is_fused = args.reference_points != nullptr;
  if (args.fixed_point) {
    // Fixed point is not optimised for speed: it has no special kernels for usual widths.
    return with_general_shape<T>(args, [&](auto shape) {
      using S = decltype(shape);
      auto kernel =
          is_fused ? backward_kernel<S, true, FixedSum> : backward_kernel<S, false, FixedSum>;
      return launch_over_groups(kernel, S::kLanes, stream, args);
    });
  }
  return with_best_shape<T>(args, [&](auto shape) {
    using S = decltype(shape);
    auto kernel =
        is_fused ? backward_kernel<S, true, FloatingSum> : backward_kernel<S, false, FloatingSum>;
    return launch_over_groups(kernel, S::kLanes, stream, args);
  });
}

template <typename T>
const char* start_backward(const Arguments& args, void* stream) {
  const char* error = start_gradients<T>(args, stream);
  if (error || !args.grad_references) return error;
  int64_t count = args.batch * args.queries * args.num_levels;
  return launch_over_items(reference_kernel<T>, count, stream, args);
}

template <typename T>
const char* start_measuring(const Arguments& args, void* stream) {
  int64_t count = args.batch * args.queries * args.heads * args.width;
  return launch_over_range(measure_kernel<T>, count, stream, args);
}

template <typename T>
const char* start_converting(const Arguments& args, void* stream) {
  int64_t count = args.batch * args.tokens * args.heads * args.width;
  return launch_over_range(convert_kernel<T>, count, stream, args);
}

template <typename T>
constexpr Launchers make_launchers() {
  return {start_forward<T>, start_backward<T>, start_measuring<T>, start_converting<T>};
}

}  // namespace deformable_attention_cuda
