// The operator for any processor: vectors of 16 bytes, SSE2 or NEON.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>
#include <vector>

#include "call.h"

#define VECTOR_BYTES 16

namespace deformable_attention {
// Nothing in these may be shared with another instruction set, hence the unnamed namespace.
namespace {
#include "vectors.h"

#include "points.h"

#include "sampling.h"
}

template <>
Functions<float> portable_functions() {
  return functions<float>();
}

template <>
Functions<double> portable_functions() {
  return functions<double>();
}

}  // namespace deformable_attention
