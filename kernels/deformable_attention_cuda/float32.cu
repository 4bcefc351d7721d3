// The kernels for value in float32. One file a type, so that they compile side by side.
#include "launch.cuh"

namespace deformable_attention_cuda {

const Launchers kFloat32Launchers = make_launchers<float>();

}  // namespace deformable_attention_cuda
