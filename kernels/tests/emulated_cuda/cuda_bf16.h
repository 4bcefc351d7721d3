// See cuda_runtime.h.
#pragma once

#include <cstdint>
#include <cstring>

struct __nv_bfloat16 {
  uint16_t bits;
};

inline float __bfloat162float(__nv_bfloat16 number) {
  uint32_t bits = uint32_t(number.bits) << 16;
  float result;
  std::memcpy(&result, &bits, 4);
  return result;
}

inline __nv_bfloat16 __float2bfloat16_rn(float number) {
  uint32_t bits;
  std::memcpy(&bits, &number, 4);
  if (number != number) return {0x7fff};
  return {static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16)};
}
