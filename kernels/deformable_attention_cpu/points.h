// Pixels and corner weights of locations, or of references and offsets, and their gradients;
// vectorised over points.

constexpr int kPointsAtOnce = 128;

// Points of several queries of one head, in pixels.
template <class T>
struct PointBlock {
  template <class S>
  explicit PointBlock(const Arguments<T, S>& args)
      : per_query(args.levels * args.points),
        queries(std::max<int64_t>(1, kPointsAtOnce / std::max<int64_t>(1, per_query))),
        size((queries * per_query + kLanes<T> - 1) / kLanes<T> * kLanes<T>),
        integers(5 * size),
        numbers(14 * size) {
    Integer<T>* integer = integers.data();
    for (Integer<T>** array : {&row, &origin, &zeros, &base, &corners}) {
      *array = integer;
      integer += size;
    }
    T* number = numbers.data();
    for (T** array : {&level_width, &level_height, &x, &y, &right, &below, &weight, &corner[0],
                      &corner[1], &corner[2], &corner[3], &grad_x, &grad_y, &grad_weight}) {
      *array = number;
      number += size;
    }
    for (int64_t i = 0; i < queries * per_query; ++i) {
      const Level<T>& level = args.level[i % per_query / args.points];
      level_width[i] = level.width;
      level_height[i] = level.height;
      row[i] = level.row;
      origin[i] = level.origin;
      zeros[i] = level.zeros;
    }
  }

  int64_t per_query, queries, size;
  std::vector<Integer<T>> integers;
  std::vector<T> numbers;
  // Of each point's level.
  T *level_width, *level_height;
  Integer<T> *row, *origin, *zeros;
  // Position in pixels, distances from the pixel left above it, weights of its four corners.
  T *x, *y, *right, *below, *weight, *corner[4];
  // The pixel left above, and bits: whether left, right, upper and lower pixels exist.
  Integer<T> *base, *corners;
  T *grad_x, *grad_y, *grad_weight;
};

template <class T>
void find_corners(PointBlock<T>& block, int64_t count) {
  constexpr int n = kLanes<T>;
  using Numbers = Vector<T, n>;
  using Integers = Vector<Integer<T>, n>;
  for (int64_t i = 0; i < count; i += n) {
    Numbers x = load<T, n>(block.x + i), y = load<T, n>(block.y + i);
    Numbers width = load<T, n>(block.level_width + i), height = load<T, n>(block.level_height + i);
    Numbers weight = load<T, n>(block.weight + i);
    // False for NaN, too: positions outside never become an index.
    Integers inside = (x >= -1) & (x < width) & (y >= -1) & (y < height);
    weight = ((x == x) & (y == y)) ? weight : x + y;
    x = inside ? x : Numbers{};
    y = inside ? y : Numbers{};
    Integers column = __builtin_convertvector(x, Integers);
    Integers line = __builtin_convertvector(y, Integers);
    column += x < __builtin_convertvector(column, Numbers);  // true is -1
    line += y < __builtin_convertvector(line, Numbers);
    Numbers right = x - __builtin_convertvector(column, Numbers);
    Numbers below = y - __builtin_convertvector(line, Numbers);
    Integers last_column = __builtin_convertvector(width, Integers) - 1;
    Integers last_line = __builtin_convertvector(height, Integers) - 1;
    Integers corners = ((column >= 0) & 1) | ((column < last_column) & 2) | ((line >= 0) & 4) |
                       ((line < last_line) & 8);
    Integers base = load<Integer<T>, n>(block.origin + i) + column +
                    line * load<Integer<T>, n>(block.row + i);
    store<n>(block.corners + i, corners & inside);
    store<n>(block.base + i, inside ? base : load<Integer<T>, n>(block.zeros + i));
    store<n>(block.right + i, right);
    store<n>(block.below + i, below);
    store<n>(block.weight + i, weight);
    Numbers lower = weight * below, upper = weight - lower;
    Numbers upper_right = upper * right, lower_right = lower * right;
    store<n>(block.corner[0] + i, upper - upper_right);
    store<n>(block.corner[1] + i, upper_right);
    store<n>(block.corner[2] + i, lower - lower_right);
    store<n>(block.corner[3] + i, lower_right);
  }
}

// ---------------------------------------------------------------- locations and weights

// std::exp doesn't vectorise everywhere. The error is 2 units in the last place.
inline float exponential(float x) {
  float clamped = x < -87.0f ? -87.0f : x;  // keeps NaN; x is never above 0
  float shifted = clamped * 1.44269504f + 12582912.0f;  // its low bits are the rounded quotient
  float quotient = shifted - 12582912.0f;
  float rest = clamped - quotient * 0.693359375f + quotient * 2.12194440e-4f;
  float result = 1.0f / 720;
  for (float coefficient : {1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f})
    result = result * rest + coefficient;
  uint32_t bits, shift;
  std::memcpy(&bits, &result, 4);
  std::memcpy(&shift, &shifted, 4);
  bits += shift << 23;
  std::memcpy(&result, &bits, 4);
  return x < -87.0f ? 0.0f : x == x ? result : x;
}

inline double exponential(double x) { return std::exp(x); }

// Softmax of each row. Rows take each step together: within one, each step waits for the previous one.
template <class T>
void softmax(T* weights, int64_t rows, int64_t count) {
  T* end = weights + rows * count;
  for (T* row = weights; row < end; row += count) {
    T largest = row[0];
    for (int64_t i = 1; i < count; ++i) largest = row[i] > largest ? row[i] : largest;
    for (int64_t i = 0; i < count; ++i) row[i] -= largest;
  }
  for (T* weight = weights; weight < end; ++weight) *weight = exponential(*weight);
  for (T* row = weights; row < end; row += count) {
    T sum = 0;
    for (int64_t i = 0; i < count; ++i) sum += row[i];
    T scale = 1 / sum;
    for (int64_t i = 0; i < count; ++i) row[i] *= scale;
  }
}

// Pixels by which one unit of an offset moves a point of this level.
template <class T, class S>
void offset_units(const Arguments<T, S>& args, const T* reference, int64_t level, T& x, T& y) {
  x = y = 1;
  if (args.coordinates == 4) {
    T scale = (T)0.5 / (T)args.points;
    x = reference[4 * level + 2] * scale * args.level[level].width;
    y = reference[4 * level + 3] * scale * args.level[level].height;
  }
}

// Turns one query's offsets from references into pixels.
template <class T, class S>
void place_around_references(const Arguments<T, S>& args, int64_t image_and_query, T* __restrict x,
                             T* __restrict y) {
  const T* reference = args.references + image_and_query * args.levels * args.coordinates;
  for (int64_t level = 0; level < args.levels; ++level) {
    T center_x = reference[level * args.coordinates] * args.level[level].width - (T)0.5;
    T center_y = reference[level * args.coordinates + 1] * args.level[level].height - (T)0.5;
    T unit_x, unit_y;
    offset_units(args, reference, level, unit_x, unit_y);
    for (int64_t i = level * args.points; i < (level + 1) * args.points; ++i) {
      x[i] = x[i] * unit_x + center_x;
      y[i] = y[i] * unit_y + center_y;
    }
  }
}

// Fills the block with `count` queries of an item, starting at `query`.
template <class T, class S>
void load_points(const Arguments<T, S>& args, int64_t item, int64_t query, int64_t count,
                 PointBlock<T>& block) {
  int64_t per_query = block.per_query;
  for (int64_t q = 0; q < count; ++q) {
    int64_t image_and_query = item / args.heads * args.queries + query + q;
    int64_t row = image_and_query * args.heads + item % args.heads;
    const S* __restrict xy = args.points_xy + row * per_query * 2;
    const S* __restrict weights = args.weights + row * per_query;
    int64_t next = count * args.heads * per_query;
    prefetch<0>(xy + 2 * next, 2 * per_query);
    prefetch<0>(weights + next, per_query);
    T* __restrict x = block.x + q * per_query;
    T* __restrict y = block.y + q * per_query;
    T* __restrict weight = block.weight + q * per_query;
    for (int64_t i = 0; i < per_query; ++i) {
      x[i] = xy[2 * i];
      y[i] = xy[2 * i + 1];
      weight[i] = weights[i];
    }
    if (args.coordinates) place_around_references(args, image_and_query, x, y);
  }
  if (args.coordinates) softmax(block.weight, count, per_query);
  int64_t size = count * per_query;
  // Locations don't depend on their query: all at once.
  for (int64_t i = 0; !args.coordinates && i < size; ++i) {
    block.x[i] = block.x[i] * block.level_width[i] - (T)0.5;
    block.y[i] = block.y[i] * block.level_height[i] - (T)0.5;
  }
  find_corners(block, size);
}

template <class T>
void prefetch_point_gradients(const Arguments<T>& args, int64_t item, int64_t query,
                              int64_t per_query) {
  int64_t row = (item / args.heads * args.queries + query) * args.heads + item % args.heads;
  prefetch<1>(args.grad_points_xy + row * per_query * 2, per_query * 2);
  prefetch<1>(args.grad_weights + row * per_query, per_query);
}

// Turns pixel gradients of one query into those of its locations, or offsets and references.
template <class T>
void scale_gradients(const Arguments<T>& args, int64_t item, int64_t query, T* __restrict x,
                     T* __restrict y) {
  int64_t row = item / args.heads * args.queries + query;
  const T* reference = args.references + row * args.levels * args.coordinates;
  const T* xy = args.points_xy +
                (row * args.heads + item % args.heads) * args.levels * args.points * 2;
  for (int64_t level = 0; level < args.levels; ++level) {
    T width = args.level[level].width, height = args.level[level].height;
    T unit_x = width, unit_y = height;
    if (args.coordinates) offset_units(args, reference, level, unit_x, unit_y);
    T sums[4] = {};
    for (int64_t i = level * args.points; i < (level + 1) * args.points; ++i) {
      if (args.grad_references) {
        sums[0] += x[i];
        sums[1] += y[i];
        sums[2] += x[i] * xy[2 * i];
        sums[3] += y[i] * xy[2 * i + 1];
      }
      x[i] *= unit_x;
      y[i] *= unit_y;
    }
    if (!args.grad_references) continue;
    T scale = (T)0.5 / (T)args.points;
    T factors[4] = {width, height, scale * width, scale * height};
    T* grad = args.grad_references +
              ((item * args.queries + query) * args.levels + level) * args.coordinates;
    for (int64_t i = 0; i < args.coordinates; ++i) grad[i] = sums[i] * factors[i];
  }
}

template <class T>
void store_point_gradients(const Arguments<T>& args, int64_t item, int64_t query, int64_t count,
                           PointBlock<T>& block) {
  int64_t per_query = block.per_query;
  for (int64_t q = 0; q < count; ++q) {
    T* __restrict x = block.grad_x + q * per_query;
    T* __restrict y = block.grad_y + q * per_query;
    T* __restrict grad_weight = block.grad_weight + q * per_query;
    scale_gradients(args, item, query + q, x, y);
    if (args.coordinates) {
      const T* __restrict weight = block.weight + q * per_query;
      T mean = 0;
      for (int64_t i = 0; i < per_query; ++i) mean += weight[i] * grad_weight[i];
      for (int64_t i = 0; i < per_query; ++i) grad_weight[i] = weight[i] * (grad_weight[i] - mean);
    }
    int64_t row =
        (item / args.heads * args.queries + query + q) * args.heads + item % args.heads;
    T* __restrict out = args.grad_points_xy + row * per_query * 2;
    for (int64_t i = 0; i < per_query; ++i) {
      out[2 * i] = x[i];
      out[2 * i + 1] = y[i];
    }
    std::copy_n(grad_weight, per_query, args.grad_weights + row * per_query);
  }
}
