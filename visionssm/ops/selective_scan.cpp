// The selective scan on a CPU, forward and backward. Plain C interface, no torch headers: any torch version will do.
//
// One work item is one image and one block of channels. Channels lie across the SIMD lanes, so a step reads a contiguous
// run of channels of the visited token, whatever the order, and nothing is permuted in memory. All directions of a block
// belong to one item: they add to the same output rows without a race. State and arithmetic are fp32.
//
// At step t a direction visits token p and takes its parameters from token q; A, B, C, h, r, g, q and a are over N
// states, u, dt, y and D over channels:
//
//     forward     x[t] = delta[q] + bias;   dt[t] = softplus(x[t]);   a[t] = exp(dt[t] A)
//         (1)     h[t] = a[t] h[t-1] + dt[t] B[q] u[p]
//         (2)     r[t] = a[t] r[t+1] + dt[t] B[q] u[p]           local window: from the right, restarts in every run
//         (3)     s[t] = h[t] + a[t] r[t+1]
//         (4)     y[t] = C[q] . s[t] + D u[p];   out[p] += y[t] SiLU(z[p])
//     backward    dout is the gradient of out[p]
//         (5)     dz[p] += dout y[t] SiLU'(z[p]);   dy[t] = dout SiLU(z[p]);   dD += dy[t] u[p]
//         (6)     dC[q] += sum over channels of dy[t] s[t];   c[t] = C[q] dy[t]
//         (7)     g[t] = c[t] + a[t+1] g[t+1]                    gradient of h[t], from the right
//         (8)     q[t] = a[t-1] (c[t-1] + q[t-1])                gradient of r[t], from the left; restarts with r
//         (9)     d log a[t] = a[t] (g[t] h[t-1] + r[t+1] (c[t] + q[t]))
//        (10)     db[t] = g[t] + q[t];   dB[q] += sum over channels of db[t] dt[t] u[p]
//        (11)     du[p] += dt[t] (db[t] . B[q]) + D dy[t]
//        (12)     dA += d log a[t] dt[t];   d dt[t] = d log a[t] . A + u[p] (db[t] . B[q])
//        (13)     ddelta[q] += d dt[t] sigmoid(x[t]);   dbias likewise
//
// Without a window there is no (2) and no (8), and s = h. The forward pass keeps the state before every chunk of steps;
// the backward pass takes, from the last chunk to the first, I. (1) again with all decays and states kept, II. (2), (3)
// and (8) if there is a window, III. (5) to (13) from right to left. `reference.py` is the definition; W is the vector width.
//
// Speed: chains of dependent operations are long (softplus alone over 100 cycles) and a processor looks only some 300
// instructions ahead, so that dt is computed for `TILE` steps before their states, and vectors and states go side by side
// as long as there are registers.

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <new>
#include <thread>
#include <vector>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#if defined(__AVX512F__) && defined(__AVX512DQ__)
#include <immintrin.h>
#define W 16
#elif defined(__AVX__)
#include <immintrin.h>
#define W 8
#else
#define W 4
#if defined(__ARM_FEATURE_BF16_VECTOR_ARITHMETIC)
#include <arm_neon.h>
#endif
#endif

typedef float vf __attribute__((vector_size(W * 4)));
typedef float vf_any __attribute__((vector_size(W * 4), aligned(4)));  // anywhere in memory
typedef int32_t vi __attribute__((vector_size(W * 4)));
typedef uint32_t vu __attribute__((vector_size(W * 4)));
typedef uint16_t vh __attribute__((vector_size(W * 2)));
#if defined(__FLT16_MAX__)
#define HAS_FP16 1
typedef _Float16 vf16 __attribute__((vector_size(W * 2)));
#else
#define HAS_FP16 0
#endif

#define INLINE_MEMBER inline __attribute__((always_inline))
#define INLINE static INLINE_MEMBER
#if defined(_WIN32)
#define EXPORT extern "C" __declspec(dllexport)
#else
#define EXPORT extern "C" __attribute__((visibility("default")))
#endif

enum { ANY = -1, FP32 = 0, BF16 = 1, FP16 = 2 };
enum { MERGED = 0, PER_DIRECTION = 1, PER_STEP = 2 };

extern "C" struct Scan {  // every field is 8 bytes wide; `cpu.py` holds the same list
  int64_t batch, length, steps, dirs, channels, states;
  int64_t scalar_decay, softplus, mode, window, dtype, delta_dtype, u_per_dir, threads, groups, chunk;
  int64_t du_dtype, ddelta_dtype;  // fp32, or that of u or delta where every row is written once
  int64_t rank;                    // forward, fp32: delta is (B, L, K, rank), times `projection`; 0: delta is what it says
  const void *u, *delta, *z;
  const float *A, *B, *C, *D, *bias, *projection;  // the last one (K, D, rank)
  const int32_t *order, *param_order;  // (K, T), null: 0..T-1
  int64_t u_b, u_l, u_k, delta_b, delta_l, delta_k, B_b, B_l, B_k, C_b, C_l, C_k, z_b, z_l;  // strides in elements
  void *out;           // contiguous
  float *last_state;   // (B, K, D, N) or null
  float *starts;       // states before every chunk of `chunk` steps, (B, K, chunks, N, D), or null
  const void *gout;    // contiguous, shape of out, dtype of u
  const float *gstate;  // (B, K, D, N) or null
  void *du, *ddelta;
  float *dA, *dB, *dC, *dD, *dz, *dbias;  // contiguous, as du and ddelta are; dA, dD, dbias per image; dB, dC per group of blocks
  void *gomp_parallel;  // GOMP_parallel of the OpenMP that torch runs on, or null: std::thread
};

// ---- vectors ----------------------------------------------------------------------------------------------------

INLINE vf splat(float x) { return vf{} + x; }
// not memcpy: a store that may write anything makes the compiler read every field of a view again
INLINE vf load(const float *p) { return *(const vf_any *)p; }
INLINE void store(float *p, vf v) { *(vf_any *)p = v; }
#if W == 8
INLINE __m256i first_lanes(int64_t n) {
  return _mm256_castps_si256(_mm256_cmp_ps(_mm256_set_ps(7, 6, 5, 4, 3, 2, 1, 0), _mm256_set1_ps((float)n), _CMP_LT_OQ));
}
#endif
INLINE vf load_part(const float *p, int64_t n) {
  if (n == W) return load(p);
#if W == 16
  return _mm512_maskz_loadu_ps((__mmask16)((1u << n) - 1), p);
#elif W == 8
  return _mm256_maskload_ps(p, first_lanes(n));
#else
  float lanes[W] = {};
  for (int64_t i = 0; i < n; i++) lanes[i] = p[i];
  return load(lanes);
#endif
}
INLINE void store_part(float *p, vf v, int64_t n) {
  if (n == W) return store(p, v);
#if W == 16
  _mm512_mask_storeu_ps(p, (__mmask16)((1u << n) - 1), v);
#elif W == 8
  _mm256_maskstore_ps(p, first_lanes(n), v);
#else
  float lanes[W];
  store(lanes, v);
  for (int64_t i = 0; i < n; i++) p[i] = lanes[i];
#endif
}

INLINE float lane_sum(const float *p) {
#if W == 16
  return _mm512_reduce_add_ps(load(p));
#endif
  float lanes[W];
  memcpy(lanes, p, sizeof lanes);
  for (int width = W / 2; width; width /= 2)
    for (int i = 0; i < width; i++) lanes[i] += lanes[i + width];
  return lanes[0];
}

INLINE vf from_half(vh bits, int64_t dtype) {
#if HAS_FP16
  if (dtype == FP16) {
#if W == 16  // gcc converts lane by lane
    __m256i raw;
    memcpy(&raw, &bits, sizeof raw);
    return _mm512_cvtph_ps(raw);
#elif W == 8 && defined(__F16C__)
    __m128i raw;
    memcpy(&raw, &bits, sizeof raw);
    return _mm256_cvtph_ps(raw);
#else
    vf16 x;
    memcpy(&x, &bits, sizeof x);
    return __builtin_convertvector(x, vf);
#endif
  }
#endif
  vu wide = __builtin_convertvector(bits, vu) << 16;
  vf v;
  memcpy(&v, &wide, sizeof v);
  return v;
}

// n lanes (the rest 0) of a row of fp32, bf16 or fp16 values
INLINE vf load_any(const void *base, int64_t at, int64_t dtype, int64_t n) {
  if (dtype == FP32) return load_part((const float *)base + at, n);
  const uint16_t *p = (const uint16_t *)base + at;
  vh bits = {};
  if (n == W) {
    memcpy(&bits, p, sizeof bits);
  } else {
    uint16_t lanes[W] = {};
    for (int64_t i = 0; i < n; i++) lanes[i] = p[i];
    memcpy(&bits, lanes, sizeof bits);
  }
  return from_half(bits, dtype);
}

INLINE void store_any(void *base, int64_t at, vf v, int64_t dtype, int64_t n) {
  if (dtype == FP32) return store_part((float *)base + at, v, n);
  vh bits;
#if HAS_FP16
  if (dtype == FP16) {
#if W == 16
    const __m256i x = _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#elif W == 8 && defined(__F16C__)
    const __m128i x = _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT);
#else
    const vf16 x = __builtin_convertvector(v, vf16);
#endif
    memcpy(&bits, &x, sizeof bits);
  } else
#endif
  {
#if W == 4 && defined(__ARM_FEATURE_BF16_VECTOR_ARITHMETIC)
    const bfloat16x4_t x = vcvt_bf16_f32(v);
    memcpy(&bits, &x, sizeof bits);
#else
    vu raw;
    memcpy(&raw, &v, sizeof raw);
    vu rounded = (raw + 0x7fff + ((raw >> 16) & 1)) >> 16;  // to nearest, ties to even
    vi is_nan = v != v;
    rounded = is_nan ? (vu{} + 0x7fc0) : rounded;
    bits = __builtin_convertvector(rounded, vh);
#endif
  }
  uint16_t lanes[W];
  memcpy(lanes, &bits, sizeof bits);
  uint16_t *p = (uint16_t *)base + at;
  if (n == W) {
    memcpy(p, lanes, sizeof bits);
  } else {
    for (int64_t i = 0; i < n; i++) p[i] = lanes[i];
  }
}

// NaN where x is: the second operand of these instructions
INLINE vf at_least(float low, vf x) {
#if W == 16
  return _mm512_max_ps(splat(low), x);
#elif W == 8
  return _mm256_max_ps(splat(low), x);
#else
  return x < low ? splat(low) : x;
#endif
}
INLINE vf at_most(float high, vf x) {
#if W == 16
  return _mm512_min_ps(splat(high), x);
#elif W == 8
  return _mm256_min_ps(splat(high), x);
#else
  return x > high ? splat(high) : x;
#endif
}
INLINE vf absolute(vf x) {
  vi bits;
  memcpy(&bits, &x, sizeof bits);
  bits &= 0x7fffffff;
  memcpy(&x, &bits, sizeof x);
  return x;
}

// Vectors side by side: every chain of operations is longer than what a processor looks ahead. Four have room in the
// registers. What follows is written once, for T = vf and T = Four.
struct Four {
  vf v[4];
  INLINE_MEMBER vf &operator[](int i) { return v[i]; }
  INLINE_MEMBER vf operator[](int i) const { return v[i]; }
};
INLINE vf &nth(vf &x, int) { return x; }
INLINE vf &nth(Four &x, int i) { return x[i]; }
#define EACH(expression)                          \
  {                                               \
    Four y;                                       \
    for (int i = 0; i < 4; i++) y[i] = expression; \
    return y;                                     \
  }
INLINE Four operator*(Four a, Four b) EACH(a[i] * b[i])
INLINE Four operator+(Four a, Four b) EACH(a[i] + b[i])
INLINE Four operator-(Four a, Four b) EACH(a[i] - b[i])
INLINE Four operator*(Four a, float b) EACH(a[i] * b)
INLINE Four operator+(Four a, float b) EACH(a[i] + b)
INLINE Four operator-(Four a, float b) EACH(a[i] - b)
INLINE Four operator/(float a, Four b) EACH(a / b[i])
INLINE Four at_least(float low, Four x) EACH(at_least(low, x[i]))
INLINE Four at_most(float high, Four x) EACH(at_most(high, x[i]))
INLINE Four absolute(Four x) EACH(absolute(x[i]))

#if W == 16
INLINE vf fraction(vf x) { return _mm512_reduce_ps(x, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC); }  // x - floor(x)
INLINE vf scaled(vf p, vf x) { return _mm512_scalef_ps(p, x); }                                      // p 2^floor(x)
INLINE Four fraction(Four x) EACH(fraction(x[i]))
INLINE Four scaled(Four p, Four x) EACH(scaled(p[i], x[i]))
#else
INLINE vf power(vf x) {  // of two; the exponent is in the low bits of the mantissa, biased
  vi exponent;
  vf scale;
  memcpy(&exponent, &x, sizeof exponent);
  exponent <<= 23;
  memcpy(&scale, &exponent, sizeof scale);
  return scale;
}
INLINE Four power(Four x) EACH(power(x[i]))
#endif

// 2^x: 2^0 is 1 exactly, relative error under 1.7e-7; 0 below -127 or so, infinite above 128 or so, NaN where x is.
// Minimax fits of (2^f - 1) / f.
template <class T> INLINE T exp2v(T x) {
#if W == 16
  const T f = fraction(x);
  T p = f * 1.867130071e-03f + 9.017030321e-03f;
  p = p * f + 5.579991311e-02f;
  p = p * f + 2.401644502e-01f;
  p = p * f + 6.931513118e-01f;
  p = p * f + 1.0f;
  return scaled(p, x);
#else
  const float magic = 12582912.0f + 127.0f;  // 1.5 * 2^23: adding it rounds to an integer, kept in the low mantissa bits
  x = at_least(-127.0f, at_most(128.0f, x));
  const T shifted = x + magic, f = x - (shifted - magic);
  T p = f * 1.326472720e-03f + 9.671512640e-03f;
  p = p * f + 5.550733743e-02f;
  p = p * f + 2.402224209e-01f;
  p = p * f + 6.931469776e-01f;
  p = p * f + 1.0f;
  return p * power(shifted);
#endif
}

const float LOG2E = 1.4426950408889634f;

// log(1 + e) for e in [0, 1], relative error under 1.9e-7. Minimax fit of log(1 + e) / e.
template <class T> INLINE T log1pv(T e) {
  T p = e * 5.232692682e-03f - 2.950523243e-02f;
  p = p * e + 7.822594153e-02f;
  p = p * e - 1.366324492e-01f;
  p = p * e + 1.910600635e-01f;
  p = p * e - 2.484298211e-01f;
  p = p * e + 3.331909679e-01f;
  p = p * e - 4.999949314e-01f;
  p = p * e + 9.999999699e-01f;
  return p * e;
}

template <class T> INLINE T softplus(T x) { return at_least(0.0f, x) + log1pv(exp2v(absolute(x) * -LOG2E)); }
INLINE vf softplus(vf x, vf *sigmoid) {
  const vf e = exp2v(absolute(x) * -LOG2E), r = 1.0f / (1.0f + e);
  *sigmoid = x < 0 ? e * r : r;
  return at_least(0.0f, x) + log1pv(e);
}
template <class T> INLINE T sigmoid(T x) { return 1.0f / (exp2v(x * -LOG2E) + 1.0f); }
template <class T> INLINE T silu(T x) { return x * sigmoid(x); }

// ---- threads ----------------------------------------------------------------------------------------------------

// Run body(data) on `threads` threads: on torch's own OpenMP where it is known, so that one pool serves both.
static void on_threads(void (*body)(void *), void *data, int64_t threads, void *gomp_parallel) {
  if (threads <= 1) return body(data);
  if (gomp_parallel) {
    typedef void (*gomp)(void (*)(void *), void *, unsigned, unsigned);
    return ((gomp)gomp_parallel)(body, data, (unsigned)threads, 0);
  }
  std::vector<std::thread> pool;
  for (int64_t i = 1; i < threads; i++) pool.emplace_back(body, data);
  body(data);
  for (auto &thread : pool) thread.join();
}

struct Job {
  const Scan *scan;
  int64_t items, width;                  // work items; channels per block
  std::vector<char> once, params_once;   // per direction: the order visits every token exactly once
  std::vector<char> visited;             // per direction and token, where outputs of several steps are gated at once
  std::atomic<int64_t> next{0};
  std::atomic<bool> failed{false};
};

static bool visits_once(const int32_t *order, int64_t steps, int64_t length, std::vector<char> &seen) {
  if (steps != length) return false;
  if (!order) return true;
  seen.assign(length, 0);
  for (int64_t t = 0; t < steps; t++) {
    if (seen[order[t]]) return false;
    seen[order[t]] = 1;
  }
  return true;
}

static void prepare(Job &job, const Scan &s) {
  job.scan = &s;
  std::vector<char> seen;
  for (int64_t k = 0; k < s.dirs; k++) {
    const int32_t *order = s.order ? s.order + k * s.steps : nullptr;
    const int32_t *params = s.param_order ? s.param_order + k * s.steps : order;
    job.once.push_back(visits_once(order, s.steps, s.length, seen));
    job.params_once.push_back(s.param_order ? visits_once(params, s.steps, s.length, seen) : job.once.back());
  }
  if (!s.z || s.mode == PER_STEP || (!s.order && s.steps == s.length)) return;
  job.visited.assign(s.dirs * s.length, 0);
  for (int64_t k = 0; k < s.dirs; k++)
    for (int64_t t = 0; t < s.steps; t++)
      job.visited[(s.mode == MERGED ? s.dirs - 1 : k) * s.length + s.order[k * s.steps + t]] = 1;
}

// Scratch memory of one thread, aligned to a cache line.
struct Scratch {
  float *base = nullptr;
  ~Scratch() { free(base); }
  bool reserve(size_t floats) {
    void *p = nullptr;
#if defined(_WIN32)
    p = malloc(floats * 4 + 64);
#else
    if (posix_memalign(&p, 64, floats * 4 + 64)) p = nullptr;
#endif
    base = (float *)p;
    return p != nullptr;
  }
};

// ---- one direction of one block -----------------------------------------------------------------------------------

// What the inner loops need of direction k, image b, channels d0 .. d0 + n - 1. KIND: the dtype of u, delta and z if they
// share one and every vector is full, so that loads and stores are one instruction and not a choice; otherwise ANY.
template <int KIND>
struct View {
  static constexpr bool FAST = KIND != ANY;
  const Scan &s;
  int64_t k, b, d0, n;
  const int32_t *order, *params;
  const void *u_rows, *delta_rows, *z_rows;
  const float *B, *C;
  const float *projection = nullptr;  // (n / W, rank, W), filled by `fill_projection`
  int64_t rank;
  // element offset of this block in each array, and the step from token to token; copies, because a store through a
  // pointer would make the compiler read the fields of `s` again
  int64_t u_base, u_l, delta_base, delta_l, z_base, z_l, B_l, C_l;
  int64_t out_base, out_p, out_t;      // arrays shaped like the output: row of step t at token p
  int64_t du_base, du_p, dd_base, dd_p;  // contiguous gradients of u and delta
  int64_t steps, dtype_, delta_dtype_;

  View(const Scan &s, int64_t k, int64_t b, int64_t d0, int64_t n) : s(s), k(k), b(b), d0(d0), n(n) {
    order = s.order ? s.order + k * s.steps : nullptr;
    params = s.param_order ? s.param_order + k * s.steps : order;
    u_rows = s.u, delta_rows = s.delta, z_rows = s.z;
    u_base = b * s.u_b + (s.u_per_dir ? k * s.u_k : 0) + d0, u_l = s.u_l;
    rank = s.rank, delta_base = b * s.delta_b + k * s.delta_k + (rank ? 0 : d0), delta_l = s.delta_l;
    z_base = b * s.z_b + d0, z_l = s.z_l;
    B = s.B + b * s.B_b + k * s.B_k, B_l = s.B_l;
    C = s.C + b * s.C_b + k * s.C_k, C_l = s.C_l;
    const int64_t wide = s.dirs * s.channels;  // a row with all directions
    const bool merged = s.mode == MERGED, by_step = s.mode == PER_STEP;
    out_base = b * (by_step ? s.steps : s.length) * (merged ? s.channels : wide) + (merged ? 0 : k * s.channels) + d0;
    out_p = merged ? s.channels : by_step ? 0 : wide;
    out_t = by_step ? wide : 0;
    dd_base = b * s.length * wide + k * s.channels + d0, dd_p = wide;
    du_base = s.u_per_dir ? dd_base : b * s.length * s.channels + d0, du_p = s.u_per_dir ? wide : s.channels;
    steps = s.steps, dtype_ = s.dtype, delta_dtype_ = s.delta_dtype;
  }
  INLINE_MEMBER int64_t token(int64_t t) const { return order ? order[t] : t; }
  INLINE_MEMBER int64_t param_token(int64_t t) const { return params ? params[t] : t; }
  INLINE_MEMBER int64_t lanes(int64_t v = 0) const { return FAST || n - v * W >= W ? W : n - v * W; }
  INLINE_MEMBER int64_t dtype() const { return FAST ? (int64_t)KIND : dtype_; }
  INLINE_MEMBER vf u(int64_t p, int64_t v = 0) const { return load_any(u_rows, u_base + p * u_l + v * W, dtype(), lanes(v)); }
  // NV vectors of delta of token q, from vector v on
  template <int NV = 1>
  INLINE_MEMBER void delta(int64_t q, vf *to, int64_t v = 0) const {
    if (rank) {
      const float *row = (const float *)delta_rows + delta_base + q * delta_l, *weight = projection + v * rank * W;
      for (int i = 0; i < NV; i++) to[i] = vf{};
      for (int64_t r = 0; r < rank; r++) {
#pragma GCC unroll 8
        for (int i = 0; i < NV; i++) to[i] += load(weight + (i * rank + r) * W) * row[r];
      }
      return;
    }
#pragma GCC unroll 8
    for (int i = 0; i < NV; i++)
      to[i] = load_any(delta_rows, delta_base + q * delta_l + (v + i) * W, FAST ? (int64_t)KIND : delta_dtype_, lanes(v + i));
  }
  // the same of vector 0 for four tokens
  INLINE_MEMBER Four deltas(const int64_t *tokens) const {
    Four sum{};
    if (!rank) {
      for (int i = 0; i < 4; i++) delta(tokens[i], &sum[i]);
      return sum;
    }
    const float *rows[4];
    for (int i = 0; i < 4; i++) rows[i] = (const float *)delta_rows + delta_base + tokens[i] * delta_l;
    for (int64_t r = 0; r < rank; r++) {
      const vf weight = load(projection + r * W);
      for (int i = 0; i < 4; i++) sum[i] += weight * rows[i][r];
    }
    return sum;
  }
  // rank rows of all vectors
  void fill_projection(float *to) {
    for (int64_t i = 0; i < (n + W - 1) / W * rank * W; i++) to[i] = 0.0f;
    for (int64_t i = 0; i < n; i++)
      for (int64_t r = 0; r < rank; r++)
        to[(i / W * rank + r) * W + i % W] = s.projection[(k * s.channels + d0 + i) * rank + r];
    projection = to;
  }
  INLINE_MEMBER vf z(int64_t p, int64_t v = 0) const { return load_any(z_rows, z_base + p * z_l + v * W, dtype(), lanes(v)); }
  // ask for the rows of a step to come: hardware does not foresee an order
  template <int NV>
  INLINE_MEMBER void prefetch(int64_t t, bool with_grad) const {
    if (!FAST || t >= steps) return;
    const int64_t size = KIND == FP32 ? 4 : 2, p = token(t);
    const char *u = (const char *)u_rows + (u_base + p * u_l) * size;
    const char *delta = (const char *)delta_rows + (delta_base + param_token(t) * delta_l) * size;
    const char *grad = (const char *)s.gout + out_row(t, p) * size;
    for (int64_t at = 0; at < NV * W * size; at += 64) {
      __builtin_prefetch(u + at);
      __builtin_prefetch(delta + at);
      if (with_grad) __builtin_prefetch(grad + at);
    }
  }
  vf per_channel(const float *x, int64_t v = 0) const {
    return x ? load_part(x + k * s.channels + d0 + v * W, lanes(v)) : vf{};
  }
  // A * log2(e) by state: (N or 1, W)
  void decay_rates(float *rates, int64_t v = 0) const {
    int64_t count = s.scalar_decay ? 1 : s.states;
    for (int64_t j = 0; j < count; j++) {
      float lane[W] = {};
      for (int64_t i = 0; i < lanes(v); i++) lane[i] = s.A[(k * s.channels + d0 + v * W + i) * count + j] * LOG2E;
      memcpy(rates + j * W, lane, sizeof lane);
    }
  }
  INLINE_MEMBER int64_t out_row(int64_t t, int64_t p) const { return out_base + p * out_p + t * out_t; }
};

static const int TILE = sizeof(Four) / sizeof(vf);  // steps whose dt are computed together
static const int64_t AHEAD = 4;  // steps between asking for a row and needing it
static const int64_t AHEAD_GRADS = 12;  // the same where a step is short

// f(view) for n channels from d0, the view with as much known at compile time as there is
template <class F>
static void with_view(const Scan &s, int64_t k, int64_t b, int64_t d0, int64_t n, F f) {
  const int64_t kind = s.dtype == s.delta_dtype && n % W == 0 ? s.dtype : (int64_t)ANY;
  if (kind == FP32)
    f(View<FP32>(s, k, b, d0, n));
  else if (kind == BF16)
    f(View<BF16>(s, k, b, d0, n));
#if HAS_FP16
  else if (kind == FP16)
    f(View<FP16>(s, k, b, d0, n));
#endif
  else
    f(View<ANY>(s, k, b, d0, n));
}

// Where the outputs of a block go: straight to `out`, or, for half precision with several adds, to fp32 rows first.
struct Sink {
  const Scan &s;
  float *rows;  // (L, stride) or null
  int64_t stride;
  bool add, gate;
  float *products;  // of `walk_alike`: C[t] . B[s] of the steps s of a run up to t, (K, T, RUN)
  bool first;       // whether they are to be computed: blocks of an image share them

  // y of step t, at token p; `factor`: SiLU of its gate where that is known already
  template <int KIND>
  INLINE_MEMBER void put(const View<KIND> &view, int64_t t, int64_t p, int64_t v, vf y, const vf *factor = nullptr) const {
    const int64_t lanes = view.lanes(v);
    if (KIND != FP32 && rows) {
      float *row = rows + p * stride + v * W;
      store_part(row, add ? load_part(row, lanes) + y : y, lanes);
      return;
    }
    int64_t at = view.out_row(t, p) + v * W;
    if (add) y += load_part((float *)s.out + at, lanes);
    if (gate) y *= factor ? *factor : silu(view.z(p, v));
    store_any(s.out, at, y, view.dtype(), lanes);
  }
};

// Whether all states of a channel decay alike, as in Mamba-2.
INLINE bool decays_alike(const Scan &s) { return s.scalar_decay && !s.window; }

// What the backward pass keeps of the steps of a chunk: rows of `vectors` vectors, the pointers at the first one's.
struct Kept {
  float *a, *h;       // decays, one row per step where they are alike; states before every step, and one row more
  float *dt, *slope;  // dt and its derivative: (steps, vectors, W)
  int64_t vectors;
  int64_t row, group;  // of `a` and `h`: from row to row, and from GROUP states to the next
};

enum { GROUP = 4 };  // states whose adjoints are computed together, so few that their sums stay in registers; memory is by group
INLINE int64_t kept_row(const Scan &s) { return (s.window || s.states == 1 ? s.states : (int64_t)GROUP) * W; }
INLINE int64_t group_count(const Scan &s) { return (s.states + GROUP - 1) / GROUP; }
INLINE int64_t sum_row(const Scan &s) { return (s.states == 1 ? 1 : (int64_t)GROUP) * W; }  // of dB and dC by lane

enum { SOME = 3, MANY = 6 };   // vectors of channels side by side at N = 1, in registers
enum { ALIKE = W == 16 ? 3 : 2, RUN = 4 };  // vectors side by side, and steps at a time, of `walk_alike`
enum { OUTPUT, KEEP };         // what a walk is for: outputs, or all that the backward pass needs

// (1) over steps [t0, t1) from `state` (NV, N, W), which ends as the last. NS: states known at compile time, or 0; NV:
// vectors of channels side by side.
template <int NS, int NV, int WHAT, int KIND>
static void walk(const View<KIND> view, const float *rates, int64_t t0, int64_t t1, float *state, const Sink *sink,
                 const Kept *kept) {
  const Scan &s = view.s;
  const int64_t N = NS ? NS : s.states, wide = WHAT == KEEP ? kept->vectors : 0;
  const bool activated = s.softplus, scalar = s.scalar_decay, alike = decays_alike(s), skips = s.D;
  const bool gated = WHAT == OUTPUT && sink->gate;
  vf local[NS ? NS * NV : 1], skip[NV], bias[NV];
  constexpr bool SIDE_BY_SIDE = WHAT == OUTPUT && NV == 1;  // steps; else the vectors of a step
  Four tile_dt, tile_u, gates;
  float dts[TILE * NV * W], us[TILE * NV * W];
  float *a = WHAT == KEEP ? kept->a : nullptr, *h = WHAT == KEEP ? kept->h : nullptr;
  for (int v = 0; v < NV; v++) {
    skip[v] = view.per_channel(s.D, v);
    bias[v] = view.per_channel(s.bias, v);
  }
  for (int i = 0; i < (NS ? NS * NV : 0); i++) local[i] = load(state + i * W);
  const int64_t kept_step = WHAT == KEEP ? kept->row : 0, group = WHAT == KEEP ? kept->group : 0;
  auto place_of = [&](int64_t row, int64_t j) { return row * kept_step + j / GROUP * group + j % GROUP * W; };
  for (int64_t i = 0; WHAT == KEEP && i < NV * N; i++) store(h + place_of(i / N, i % N), load(state + i * W));
  for (int64_t start = t0; start < t1; start += TILE) {
    const int64_t end = start + TILE < t1 ? start + TILE : t1;
    if (SIDE_BY_SIDE) {  // behind the last step, that one again
      int64_t params[TILE];
      for (int i = 0; i < TILE; i++) {
        const int64_t t = std::min(start + i, end - 1), p = view.token(t);
        params[i] = view.param_token(t);
        view.template prefetch<1>(start + i + AHEAD, false);
        tile_u[i] = view.u(p);
        if (gated) gates[i] = view.z(p);
      }
      tile_dt = view.deltas(params);
      for (int i = 0; i < TILE; i++) tile_dt[i] += bias[0];
      if (activated) tile_dt = softplus(tile_dt);
      if (gated) gates = silu(gates);
    } else
      for (int64_t t = start; t < end; t++) {
        const int64_t p = view.token(t), q = view.param_token(t);
        view.template prefetch<NV>(t + AHEAD, WHAT == KEEP);
        vf deltas[NV];
        view.template delta<NV>(q, deltas);
#pragma GCC unroll 8
        for (int v = 0; v < NV; v++) {
          vf dt = deltas[v] + bias[v], slope = splat(1.0f);
          const vf u = view.u(p, v);
          if (activated) dt = WHAT == KEEP ? softplus(dt, &slope) : softplus(dt);
          const int64_t at = ((t - start) * NV + v) * W;
          store(dts + at, dt);
          store(us + at, u);
          if (WHAT == KEEP) {
            const int64_t row = ((t - t0) * wide + v) * W;
            store(kept->dt + row, dt);
            store(kept->slope + row, slope);
          }
        }
      }
    for (int64_t t = start; t < end; t++) {
      const int64_t p = view.token(t), q = view.param_token(t);
      const float *Bq = view.B + q * view.B_l, *Cq = view.C + q * view.C_l;
#pragma GCC unroll 8
      for (int v = 0; v < NV; v++) {
        const int64_t i = t - start, at = (i * NV + v) * W, row = (t - t0) * wide + v;
        const vf dt = SIDE_BY_SIDE ? tile_dt[i] : load(dts + at), u = SIDE_BY_SIDE ? tile_u[i] : load(us + at), du = dt * u;
        const float *rate = rates + v * N * W;
        vf y = skips ? skip[v] * u : vf{};  // not 0 * u, which may be infinite
        if (NS) {
#pragma GCC unroll 16
          for (int j = 0; j < NS; j++) {
            vf &x = local[v * NS + j];
            const vf decay = exp2v(dt * load(rate + j * W));
            x = decay * x + du * Bq[j];
            if (WHAT == OUTPUT) y += x * Cq[j];
            if (WHAT == KEEP) {
              store(a + place_of(row, j), decay);
              store(h + place_of(row + wide, j), x);
            }
          }
        } else {
          vf decay = scalar ? exp2v(dt * load(rate)) : vf{};
          if (WHAT == KEEP && alike) store(a + row * W, decay);
          for (int64_t j = 0; j < N; j++) {
            if (!scalar) decay = exp2v(dt * load(rate + j * W));
            float *place = state + (v * N + j) * W;
            const vf x = decay * load(place) + du * Bq[j];
            store(place, x);
            if (WHAT == OUTPUT) y += x * Cq[j];
            if (WHAT == KEEP) {
              if (!alike) store(a + place_of(row, j), decay);
              store(h + place_of(row + wide, j), x);
            }
          }
        }
        if (WHAT == OUTPUT) sink->put(view, t, p, v, y, SIDE_BY_SIDE && gated ? &gates[i] : nullptr);
      }
    }
  }
  for (int i = 0; i < (NS ? NS * NV : 0); i++) store(state + i * W, local[i]);
}

INLINE bool lanes_are_one(vf x) {
  const vi differ = x != splat(x[0]);  // and NaN
#if W == 16
  return _mm512_test_epi32_mask((__m512i)differ, (__m512i)differ) == 0;
#else
  int32_t any = 0;
  for (int i = 0; i < W; i++) any |= differ[i];
  return !any;
#endif
}

INLINE float dot(const float *a, const float *b, int64_t n) {
  vf sum{};
  int64_t j = 0;
  for (; j + W <= n; j += W) sum += load(a + j) * load(b + j);
  if (j < n) sum += load_part(a + j, n - j) * load_part(b + j, n - j);
  float lanes[W];
  store(lanes, sum);
  return lane_sum(lanes);
}

// (1) where states decay alike, a run of steps at a time from the states h before it, P[t] being the run's decays up to t:
//   y[t] = P[t] (C[t] . h) + sum over s <= t of a[s+1] ... a[t] (C[t] . B[s]) du[s]
//   h <- P[last] h + sum over s of a[s+1] ... a[last] du[s] B[s]
// which are products of small matrices: two multiply-adds per state and step, no long chain of them, and states are read
// twice per run. No exponential of a sum, so nothing overflows that did not before.
template <int NV, int KIND>
static void walk_alike(const View<KIND> view, const float *rates, int64_t t0, int64_t t1, float *state, const Sink &sink) {
  const Scan &s = view.s;
  float *products = sink.products + view.k * s.steps * RUN;
  const int64_t N = s.states;
  constexpr int ALL = RUN * NV, ROUND = (ALL + W - 1) / W * W;
  float firsts[ROUND] = {}, first_rates[ROUND] = {}, first_decays[ROUND];
  vf bias[NV], skip[NV], rate[NV];
  bool heads = true;
  for (int v = 0; v < NV; v++) {
    bias[v] = view.per_channel(s.bias, v), skip[v] = view.per_channel(s.D, v), rate[v] = load(rates + v * N * W);
    heads = heads && lanes_are_one(rate[v]) && lanes_are_one(bias[v]);
    for (int i = 0; i < RUN; i++) first_rates[i * NV + v] = rate[v][0];
  }
  for (int64_t start = t0; start < t1; start += RUN) {
    const int64_t count = std::min<int64_t>(t1 - start, RUN);
    const float *B[RUN], *C[RUN];
    vf dts[ALL], us[ALL], decays[ALL], dus[ALL], ys[ALL], whole[NV];
    const float *CB = products + start * RUN;
    bool one = heads;
#pragma GCC unroll 4
    for (int i = 0; i < RUN; i++) {
      const int64_t t = i < count ? start + i : t1 - 1, p = view.token(t), q = view.param_token(t);
      view.template prefetch<NV>(t + AHEAD, false);
      B[i] = view.B + q * view.B_l, C[i] = view.C + q * view.C_l;
      view.template delta<NV>(q, dts + i * NV);
#pragma GCC unroll 8
      for (int v = 0; v < NV; v++) {
        const int at = i * NV + v;
        dts[at] += bias[v], us[at] = view.u(p, v), ys[at] = vf{};
        one = one && lanes_are_one(dts[at]);
        firsts[at] = dts[at][0];
      }
      if (sink.first && i < count)
        for (int past = 0; past <= i; past++) products[t * RUN + past] = dot(C[i], B[past], N);
    }
    if (one) {  // heads of as many channels as there are lanes: a lane for each
      for (int at = 0; at < ROUND; at += W) {
        vf dt = load(firsts + at);
        if (s.softplus) dt = softplus(dt);
        store(firsts + at, dt);
        store(first_decays + at, exp2v(dt * load(first_rates + at)));
      }
#pragma GCC unroll 16
      for (int at = 0; at < ALL; at++) decays[at] = splat(first_decays[at]), dus[at] = us[at] * firsts[at];
    } else {
#pragma GCC unroll 16
      for (int at = 0; at < ALL; at++) {
        if (s.softplus) dts[at] = softplus(dts[at]);
        decays[at] = exp2v(dts[at] * rate[at % NV]), dus[at] = us[at] * dts[at];
      }
    }
    for (int64_t at = count * NV; at < ALL; at++) decays[at] = splat(1.0f), dus[at] = vf{};
    vf none{};  // 0, or NaN where a factor is not finite: infinities of both signs meet elsewhere in a sum of products
    for (int i = 0; i < count; i++) none += CB[i * RUN + i] * 0.0f;
#pragma GCC unroll 16
    for (int at = 0; at < ALL; at++) none += dus[at] * 0.0f;
    if (!lanes_are_one(none)) {
      for (int v = 0; v < NV; v++) {
        Sink part = sink;
        if (part.rows) part.rows += v * W;
        View<KIND> one(s, view.k, view.b, view.d0 + v * W, view.FAST ? (int64_t)W : view.n);
        one.projection = view.projection + v * view.rank * W;
        walk<0, 1, OUTPUT>(one, rates + v * N * W, start, start + count, state + v * N * W, &part, nullptr);
      }
      continue;
    }
    for (int64_t j = 0; j < N; j++)
#pragma GCC unroll 8
      for (int v = 0; v < NV; v++) {
        const vf h = load(state + (v * N + j) * W);
#pragma GCC unroll 8
        for (int i = 0; i < RUN; i++) ys[i * NV + v] += h * C[i][j];
      }
    for (int v = 0; v < NV; v++) {
      whole[v] = splat(1.0f);
      for (int64_t i = 0; i < count; i++) {
        const int at = i * NV + v;
        whole[v] *= decays[at];
        vf y = whole[v] * ys[at] + skip[v] * us[at];
        for (int64_t past = 0; past < i; past++) {
          dus[past * NV + v] *= decays[at];
          y += CB[i * RUN + past] * dus[past * NV + v];
        }
        sink.put(view, start + i, view.token(start + i), v, y + CB[i * RUN + i] * dus[at]);
      }
    }
    for (int64_t j = 0; j < N; j++)
#pragma GCC unroll 8
      for (int v = 0; v < NV; v++) {
        vf h = whole[v] * load(state + (v * N + j) * W);
#pragma GCC unroll 8
        for (int i = 0; i < RUN; i++) h += dus[i * NV + v] * B[i][j];
        store(state + (v * N + j) * W, h);
      }
  }
}

static int64_t chunk_count(const Scan &s) { return (s.steps + s.chunk - 1) / s.chunk; }

// Where the states before step t, the first of a chunk, are kept: rows of all channels, by state.
template <int KIND>
INLINE float *kept_start(const View<KIND> &view, int64_t t) {
  const Scan &s = view.s;
  return s.starts + ((view.b * s.dirs + view.k) * chunk_count(s) + t / s.chunk) * s.states * s.channels + view.d0;
}
template <int KIND>
static void keep_start(const View<KIND> &view, int64_t t, const float *state) {
  const int64_t N = view.s.states;
  float *rows = kept_start(view, t);
  for (int64_t v = 0; v * W < view.n; v++)
    for (int64_t j = 0; j < N; j++)
      store_part(rows + j * view.s.channels + v * W, load(state + (v * N + j) * W), view.lanes(v));
}
template <int KIND>
static void load_start(const View<KIND> &view, int64_t t, float *state) {
  const int64_t N = view.s.states;
  const float *rows = kept_start(view, t);
  for (int64_t v = 0; v * W < view.n; v++)
    for (int64_t j = 0; j < N; j++)
      store(state + (v * N + j) * W, load_part(rows + j * view.s.channels + v * W, view.lanes(v)));
}

// The walk for the number of states and of vectors at hand; for several vectors see `block_vectors`.
template <int WHAT, int KIND>
static void walk_block(const View<KIND> &view, const float *rates, int64_t t0, int64_t t1, float *state, const Sink *sink,
                       const Kept *kept) {
  const int64_t N = view.s.states, vectors = (view.n + W - 1) / W;
  if (WHAT == OUTPUT && decays_alike(view.s)) {
    if constexpr (View<KIND>::FAST)
      if (vectors == ALIKE) return walk_alike<ALIKE>(view, rates, t0, t1, state, *sink);
    walk_alike<1>(view, rates, t0, t1, state, *sink);
  } else if (N == 16 && !view.s.scalar_decay)
    walk<16, 1, WHAT>(view, rates, t0, t1, state, sink, kept);
  else if (N != 1)
    walk<0, 1, WHAT>(view, rates, t0, t1, state, sink, kept);
  else if constexpr (!View<KIND>::FAST)
    walk<1, 1, WHAT>(view, rates, t0, t1, state, sink, kept);
  else if (vectors == 1)
    walk<1, 1, WHAT>(view, rates, t0, t1, state, sink, kept);
  else if (vectors == SOME)
    walk<1, SOME, WHAT>(view, rates, t0, t1, state, sink, kept);
  else
    walk<1, MANY, WHAT>(view, rates, t0, t1, state, sink, kept);
}

// How many vectors of channels go side by side where `left` channels are left: long runs of memory at N = 1, which moves
// much and computes little, and a few where they share products of B and C. A last vector that is not full goes alone.
// Never less where more are left: memory is reserved by that.
static int64_t block_vectors(const Scan &s, int64_t left) {
  if (s.window || s.dtype != s.delta_dtype) return 1;
  if (decays_alike(s)) return left >= ALIKE * W ? ALIKE : 1;
  if (s.states > 1) return 1;
  return left >= MANY * W ? MANY : left >= SOME * W ? SOME : 1;
}

// The same with LBMamba's local backward scan, window by window: one vector of channels, any N.
template <int KIND>
static void walk_local(const View<KIND> &view, const Sink &sink, float *scratch) {
  const Scan &s = view.s;
  const int64_t N = s.states, w = s.window;
  float *rates = scratch, *h = rates + N * W, *a = h + N * W, *b = a + w * N * W, *hs = b + w * N * W;
  float *ys = hs + w * N * W, *r = ys + w * W;
  view.decay_rates(rates);
  const vf skip = view.per_channel(s.D), bias = view.per_channel(s.bias);
  memset(h, 0, sizeof(float) * N * W);
  for (int64_t start = 0; start < s.steps; start += w) {
    const int64_t run = s.steps - start < w ? s.steps - start : w;
    if (s.starts && start % s.chunk == 0) keep_start(view, start, h);
    for (int64_t i = 0; i < run; i++) {
      const int64_t p = view.token(start + i), q = view.param_token(start + i);
      const float *Bq = view.B + q * view.B_l;
      vf u = view.u(p), dt;
      view.delta(q, &dt);
      dt += bias;
      if (s.softplus) dt = softplus(dt);
      vf du = dt * u;
      store(ys + i * W, s.D ? skip * u : vf{});
      vf decay = s.scalar_decay ? exp2v(dt * load(rates)) : vf{};
      for (int64_t j = 0; j < N; j++) {
        if (!s.scalar_decay) decay = exp2v(dt * load(rates + j * W));
        vf fresh = du * Bq[j], state = decay * load(h + j * W) + fresh;
        store(h + j * W, state);
        store(a + (i * N + j) * W, decay);
        store(b + (i * N + j) * W, fresh);
        store(hs + (i * N + j) * W, state);
      }
    }
    memset(r, 0, sizeof(float) * N * W);
    for (int64_t i = run - 1; i >= 0; i--) {
      const int64_t p = view.token(start + i), q = view.param_token(start + i);
      const float *Cq = view.C + q * view.C_l;
      vf y = load(ys + i * W);
      for (int64_t j = 0; j < N; j++) {
        const int64_t at = (i * N + j) * W;
        vf ahead = load(a + at) * load(r + j * W);
        y += (load(hs + at) + ahead) * Cq[j];
        store(r + j * W, ahead + load(b + at));
      }
      sink.put(view, start + i, p, 0, y);
    }
  }
}

static int64_t products_size(const Scan &s) {
  return decays_alike(s) ? (s.dirs * s.steps * RUN + W - 1) / W * W : 0;
}

static size_t forward_scratch(const Scan &s) {
  const int64_t vectors = block_vectors(s, s.channels);
  size_t floats = products_size(s) + (2 * s.states + s.rank) * W * vectors;  // rates, states, projection
  if (s.window) floats += (3 * s.window + 1) * s.states * W + s.window * W;
  return floats + s.length * vectors * W;  // fp32 rows
}

// All directions of n channels of one image; whether they are the first of their item.
static void forward_block(const Job &job, int64_t b, int64_t d0, int64_t n, bool first, float *scratch) {
  const Scan &s = *job.scan;
  const int64_t N = s.states, vectors = (n + W - 1) / W;
  float *rates = scratch + products_size(s), *state = rates + vectors * N * W;
  float *rows = scratch + forward_scratch(s) - s.length * vectors * W, *projection = rows - s.rank * vectors * W;
  for (int64_t k = 0; k < s.dirs; k++)
    with_view(s, k, b, d0, n, [&](auto view) {
      if (s.rank) view.fill_projection(projection);
      // rows that are written exactly once are stored; others start from 0 and are added to
      const bool fresh = s.mode == PER_STEP || ((s.mode == PER_DIRECTION || k == 0) && job.once[k]);
      const bool complete = s.mode == PER_STEP || ((s.mode == PER_DIRECTION || k == s.dirs - 1) && job.once[k]);
      const bool direct = s.dtype == FP32 || (fresh && complete);
      const Sink sink{s, direct ? nullptr : rows, vectors * W, !fresh, s.z && complete && direct, scratch, first};
      if (!fresh && (s.mode == PER_DIRECTION || k == 0)) {
        for (int64_t p = 0; p < s.length; p++) {
          float *row = direct ? (float *)s.out + view.out_row(0, p) : rows + p * vectors * W;
          memset(row, 0, sizeof(float) * n);
        }
      }
      if (s.window) {
        walk_local(view, sink, scratch);
      } else {
        for (int64_t v = 0; v < vectors; v++) view.decay_rates(rates + v * N * W, v);
        memset(state, 0, sizeof(float) * vectors * N * W);
        const int64_t run = s.starts ? s.chunk : s.steps;
        for (int64_t t = 0; t < s.steps; t += run) {
          if (s.starts) keep_start(view, t, state);
          walk_block<OUTPUT>(view, rates, t, std::min(t + run, s.steps), state, &sink, nullptr);
        }
      }
      if (s.last_state)
        for (int64_t i = 0; i < n; i++)
          for (int64_t j = 0; j < N; j++)
            s.last_state[((b * s.dirs + k) * s.channels + d0 + i) * N + j] = state[(i / W * N + j) * W + i % W];
      const bool last = s.mode == PER_DIRECTION || k == s.dirs - 1;
      if (last && s.mode != PER_STEP && (!direct || (s.z && !complete))) {  // gate and convert what was added up
        for (int64_t p = 0; p < s.length; p++)
          for (int64_t v = 0; v < vectors; v++) {
            const int64_t lanes = view.lanes(v), at = view.out_row(0, p) + v * W;
            vf y = load_part(direct ? (float *)s.out + at : rows + (p * vectors + v) * W, lanes);
            if (s.z && (job.visited.empty() || job.visited[k * s.length + p])) {  // a gate may be infinite
              y *= silu(view.z(p, v));
            }
            store_any(s.out, at, y, view.dtype(), lanes);
          }
      }
    });
}

static void forward_thread(void *data) {
  Job &job = *(Job *)data;
  const Scan &s = *job.scan;
  Scratch scratch;
  if (!scratch.reserve(forward_scratch(s))) {
    job.failed = true;
    return;
  }
  const int64_t shares = (s.channels + job.width - 1) / job.width;
  for (int64_t item; (item = job.next++) < job.items;) {
    const int64_t b = item / shares, end = std::min((item % shares + 1) * job.width, s.channels);
    const int64_t begin = item % shares * job.width;
    for (int64_t d0 = begin; d0 < end;) {
      const int64_t n = std::min(block_vectors(s, end - d0) * W, end - d0);
      forward_block(job, b, d0, n, d0 == begin, scratch.base);
      d0 += n;
    }
  }
}

// ---- backward -----------------------------------------------------------------------------------------------------

// A chunk of steps is recomputed forward, keeping decays and states, then walked in reverse. Blocks of channels of one
// item share the sums over channels, dB and dC, kept by lane until all blocks have added theirs.
struct Plan {
  int64_t chunks, vectors;        // chunks; vectors per item
  int64_t kept_group, sum_group;  // from group to group of states: of `a` and `h`, of `dB` and `dC`
  size_t rates, start, carry, a, h, read, r, q, dt, slope, du, dy, y, weighted, ddt, dB, dC, dA, total;  // offsets in floats
};

static int64_t backward_vectors(const Scan &s, int64_t left) {
  // half the traffic of the sums over channels, where there are registers enough
  if (W == 16 && s.states > 1 && !s.window && s.dtype == s.delta_dtype && left >= 2 * W) return 2;
  return s.states > 1 ? 1 : block_vectors(s, left);
}

// dB and dC of a chunk by lane: (groups, steps, rows)
static int64_t sums_size(const Scan &s, int64_t steps) { return group_count(s) * steps * sum_row(s); }

static Plan backward_plan(const Scan &s, int64_t vectors) {
  const int64_t N = s.states, side = backward_vectors(s, vectors * W);
  const int64_t chunk = std::min(s.chunk, s.steps);
  Plan plan;
  plan.chunks = chunk_count(s);
  plan.vectors = vectors;
  size_t at = 0;
  auto take = [&](int64_t floats) {
    size_t start = at;
    at += floats;
    return start;
  };
  const int64_t states = side * N * W, kept = kept_row(s) * (s.window ? 1 : group_count(s));
  plan.kept_group = s.window ? GROUP * W : (chunk + 1) * side * GROUP * W;
  plan.sum_group = chunk * GROUP * W;
  plan.rates = take(vectors * N * W);
  plan.start = take(states);
  plan.carry = take(vectors * N * W);
  plan.dA = take(vectors * (N + 2) * W);  // dA by state, dD, dbias
  plan.a = take(decays_alike(s) ? chunk * side * W : (chunk + 1) * side * kept);
  plan.h = take((chunk + 1) * side * kept);
  plan.read = s.window ? take(chunk * states) : 0;
  plan.r = s.window ? take((chunk + 1) * states) : 0;
  plan.q = s.window ? take(chunk * states) : 0;
  for (size_t *sums : {&plan.dt, &plan.slope, &plan.du, &plan.dy, &plan.y, &plan.weighted, &plan.ddt})
    *sums = take(chunk * side * W);
  plan.dB = take(sums_size(s, chunk));
  plan.dC = take(sums_size(s, chunk));
  plan.total = at;
  return plan;
}

template <int KIND>
INLINE vf output_grad(const View<KIND> &view, int64_t t, int64_t p, int64_t v) {
  return load_any(view.s.gout, view.out_row(t, p) + v * W, view.dtype(), view.lanes(v));
}

// dy, the gradient of y[t]
template <int KIND>
INLINE vf step_grad(const View<KIND> &view, int64_t t, int64_t p, int64_t v) {
  vf g = output_grad(view, t, p, v);
  if (!view.s.z) return g;
  const vf z = view.z(p, v);
  return g * z * sigmoid(z);
}

// II. (2), (3) and (8) of a chunk: r[t+1] of every step, what the output reads, and the adjoint q.
template <int KIND>
static void local_chunk(const View<KIND> &view, const Plan &plan, int64_t t0, int64_t t1, float *m) {
  const Scan &s = view.s;
  const int64_t N = s.states;
  float *a = m + plan.a, *h = m + plan.h + N * W, *read = m + plan.read, *r = m + plan.r, *q = m + plan.q;
  const float *dts = m + plan.dt;
  for (int64_t start = t0; start < t1; start += s.window) {
    const int64_t end = start + s.window < t1 ? start + s.window : t1;
    for (int64_t t = end - 1; t >= start; t--) {
      const int64_t i = t - t0;
      const float *Bq = view.B + view.param_token(t) * view.B_l;
      // r of the step behind lies one row up: r[i] holds r[t+1]
      vf du = {};
      if (t + 1 < end) du = load(dts + (i + 1) * W) * view.u(view.token(t + 1));
      const float *Bnext = t + 1 < end ? view.B + view.param_token(t + 1) * view.B_l : Bq;
      for (int64_t j = 0; j < N; j++) {
        const int64_t at = (i * N + j) * W, next = at + N * W;
        vf ahead = {};
        if (t + 1 < end) ahead = load(a + next) * load(r + next) + du * Bnext[j];
        store(r + at, ahead);
        store(read + at, load(h + at) + load(a + at) * ahead);
      }
    }
    for (int64_t t = start; t < end; t++) {
      const int64_t i = t - t0;
      vf dy = {};
      const float *Cq = view.C;
      if (t > start) {
        dy = step_grad(view, t - 1, view.token(t - 1), 0);
        Cq = view.C + view.param_token(t - 1) * view.C_l;
      }
      for (int64_t j = 0; j < N; j++) {
        const int64_t at = (i * N + j) * W, before = at - N * W;
        store(q + at, t > start ? load(a + before) * (dy * Cq[j] + load(q + before)) : vf{});
      }
    }
  }
}

INLINE void put_row(float *row, vf value, int64_t lanes, bool add) {
  store_part(row, add ? load_part(row, lanes) + value : value, lanes);
}

// What the steps of a chunk sum over their states: y without the skip, dB . B and the like.
struct Sums {
  vf y, weighted, ddt;
};

// (6) to (12) for one state of one vector at one step; r and q are those of a local window.
template <bool LOCAL, bool GATED>
INLINE void adjoint_step(vf dy, vf dt, float B, float C, vf rate, vf decay, vf before, vf seen, vf r, vf q, vf &adjoint, vf &dA,
                         vf &db, Sums &sums) {
  const vf c = dy * C, adj = c + adjoint;  // (7)
  adjoint = decay * adj;
  vf da = adjoint * before;                // (9), (10)
  db = adj;
  if (LOCAL) {
    db += q;
    da += decay * (r * (c + q));
  }
  if (GATED) sums.y += seen * C;
  sums.weighted += db * B;
  sums.ddt += da * rate;
  dA += da * dt;  // (12)
}

// The same where states decay alike: what (9) and (12) need is a sum over states.
template <bool GATED>
INLINE void adjoint_step_alike(vf dy, float B, float C, vf decay, vf before, vf seen, vf &adjoint, vf &da, vf &db, Sums &sums) {
  db = dy * C + adjoint;
  adjoint = decay * db;
  da += adjoint * before;
  if (GATED) sums.y += seen * C;
  sums.weighted += db * B;
}

// Where the gradients of tokens go.
template <int KIND>
struct TokenGrads {
  const View<KIND> &view;
  void *u, *delta;
  float *z;
  int64_t u_base, u_p, delta_base, delta_p, z_p, u_dtype, delta_dtype;  // copies, as in `View`
  bool add_u, add_delta, skips;

  TokenGrads(const Job &job, const View<KIND> &view) : view(view) {
    const Scan &s = view.s;
    z = s.z ? s.dz + view.b * s.length * s.channels + view.d0 : nullptr;
    u = s.du, u_base = view.du_base, u_p = view.du_p, u_dtype = KIND == FP32 ? (int64_t)FP32 : s.du_dtype;
    delta = s.ddelta, delta_base = view.dd_base, delta_p = view.dd_p;
    delta_dtype = KIND == FP32 ? (int64_t)FP32 : s.ddelta_dtype, z_p = s.channels;
    add_u = s.u_per_dir ? !job.once[view.k] : (view.k > 0 || !job.once[0]);
    add_delta = !job.params_once[view.k];
    skips = s.D;
  }
  template <int NV>
  INLINE_MEMBER void prefetch(int64_t t) const {
    if (!View<KIND>::FAST || t < 0) return;
    const int64_t size_u = u_dtype == FP32 ? 4 : 2, size_delta = delta_dtype == FP32 ? 4 : 2;
    const char *rows_u = (const char *)u + u_row(view.token(t)) * size_u;
    const char *rows_delta = (const char *)delta + delta_row(view.param_token(t)) * size_delta;
    for (int v = 0; v < NV; v++) {
      __builtin_prefetch(rows_u + v * W * size_u, 1);
      __builtin_prefetch(rows_delta + v * W * size_delta, 1);
    }
  }
  INLINE_MEMBER int64_t u_row(int64_t p) const { return u_base + p * u_p; }
  INLINE_MEMBER int64_t delta_row(int64_t q) const { return delta_base + q * delta_p; }
  INLINE_MEMBER void put_rounded(void *base, int64_t at, vf value, int64_t dtype, int64_t lanes, bool add) const {
    if (KIND != FP32 && dtype != FP32)  // written once
      store_any(base, at, value, View<KIND>::FAST ? (int64_t)KIND : dtype, lanes);
    else
      put_row((float *)base + at, value, lanes, add);
  }
  // (11) to (13), and (5) for z; returns what dbias gets
  INLINE_MEMBER vf put(int64_t t, int64_t v, vf u_t, vf dy, vf dt, vf slope, vf skip, const Sums &sums) const {
    const int64_t p = view.token(t), lanes = view.lanes(v);
    const vf raw = (sums.ddt * (1.0f / LOG2E) + sums.weighted * u_t) * slope;
    put_rounded(u, u_row(p) + v * W, sums.weighted * dt + (skips ? skip * dy : vf{}), u_dtype, lanes, add_u);
    put_rounded(delta, delta_row(view.param_token(t)) + v * W, raw, delta_dtype, lanes, add_delta);
    if (z) {
      const vf x = view.z(p, v), gate = sigmoid(x), y = sums.y + (skips ? skip * u_t : vf{});
      put_row(z + p * z_p + v * W, output_grad(view, t, p, v) * y * gate * (1.0f + x * (1.0f - gate)), lanes, true);
    }
    return raw;
  }
};

// III. of a chunk at N = 1, all in one go.
template <int NV, int KIND>
static void adjoint_single(const Job &job, const View<KIND> view, const Plan plan, int64_t t0, int64_t t1, int64_t first,
                           float *m) {
  const Scan &s = view.s;
  const TokenGrads<KIND> grads(job, view);
  const float *a = m + plan.a, *h = m + plan.h, *dts = m + plan.dt, *slopes = m + plan.slope;
  const float *rates = m + plan.rates + first * W;
  float *carry = m + plan.carry + first * W, *sums = m + plan.dA + first * 3 * W, *dB = m + plan.dB, *dC = m + plan.dC;
  vf adjoints[NV], skip[NV], dA[NV], dD[NV], dbias[NV];
  for (int v = 0; v < NV; v++) {
    adjoints[v] = load(carry + v * W);
    skip[v] = view.per_channel(s.D, v);
    dA[v] = load(sums + v * 3 * W), dD[v] = load(sums + (v * 3 + 1) * W), dbias[v] = load(sums + (v * 3 + 2) * W);
  }
  for (int64_t t = t1 - 1; t >= t0; t--) {
    const int64_t i = t - t0, p = view.token(t), q = view.param_token(t);
    const float B = view.B[q * view.B_l], C = view.C[q * view.C_l];
    grads.template prefetch<NV>(t - AHEAD_GRADS);
    vf sum_B = load(dB + i * W), sum_C = load(dC + i * W);
#pragma GCC unroll 8
    for (int v = 0; v < NV; v++) {
      const int64_t at = (i * NV + v) * W, after = at + NV * W;
      const vf u = view.u(p, v), dt = load(dts + at), dy = step_grad(view, t, p, v), seen = load(h + after);
      Sums sums{};
      vf db;
      adjoint_step<false, true>(dy, dt, B, C, load(rates + v * W), load(a + at), load(h + at), seen, vf{}, vf{}, adjoints[v],
                                 dA[v], db, sums);
      sum_C += dy * seen;     // (6)
      sum_B += db * (dt * u);  // (10)
      dD[v] += dy * u;
      dbias[v] += grads.put(t, v, u, dy, dt, load(slopes + at), skip[v], sums);
    }
    store(dB + i * W, sum_B);
    store(dC + i * W, sum_C);
  }
  for (int v = 0; v < NV; v++) {
    store(carry + v * W, adjoints[v]);
    store(sums + v * 3 * W, dA[v]), store(sums + (v * 3 + 1) * W, dD[v]), store(sums + (v * 3 + 2) * W, dbias[v]);
  }
}

// III. otherwise. First dy and dt u;
template <int KIND>
static void before_states(const View<KIND> view, const Plan plan, int64_t t0, int64_t t1, int64_t vectors, float *m) {
  for (int64_t t = t0; t < t1; t++) {
    const int64_t p = view.token(t);
    for (int64_t v = 0; v < vectors; v++) {
      const int64_t at = ((t - t0) * vectors + v) * W;
      store(m + plan.dy + at, step_grad(view, t, p, v));
      store(m + plan.du + at, load(m + plan.dt + at) * view.u(p, v));
    }
  }
}

// then (6) to (12) in passes over G states each, so few that their sums stay in registers;
struct Parameters {  // of a view, whatever its KIND
  const Scan &s;
  const int32_t *tokens;  // null: 0..T-1
  const float *B, *C;
  int64_t B_l, C_l, lanes;
};
template <int G, int NV, bool LOCAL, bool GATED, bool ALIKE_DECAYS, bool FULL>
static void adjoint_states(const Parameters parameters, const Plan plan, int64_t t0, int64_t t1, int64_t first, int64_t j0,
                           float *m) {
  const Scan &s = parameters.s;
  const int64_t N = s.states, B_l = parameters.B_l, C_l = parameters.C_l, row = N * W, rate_step = s.scalar_decay ? 0 : W;
  const int64_t step = kept_row(s), group = j0 / GROUP * plan.kept_group + j0 % GROUP * W;
  const int64_t sum_step = sum_row(s), sum_group = j0 / GROUP * plan.sum_group + j0 % GROUP * W;
  const int32_t *tokens = parameters.tokens;
  const float *B = parameters.B + j0, *C = parameters.C + j0;
  const float *rates = m + plan.rates + first * row + (s.scalar_decay ? 0 : j0 * W);
  const float *a = m + plan.a + (ALIKE_DECAYS ? 0 : group), *h = m + plan.h + group;
  const float *r = m + plan.r + j0 * W, *q = m + plan.q + j0 * W;
  const float *read = LOCAL ? m + plan.read + j0 * W : h + NV * step;  // without a window the states themselves
  const float *dys = m + plan.dy, *dts = m + plan.dt, *dus = m + plan.du;
  float *carry = m + plan.carry + first * row + j0 * W, *dA = m + plan.dA + (first * (N + 2) + j0) * W;
  float *weighted = m + plan.weighted, *ddt = m + plan.ddt, *y = m + plan.y;
  float *dB = m + plan.dB + sum_group, *dC = m + plan.dC + sum_group;
  vi valid;
  for (int64_t i = 0; i < W; i++) valid[i] = i < parameters.lanes ? -1 : 0;
  // lanes past the channels hold 0, but 0 times an infinite B or C would join the sums over lanes
  auto inside = [&](vf x) { return FULL ? x : valid ? x : vf{}; };
  vf adjoints[NV * G], decays[NV * G];
  for (int i = 0; i < NV * G; i++) {
    adjoints[i] = load(carry + i / G * row + i % G * W);
    decays[i] = load(dA + (i / G * (N + 2) + i % G) * W);
  }
  for (int64_t i = t1 - t0 - 1; i >= 0; i--) {
    const int64_t token = tokens ? tokens[t0 + i] : t0 + i;
    const float *Bq = B + token * B_l, *Cq = C + token * C_l;
    vf sum_B[G], sum_C[G];
    for (int j = 0; j < G; j++) {
      sum_B[j] = load(dB + i * sum_step + j * W);
      sum_C[j] = load(dC + i * sum_step + j * W);
    }
#pragma GCC unroll 8
    for (int v = 0; v < NV; v++) {
      const int64_t at = (i * NV + v) * W, states = (i * NV + v) * step;
      const vf dy = load(dys + at), dt = load(dts + at), du = load(dus + at);
      Sums sums{};
      vf da{};
      if (j0) sums = {GATED ? load(y + at) : vf{}, load(weighted + at), load(ddt + at)};
#pragma GCC unroll 8
      for (int j = 0; j < G; j++) {
        const int64_t place = states + j * W;
        const vf seen = load(read + place);
        vf db;
        if (ALIKE_DECAYS)
          adjoint_step_alike<GATED>(dy, Bq[j], Cq[j], load(a + at), load(h + place), seen, adjoints[v * G + j], da, db, sums);
        else
          adjoint_step<LOCAL, GATED>(dy, dt, Bq[j], Cq[j], load(rates + v * row + j * rate_step), load(a + place),
                                     load(h + place), seen, LOCAL ? load(r + place) : vf{}, LOCAL ? load(q + place) : vf{},
                                     adjoints[v * G + j], decays[v * G + j], db, sums);
        sum_C[j] += inside(dy * seen);  // (6)
        sum_B[j] += inside(db * du);    // (10)
      }
      if (ALIKE_DECAYS) {
        sums.ddt += da * load(rates + v * row);
        decays[v * G] += da * dt;
      }
      store(weighted + at, sums.weighted);
      store(ddt + at, sums.ddt);
      if (GATED) store(y + at, sums.y);
    }
    for (int j = 0; j < G; j++) {
      store(dB + i * sum_step + j * W, sum_B[j]);
      store(dC + i * sum_step + j * W, sum_C[j]);
    }
  }
  for (int i = 0; i < NV * G; i++) {
    store(carry + i / G * row + i % G * W, adjoints[i]);
    store(dA + (i / G * (N + 2) + i % G) * W, decays[i]);
  }
}

// and then the gradients of tokens.
template <int NV, int KIND>
static void after_states(const Job &job, const View<KIND> view, const Plan plan, int64_t t0, int64_t t1, int64_t first,
                         float *m) {
  const Scan &s = view.s;
  const TokenGrads<KIND> grads(job, view);
  const int64_t sums_step = (s.states + 2) * W;
  float *totals = m + plan.dA + first * sums_step + s.states * W;
  vf skip[NV], dD[NV], dbias[NV];
  for (int v = 0; v < NV; v++) {
    skip[v] = view.per_channel(s.D, v);
    dD[v] = load(totals + v * sums_step), dbias[v] = load(totals + v * sums_step + W);
  }
  for (int64_t t = t1 - 1; t >= t0; t--) {
    grads.template prefetch<NV>(t - AHEAD_GRADS);
#pragma GCC unroll 2
    for (int v = 0; v < NV; v++) {
      const int64_t at = ((t - t0) * NV + v) * W;
      const vf u = view.u(view.token(t), v), dy = load(m + plan.dy + at);
      const Sums sums{s.z ? load(m + plan.y + at) : vf{}, load(m + plan.weighted + at), load(m + plan.ddt + at)};
      dD[v] += dy * u;
      dbias[v] += grads.put(t, v, u, dy, load(m + plan.dt + at), load(m + plan.slope + at), skip[v], sums);
    }
  }
  for (int v = 0; v < NV; v++) store(totals + v * sums_step, dD[v]), store(totals + v * sums_step + W, dbias[v]);
}

// I. to III. of one block over a chunk.
template <int NV, int KIND>
static void backward_chunk(const Job &job, const View<KIND> &view, const Plan &plan, int64_t t0, int64_t t1, int64_t first,
                           float *m) {
  const Scan &s = view.s;
  const int64_t N = s.states;
  float *start = m + plan.start;
  load_start(view, t0, start);
  const int64_t side = N == 1 ? NV : 1;  // vectors per walk
  for (int64_t v = 0; v < NV; v += side) {
    const int64_t row = kept_row(s);
    const Kept kept{m + plan.a + v * (decays_alike(s) ? W : row), m + plan.h + v * row, m + plan.dt + v * W,
                    m + plan.slope + v * W, NV, row, plan.kept_group};
    const View<KIND> part(s, view.k, view.b, view.d0 + v * W, side == NV ? view.n : W);
    walk_block<KEEP>(part, m + plan.rates + (first + v) * N * W, t0, t1, start + v * N * W, nullptr, &kept);
  }
  if (s.window) local_chunk(view, plan, t0, t1, m);
  if constexpr (View<KIND>::FAST && NV != 2)
    if (N == 1 && !s.window) {
      adjoint_single<NV>(job, view, plan, t0, t1, first, m);
      return;
    }
  if constexpr (NV <= 2) {
    before_states(view, plan, t0, t1, NV, m);
    auto passes = [&](auto local, auto gated, auto alike) {
      constexpr bool full = View<KIND>::FAST;
      const Parameters from{s, view.params, view.B, view.C, view.B_l, view.C_l, view.lanes()};
      int64_t j = 0;
      for (; j + GROUP <= N; j += GROUP)
        adjoint_states<GROUP, NV, local.value, gated.value, alike.value, full>(from, plan, t0, t1, first, j, m);
      for (; j < N; j++) adjoint_states<1, NV, local.value, gated.value, alike.value, full>(from, plan, t0, t1, first, j, m);
    };
    const std::integral_constant<bool, NV == 1> local;
    const std::true_type yes;
    const std::false_type no;
    if (NV == 1 && s.window)
      s.z ? passes(local, yes, no) : passes(local, no, no);
    else if (decays_alike(s))
      s.z ? passes(no, yes, yes) : passes(no, no, yes);
    else
      s.z ? passes(no, yes, no) : passes(no, no, no);
    after_states<NV>(job, view, plan, t0, t1, first, m);
  }
}

template <int KIND>
static void backward_block(const Job &job, const View<KIND> &view, const Plan &plan, int64_t t0, int64_t t1, int64_t first,
                           float *m) {
  const int64_t vectors = (view.n + W - 1) / W;
  if constexpr (!View<KIND>::FAST)
    backward_chunk<1>(job, view, plan, t0, t1, first, m);
  else if (vectors == 1)
    backward_chunk<1>(job, view, plan, t0, t1, first, m);
  else if (vectors == 2)
    backward_chunk<2>(job, view, plan, t0, t1, first, m);
  else if (vectors == SOME)
    backward_chunk<SOME>(job, view, plan, t0, t1, first, m);
  else
    backward_chunk<MANY>(job, view, plan, t0, t1, first, m);
}

// Direction k of channels d0 .. end - 1 of an image.
static void backward_direction(const Job &job, const Plan &plan, int64_t k, int64_t b, int64_t group, int64_t d0,
                               int64_t end, float *m) {
  const Scan &s = *job.scan;
  const int64_t N = s.states, count = s.scalar_decay ? 1 : N, lanes = plan.vectors * W;
  const View<ANY> all(s, k, b, d0, end - d0);
  auto each_block = [&](auto f) {  // f(view, index of its first vector)
    for (int64_t at = d0; at < end;) {
      const int64_t n = std::min(backward_vectors(s, end - at) * W, end - at);
      with_view(s, k, b, at, n, [&](auto view) { f(view, (at - d0) / W); });
      at += n;
    }
  };
  memset(m + plan.dA, 0, sizeof(float) * (N + 2) * lanes);
  memset(m + plan.carry, 0, sizeof(float) * N * lanes);
  for (int64_t v = 0; v < plan.vectors; v++) all.decay_rates(m + plan.rates + v * N * W, v);
  if (s.gstate)
    for (int64_t i = 0; i < all.n; i++)
      for (int64_t j = 0; j < N; j++)
        m[plan.carry + (i / W * N + j) * W + i % W] = s.gstate[((b * s.dirs + k) * s.channels + d0 + i) * N + j];
  // rows that several steps add to start from 0
  for (int64_t p = 0; p < s.length; p++) {
    const int64_t token = b * s.length + p;
    if (!job.params_once[k]) memset((float *)s.ddelta + (token * s.dirs + k) * s.channels + d0, 0, sizeof(float) * all.n);
    if (s.u_per_dir ? !job.once[k] : (k == 0 && !job.once[0]))
      memset((float *)s.du + (s.u_per_dir ? token * s.dirs + k : token) * s.channels + d0, 0, sizeof(float) * all.n);
    if (s.z && k == 0) memset(s.dz + token * s.channels + d0, 0, sizeof(float) * all.n);
  }
  auto grad_row = [&](float *base, int64_t q) {  // dB or dC: (G, B, L, K, N)
    return base + (((group * s.batch + b) * s.length + q) * s.dirs + k) * N;
  };
  if (!job.params_once[k])
    for (int64_t q = 0; q < s.length; q++) {
      memset(grad_row(s.dB, q), 0, sizeof(float) * N);
      memset(grad_row(s.dC, q), 0, sizeof(float) * N);
    }

  for (int64_t c = plan.chunks - 1; c >= 0; c--) {
    const int64_t t0 = c * s.chunk, t1 = std::min(t0 + s.chunk, s.steps);
    memset(m + plan.dB, 0, sizeof(float) * sums_size(s, std::min(s.chunk, s.steps)));
    memset(m + plan.dC, 0, sizeof(float) * sums_size(s, std::min(s.chunk, s.steps)));
    each_block([&](auto view, int64_t first) {
      backward_block(job, view, plan, t0, t1, first, m);
    });
    for (int64_t t = t0; t < t1; t++) {
      const int64_t q = all.param_token(t);
      float *rowB = grad_row(s.dB, q), *rowC = grad_row(s.dC, q);
      for (int64_t j = 0; j < N; j++) {
        const int64_t at = j / GROUP * plan.sum_group + (t - t0) * sum_row(s) + j % GROUP * W;
        const float *lanesB = m + plan.dB + at, *lanesC = m + plan.dC + at;
        const float sumB = lane_sum(lanesB), sumC = lane_sum(lanesC);
        const bool add = !job.params_once[k];
        rowB[j] = add ? rowB[j] + sumB : sumB;
        rowC[j] = add ? rowC[j] + sumC : sumC;
      }
    }
  }
  for (int64_t i = 0; i < all.n; i++) {
    const int64_t channel = (b * s.dirs + k) * s.channels + d0 + i;
    const float *dA = m + plan.dA + i / W * (N + 2) * W + i % W;
    for (int64_t j = 0; j < count; j++) {
      float sum = dA[j * W];
      for (int64_t other = 1; other < N && s.scalar_decay; other++) sum += dA[other * W];
      s.dA[channel * count + j] = sum;
    }
    if (s.dD) s.dD[channel] = dA[N * W];
    if (s.dbias) s.dbias[channel] = dA[(N + 1) * W];
  }
}

static void backward_thread(void *data) {
  Job &job = *(Job *)data;
  const Scan &s = *job.scan;
  const int64_t vectors = (s.channels + W - 1) / W, share = (vectors + s.groups - 1) / s.groups;
  Scratch scratch;
  if (!scratch.reserve(backward_plan(s, share).total)) {
    job.failed = true;
    return;
  }
  const Plan plan = backward_plan(s, share);
  for (int64_t item; (item = job.next++) < job.items;) {
    const int64_t b = item / s.groups, group = item % s.groups;
    const int64_t d0 = group * share * W, end = std::min(d0 + share * W, s.channels);
    for (int64_t k = 0; k < s.dirs && d0 < end; k++) backward_direction(job, plan, k, b, group, d0, end, scratch.base);
  }
}

// Fresh memory costs a page fault per 4 KiB at first touch, more than the scan itself on some machines: ask for large
// pages before writing. A hint: nothing changes where the kernel has none to give.
static void hint_large_pages(void *p, int64_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  const uintptr_t page = 1 << 21, start = ((uintptr_t)p + page - 1) / page * page, end = ((uintptr_t)p + bytes) / page * page;
  if (p && end > start) madvise((void *)start, end - start, MADV_HUGEPAGE);
#else
  (void)p, (void)bytes;
#endif
}

// ---- interface ----------------------------------------------------------------------------------------------------

EXPORT int visionssm_has_fp16() { return HAS_FP16; }
EXPORT int visionssm_vector_width() { return W; }
EXPORT int64_t visionssm_scan_size() { return sizeof(Scan); }

// Whether the backward pass writes every row of du (1) and of ddelta (2) once, so that they need not be fp32.
EXPORT int visionssm_scan_writes_once(const Scan *scan) {
  Job job;
  prepare(job, *scan);
  auto all = [](const std::vector<char> &x) { return std::all_of(x.begin(), x.end(), [](char once) { return once; }); };
  return (all(job.once) && (scan->u_per_dir || scan->dirs == 1) ? 1 : 0) + (all(job.params_once) ? 2 : 0);
}

// What keeps the kernel from serving: rates or biases that are not finite, or not times log2(e) (1), orders that visit
// what is not there (2).
EXPORT int visionssm_scan_check(const Scan *scan) {
  const Scan &s = *scan;
  auto finite = [](const float *x, int64_t count) {
    typedef uint32_t __attribute__((may_alias)) bits;
    const float most = 2.3e38f;  // its bits rise with the magnitude
    const uint32_t limit = *(const bits *)&most;
    bool found = false;
    for (int64_t i = 0; x && i < count; i++) found |= (((const bits *)x)[i] & 0x7fffffffu) > limit;
    return !found;
  };
  auto stray = [&](const int32_t *order) {
    bool found = false;
    for (int64_t i = 0; order && i < s.dirs * s.steps; i++) found |= order[i] < 0 || order[i] >= s.length;
    return found;
  };
  const int64_t rows = s.dirs * s.channels;
  const bool beyond = !finite(s.A, rows * (s.scalar_decay ? 1 : s.states)) || !finite(s.bias, rows);
  return (beyond ? 1 : 0) + (stray(s.order) || stray(s.param_order) ? 2 : 0);
}

EXPORT int visionssm_scan_forward(const Scan *scan) {
  const Scan &s = *scan;
  Job job;
  prepare(job, s);
  // an image for every thread, or as many shares of its channels as keep all of them busy
  const int64_t vectors = (s.channels + W - 1) / W;
  int64_t shares = 1;
  while (shares < vectors && s.batch * shares % s.threads && s.batch * shares < 4 * s.threads) shares++;
  job.width = std::max<int64_t>(1, (vectors + shares - 1) / shares) * W;
  hint_large_pages(s.starts, s.batch * s.dirs * chunk_count(s) * s.states * s.channels * 4);
  hint_large_pages(s.out, s.batch * (s.mode == PER_STEP ? s.steps : s.length) * (s.mode == MERGED ? 1 : s.dirs) * s.channels *
                              (s.dtype == FP32 ? 4 : 2));
  job.items = s.batch * ((s.channels + job.width - 1) / job.width);
  on_threads(forward_thread, &job, s.threads < job.items ? s.threads : job.items, s.gomp_parallel);
  return job.failed ? 1 : 0;
}

EXPORT int visionssm_scan_backward(const Scan *scan) {
  const Scan &s = *scan;
  Job job;
  prepare(job, s);
  job.items = s.batch * s.groups;
  const int64_t tokens = s.batch * s.length, wide = s.dirs * s.channels;
  hint_large_pages(s.ddelta, tokens * wide * (s.ddelta_dtype == FP32 ? 4 : 2));
  hint_large_pages(s.du, tokens * (s.u_per_dir ? wide : s.channels) * (s.du_dtype == FP32 ? 4 : 2));
  hint_large_pages(s.dz, tokens * s.channels * 4);
  on_threads(backward_thread, &job, s.threads < job.items ? s.threads : job.items, s.gomp_parallel);
  return job.failed ? 1 : 0;
}
