// Weighted sums of rows of channels, and their derivatives; vectorised over channels.

// Rows of channels of one image and head.
template <class T>
struct Rows {
  const T* value;
  T* grad;        // laid out as value, or null
  int64_t pixel;  // numbers from one pixel to the next
};

template <class T>
Rows<T> rows_of(const Call<T>& call, int64_t item, int64_t part) {
  if (call.has_table) {
    int64_t size = call.table_pixels * call.width;
    int64_t index = item - call.first;
    T* grad = call.grad_table ? call.grad_table + (part * call.items + index) * size : nullptr;
    return {call.table + index * size, grad, call.width};
  }
  int64_t start = item / call.heads * call.tokens * call.heads * call.width +
                  item % call.heads * call.width;
  return {call.value + start, call.grad_value ? call.grad_value + start : nullptr,
          call.heads * call.width};
}

// Calls `visit(corner, offset)` for the corners of a point that exist.
template <bool has_table, class T, class Visit>
inline void for_corners(const PointBlock<T>& block, int64_t i, int64_t pixel, const Visit& visit) {
  int64_t start = block.base[i] * pixel, below = block.row[i] * pixel;
  if (has_table || block.corners[i] == 15) {
    visit(0, start);
    visit(1, start + pixel);
    visit(2, start + below);
    visit(3, start + below + pixel);
    return;
  }
#pragma GCC unroll 4
  for (int k = 0; k < 4; ++k) {
    bool exists = block.corners[i] >> (k & 1) & block.corners[i] >> (2 + (k >> 1)) & 1;
    if (exists) visit(k, start + (k & 1) * pixel + (k >> 1) * below);
  }
}

// Sums some channels of one query's points.
template <bool has_table, class T, int lanes, int registers>
void sum_samples(const PointBlock<T>& block, int64_t first, const T* value, int64_t pixel,
                 T* output) {
  // Several chains of sums: within one, each multiply-add waits for the last.
  constexpr int chains = registers <= 2 ? 4 : registers <= 4 ? 2 : 1;
  Vector<T, lanes> sums[chains][registers] = {};
  for (int64_t i = first; i < first + block.per_query; ++i) {
    for_corners<has_table>(block, i, pixel, [&](int k, int64_t offset) {
      T weight = block.corner[k][i];
      for (int r = 0; r < registers; ++r)
        sums[k % chains][r] += weight * load<T, lanes>(value + offset + r * lanes);
    });
    // A weight that isn't a number shows where no corner exists, too.
    if (!has_table && block.corners[i] != 15)
      for (int r = 0; r < registers; ++r) sums[0][r] += 0 * block.weight[i];
  }
  for (int r = 0; r < registers; ++r) {
    for (int chain = 1; chain < chains; ++chain) sums[0][r] += sums[chain][r];
    store<lanes>(output + r * lanes, sums[0][r]);
  }
}

// Adds weighted gradients to the corners' rows, and to `dots` (4 a point) the products of the
// corners' rows and the gradient.
template <bool has_table, class T, int lanes, int registers>
void spread_gradient(const PointBlock<T>& block, int64_t first, const T* value, T* grad_value,
                     int64_t pixel, const T* grad, T* dots) {
  Vector<T, lanes> grads[registers];
  for (int r = 0; r < registers; ++r) grads[r] = load<T, lanes>(grad + r * lanes);
  for (int64_t i = first; i < first + block.per_query; ++i) {
    Vector<T, lanes> products[4] = {};
    for_corners<has_table>(block, i, pixel, [&](int k, int64_t offset) {
      T weight = block.corner[k][i];
      for (int r = 0; r < registers; ++r) {
        products[k] += grads[r] * load<T, lanes>(value + offset + r * lanes);
        add_to<T, lanes>(grad_value + offset + r * lanes, weight * grads[r]);
      }
    });
    add_sums<T, lanes>(dots + 4 * i, products);
  }
}

// Calls `visit` with the number of lanes, of registers, and the first channel, of each slice.
template <class T, class Visit>
void for_slices(int64_t width, const Visit& visit) {
  int64_t channel = 0;
  auto take = [&](auto count) {
    constexpr int size = decltype(count)::value;
    constexpr int lanes = size < kLanes<T> ? size : kLanes<T>;
    for (; width - channel >= size; channel += size)
      visit(std::integral_constant<int, lanes>(), std::integral_constant<int, size / lanes>(),
            channel);
  };
  take(std::integral_constant<int, 64>());
  take(std::integral_constant<int, 32>());
  take(std::integral_constant<int, 16>());
  take(std::integral_constant<int, 8>());
  take(std::integral_constant<int, 4>());
  take(std::integral_constant<int, 1>());
}

template <bool has_table, class T>
void forward_items(const Call<T>& call, int64_t begin, int64_t end) {
  PointBlock<T> block(call);
  for (int64_t i = begin; i < end;) {
    int64_t item = call.first + i / call.queries, query = i % call.queries;
    int64_t count = std::min({block.queries, call.queries - query, end - i});
    load_points(call, item, query, count, block);
    Rows<T> rows = rows_of(call, item, 0);
    T* output = call.output +
                ((item / call.heads * call.queries + query) * call.heads + item % call.heads) *
                    call.width;
    int64_t stride = call.heads * call.width;
    for (int64_t q = 0; q < count; ++q, output += stride) {
      prefetch<1>(output + count * stride, call.width);
      for_slices<T>(call.width, [&](auto lanes, auto registers, int64_t channel) {
        sum_samples<has_table, T, lanes, registers>(block, q * block.per_query,
                                                    rows.value + channel, rows.pixel,
                                                    output + channel);
      });
    }
    i += count;
  }
}

// From the products of corners and gradient to the gradients of pixels and weights.
template <class T>
void differentiate_points(PointBlock<T>& block, int64_t count, const T* __restrict dots) {
  const T *__restrict rights = block.right, *__restrict belows = block.below;
  const T* __restrict weights = block.weight;
  T *__restrict grad_x = block.grad_x, *__restrict grad_y = block.grad_y;
  T* __restrict grad_weight = block.grad_weight;
  for (int64_t i = 0; i < count; ++i) {
    T right = rights[i], below = belows[i];
    T above = dots[4 * i + 1] - dots[4 * i], beneath = dots[4 * i + 3] - dots[4 * i + 2];
    T upper = dots[4 * i] + right * above, lower = dots[4 * i + 2] + right * beneath;
    grad_weight[i] = upper + below * (lower - upper);
    grad_x[i] = weights[i] * (above + below * (beneath - above));
    grad_y[i] = weights[i] * (lower - upper);
  }
}

template <bool has_table, class T>
void backward_items(const Call<T>& call, int64_t begin, int64_t end) {
  PointBlock<T> block(call);
  std::vector<T> dots(4 * block.size);
  for (int64_t i = begin; i < end; ++i) {
    int64_t part = i / call.items, item = call.first + i % call.items;
    Rows<T> rows = rows_of(call, item, part);
    if (has_table) std::fill_n(rows.grad, call.table_pixels * call.width, (T)0);
    int64_t first = part * call.queries / call.parts, last = (part + 1) * call.queries / call.parts;
    for (int64_t query = first; query < last; query += block.queries) {
      int64_t count = std::min(block.queries, last - query);
      load_points(call, item, query, count, block);
      std::fill(dots.begin(), dots.end(), (T)0);
      const T* grad = call.grad +
                      ((item / call.heads * call.queries + query) * call.heads +
                       item % call.heads) *
                          call.width;
      int64_t stride = call.heads * call.width;
      for (int64_t q = 0; q < count; ++q, grad += stride) {
        prefetch<0>(grad + count * stride, call.width);
        prefetch_point_gradients(call, item, query + q, block.per_query);
        for_slices<T>(call.width, [&](auto lanes, auto registers, int64_t channel) {
          spread_gradient<has_table, T, lanes, registers>(
              block, q * block.per_query, rows.value + channel, rows.grad + channel, rows.pixel,
              grad + channel, dots.data());
        });
      }
      differentiate_points(block, count * block.per_query, dots.data());
      store_point_gradients(call, item, query, count, block);
    }
  }
}

// ---------------------------------------------------------------- tables of all pixels

template <class T>
void fill_table(const Call<T>& call, int64_t begin, int64_t end) {
  int64_t stride = call.heads * call.width;
  for (int64_t index = begin; index < end; ++index) {
    int64_t item = call.first + index;
    const T* from = call.value + item / call.heads * call.tokens * stride +
                    item % call.heads * call.width;
    T* table = call.table + index * call.table_pixels * call.width;
    T* filled = table;
    for (const Level<T>& level : call.level) {
      for (int64_t line = 0; line < (int64_t)level.height; ++line) {
        T* row = table + (level.origin + line * level.row) * call.width;
        std::fill(filled, row, (T)0);
        filled = row;
        for (int64_t column = 0; column < (int64_t)level.width; ++column, from += stride)
          filled = std::copy_n(from, call.width, filled);
      }
    }
    std::fill(filled, table + call.table_pixels * call.width, (T)0);
  }
}

template <class T>
void read_grad_table(const Call<T>& call, int64_t begin, int64_t end) {
  int64_t stride = call.heads * call.width, size = call.table_pixels * call.width;
  for (int64_t index = begin; index < end; ++index) {
    int64_t item = call.first + index;
    T* to = call.grad_value + item / call.heads * call.tokens * stride +
            item % call.heads * call.width;
    for (const Level<T>& level : call.level) {
      for (int64_t line = 0; line < (int64_t)level.height; ++line) {
        const T* from = call.grad_table + index * size +
                        (level.origin + line * level.row) * call.width;
        for (int64_t column = 0; column < (int64_t)level.width; ++column) {
          std::copy_n(from, call.width, to);
          for (int64_t part = 1; part < call.parts; ++part)
            for (int64_t c = 0; c < call.width; ++c) to[c] += from[part * call.items * size + c];
          from += call.width;
          to += stride;
        }
      }
    }
  }
}

template <class T>
void forward(const Call<T>& call, int64_t begin, int64_t end) {
  (call.has_table ? forward_items<true, T> : forward_items<false, T>)(call, begin, end);
}

template <class T>
void backward(const Call<T>& call, int64_t begin, int64_t end) {
  (call.has_table ? backward_items<true, T> : backward_items<false, T>)(call, begin, end);
}

template <class T>
Functions<T> functions() {
  return {fill_table<T>, forward<T>, backward<T>, read_grad_table<T>};
}
