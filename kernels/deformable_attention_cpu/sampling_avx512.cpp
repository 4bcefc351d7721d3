// The operator for AVX-512: vectors of 64 bytes.
#ifdef __x86_64__
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>
#include <vector>

#include "arguments.h"

#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx512f,avx512dq,avx512bw,avx512vl,avx2,fma"))), apply_to = function)
#else
#pragma GCC target("avx512f,avx512dq,avx512bw,avx512vl,avx2,fma")
#endif
#define VECTOR_BYTES 64
#define FUNCTIONS avx512_functions
#include "functions.h"

#ifdef __clang__
#pragma clang attribute pop
#endif

#endif
