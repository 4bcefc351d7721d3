// Vector registers of the current instruction set, as the compiler's vector types.

template <int64_t bytes, class T>
struct VectorOf {
  typedef T type __attribute__((vector_size(bytes), aligned(sizeof(T)), may_alias));
};

template <class T>
struct VectorOf<0, T> {
  using type = T;
};

// `lanes` channels at a time: a vector register, a smaller one, or a single number.
template <class T, int lanes>
using Vector = typename VectorOf<(lanes == 1 ? 0 : lanes * (int)sizeof(T)), T>::type;

template <class T>
constexpr int kLanes = VECTOR_BYTES / (int)sizeof(T);

// Integers as wide as T, so masks of one type fit the other.
template <class T>
using Integer = std::conditional_t<sizeof(T) == 4, int32_t, int64_t>;

template <class T, int lanes>
Vector<T, lanes> load(const T* from) {
  return *reinterpret_cast<const Vector<T, lanes>*>(from);
}

template <int lanes, class T>
void store(T* to, Vector<T, lanes> what) {
  *reinterpret_cast<Vector<T, lanes>*>(to) = what;
}

// One number or several, each as a U.
template <class U, int lanes, class V>
Vector<U, lanes> convert(V what) {
  if constexpr (lanes == 1)
    return (U)what;
  else
    return __builtin_convertvector(what, Vector<U, lanes>);
}

template <class T, int lanes>
Vector<T, lanes> load(const BFloat16* from) {
  auto bits = convert<uint32_t, lanes>(load<uint16_t, lanes>(&from->bits)) << 16;
  Vector<T, lanes> numbers;
  std::memcpy(&numbers, &bits, sizeof numbers);
  return numbers;
}

// Stores as S; if that is BFloat16, rounds to the nearest, ties to even.
template <class T, int lanes, class S>
void store_as(S* to, Vector<T, lanes> what) {
  if constexpr (std::is_same_v<S, T>) {
    store<lanes>(to, what);
  } else {
    Vector<uint32_t, lanes> bits, nan = Vector<uint32_t, lanes>{} + 0x7fc0;
    std::memcpy(&bits, &what, sizeof bits);
    bits = what == what ? (bits + 0x7fff + (bits >> 16 & 1)) >> 16 : nan;
    store<lanes>(&to->bits, convert<uint16_t, lanes>(bits));
  }
}

// Rows of one head are far apart, which hardware doesn't predict. Addresses past the end are safe.
template <int writes, class T>
void prefetch(const T* from, int64_t count) {
  for (int64_t i = 0; i < count; i += 64 / (int64_t)sizeof(T))
    __builtin_prefetch(from + i, writes, 3);
}

template <class T, int lanes>
void add_to(T* to, Vector<T, lanes> what) {
  *reinterpret_cast<Vector<T, lanes>*>(to) += what;
}

// Sums of neighbouring lanes, those of `a` before those of `b`.
template <class T, int lanes, int... i>
Vector<T, lanes> add_pairs(Vector<T, lanes> a, Vector<T, lanes> b,
                           std::integer_sequence<int, i...>) {
#ifdef __clang__
  return __builtin_shufflevector(a, b, (2 * i)...) + __builtin_shufflevector(a, b, (2 * i + 1)...);
#else
  using Index = Vector<Integer<T>, lanes>;
  return __builtin_shuffle(a, b, Index{(2 * i)...}) +
         __builtin_shuffle(a, b, Index{(2 * i + 1)...});
#endif
}

// Adds the sums over the lanes of four vectors to four numbers.
template <class T, int lanes>
inline void add_sums(T* to, const Vector<T, lanes> (&vectors)[4]) {
  if constexpr (lanes == 1) {
    for (int k = 0; k < 4; ++k) to[k] += vectors[k];
  } else if constexpr (lanes == 2) {
    for (int k = 0; k < 4; ++k) to[k] += vectors[k][0] + vectors[k][1];
  } else {
    std::make_integer_sequence<int, lanes> order;
    union {
      Vector<T, lanes> all;
      Vector<T, 4> first;
    } sums;
    sums.all = add_pairs<T, lanes>(add_pairs<T, lanes>(vectors[0], vectors[1], order),
                                   add_pairs<T, lanes>(vectors[2], vectors[3], order), order);
    for (int count = 4; count < lanes; count *= 2)
      sums.all = add_pairs<T, lanes>(sums.all, sums.all, order);
    add_to<T, 4>(to, sums.first);
  }
}
