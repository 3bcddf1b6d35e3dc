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
// Without a window there is no (2) and no (8), and s = h. The backward pass runs (1) once to find the state before every
// chunk of steps; then, from the last chunk to the first, I. (1) again with all decays and states kept, II. (2), (3) and
// (8) if there is a window, III. (5) to (13) from right to left. `reference.py` is the definition; W is the vector width.

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

#if defined(__AVX512F__)
#include <immintrin.h>
#define W 16
#elif defined(__AVX__)
#include <immintrin.h>
#define W 8
#else
#define W 4
#endif

typedef float vf __attribute__((vector_size(W * 4)));
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

enum { FP32 = 0, BF16 = 1, FP16 = 2 };
enum { MERGED = 0, PER_DIRECTION = 1, PER_STEP = 2 };

extern "C" struct Scan {  // every field is 8 bytes wide; `_cpu.py` holds the same list
  int64_t batch, length, steps, dirs, channels, states;
  int64_t scalar_decay, softplus, mode, window, dtype, delta_dtype, u_per_dir, threads, groups;
  const void *u, *delta, *z;
  const float *A, *B, *C, *D, *bias;
  const int32_t *order, *param_order;  // (K, T), null: 0..T-1
  int64_t u_b, u_l, u_k, delta_b, delta_l, delta_k, B_b, B_l, B_k, C_b, C_l, C_k, z_b, z_l;  // strides in elements
  void *out;           // contiguous
  float *last_state;   // (B, K, D, N) or null
  const void *gout;    // contiguous, shape of out, dtype of u
  const float *gstate;  // (B, K, D, N) or null
  float *du, *ddelta, *dA, *dB, *dC, *dD, *dz, *dbias;  // contiguous; dA, dD, dbias per image; dB, dC per group of blocks
  void *gomp_parallel;  // GOMP_parallel of the OpenMP that torch runs on, or null: std::thread
};

// ---- vectors ----------------------------------------------------------------------------------------------------

INLINE vf splat(float x) { return vf{} + x; }
INLINE vf load(const float *p) {
  vf v;
  memcpy(&v, p, sizeof v);
  return v;
}
INLINE void store(float *p, vf v) { memcpy(p, &v, sizeof v); }
INLINE vf load_part(const float *p, int64_t n) {
  if (n == W) return load(p);
  float lanes[W] = {};
  for (int64_t i = 0; i < n; i++) lanes[i] = p[i];
  return load(lanes);
}
INLINE void store_part(float *p, vf v, int64_t n) {
  if (n == W) return store(p, v);
  float lanes[W];
  store(lanes, v);
  for (int64_t i = 0; i < n; i++) p[i] = lanes[i];
}

INLINE float lane_sum(const float *p) {
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
    vu raw;
    memcpy(&raw, &v, sizeof raw);
    vu rounded = (raw + 0x7fff + ((raw >> 16) & 1)) >> 16;  // to nearest, ties to even
    vi is_nan = v != v;
    rounded = is_nan ? (vu{} + 0x7fc0) : rounded;
    bits = __builtin_convertvector(rounded, vh);
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

INLINE vf clamp(vf x, float low, float high) {
#if defined(__AVX512F__)
  return _mm512_max_ps(splat(low), _mm512_min_ps(splat(high), x));
#elif defined(__AVX__)
  return _mm256_max_ps(splat(low), _mm256_min_ps(splat(high), x));
#else
  x = x > high ? splat(high) : x;
  return x < low ? splat(low) : x;
#endif
}
INLINE vf positive_part(vf x) {
#if defined(__AVX512F__)
  return _mm512_max_ps(vf{}, x);
#elif defined(__AVX__)
  return _mm256_max_ps(vf{}, x);
#else
  return x < 0 ? vf{} : x;
#endif
}
INLINE vf absolute(vf x) {
  vi bits;
  memcpy(&bits, &x, sizeof bits);
  bits &= 0x7fffffff;
  memcpy(&x, &bits, sizeof x);
  return x;
}

// 2^x for x in [-126, 127], clamped outside; 2^0 is 1 exactly, relative error under 1.7e-7. Minimax fit of (2^f - 1) / f.
INLINE vf exp2v(vf x) {
  const float magic = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer, kept in the low mantissa bits
  x = clamp(x, -126.0f, 127.0f);
  vf shifted = x + magic;
  vf f = x - (shifted - magic);
  vf p = splat(1.326472720e-03f);
  p = p * f + 9.671512640e-03f;
  p = p * f + 5.550733743e-02f;
  p = p * f + 2.402224209e-01f;
  p = p * f + 6.931469776e-01f;
  p = p * f + 1.0f;
  vi exponent, bits;
  memcpy(&exponent, &shifted, sizeof exponent);
  memcpy(&bits, &p, sizeof bits);
  bits += exponent << 23;
  memcpy(&p, &bits, sizeof p);
  return p;
}

const float LOG2E = 1.4426950408889634f;

// log(1 + e) for e in [0, 1], relative error under 1.9e-7. Minimax fit of log(1 + e) / e.
INLINE vf log1pv(vf e) {
  vf p = splat(5.232692682e-03f);
  p = p * e - 2.950523243e-02f;
  p = p * e + 7.822594153e-02f;
  p = p * e - 1.366324492e-01f;
  p = p * e + 1.910600635e-01f;
  p = p * e - 2.484298211e-01f;
  p = p * e + 3.331909679e-01f;
  p = p * e - 4.999949314e-01f;
  p = p * e + 9.999999699e-01f;
  return p * e;
}

// NaN where x is, 0 elsewhere: max and the exponent arithmetic lose it
INLINE vf nan_of(vf x) { return x != x ? x : vf{}; }

INLINE vf softplus(vf x, vf *sigmoid) {
  vf e = exp2v(absolute(x) * -LOG2E);
  if (sigmoid) {
    vf r = 1.0f / (1.0f + e);
    *sigmoid = x < 0 ? e * r : r;
  }
  return positive_part(x) + log1pv(e) + nan_of(x);
}
INLINE vf sigmoid(vf x) {
  vf y = 1.0f / (1.0f + exp2v(x * -LOG2E)) + nan_of(x);
  return x < -3.4028235e38f ? vf{} : y;  // exp2v stops short of infinity
}

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

// What the inner loops need of direction k, image b, channels d0 .. d0 + n - 1. FAST: everything is fp32 and every
// vector full, so that loads and stores are one instruction and not a choice.
template <bool FAST>
struct View {
  const Scan &s;
  int64_t k, b, d0, n;
  const int32_t *order, *params;
  const void *u_rows, *delta_rows, *z_rows;
  const float *B, *C;
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
    delta_base = b * s.delta_b + k * s.delta_k + d0, delta_l = s.delta_l;
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
  INLINE_MEMBER int64_t dtype() const { return FAST ? (int64_t)FP32 : dtype_; }
  INLINE_MEMBER vf u(int64_t p, int64_t v = 0) const { return load_any(u_rows, u_base + p * u_l + v * W, dtype(), lanes(v)); }
  INLINE_MEMBER vf delta(int64_t q, int64_t v = 0) const {
    return load_any(delta_rows, delta_base + q * delta_l + v * W, FAST ? (int64_t)FP32 : delta_dtype_, lanes(v));
  }
  INLINE_MEMBER vf z(int64_t p, int64_t v = 0) const { return load_any(z_rows, z_base + p * z_l + v * W, dtype(), lanes(v)); }
  // ask for the rows of a step to come: hardware does not foresee an order
  INLINE_MEMBER void prefetch(int64_t t) const {
    if (!FAST || t >= steps) return;
    __builtin_prefetch((const float *)u_rows + u_base + token(t) * u_l);
    __builtin_prefetch((const float *)delta_rows + delta_base + param_token(t) * delta_l);
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
  // the skip weights, NaN where a decay rate is NaN or infinitely large: exp2v would lose it
  vf skip(const float *rates, int64_t v = 0) const {
    vf d = per_channel(s.D, v);
    for (int64_t j = 0; j < (s.scalar_decay ? 1 : s.states); j++) {
      const vf rate = load(rates + j * W);
      d += rate > 0 ? rate * 0.0f : nan_of(rate);
    }
    return d;
  }
  INLINE_MEMBER int64_t out_row(int64_t t, int64_t p) const { return out_base + p * out_p + t * out_t; }
};

static bool is_fast(const Scan &s, int64_t n) { return s.dtype == FP32 && s.delta_dtype == FP32 && n % W == 0; }

static const int64_t AHEAD = 8;  // steps between asking for a row and needing it

// Where the outputs of a block go: straight to `out`, or, for half precision with several adds, to fp32 rows first.
struct Sink {
  const Scan &s;
  float *rows;  // (L, stride) or null
  int64_t stride;
  bool add, gate;

  template <bool FAST>
  INLINE_MEMBER void put(const View<FAST> &view, int64_t t, int64_t p, int64_t v, vf y) const {
    const int64_t lanes = view.lanes(v);
    if (!FAST && rows) {
      float *row = rows + p * stride + v * W;
      store_part(row, add ? load_part(row, lanes) + y : y, lanes);
      return;
    }
    int64_t at = view.out_row(t, p) + v * W;
    if (add) y += load_part((float *)s.out + at, lanes);
    if (gate) {
      vf z = view.z(p, v);
      y *= z * sigmoid(z);
    }
    store_any(s.out, at, y, view.dtype(), lanes);
  }
};

// NS: states known at compile time, or 0; NV: vectors of channels side by side.
template <int NS, int NV, bool FAST>
static void scan_direction(const View<FAST> view, const Sink &sink, float *scratch) {
  const Scan &s = view.s;
  const int64_t N = NS ? NS : s.states;
  float *rates = scratch;               // (NV, N or 1, W)
  float *dynamic = rates + NV * N * W;  // (NV, N, W) states, if N is not known
  vf local[NS ? NS * NV : 1], skip[NV], bias[NV];
  for (int v = 0; v < NV; v++) {
    view.decay_rates(rates + v * N * W, v);
    skip[v] = view.skip(rates + v * N * W, v);
    bias[v] = view.per_channel(s.bias, v);
  }
  for (int i = 0; i < (NS ? NS * NV : 0); i++) local[i] = vf{};
  if (!NS) memset(dynamic, 0, sizeof(float) * N * NV * W);

  for (int64_t t = 0; t < s.steps; t++) {
    const int64_t p = view.token(t), q = view.param_token(t);
    const float *Bq = view.B + q * view.B_l, *Cq = view.C + q * view.C_l;
    view.prefetch(t + AHEAD);
#pragma GCC unroll 4
    for (int v = 0; v < NV; v++) {
      vf u = view.u(p, v);
      vf dt = view.delta(q, v) + bias[v];
      if (s.softplus) dt = softplus(dt, nullptr);
      vf du = dt * u, y = skip[v] * u;
      const float *rate = rates + v * N * W;
      if (NS) {
#pragma GCC unroll 16
        for (int j = 0; j < NS; j++) {
          vf &h = local[v * (NS ? NS : 1) + j];
          h = exp2v(dt * load(rate + j * W)) * h + du * Bq[j];
          y += h * Cq[j];
        }
      } else {
        vf a = s.scalar_decay ? exp2v(dt * load(rate)) : vf{};
        for (int64_t j = 0; j < N; j++) {
          float *state = dynamic + (v * N + j) * W;
          if (!s.scalar_decay) a = exp2v(dt * load(rate + j * W));
          vf h = a * load(state) + du * Bq[j];
          store(state, h);
          y += h * Cq[j];
        }
      }
      sink.put(view, t, p, v, y);
    }
  }
  if (s.last_state) {
    for (int v = 0; v < NV; v++)
      for (int64_t j = 0; j < N; j++) {
        float lane[W];
        store(lane, NS ? local[NS ? v * NS + j : 0] : load(dynamic + (v * N + j) * W));
        for (int64_t i = 0; i < view.lanes(v); i++)
          s.last_state[((view.b * s.dirs + view.k) * s.channels + view.d0 + v * W + i) * N + j] = lane[i];
      }
  }
}

// The same with LBMamba's local backward scan, window by window: one vector of channels, any N.
template <bool FAST>
static void scan_direction_local(const View<FAST> &view, const Sink &sink, float *scratch) {
  const Scan &s = view.s;
  const int64_t N = s.states, w = s.window;
  float *rates = scratch, *h = rates + N * W, *a = h + N * W, *b = a + w * N * W, *hs = b + w * N * W;
  float *ys = hs + w * N * W, *r = ys + w * W;
  view.decay_rates(rates);
  const vf skip = view.skip(rates), bias = view.per_channel(s.bias);
  memset(h, 0, sizeof(float) * N * W);
  for (int64_t start = 0; start < s.steps; start += w) {
    const int64_t run = s.steps - start < w ? s.steps - start : w;
    for (int64_t i = 0; i < run; i++) {
      const int64_t p = view.token(start + i), q = view.param_token(start + i);
      const float *Bq = view.B + q * view.B_l;
      vf u = view.u(p), dt = view.delta(q) + bias;
      if (s.softplus) dt = softplus(dt, nullptr);
      vf du = dt * u;
      store(ys + i * W, skip * u);
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
  if (s.last_state)
    for (int64_t j = 0; j < N; j++)
      for (int64_t i = 0; i < view.n; i++)
        s.last_state[((view.b * s.dirs + view.k) * s.channels + view.d0 + i) * N + j] = h[j * W + i];
}

static size_t forward_scratch(const Scan &s, int64_t vectors) {
  size_t floats = 2 * s.states * W * vectors;
  if (s.window) floats += (3 * s.window + 1) * s.states * W + s.window * W;
  return floats + s.length * vectors * W;  // fp32 rows
}

template <bool FAST>
static void forward_direction(const View<FAST> &view, const Sink &sink, int64_t vectors, float *scratch) {
  const Scan &s = view.s;
  if (s.window)
    scan_direction_local(view, sink, scratch);
  else if (s.states == 1 && vectors == 4)
    scan_direction<1, 4>(view, sink, scratch);
  else if (s.states == 1 && vectors == 2)
    scan_direction<1, 2>(view, sink, scratch);
  else if (s.states == 1)
    scan_direction<1, 1>(view, sink, scratch);
  else if (s.states == 16 && !s.scalar_decay)
    scan_direction<16, 1>(view, sink, scratch);
  else
    scan_direction<0, 1>(view, sink, scratch);
}

static void forward_item(const Job &job, int64_t item, float *scratch) {
  const Scan &s = *job.scan;
  const int64_t blocks = (s.channels + job.width - 1) / job.width;
  const int64_t b = item / blocks, d0 = item % blocks * job.width;
  const int64_t n = s.channels - d0 < job.width ? s.channels - d0 : job.width;
  const int64_t vectors = (n + W - 1) / W;
  float *rows = scratch + forward_scratch(s, job.width / W) - s.length * job.width;
  for (int64_t k = 0; k < s.dirs; k++) {
    View<false> view(s, k, b, d0, n);
    // rows that are written exactly once are stored; others start from 0 and are added to
    const bool fresh = s.mode == PER_STEP || ((s.mode == PER_DIRECTION || k == 0) && job.once[k]);
    const bool complete = s.mode == PER_STEP || ((s.mode == PER_DIRECTION || k == s.dirs - 1) && job.once[k]);
    const bool direct = s.dtype == FP32 || (fresh && complete);
    Sink sink{s, direct ? nullptr : rows, job.width, !fresh, s.z && complete && direct};
    if (!fresh && (s.mode == PER_DIRECTION || k == 0)) {
      for (int64_t p = 0; p < s.length; p++) {
        float *row = direct ? (float *)s.out + view.out_row(0, p) : rows + p * job.width;
        memset(row, 0, sizeof(float) * n);
      }
    }
    if (is_fast(s, n))
      forward_direction(View<true>(s, k, b, d0, n), sink, vectors, scratch);
    else
      forward_direction(view, sink, vectors, scratch);
    const bool last = s.mode == PER_DIRECTION || k == s.dirs - 1;
    if (last && s.mode != PER_STEP && (!direct || (s.z && !complete))) {  // gate and convert what was added up
      for (int64_t p = 0; p < s.length; p++)
        for (int64_t v = 0; v < vectors; v++) {
          const int64_t lanes = view.lanes(v), at = view.out_row(0, p) + v * W;
          vf y = load_part(direct ? (float *)s.out + at : rows + p * job.width + v * W, lanes);
          if (s.z) {
            vf z = view.z(p, v);
            y *= z * sigmoid(z);
          }
          store_any(s.out, at, y, s.dtype, lanes);
        }
    }
  }
}

static void forward_thread(void *data) {
  Job &job = *(Job *)data;
  Scratch scratch;
  if (!scratch.reserve(forward_scratch(*job.scan, job.width / W))) {
    job.failed = true;
    return;
  }
  for (int64_t item; (item = job.next++) < job.items;) forward_item(job, item, scratch.base);
}

// ---- backward -----------------------------------------------------------------------------------------------------

// A chunk of steps is recomputed forward, keeping decays and states, then walked in reverse. Blocks of channels of one
// item share the sums over channels, dB and dC, kept by lane until all blocks have added theirs.
struct Plan {
  int64_t chunk, chunks, blocks;  // steps per chunk; chunks; blocks of W channels per item
  size_t starts, carry, a, h, read, r, q, dt, slope, dB, dC, dA, total;  // offsets into scratch, in floats
};

static const int64_t CHUNK_FLOATS = 1 << 16;  // 256 KiB: well inside one core's L2

static Plan backward_plan(const Scan &s, int64_t blocks) {
  const int64_t N = s.states, per_step = ((s.window ? 7 : 4) * N + 2) * W;
  Plan plan;
  int64_t chunk = CHUNK_FLOATS / per_step;
  if (chunk < 16) chunk = 16;
  int64_t chunks = (s.steps + chunk - 1) / chunk;
  if (chunks < 1) chunks = 1;
  chunk = (s.steps + chunks - 1) / chunks;
  if (s.window) chunk = (chunk + s.window - 1) / s.window * s.window;
  if (chunk < 1) chunk = 1;
  plan.chunk = chunk;
  plan.chunks = (s.steps + chunk - 1) / chunk;
  plan.blocks = blocks;
  size_t at = 0;
  auto take = [&](int64_t floats) {
    size_t start = at;
    at += floats;
    return start;
  };
  plan.starts = take(blocks * plan.chunks * N * W);
  plan.carry = take(blocks * N * W);
  plan.dA = take(blocks * (N + 2) * W);  // dA by state, dD, dbias
  plan.a = take(chunk * N * W);
  plan.h = take((chunk + 1) * N * W);
  plan.read = s.window ? take(chunk * N * W) : plan.h + N * W;  // what the output reads: the states themselves
  plan.r = s.window ? take((chunk + 1) * N * W) : 0;
  plan.q = s.window ? take(chunk * N * W) : 0;
  plan.dt = take(chunk * W);
  plan.slope = take(chunk * W);
  plan.dB = take(chunk * N * W);
  plan.dC = take(chunk * N * W);
  plan.total = at;
  return plan;
}

// I. (1) over steps [t0, t1) from `state`, which ends as the last state; `keep`: also store decays, states, dt.
template <int NS, bool FAST>
static void recompute(const View<FAST> view, const float *rates, vf bias, int64_t t0, int64_t t1, float *state, float *a,
                      float *h, float *dts, float *slopes) {
  const Scan &s = view.s;
  const int64_t N = NS ? NS : s.states;
  vf local[NS ? NS : 1];
  for (int j = 0; j < NS; j++) local[j] = load(state + j * W);
  if (h) memcpy(h, state, sizeof(float) * N * W);
  for (int64_t t = t0; t < t1; t++) {
    const int64_t p = view.token(t), q = view.param_token(t), i = t - t0;
    const float *Bq = view.B + q * view.B_l;
    view.prefetch(t + AHEAD);
    vf u = view.u(p), dt = view.delta(q) + bias, slope = splat(1.0f);
    if (s.softplus) dt = softplus(dt, h ? &slope : nullptr);
    vf du = dt * u;
    if (h) {
      store(dts + i * W, dt);
      store(slopes + i * W, slope);
    }
    if (NS) {
#pragma GCC unroll 16
      for (int j = 0; j < NS; j++) {
        vf decay = exp2v(dt * load(rates + j * W));
        local[j] = decay * local[j] + du * Bq[j];
        if (h) {
          store(a + (i * NS + j) * W, decay);
          store(h + ((i + 1) * NS + j) * W, local[j]);
        }
      }
    } else {
      vf decay = s.scalar_decay ? exp2v(dt * load(rates)) : vf{};
      for (int64_t j = 0; j < N; j++) {
        if (!s.scalar_decay) decay = exp2v(dt * load(rates + j * W));
        vf next = decay * load(state + j * W) + du * Bq[j];
        store(state + j * W, next);
        if (h) {
          store(a + (i * N + j) * W, decay);
          store(h + ((i + 1) * N + j) * W, next);
        }
      }
    }
  }
  for (int j = 0; j < NS; j++) store(state + j * W, local[j]);
}

template <bool FAST>
INLINE vf output_grad(const View<FAST> &view, int64_t t, int64_t p) {
  return load_any(view.s.gout, view.out_row(t, p), view.dtype(), view.lanes());
}
template <bool FAST>
INLINE vf gated(const View<FAST> &view, int64_t t, int64_t p) {
  vf g = output_grad(view, t, p);
  if (!view.s.z) return g;
  vf z = view.z(p);
  return g * z * sigmoid(z);
}

// II. (2), (3) and (8) of a chunk: r[t+1] of every step, what the output reads, and the adjoint q.
template <bool FAST>
static void local_chunk(const View<FAST> &view, const Plan &plan, int64_t t0, int64_t t1, float *m) {
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
        dy = gated(view, t - 1, view.token(t - 1));
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

// III. (5) to (13) of one block of channels over steps [t0, t1), from right to left.
template <int NS, bool LOCAL, bool FAST>
static void adjoint(const Job &job, const View<FAST> view, const Plan &plan, int64_t block, int64_t t0, int64_t t1,
                    const float *rates, float *m) {
  const Scan &s = view.s;
  const int64_t N = NS ? NS : s.states, lanes = view.lanes();
  const float *a = m + plan.a, *h = m + plan.h, *read = m + plan.read, *r = m + plan.r, *q = m + plan.q;
  float *dB = m + plan.dB, *dC = m + plan.dC, *carry = m + plan.carry + block * N * W;
  float *dA = m + plan.dA + block * (N + 2) * W, *dD = dA + N * W, *dbias = dD + W;
  const vf skip = view.per_channel(s.D);
  vf sum_D = load(dD), sum_bias = load(dbias);
  const bool add_u = s.u_per_dir ? !job.once[view.k] : (view.k > 0 || !job.once[0]);
  const bool add_delta = !job.params_once[view.k], gated = s.z, softplus = s.softplus, scalar = s.scalar_decay;
  const int64_t channels = s.channels;
  float *grad_u = s.du + view.du_base, *grad_delta = s.ddelta + view.dd_base;
  float *grad_z = gated ? s.dz + view.b * s.length * channels + view.d0 : nullptr;
  const float *dts = m + plan.dt, *slopes = m + plan.slope;
  vi valid;
  for (int64_t i = 0; i < W; i++) valid[i] = i < lanes ? -1 : 0;
  // lanes past the channels hold 0, but 0 times an infinite B or C would join the sums over lanes
  auto inside = [&](vf x) { return FAST ? x : valid ? x : vf{}; };
  for (int64_t t = t1 - 1; t >= t0; t--) {
    if (FAST && t >= AHEAD) {
      const int64_t soon = t - AHEAD, token = view.token(soon);
      __builtin_prefetch((const float *)s.gout + view.out_row(soon, token));
      __builtin_prefetch(grad_u + token * view.du_p, 1);
      __builtin_prefetch(grad_delta + view.param_token(soon) * view.dd_p, 1);
    }
    const int64_t i = t - t0, p = view.token(t), pq = view.param_token(t);
    const float *Bq = view.B + pq * view.B_l, *Cq = view.C + pq * view.C_l;
    const vf u = view.u(p), dt = load(dts + i * W), du = dt * u;
    vf g = output_grad(view, t, p), dy = g, z = {}, gate = {};
    if (gated) {  // (5)
      z = view.z(p);
      gate = sigmoid(z);
      dy = g * z * gate;
    }
    vf weighted = {}, ddt = {}, y = skip * u;
#pragma GCC unroll 16
    for (int64_t j = 0; j < N; j++) {
      const int64_t at = (i * N + j) * W;
      const vf c = dy * Cq[j], seen = load(read + at), decay = load(a + at);
      const vf adj = c + load(carry + j * W);      // (7)
      vf db = adj, da = adj * load(h + at);        // (9), (10)
      if (LOCAL) {
        db += load(q + at);
        da += load(r + at) * (c + load(q + at));
      }
      store(dC + at, load(dC + at) + inside(dy * seen));   // (6)
      store(dB + at, load(dB + at) + inside(db * du));     // (10)
      if (gated) y += seen * Cq[j];
      weighted += db * Bq[j];
      da *= decay;
      ddt += da * load(rates + (scalar ? 0 : j) * W);
      store(dA + j * W, load(dA + j * W) + da * dt);  // (12)
      store(carry + j * W, decay * adj);
    }
    sum_D += dy * u;
    vf raw = (ddt * (1.0f / LOG2E) + weighted * u) * (softplus ? load(slopes + i * W) : splat(1.0f));  // (12), (13)
    sum_bias += raw;
    put_row(grad_u + p * view.du_p, weighted * dt + skip * dy, lanes, add_u);  // (11)
    put_row(grad_delta + pq * view.dd_p, raw, lanes, add_delta);
    if (gated) put_row(grad_z + p * channels, g * y * gate * (1.0f + z * (1.0f - gate)), lanes, true);
  }
  store(dD, sum_D);
  store(dbias, sum_bias);
}

template <int NS>
static void backward_direction(const Job &job, const Plan &plan, int64_t k, int64_t b, int64_t group, int64_t first,
                               float *m) {
  const Scan &s = *job.scan;
  const int64_t N = NS ? NS : s.states, count = s.scalar_decay ? 1 : N;
  std::vector<float> all_rates(plan.blocks * N * W + 16);
  auto rates_of = [&](int64_t block) { return all_rates.data() + block * N * W; };
  auto view_of = [&](int64_t block) {
    const int64_t d0 = (first + block) * W;
    return View<false>(s, k, b, d0, s.channels - d0 < W ? s.channels - d0 : W);
  };
  memset(m + plan.dA, 0, sizeof(float) * plan.blocks * (N + 2) * W);
  for (int64_t block = 0; block < plan.blocks; block++) {
    View<false> view = view_of(block);
    view.decay_rates(rates_of(block));
    memset(m + plan.starts + block * plan.chunks * N * W, 0, sizeof(float) * N * W);
    float *carry = m + plan.carry + block * N * W;
    for (int64_t j = 0; j < N; j++)
      for (int64_t i = 0; i < W; i++)
        carry[j * W + i] = s.gstate && i < view.n ? s.gstate[((b * s.dirs + k) * s.channels + view.d0 + i) * N + j] : 0.0f;
    // rows that several steps add to start from 0
    for (int64_t p = 0; p < s.length; p++) {
      const int64_t token = b * s.length + p;
      if (!job.params_once[k]) memset(s.ddelta + (token * s.dirs + k) * s.channels + view.d0, 0, sizeof(float) * view.n);
      if (s.u_per_dir ? !job.once[k] : (k == 0 && !job.once[0]))
        memset(s.du + (s.u_per_dir ? token * s.dirs + k : token) * s.channels + view.d0, 0, sizeof(float) * view.n);
      if (s.z && k == 0) memset(s.dz + token * s.channels + view.d0, 0, sizeof(float) * view.n);
    }
  }
  // the state at the start of every chunk
  for (int64_t c = 0; c + 1 < plan.chunks; c++)
    for (int64_t block = 0; block < plan.blocks; block++) {
      View<false> view = view_of(block);
      float *start = m + plan.starts + (block * plan.chunks + c) * N * W;
      memcpy(start + N * W, start, sizeof(float) * N * W);
      auto run = [&](auto view) {
        recompute<NS>(view, rates_of(block), view.per_channel(s.bias), c * plan.chunk, (c + 1) * plan.chunk, start + N * W,
                      nullptr, nullptr, nullptr, nullptr);
      };
      if (is_fast(s, view.n))
        run(View<true>(s, k, b, view.d0, W));
      else
        run(view);
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
    const int64_t t0 = c * plan.chunk, t1 = t0 + plan.chunk < s.steps ? t0 + plan.chunk : s.steps;
    memset(m + plan.dB, 0, sizeof(float) * (t1 - t0) * N * W);
    memset(m + plan.dC, 0, sizeof(float) * (t1 - t0) * N * W);
    for (int64_t block = 0; block < plan.blocks; block++) {
      View<false> view = view_of(block);
      float *start = m + plan.starts + (block * plan.chunks + c) * N * W;
      auto run = [&](auto view) {
        recompute<NS>(view, rates_of(block), view.per_channel(s.bias), t0, t1, start, m + plan.a, m + plan.h, m + plan.dt,
                      m + plan.slope);
        if (s.window) {
          local_chunk(view, plan, t0, t1, m);
          adjoint<NS, true>(job, view, plan, block, t0, t1, rates_of(block), m);
        } else {
          adjoint<NS, false>(job, view, plan, block, t0, t1, rates_of(block), m);
        }
      };
      if (is_fast(s, view.n))
        run(View<true>(s, k, b, view.d0, W));
      else
        run(view);
    }
    for (int64_t t = t0; t < t1; t++) {
      const int64_t q = s.param_order ? s.param_order[k * s.steps + t] : s.order ? s.order[k * s.steps + t] : t;
      float *rowB = grad_row(s.dB, q), *rowC = grad_row(s.dC, q);
      for (int64_t j = 0; j < N; j++) {
        const float *lanesB = m + plan.dB + ((t - t0) * N + j) * W, *lanesC = m + plan.dC + ((t - t0) * N + j) * W;
        const float sumB = lane_sum(lanesB), sumC = lane_sum(lanesC);
        const bool add = !job.params_once[k];
        rowB[j] = add ? rowB[j] + sumB : sumB;
        rowC[j] = add ? rowC[j] + sumC : sumC;
      }
    }
  }
  for (int64_t block = 0; block < plan.blocks; block++) {
    View<false> view = view_of(block);
    const float *dA = m + plan.dA + block * (N + 2) * W;
    for (int64_t i = 0; i < view.n; i++) {
      const int64_t channel = (b * s.dirs + k) * s.channels + view.d0 + i;
      for (int64_t j = 0; j < count; j++) {
        float sum = dA[j * W + i];
        for (int64_t other = 1; other < N && s.scalar_decay; other++) sum += dA[other * W + i];
        s.dA[channel * count + j] = sum;
      }
      if (s.dD) s.dD[channel] = dA[N * W + i];
      if (s.dbias) s.dbias[channel] = dA[(N + 1) * W + i];
    }
  }
}

static void backward_thread(void *data) {
  Job &job = *(Job *)data;
  const Scan &s = *job.scan;
  const int64_t blocks = (s.channels + W - 1) / W, share = (blocks + s.groups - 1) / s.groups;
  Scratch scratch;
  if (!scratch.reserve(backward_plan(s, share).total)) {
    job.failed = true;
    return;
  }
  for (int64_t item; (item = job.next++) < job.items;) {
    const int64_t b = item / s.groups, group = item % s.groups, first = group * share;
    const int64_t own = blocks - first < share ? blocks - first : share;
    if (own <= 0) continue;
    const Plan plan = backward_plan(s, own);
    for (int64_t k = 0; k < s.dirs; k++) {
      if (s.states == 1)
        backward_direction<1>(job, plan, k, b, group, first, scratch.base);
      else if (s.states == 16 && !s.scalar_decay)
        backward_direction<16>(job, plan, k, b, group, first, scratch.base);
      else
        backward_direction<0>(job, plan, k, b, group, first, scratch.base);
    }
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

extern "C" int visionssm_has_fp16() { return HAS_FP16; }
extern "C" int visionssm_vector_width() { return W; }
extern "C" int64_t visionssm_scan_size() { return sizeof(Scan); }

extern "C" int visionssm_scan_forward(const Scan *scan) {
  const Scan &s = *scan;
  Job job;
  prepare(job, s);
  // N = 1 moves memory: long runs of channels, as long as every thread gets its share of blocks
  int64_t vectors = (s.channels + W - 1) / W, best = 1;
  if (s.states == 1 && !s.window)
    for (int64_t v = 2; v <= 4; v++)
      if (v != 3 && vectors % v == 0 && s.batch * (vectors / v) >= 2 * s.threads) best = v;
  job.width = best * W;
  hint_large_pages(s.out, s.batch * (s.mode == PER_STEP ? s.steps : s.length) * (s.mode == MERGED ? 1 : s.dirs) * s.channels *
                              (s.dtype == FP32 ? 4 : 2));
  job.items = s.batch * ((s.channels + job.width - 1) / job.width);
  on_threads(forward_thread, &job, s.threads < job.items ? s.threads : job.items, s.gomp_parallel);
  return job.failed ? 1 : 0;
}

extern "C" int visionssm_scan_backward(const Scan *scan) {
  const Scan &s = *scan;
  Job job;
  prepare(job, s);
  job.items = s.batch * s.groups;
  const int64_t tokens = s.batch * s.length, wide = s.dirs * s.channels;
  hint_large_pages(s.ddelta, tokens * wide * 4);
  hint_large_pages(s.du, tokens * (s.u_per_dir ? wide : s.channels) * 4);
  hint_large_pages(s.dz, tokens * s.channels * 4);
  on_threads(backward_thread, &job, s.threads < job.items ? s.threads : job.items, s.gomp_parallel);
  return job.failed ? 1 : 0;
}
