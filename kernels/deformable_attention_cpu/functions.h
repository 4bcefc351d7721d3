// Defines the functions of one instruction set as FUNCTIONS, with vectors of VECTOR_BYTES. The
// standard headers that they need are included before any target is set.

namespace deformable_attention {
// The unnamed namespace keeps these functions separate from those of other instruction sets.
namespace {
#include "vectors.h"

#include "points.h"

#include "sampling.h"
}

template <>
Functions<float> FUNCTIONS() {
  return functions<float>();
}

template <>
Functions<float, BFloat16> FUNCTIONS() {
  return functions<float, BFloat16>();
}

template <>
Functions<double> FUNCTIONS() {
  return functions<double>();
}

}  // namespace deformable_attention
