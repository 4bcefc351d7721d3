// The operator for AVX2: vectors of 32 bytes.
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
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC target("avx2,fma")
#endif
#define VECTOR_BYTES 32
#define FUNCTIONS avx2_functions
#include "functions.h"

#ifdef __clang__
#pragma clang attribute pop
#endif

#endif
