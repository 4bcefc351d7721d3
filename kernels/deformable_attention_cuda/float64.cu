// The kernels for value in float64. One file per type: they compile in parallel.
#include "launch.cuh"

namespace deformable_attention_cuda {

const Launchers kFloat64Launchers = make_launchers<double>();

}  // namespace deformable_attention_cuda
