// The operator for AVX2: vectors of 32 bytes.
#ifdef __x86_64__
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>
#include <vector>

#include "call.h"

#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC target("avx2,fma")
#endif
#define VECTOR_BYTES 32

namespace deformable_attention {
// Nothing in these may be shared with another instruction set, hence the unnamed namespace.
namespace {
#include "vectors.h"

#include "points.h"

#include "sampling.h"
}

template <>
Functions<float> avx2_functions() {
  return functions<float>();
}

template <>
Functions<double> avx2_functions() {
  return functions<double>();
}

}  // namespace deformable_attention

#ifdef __clang__
#pragma clang attribute pop
#endif

#endif
