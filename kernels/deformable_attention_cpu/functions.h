// Makes the functions of one instruction set, under the name FUNCTIONS, with vectors of
// VECTOR_BYTES. What these headers need of the standard library comes before any target is set.

namespace deformable_attention {
// Nothing in these may be shared with another instruction set, hence the unnamed namespace.
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
Functions<double> FUNCTIONS() {
  return functions<double>();
}

}  // namespace deformable_attention
