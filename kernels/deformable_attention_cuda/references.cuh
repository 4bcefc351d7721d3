// The gradient of reference points, which all heads and points of a query share.
#pragma once

#include "sampling.cuh"

namespace deformable_attention_cuda {

// A thread takes one query's level and always adds in the same order. It is not part of the
// backward kernel because encoders, whose time matters most, don't need it.
template <typename T>
__global__ void reference_kernel(const __grid_constant__ Arguments args) {
  using A = Accumulator<T>;
  int64_t index = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (index >= args.batch * args.queries * args.num_levels) return;
  int64_t query = index / args.num_levels;
  int level = index % args.num_levels;
  A x = 0, y = 0, width = 0, height = 0;
  for (int head = 0; head < args.heads; ++head) {
    int64_t row = ((query * args.heads + head) * args.num_levels + level) * args.num_points;
    for (int64_t sample = row; sample < row + args.num_points; ++sample) {
      auto gradient = load<2>(static_cast<const A*>(args.grad_pixels) + sample * 2);
      auto offset = load_any<2, T>(args, args.points, sample);
      x += gradient.at[0];
      y += gradient.at[1];
      width += gradient.at[0] * offset.at[0];
      height += gradient.at[1] * offset.at[1];
    }
  }
  A* target = static_cast<A*>(args.grad_references) + index * args.coordinates;
  A level_width = args.levels[level].width, level_height = args.levels[level].height;
  store<2>(target, Numbers<A, 2>{x * level_width, y * level_height});
  if (args.coordinates == 2) return;
  A half_step = A(0.5) / args.num_points;  // of an offset, in sizes of the box
  store<2>(target + 2, Numbers<A, 2>{width * half_step * level_width,
                                     height * half_step * level_height});
}

}  // namespace deformable_attention_cuda
