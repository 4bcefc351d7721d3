// See cuda_runtime.h.
#pragma once

#include <math.h>

#include <cstdint>

struct __half {
  uint16_t bits;
};

inline float __half2float(__half number) {
  int exponent = (number.bits >> 10) & 31, mantissa = number.bits & 1023;
  float sign = number.bits >> 15 ? -1.0f : 1.0f;
  if (exponent == 31) return mantissa ? NAN : sign * INFINITY;
  if (exponent == 0) return sign * ldexpf(mantissa, -24);
  return sign * ldexpf(mantissa + 1024, exponent - 25);
}

inline __half __float2half_rn(float number) {
  uint16_t sign = signbit(number) ? 0x8000 : 0;
  float size = fabsf(number);
  if (number != number) return {0x7fff};
  if (size >= 65520) return {static_cast<uint16_t>(sign | 0x7c00)};
  if (size == 0) return {sign};
  int exponent = ilogbf(size) < -14 ? -14 : ilogbf(size);
  // Rounding up to 2048 carries into the exponent, as it should.
  int mantissa = static_cast<int>(lrintf(ldexpf(size, 10 - exponent)));
  int bits = ((exponent + 14) << 10) + mantissa;
  return {static_cast<uint16_t>(sign | bits)};
}
