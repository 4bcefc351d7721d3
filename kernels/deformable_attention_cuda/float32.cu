// The kernels for value in float32. One file per type: they compile in parallel.
#include "launch.cuh"

namespace deformable_attention_cuda {

const Launchers kFloat32Launchers = make_launchers<float>();

}  // namespace deformable_attention_cuda
