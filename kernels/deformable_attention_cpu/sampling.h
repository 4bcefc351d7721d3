// Weighted sums of rows of channels, and their derivatives; vectorised over channels.

// Rows of channels of one image and head.
template <class T, class S = T>
struct Rows {
  const S* value;
  T* grad;        // with the layout of value, or null
  int64_t pixel;  // numbers from one pixel to the next
};

template <bool has_table, class T, class S>
auto rows_of(const Arguments<T, S>& args, int64_t item, int64_t part) {
  if constexpr (has_table) {
    int64_t size = args.table_pixels * args.width;
    int64_t index = item - args.first;
    T* grad = args.grad_table ? args.grad_table + (part * args.items + index) * size : nullptr;
    return Rows<T>{args.table + index * size, grad, args.width};
  } else {
    int64_t start = item / args.heads * args.tokens * args.heads * args.width +
                    item % args.heads * args.width;
    T* grad = args.grad_value ? args.grad_value + start : nullptr;
    return Rows<T, S>{args.value + start, grad, args.heads * args.width};
  }
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
template <bool has_table, class T, int lanes, int registers, class From, class To>
void sum_samples(const PointBlock<T>& block, int64_t first, const From* value, int64_t pixel,
                 To* output) {
  // Several independent sums: within one, each multiply-add waits for the previous one.
  constexpr int chains = registers <= 2 ? 4 : registers <= 4 ? 2 : 1;
  Vector<T, lanes> sums[chains][registers] = {};
  for (int64_t i = first; i < first + block.per_query; ++i) {
    for_corners<has_table>(block, i, pixel, [&](int k, int64_t offset) {
      T weight = block.corner[k][i];
      for (int r = 0; r < registers; ++r)
        sums[k % chains][r] += weight * load<T, lanes>(value + offset + r * lanes);
    });
    // A NaN weight gives NaN where no corner exists, too.
    if (!has_table && block.corners[i] != 15)
      for (int r = 0; r < registers; ++r) sums[0][r] += 0 * block.weight[i];
  }
  for (int r = 0; r < registers; ++r) {
    for (int chain = 1; chain < chains; ++chain) sums[0][r] += sums[chain][r];
    store_as<T, lanes>(output + r * lanes, sums[0][r]);
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

template <bool has_table, class T, class S>
void forward_items(const Arguments<T, S>& args, int64_t begin, int64_t end) {
  PointBlock<T> block(args);
  for (int64_t i = begin; i < end;) {
    int64_t item = args.first + i / args.queries, query = i % args.queries;
    int64_t count = std::min({block.queries, args.queries - query, end - i});
    load_points(args, item, query, count, block);
    auto rows = rows_of<has_table>(args, item, 0);
    S* output = args.output +
                ((item / args.heads * args.queries + query) * args.heads + item % args.heads) *
                    args.width;
    int64_t stride = args.heads * args.width;
    for (int64_t q = 0; q < count; ++q, output += stride) {
      prefetch<1>(output + count * stride, args.width);
      for_slices<T>(args.width, [&](auto lanes, auto registers, int64_t channel) {
        sum_samples<has_table, T, lanes, registers>(block, q * block.per_query,
                                                    rows.value + channel, rows.pixel,
                                                    output + channel);
      });
    }
    i += count;
  }
}

// Gradients of pixels and weights from the products of corners and gradient.
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
void backward_items(const Arguments<T>& args, int64_t begin, int64_t end) {
  PointBlock<T> block(args);
  std::vector<T> dots(4 * block.size);
  for (int64_t i = begin; i < end; ++i) {
    int64_t part = i / args.items, item = args.first + i % args.items;
    Rows<T> rows = rows_of<has_table>(args, item, part);
    if (has_table) std::fill_n(rows.grad, args.table_pixels * args.width, (T)0);
    int64_t first = part * args.queries / args.parts, last = (part + 1) * args.queries / args.parts;
    for (int64_t query = first; query < last; query += block.queries) {
      int64_t count = std::min(block.queries, last - query);
      load_points(args, item, query, count, block);
      std::fill(dots.begin(), dots.end(), (T)0);
      const T* grad = args.grad +
                      ((item / args.heads * args.queries + query) * args.heads +
                       item % args.heads) *
                          args.width;
      int64_t stride = args.heads * args.width;
      for (int64_t q = 0; q < count; ++q, grad += stride) {
        prefetch<0>(grad + count * stride, args.width);
        prefetch_point_gradients(args, item, query + q, block.per_query);
        for_slices<T>(args.width, [&](auto lanes, auto registers, int64_t channel) {
          spread_gradient<has_table, T, lanes, registers>(
              block, q * block.per_query, rows.value + channel, rows.grad + channel, rows.pixel,
              grad + channel, dots.data());
        });
      }
      differentiate_points(block, count * block.per_query, dots.data());
      store_point_gradients(args, item, query, count, block);
    }
  }
}

// ---------------------------------------------------------------- tables of all pixels

template <class T, class S>
void fill_table(const Arguments<T, S>& args, int64_t begin, int64_t end) {
  int64_t stride = args.heads * args.width;
  for (int64_t index = begin; index < end; ++index) {
    int64_t item = args.first + index;
    const S* from = args.value + item / args.heads * args.tokens * stride +
                    item % args.heads * args.width;
    T* table = args.table + index * args.table_pixels * args.width;
    T* filled = table;
    for (const Level<T>& level : args.level) {
      for (int64_t line = 0; line < (int64_t)level.height; ++line) {
        T* row = table + (level.origin + line * level.row) * args.width;
        std::fill(filled, row, (T)0);
        filled = row;
        for (int64_t column = 0; column < (int64_t)level.width; ++column, from += stride)
          filled = std::copy_n(from, args.width, filled);
      }
    }
    std::fill(filled, table + args.table_pixels * args.width, (T)0);
  }
}

template <class T>
void read_grad_table(const Arguments<T>& args, int64_t begin, int64_t end) {
  int64_t stride = args.heads * args.width, size = args.table_pixels * args.width;
  for (int64_t index = begin; index < end; ++index) {
    int64_t item = args.first + index;
    T* to = args.grad_value + item / args.heads * args.tokens * stride +
            item % args.heads * args.width;
    for (const Level<T>& level : args.level) {
      for (int64_t line = 0; line < (int64_t)level.height; ++line) {
        const T* from = args.grad_table + index * size +
                        (level.origin + line * level.row) * args.width;
        for (int64_t column = 0; column < (int64_t)level.width; ++column) {
          std::copy_n(from, args.width, to);
          for (int64_t part = 1; part < args.parts; ++part)
            for (int64_t c = 0; c < args.width; ++c) to[c] += from[part * args.items * size + c];
          from += args.width;
          to += stride;
        }
      }
    }
  }
}

template <class T, class S>
void forward(const Arguments<T, S>& args, int64_t begin, int64_t end) {
  (args.has_table ? forward_items<true, T, S> : forward_items<false, T, S>)(args, begin, end);
}

template <class T>
void backward(const Arguments<T>& args, int64_t begin, int64_t end) {
  (args.has_table ? backward_items<true, T> : backward_items<false, T>)(args, begin, end);
}

template <class T, class S = T>
Functions<T, S> functions() {
  if constexpr (std::is_same_v<T, S>)
    return {fill_table<T, T>, forward<T, T>, backward<T>, read_grad_table<T>};
  else
    return {fill_table<T, S>, forward<T, S>, nullptr, nullptr};
}
