// The kernels for value in float16. One file per type: they compile in parallel.
#include "launch.cuh"

namespace deformable_attention_cuda {

const Launchers kFloat16Launchers = make_launchers<__half>();

}  // namespace deformable_attention_cuda
