// The CPU kernel. Included once for each instruction set, inside a namespace of its own, so no include guard.
// CRGAN_LANES is the number of floats in a register.

constexpr int W = CRGAN_LANES;
typedef float Vec __attribute__((vector_size(4 * W)));
typedef int32_t Bits __attribute__((vector_size(4 * W)));
typedef uint16_t Short __attribute__((vector_size(2 * W)));
using Lanes = std::make_integer_sequence<int, W>;

CRGAN_INLINE Vec load(const float* p) {
  Vec v;
  memcpy(&v, p, sizeof v);
  return v;
}

CRGAN_INLINE Bits widen(const uint16_t* p) {
#if CRGAN_LANES == 8
  return (Bits)_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)p));
#else
  Short h;
  memcpy(&h, p, sizeof h);
  return __builtin_convertvector(h, Bits);
#endif
}

CRGAN_INLINE Vec load(const BFloat16* p) { return (Vec)(widen(&p->bits) << 16); }

CRGAN_INLINE Vec load(const Half* p) {
#if CRGAN_LANES == 8
  return (Vec)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p));
#else
  const Bits h = widen(&p->bits);
  const Bits magnitude = (h & 0x7fff) << 13;  // exponent and mantissa where float has them
  const Bits rebias = Bits{} + (112 << 23);  // 127 - 15
  const Bits normal = magnitude + rebias + ((Bits)(magnitude >= 0x0f800000) & rebias);  // twice for inf and NaN
  const Bits hidden = rebias + (1 << 23);  // 2^-14, the leading one that a subnormal lacks
  const Bits subnormal = (Bits)((Vec)(magnitude + hidden) - (Vec)hidden);
  const Bits is_subnormal = (Bits)(magnitude < 0x00800000);
  return (Vec)((is_subnormal & subnormal) | (~is_subnormal & normal) | (h & 0x8000) << 16);
#endif
}

template <int... I>
CRGAN_INLINE Vec shuffle(Vec a, Vec b, std::integer_sequence<int, I...>) {
#ifdef __clang__
  return __builtin_shufflevector(a, b, I...);
#else
  return __builtin_shuffle(a, b, Bits{I...});
#endif
}

// Lane i of the result is element start + i of a followed by b.
template <int start, int... I>
CRGAN_INLINE Vec window(Vec a, Vec b, std::integer_sequence<int, I...>) {
  return shuffle(a, b, std::integer_sequence<int, (start + I)...>{});
}

// Lane i of the result is lane (start + i) mod period of a.
template <int start, int period, int... I>
CRGAN_INLINE Vec repeat(Vec a, std::integer_sequence<int, I...>) {
  return shuffle(a, a, std::integer_sequence<int, ((start + I) % period)...>{});
}

template <int... I>
CRGAN_INLINE Vec lanes(std::integer_sequence<int, I...>) {
  return Vec{I...};
}

// Loads from p, and asks for what comes 1 KiB later: else the memory would be idle while the sums of a group are folded.
// Beyond the codes' end this does nothing.
template <typename T>
CRGAN_INLINE Vec stream(const T* p) {
  __builtin_prefetch((const char*)p + 1024);
  return load(p);
}

// W rows of K <= W dimensions are K vectors, whose element i belongs to dimension i mod K whichever the block: the
// sums over all blocks of a group stay in K registers, and are folded into dimensions once.
template <int K>
struct Block {
  Vec v[K];

  // Elements start to start + W; what would lie behind the block is anything.
  template <int start>
  CRGAN_INLINE Vec at() const {
    constexpr int i = start / W;
    if constexpr (start % W == 0)
      return v[i];
    else
      return window<start % W>(v[i], v[i + 1 < K ? i + 1 : i], Lanes{});
  }

  // Adds the second half of 2 * rows rows to the first.
  template <int rows, int... I>
  CRGAN_INLINE void halve(std::integer_sequence<int, I...>) {
    ((v[I] += at<rows * K + W * I>()), ...);
    if constexpr (rows > 1) halve<rows / 2>(std::make_integer_sequence<int, (rows / 2 * K + W - 1) / W>{});
  }

  // The sum of the rows in lanes 0 to K, added in the same order in every dimension.
  CRGAN_INLINE Vec fold() {
    halve<W / 2>(std::make_integer_sequence<int, (W / 2 * K + W - 1) / W>{});
    return v[0];
  }

  template <int... I>
  static CRGAN_INLINE Block of_rows(Vec row, std::integer_sequence<int, I...>) {
    return {{repeat<W * I % K, K>(row, Lanes{})...}};
  }
};

// The spreads of one group in lanes 0 to K.
template <int K, typename T>
CRGAN_INLINE Vec spreads(const T* x, int64_t L, Vec scale) {
  // Whole blocks, then the last W rows once more, of which those count that are left over.
  const int64_t whole = L / W * W * K, rest = L * K - whole;
  const float seen = W * K - rest;
  const Vec lane = lanes(Lanes{});
  T padded[W * K];
  if (L < W) {
    std::fill(padded, std::end(padded), T{});
    x = std::copy(x, x + rest, padded + W * K - rest) - rest;
  }
  const T* last = x + L * K - W * K;
  Block<K> sum{}, square;
  const int64_t first = L < W ? W : head_rows(L / W) * W;
  for (int64_t i = 0; i < first * K; i += W * K)
#pragma GCC unroll 16
    for (int v = 0; v < K; ++v) sum.v[v] += load((L < W ? last : x) + i + W * v);
  const Vec head_mean = sum.fold() / (float)std::min(first, L);
  const Block<K> shift = Block<K>::of_rows(head_mean, std::make_integer_sequence<int, K>{});

  Moments<Vec> moments[K];
#pragma GCC unroll 16
  for (int v = 0; v < K; ++v) moments[v].shift = shift.v[v];
  for (int64_t i = 0; i < whole; i += W * K)
#pragma GCC unroll 16
    for (int v = 0; v < K; ++v) moments[v].add(stream(x + i + W * v));
#pragma GCC unroll 16
  for (int v = 0; v < K; ++v) moments[v].add(lane + (float)(W * v) < seen ? shift.v[v] : load(last + W * v));
#pragma GCC unroll 16
  for (int v = 0; v < K; ++v) sum.v[v] = moments[v].sum, square.v[v] = moments[v].square;
  return spread(sum.fold(), square.fold(), L, scale);
}

// The votes of a panel of P windows of W dimensions each, out of K > W, of which d is the first. Goes down the rows.
// Windows that would reach beyond K are moved back, and overlap the ones before.
template <int P, typename T>
CRGAN_INLINE void consider_panel(Vote& best, const T* x, int64_t L, int64_t K, int64_t d, const float* scale) {
  constexpr int R = P > 2 ? 1 : 2;  // rows in flight, to hide the latency of the sums
  int64_t first[P];
  for (int p = 0; p < P; ++p) first[p] = std::min(d + p * W, K - W);
  Vec sum[P] = {};
  for (int64_t r = 0; r < head_rows(L); ++r)
#pragma GCC unroll 8
    for (int p = 0; p < P; ++p) sum[p] += load(x + r * K + first[p]);
  Moments<Vec> moments[R][P];
#pragma GCC unroll 8
  for (int i = 0; i < R * P; ++i) moments[i / P][i % P].shift = sum[i % P] / (float)head_rows(L);
  const int64_t even = L / R * R;
  for (int64_t r = 0; r < even; r += R)
#pragma GCC unroll 8
    for (int i = 0; i < R * P; ++i) moments[i / P][i % P].add(stream(x + (r + i / P) * K + first[i % P]));
  if (even < L)
    for (int p = 0; p < P; ++p) moments[0][p].add(load(x + even * K + first[p]));

#pragma GCC unroll 8
  for (int p = 0; p < P; ++p) {
    Moments<Vec> m = moments[0][p];
    if (R > 1) m.sum += moments[R - 1][p].sum, m.square += moments[R - 1][p].square;
    const Vec value = spread(m.sum, m.square, L, load(scale + first[p]));
    for (int i = 0; i < W; ++i) best.consider(value[i], first[p] + i);
  }
}

// Adds the votes of groups begin to end, of all N * G. Either K dimensions in blocks or, where K is 0, any number in
// panels of P windows; P is the same for all, as the order of the sums depends on it and equal codes shall tie.
template <typename T, int K, int P>
void count_votes(const VoteTable& t, int64_t begin, int64_t end) {
  std::vector<int32_t> mine(t.K * t.F);
  std::vector<float> scale(std::max<int64_t>(t.K, W), 1.f);
  while (begin < end) {
    const int64_t n = begin / t.G, stop = std::min(end, (n + 1) * t.G);
    std::fill(mine.begin(), mine.end(), 0);
    for (int64_t d = 0; d < t.K; ++d) scale[d] = usable(t.scale[n * t.K + d]);
    for (; begin < stop; ++begin) {
      const T* group = (const T*)t.codes + begin * t.L * t.K;
      Vote best;
      if constexpr (K) {
        const Vec value = spreads<K>(group, t.L, load(scale.data()));
        for (int d = 0; d < K; ++d) best.consider(value[d], d);
      } else {
        for (int64_t d = 0; d < t.K; d += P * W) consider_panel<P>(best, group, t.L, t.K, d, scale.data());
      }
      if (best.dimension >= 0) ++mine[best.dimension * t.F + t.factor[begin - n * t.G]];
    }
    for (size_t i = 0; i < mine.size(); ++i)  // another thread may have other groups of this n
      if (mine[i]) __atomic_fetch_add(t.votes + n * t.K * t.F + i, mine[i], __ATOMIC_RELAXED);
  }
}

template <typename T, int... K>
CountVotes choose(int64_t num_codes, std::integer_sequence<int, K...>) {
  constexpr CountVotes kernels[] = {count_votes<T, K + 1, 0>...};
  if (num_codes <= W) return kernels[num_codes - 1];
  return num_codes <= 2 * W ? count_votes<T, 0, 2> : count_votes<T, 0, 4>;
}

template <typename T>
CountVotes choose(int64_t num_codes) {
  return choose<T>(num_codes, Lanes{});
}

#undef CRGAN_LANES
