// The kernels for value in float16. One file a type, so that they compile side by side.
#include "launch.cuh"

namespace deformable_attention_cuda {

const Launchers kFloat16Launchers = make_launchers<__half>();

}  // namespace deformable_attention_cuda
