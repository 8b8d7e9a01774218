// The CPU kernel. Included once for each instruction set, inside a namespace of its own, so no include guard.
// Vectors of 16 floats are one, two or four registers, as the instruction set has it.

typedef float Vec __attribute__((vector_size(64)));
typedef uint32_t Bits __attribute__((vector_size(64)));
typedef uint16_t Short __attribute__((vector_size(32)));

CRGAN_INLINE Bits widen(const uint16_t* p) {
  Short h;
  memcpy(&h, p, sizeof h);
  return __builtin_convertvector(h, Bits);
}

CRGAN_INLINE Vec load(const float* p) {
  Vec v;
  memcpy(&v, p, sizeof v);
  return v;
}

CRGAN_INLINE Vec load(const BFloat16* p) { return (Vec)(widen(&p->bits) << 16); }

CRGAN_INLINE Vec load(const Half* p) {
  const Bits h = widen(&p->bits);
  const Bits magnitude = (h & 0x7fff) << 13;            // exponent and mantissa where float has them
  const Bits rebias = Bits{} + (112u << 23);            // 127 - 15
  const Bits normal = magnitude + rebias + ((Bits)(magnitude >= 0x0f800000) & rebias);  // twice for inf and NaN
  const Bits hidden = rebias + (1u << 23);              // 2^-14, the leading one that a subnormal lacks
  const Bits subnormal = (Bits)((Vec)(magnitude + hidden) - (Vec)hidden);
  const Bits is_subnormal = (Bits)(magnitude < 0x00800000);
  return (Vec)((is_subnormal & subnormal) | (~is_subnormal & normal) | (h & 0x8000) << 16);
}

// Few dimensions. A block of 16 rows of K is K vectors, and element i of a block always belongs to dimension i mod K,
// so the sums of a whole group stay in K registers each and are folded into dimensions once.
template <int K, typename T>
struct Group {
  struct alignas(64) Block {
    Vec v[K];
    CRGAN_INLINE float* data() { return (float*)v; }

    // Adds up the rows; the sums are in the first row. The order is the same in every dimension.
    CRGAN_INLINE void fold() {
      float* x = data();
#pragma GCC unroll 4
      for (int half = 8 * K; half >= K; half /= 2)
        for (int i = 0; i < half; ++i) x[i] += x[i + half];
    }

    // Copies the first row to all rows.
    CRGAN_INLINE void tile() {
      float* x = data();
#pragma GCC unroll 4
      for (int size = K; size <= 8 * K; size *= 2)
        for (int i = 0; i < size; ++i) x[i + size] = x[i];
    }
  };

  static CRGAN_INLINE Vote vote(const T* x, int64_t L, const float* scale) {
    const int64_t whole = L / 16 * 16 * K, rest = L * K - whole;
    Block mean{}, tail{};
    for (int64_t i = 0; i < whole; i += 16 * K)
#pragma GCC unroll 16
      for (int v = 0; v < K; ++v) mean.v[v] += load(x + i + 16 * v);
    if (rest) {
      T padded[16 * K] = {};
      memcpy(padded, x + whole, rest * sizeof(T));
#pragma GCC unroll 16
      for (int v = 0; v < K; ++v) mean.v[v] += tail.v[v] = load(padded + 16 * v);
    }
    mean.fold();
    for (int d = 0; d < K; ++d) mean.data()[d] /= L;
    mean.tile();

    Moments<Vec> moments[K];
#pragma GCC unroll 16
    for (int v = 0; v < K; ++v) moments[v].shift = mean.v[v];
    for (int64_t i = 0; i < whole; i += 16 * K)
#pragma GCC unroll 16
      for (int v = 0; v < K; ++v) moments[v].add(load(x + i + 16 * v));
    if (rest) {
      for (int64_t i = rest; i < 16 * K; ++i) tail.data()[i] = mean.data()[i];  // padding of deviation 0
#pragma GCC unroll 16
      for (int v = 0; v < K; ++v) moments[v].add(tail.v[v]);
    }
    Block sum, square;
#pragma GCC unroll 16
    for (int v = 0; v < K; ++v) sum.v[v] = moments[v].sum, square.v[v] = moments[v].square;
    sum.fold();
    square.fold();
    Vote best;
    for (int d = 0; d < K; ++d) best.consider(spread(sum.data()[d], square.data()[d], L, scale[d]), d);
    return best;
  }
};

// Many dimensions: 16 at a time down all rows, four rows in flight. The last 16 overlap the ones before.
template <typename T>
CRGAN_INLINE Vote vote_wide(const T* x, int64_t L, int64_t K, const float* scale) {
  Vote best;
  for (int64_t start = 0; start < K; start += 16) {
    const int64_t first = start < K - 16 ? start : K - 16;
    Vec sum[4] = {};
    for (int64_t r = 0; r < L; ++r) sum[r % 4] += load(x + r * K + first);
    const Vec mean = (sum[0] + sum[1] + sum[2] + sum[3]) / (float)L;
    Moments<Vec> m[4] = {{mean}, {mean}, {mean}, {mean}};
    for (int64_t r = 0; r < L; ++r) m[r % 4].add(load(x + r * K + first));
    const Vec total = m[0].sum + m[1].sum + m[2].sum + m[3].sum;
    const Vec square = m[0].square + m[1].square + m[2].square + m[3].square;
    for (int i = 0; i < 16; ++i) best.consider(spread(total[i], square[i], L, scale[first + i]), first + i);
  }
  return best;
}

// Votes of groups [begin, end) of all N * G. K is 0 for the wide kernel.
template <typename T, int K>
void count_votes(const VoteTable& t, int64_t begin, int64_t end) {
  std::vector<int32_t> mine(t.K * t.F);
  while (begin < end) {
    const int64_t n = begin / t.G, stop = std::min(end, (n + 1) * t.G);
    std::fill(mine.begin(), mine.end(), 0);
    for (; begin < stop; ++begin) {
      const T* group = (const T*)t.codes + begin * t.L * t.K;
      const float* scale = t.scale + n * t.K;
      Vote best;
      if constexpr (K)
        best = Group<K, T>::vote(group, t.L, scale);
      else
        best = vote_wide(group, t.L, t.K, scale);
      if (best.dimension >= 0) ++mine[best.dimension * t.F + t.factor[begin - n * t.G]];
    }
    for (size_t i = 0; i < mine.size(); ++i)  // another thread may have other groups of this n
      if (mine[i]) __atomic_fetch_add(t.votes + n * t.K * t.F + i, mine[i], __ATOMIC_RELAXED);
  }
}

template <typename T, int... K>
CountVotes choose(int64_t num_codes, std::integer_sequence<int, K...>) {
  constexpr CountVotes kernels[] = {count_votes<T, K>...};
  return kernels[num_codes < (int64_t)sizeof...(K) ? num_codes : 0];
}

template <typename T>
CountVotes choose(int64_t num_codes) {
  return choose<T>(num_codes, std::make_integer_sequence<int, 17>{});
}
