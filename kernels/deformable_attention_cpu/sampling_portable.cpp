// The operator for any processor: vectors of 16 bytes, SSE2 or NEON.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>
#include <vector>

#include "arguments.h"

#define VECTOR_BYTES 16
#define FUNCTIONS portable_functions
#include "functions.h"
