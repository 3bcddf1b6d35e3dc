// MLPs of tokens at inference: linear, GELU, linear. Compiled after `neighborhood.cpp`, one of whose helpers it uses.
//
// Tokens lie across the lanes: a block of them is transposed once, and both layers take their weights as they lie in
// memory, one for a whole vector of tokens. What is between the layers never leaves the cache. Arithmetic is fp32.

extern "C" struct Mlp {  // every field is 8 bytes wide; `mlp_cpu.py` holds the same list
  int64_t rows, inputs, hidden, outputs, threads;
  const float *x, *first, *first_bias, *second, *second_bias;  // all contiguous; biases may be null
  float *out;
  void *gomp_parallel;
};

const int64_t DEPTH = 192;                  // inputs that are summed over at once
const int64_t TILE_ROWS = W == 8 ? 12 : 24;  // of weights at once; times the vectors of tokens per tile, sums in registers
const int64_t TILE_VECTORS = 3;
const int64_t APART = DEPTH + 16;           // rows of weights in the cache, so that they don't fall on one another
const int64_t BLOCK_FLOATS = 80000;         // of the inputs and of the outputs of a block: both stay in the second cache

// erf(x) to 4e-7, and 1 from where it rounds to that; minimax fit of erf(x) / x by x^2
INLINE vf erfv(vf x) {
  x = at_least(-4.0f, at_most(4.0f, x));
  const vf t = x * x;
  vf p = splat(2.034733900e-06f), q = splat(3.807066513e-05f);
  p = p * t + 2.874800740e-04f, q = q * t + 1.188120817e-03f;
  p = p * t + 3.868349436e-03f, q = q * t + 1.517234019e-02f;
  p = p * t + 5.306055044e-02f, q = q * t + 1.150848262e-01f;
  p = p * t + 1.927645496e-01f, q = q * t + 5.041648005e-01f;
  p = p * t + 1.128379022e+00f, q = q * t + 1.0f;
  return at_least(-1.0f, at_most(1.0f, x * p / q));
}
INLINE vf gelu(vf x) { return 0.5f * x * (1.0f + erfv(x * 0.70710678118654752f)); }

// (a0, b0, a1, b1, ...) in two vectors
INLINE void zip(vf a, vf b, vf &low, vf &high) {
#if W == 16
  low = _mm512_permutex2var_ps(a, _mm512_set_epi32(23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0), b);
  high = _mm512_permutex2var_ps(a, _mm512_set_epi32(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8), b);
#elif W == 8
  const vf even = _mm256_unpacklo_ps(a, b), odd = _mm256_unpackhi_ps(a, b);
  low = _mm256_permute2f128_ps(even, odd, 0x20);
  high = _mm256_permute2f128_ps(even, odd, 0x31);
#else
  low = vf{a[0], b[0], a[1], b[1]};
  high = vf{a[2], b[2], a[3], b[3]};
#endif
}

INLINE void transpose(vf *x) {  // W x W
  for (int width = 1; width < W; width *= 2) {
    vf y[W];
#pragma GCC unroll 16
    for (int i = 0; i < W / 2; i++) zip(x[i], x[i + W / 2], y[2 * i], y[2 * i + 1]);
#pragma GCC unroll 16
    for (int i = 0; i < W; i++) x[i] = y[i];
  }
}

INLINE vf broadcast(const float *x) {
#if W == 16
  return _mm512_set1_ps(*x);
#elif W == 8
  return _mm256_broadcast_ss(x);
#else
  return vf{*x, *x, *x, *x};
#endif
}

// out[r][v] = bias[r], or what it holds, + the sum over k of weights[r][k] tokens[k][v]. R rows from `ahead` will soon be
// wanted in the cache.
template <int V, int R>
INLINE void tile(const float *weights, const float *tokens, int64_t depth, const float *bias, float *out, const float *ahead,
                 int64_t stride) {
  vf sums[R * V];
#pragma GCC unroll 32
  for (int i = 0; i < R * V; i++) sums[i] = vf{};
  for (int64_t from = 0; from < depth; from += 16) {
    const int64_t end = std::min<int64_t>(depth, from + 16);
#pragma GCC unroll 32
    for (int r = 0; r < R; r++) __builtin_prefetch(ahead + r * stride + from, 0, 2);
#pragma GCC unroll 1
    for (int64_t k = from; k < end; k++) {
      vf token[V];
#pragma GCC unroll 4
      for (int v = 0; v < V; v++) {
        token[v] = load(tokens + (k * V + v) * W);
        in_register(token[v]);
      }
#pragma GCC unroll 32
      for (int r = 0; r < R; r++) {
        vf weight = broadcast(weights + r * APART + k);
        in_register(weight);
#pragma GCC unroll 4
        for (int v = 0; v < V; v++) sums[r * V + v] += token[v] * weight;
      }
    }
  }
  if (bias) {
#pragma GCC unroll 32
    for (int i = 0; i < R * V; i++) store(out + i * W, sums[i] + broadcast(bias + i / V));
  } else {
#pragma GCC unroll 32
    for (int i = 0; i < R * V; i++) store(out + i * W, sums[i] + load(out + i * W));
  }
}

// A block of tokens lies in panels of `TILE_VECTORS` vectors or, at its end, fewer: (features, vectors, W) each.
template <class F>
INLINE void each_panel(int64_t vectors, F f) {
  for (int64_t v = 0, width; v < vectors; v += width) {
    width = vectors - v == 4 ? 2 : std::min(vectors - v, TILE_VECTORS);  // one vector alone is slow
    f(v, width);
  }
}

// A layer, or what some of its inputs add to it.
struct Part {
  const float *weights, *bias;  // (outputs, stride); null: 0
  int64_t stride, outputs, depth;
  bool begins, activates;  // the outputs hold nothing yet; GELU follows
};

template <int V>
INLINE void run_rows(const Part &part, const float *weights, const float *bias, int64_t rows, const float *tokens, float *out,
                     const float *ahead, int64_t rows_ahead) {
  constexpr int R = TILE_ROWS / V;
  for (int64_t r = 0; r < rows; r += R) {
    const int64_t count = std::min<int64_t>(R, rows - r) * V * W;
    float *to = out + r * V * W, some[R * V * W];
    const bool whole = count == R * V * W, soon = r + R <= rows_ahead;
    if (!whole && !part.begins) memcpy(some, to, count * sizeof(float));
    tile<V, R>(weights + r * APART, tokens, part.depth, part.begins ? bias + r : nullptr, whole ? to : some,
               soon ? ahead + r * part.stride : ahead, soon ? part.stride : 0);
    if (!whole) memcpy(to, some, count * sizeof(float));
    if (part.activates)
      for (int64_t i = 0; i < count; i += W) store(to + i, gelu(load(to + i)));
  }
}

// Features `from` .. of `inputs` per token, to features of `out`.
static void run_part(const Part &part, const float *tokens, int64_t inputs, int64_t from, float *out, int64_t vectors,
                     float *weights) {
  for (int64_t n = 0; n < part.outputs; n += TILE_ROWS) {
    const int64_t rows = std::min(TILE_ROWS, part.outputs - n), rows_ahead = part.outputs - n - TILE_ROWS;
    float bias[TILE_ROWS] = {};
    if (part.bias) memcpy(bias, part.bias + n, rows * sizeof(float));
    for (int64_t r = 0; r < TILE_ROWS; r++) {
      float *to = weights + r * APART;
      if (r < rows)
        memcpy(to, part.weights + (n + r) * part.stride, part.depth * sizeof(float));
      else
        memset(to, 0, part.depth * sizeof(float));
    }
    const float *ahead = part.weights + (rows_ahead > 0 ? (n + TILE_ROWS) * part.stride : 0);
    each_panel(vectors, [&](int64_t v, int64_t width) {
      const float *in = tokens + (v * inputs + from * width) * W;
      float *to = out + (v * part.outputs + n * width) * W;
      const int64_t fetch = v == 0 ? rows_ahead : 0;
      if (width == 3) run_rows<3>(part, weights, bias, rows, in, to, ahead, fetch);
      if (width == 2) run_rows<2>(part, weights, bias, rows, in, to, ahead, fetch);
      if (width == 1) run_rows<1>(part, weights, bias, rows, in, to, ahead, fetch);
    });
  }
}

// f(token, features, place in the panels, vectors of its panel): W x W values at a time, or what there is of them.
template <class F>
INLINE void each_square(int64_t rows, int64_t features, int64_t vectors, F f) {
  each_panel(vectors, [&](int64_t first, int64_t width) {
    for (int64_t v = 0; v < width; v++)
      for (int64_t c = 0; c < features; c += W)
        f((first + v) * W, std::min<int64_t>(W, rows - (first + v) * W), c, std::min<int64_t>(W, features - c),
          (first * features + c * width + v) * W, width * W);
  });
}

static size_t mlp_scratch(const Mlp &m, int64_t vectors) {
  return vectors * W * (m.inputs + m.outputs + DEPTH) + TILE_ROWS * APART + 64;
}

static void mlp_block(const Mlp &m, int64_t row, int64_t vectors, float *scratch) {
  float *weights = scratch, *tokens = weights + TILE_ROWS * APART, *out = tokens + vectors * W * m.inputs,
        *between = out + vectors * W * m.outputs;
  vf x[W];
  each_square(m.rows - row, m.inputs, vectors, [&](int64_t t, int64_t count, int64_t c, int64_t n, int64_t at, int64_t step) {
    for (int64_t i = 0; i < W; i++) x[i] = i < count ? load_part(m.x + (row + t + i) * m.inputs + c, n) : vf{};
    transpose(x);
    for (int64_t i = 0; i < n; i++) store(tokens + at + i * step, x[i]);
  });
  for (int64_t h = 0; h < m.hidden; h += DEPTH) {
    const int64_t some = std::min(DEPTH, m.hidden - h);
    for (int64_t k = 0; k < m.inputs; k += DEPTH) {
      const int64_t depth = std::min(DEPTH, m.inputs - k);
      const float *bias = m.first_bias ? m.first_bias + h : nullptr;
      run_part({m.first + h * m.inputs + k, bias, m.inputs, some, depth, k == 0, k + depth == m.inputs}, tokens, m.inputs, k,
               between, vectors, weights);
    }
    run_part({m.second + h, m.second_bias, m.hidden, m.outputs, some, h == 0, false}, between, some, 0, out, vectors,
             weights);
  }
  each_square(m.rows - row, m.outputs, vectors, [&](int64_t t, int64_t count, int64_t c, int64_t n, int64_t at, int64_t step) {
    for (int64_t i = 0; i < W; i++) x[i] = i < n ? load(out + at + i * step) : vf{};
    transpose(x);
    for (int64_t i = 0; i < count; i++) store_part(m.out + (row + t + i) * m.outputs + c, x[i], n);
  });
}

struct MlpJob {
  const Mlp *mlp;
  int64_t vectors, blocks;
  std::atomic<int64_t> next{0};
  std::atomic<bool> failed{false};
};

static void mlp_thread(void *data) {
  MlpJob &job = *(MlpJob *)data;
  Scratch scratch;
  if (!scratch.reserve(mlp_scratch(*job.mlp, (job.vectors + job.blocks - 1) / job.blocks))) {
    job.failed = true;
    return;
  }
  for (int64_t i; (i = job.next++) < job.blocks;) {
    const int64_t first = job.vectors * i / job.blocks, end = job.vectors * (i + 1) / job.blocks;
    mlp_block(*job.mlp, first * W, end - first, scratch.base);
  }
}

EXPORT int64_t visionssm_mlp_size() { return sizeof(Mlp); }
EXPORT int visionssm_mlp(const Mlp *mlp) {
  const Mlp &m = *mlp;
  MlpJob job;
  job.mlp = mlp;
  job.vectors = (m.rows + W - 1) / W;
  const int64_t threads = std::max<int64_t>(1, std::min(m.threads, job.vectors));
  const int64_t fit = std::max(TILE_VECTORS, BLOCK_FLOATS / (W * std::max(m.inputs, m.outputs)) / TILE_VECTORS * TILE_VECTORS);
  job.blocks = (job.vectors + fit * threads - 1) / (fit * threads) * threads;  // as many for every thread
  hint_large_pages(m.out, m.rows * m.outputs * sizeof(float));
  on_threads(mlp_thread, &job, threads, m.gomp_parallel);
  return job.failed ? 1 : 0;
}
