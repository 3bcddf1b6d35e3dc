// Depthwise convolutions of maps (B, H, W, C) and activations, at inference; compiled after `neighborhood.cpp`.
//
// Channels lie across the lanes. The map keeps its size: stride 1, and zeros around it, all that the kernel spans beyond
// one tap. Arithmetic is fp32.

extern "C" struct Depthwise {  // every field is 8 bytes wide; `convolution_cpu.py` holds the same list
  int64_t batch, height, width, channels, activation, threads;
  int64_t rows, columns, top, left, row_step, column_step;  // of the kernel; padding above and left; spacing of its taps
  int64_t mirrored, shortcut;                               // the last tap comes first; add x itself before the activation
  int64_t x_b, x_y, x_x;                                    // strides of x in elements; the last one is 1
  const float *x, *weight, *bias;  // weight: (channels, rows, columns), contiguous; bias may be null
  float *out;                      // contiguous
  void *gomp_parallel;
};

extern "C" struct Activation {  // likewise
  int64_t rows, channels, activation, threads;
  float *x;           // (rows, channels), contiguous, read and written
  const float *bias;  // (channels), added before; or null
  void *gomp_parallel;
};

enum { NO_ACTIVATION = 0, WITH_GELU = 1, WITH_SILU = 2 };

// erf(z) is right to 3e-7, and 1 from where it rounds to that: minimax fit of erf(z) / z by z^2, taken to [-1, 1]. Not a
// fraction: a division takes as long as ten products.
template <class T> INLINE T gelu(T x) {
  const T z = at_least(-3.92f, at_most(3.92f, x * 0.70710678118654752f)), t = z * z * 1.301541025e-01f - 1.0f;
  T sum = t * 1.740332227e-03f - 4.373339470e-03f;
  sum = sum * t + 3.079528455e-03f;
  sum = sum * t - 3.469681367e-03f;
  sum = sum * t + 1.274567377e-02f;
  sum = sum * t - 2.298588865e-02f;
  sum = sum * t + 3.060757183e-02f;
  sum = sum * t - 4.229876027e-02f;
  sum = sum * t + 5.810827389e-02f;
  sum = sum * t - 7.424104959e-02f;
  sum = sum * t + 9.063982219e-02f;
  sum = sum * t - 1.091603711e-01f;
  sum = sum * t + 1.340821981e-01f;
  sum = sum * t - 1.801090837e-01f;
  sum = sum * t + 3.607368469e-01f;
  return x * (at_least(-1.0f, at_most(1.0f, z * sum)) * 0.5f + 0.5f);
}
template <class T> INLINE T activated(T x, int64_t activation) {
  return activation == WITH_GELU ? gelu(x) : activation == WITH_SILU ? silu(x) : x;
}

struct DepthwiseJob {
  const Depthwise *depthwise;
  std::atomic<int64_t> next{0};
  std::atomic<bool> failed{false};
};

enum { STRIP = 64 };  // columns of which all rows are done before the next ones

// Floats of a kernel and of what it sees of a strip, for as many vectors side by side; behind them is which rows these are,
// in two floats each.
static int64_t rows_memory(const Depthwise &d, int64_t vectors) {
  const int64_t span = std::min<int64_t>(STRIP, d.width) + (d.columns - 1) * d.column_step;
  return (d.columns + span) * d.rows * vectors * W;
}

// n channels of one image in VECTORS vectors, with a kernel of ROWS by COLUMNS; 0: as `d` says. What the rows of a strip
// hold of these channels is first put side by side, with the zeros around the map: where it lies, tokens are so far apart
// that few of them fit in the cache at once. Taps are finite: those left and right of the map meet these zeros.
template <int ROWS, int COLUMNS, int VECTORS>
static void convolve(const Depthwise &d, const float *x, const float *weight, const float *bias, float *out, int64_t n,
                     float *memory) {
  const int64_t rows = ROWS ? ROWS : d.rows, columns = COLUMNS ? COLUMNS : d.columns, count = rows * columns;
  const int64_t wide = VECTORS * W, last = n - (VECTORS - 1) * W;  // lanes of the last vector
  auto lanes = [&](int v) { return v + 1 < VECTORS ? W : last; };
  float *const taps = memory, *const seen = memory + count * wide;
  int64_t *const held = (int64_t *)(memory + rows_memory(d, VECTORS));  // the row of the map in every row of `seen`
  for (int64_t t = 0; t < count; t++)
    for (int64_t c = 0; c < wide; c++)
      taps[t * wide + c] = c < n ? weight[c * count + (d.mirrored ? count - 1 - t : t)] : 0.0f;
  vf offset[VECTORS] = {};
  for (int v = 0; v < VECTORS && bias; v++) offset[v] = load_part(bias + v * W, lanes(v));
  for (int64_t from = 0; from < d.width; from += STRIP) {
    const int64_t strip = std::min<int64_t>(STRIP, d.width - from), span = strip + (columns - 1) * d.column_step;
    std::fill(held, held + rows, -1);
    for (int64_t row = 0; row < d.height; row++) {
      auto each_row = [&](auto f) {  // f(row of the map, its place, taps)
        for (int64_t i = 0; i < rows; i++) {
          const int64_t y = row + i * d.row_step - d.top;
          if (y >= 0 && y < d.height) f(y, d.row_step == 1 ? y % rows : i, taps + i * columns * wide);
        }
      };
      each_row([&](int64_t y, int64_t place, const float *) {
        if (held[place] == y) return;
        held[place] = y;
        for (int64_t j = 0; j < span; j++) {
          const int64_t column = from + j - d.left;
          const float *token = x + y * d.x_y + column * d.x_x;
          const bool inside = column >= 0 && column < d.width;
          for (int v = 0; v < VECTORS; v++)
            store(seen + (place * span + j) * wide + v * W, inside ? load_part(token + v * W, lanes(v)) : vf{});
        }
      });
      // as many neighbouring columns as `y` has vectors; they share a tap
      auto some = [&](auto y, int64_t column) __attribute__((always_inline)) {
        constexpr int N = sizeof y / sizeof(vf);
        vf sums[N * VECTORS];
        for (int c = 0; c < N; c++)
          for (int v = 0; v < VECTORS; v++) {
            sums[c * VECTORS + v] = offset[v];
            if (d.shortcut)
              sums[c * VECTORS + v] += load_part(x + row * d.x_y + (from + column + c) * d.x_x + v * W, lanes(v));
          }
        each_row([&](int64_t, int64_t place, const float *tap) {
          const float *at = seen + (place * span + column) * wide;
#pragma GCC unroll 4
          for (int64_t j = 0; j < columns; j++, at += d.column_step * wide, tap += wide)
            for (int v = 0; v < VECTORS; v++) {
              const vf shared = load(tap + v * W);
              for (int c = 0; c < N; c++) sums[c * VECTORS + v] += load(at + c * wide + v * W) * shared;
            }
        });
        for (int v = 0; v < VECTORS; v++) {
          for (int c = 0; c < N; c++) nth(y, c) = sums[c * VECTORS + v];
          y = activated(y, d.activation);
          for (int c = 0; c < N; c++)
            store_part(out + (row * d.width + from + column + c) * d.channels + v * W, nth(y, c), lanes(v));
        }
      };
      int64_t column = 0;
      for (; column + 4 <= strip; column += 4) some(Four(), column);
      for (; column < strip; column++) some(vf(), column);
    }
  }
}

template <int VECTORS> static auto convolution(const Depthwise &d) {
  if (d.rows == 3 && d.columns == 3) return convolve<3, 3, VECTORS>;
  if (d.rows == 1 && d.columns == 4) return convolve<1, 4, VECTORS>;
  return convolve<0, 0, VECTORS>;
}

// Channels go to threads in pairs of vectors, which fill whole lines of the cache, and what is left in single ones.
static int64_t pair_count(const Depthwise &d) { return d.channels / (2 * W); }
static int64_t block_count(const Depthwise &d) { return pair_count(d) + (d.channels % (2 * W) + W - 1) / W; }

static void depthwise_thread(void *data) {
  DepthwiseJob &job = *(DepthwiseJob *)data;
  const Depthwise &d = *job.depthwise;
  const int64_t pairs = pair_count(d), blocks = block_count(d);
  Scratch scratch;
  if (!scratch.reserve(rows_memory(d, 2) + 2 * d.rows)) {
    job.failed = true;
    return;
  }
  auto *serve_pair = convolution<2>(d), *serve = convolution<1>(d);
  for (int64_t item; (item = job.next++) < d.batch * blocks;) {
    const int64_t b = item / blocks, i = item % blocks, c = (i < pairs ? 2 * i : pairs + i) * W;
    (i < pairs ? serve_pair : serve)(d, d.x + b * d.x_b + c, d.weight + c * d.rows * d.columns, d.bias ? d.bias + c : nullptr,
                                     d.out + b * d.height * d.width * d.channels + c,
                                     i < pairs ? 2 * W : std::min<int64_t>(W, d.channels - c), scratch.base);
  }
}

EXPORT int64_t visionssm_depthwise_size() { return sizeof(Depthwise); }
EXPORT int visionssm_depthwise(const Depthwise *depthwise) {
  const Depthwise &d = *depthwise;
  DepthwiseJob job;
  job.depthwise = depthwise;
  hint_large_pages(d.out, d.batch * d.height * d.width * d.channels * sizeof(float));
  on_threads(depthwise_thread, &job, std::min(d.threads, d.batch * block_count(d)), d.gomp_parallel);
  return job.failed ? 1 : 0;
}

struct ActivationJob {
  const Activation *activation;
  std::atomic<int64_t> next{0};
};

static void activation_thread(void *data) {
  ActivationJob &job = *(ActivationJob *)data;
  const Activation &a = *job.activation;
  const int64_t part = std::max<int64_t>(1, (1 << 14) / a.channels);
  auto offset = [&](int64_t c, int64_t n) { return a.bias ? load_part(a.bias + c, n) : vf{}; };
  for (int64_t row; (row = job.next++ * part) < a.rows;)
    for (const int64_t end = std::min(row + part, a.rows); row < end; row++) {
      float *x = a.x + row * a.channels;
      int64_t c = 0;
      for (; c + 4 * W <= a.channels; c += 4 * W) {
        Four some;
        for (int i = 0; i < 4; i++) some[i] = load(x + c + i * W) + offset(c + i * W, W);
        some = activated(some, a.activation);
        for (int i = 0; i < 4; i++) store(x + c + i * W, some[i]);
      }
      for (; c < a.channels; c += W) {
        const int64_t n = std::min<int64_t>(W, a.channels - c);
        store_part(x + c, activated(load_part(x + c, n) + offset(c, n), a.activation), n);
      }
    }
}

EXPORT int64_t visionssm_activation_size() { return sizeof(Activation); }
EXPORT int visionssm_activation(const Activation *activation) {
  ActivationJob job;
  job.activation = activation;
  on_threads(activation_thread, &job, activation->threads, activation->gomp_parallel);
  return 0;
}
