// The kernels for value in float64. One file a type, so that they compile side by side.
#include "launch.cuh"

namespace deformable_attention_cuda {

const Launchers kFloat64Launchers = make_launchers<double>();

}  // namespace deformable_attention_cuda
