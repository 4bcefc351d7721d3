// The kernels for value in bfloat16. One file per type: they compile in parallel.
#include "launch.cuh"

namespace deformable_attention_cuda {

const Launchers kBFloat16Launchers = make_launchers<__nv_bfloat16>();

}  // namespace deformable_attention_cuda
