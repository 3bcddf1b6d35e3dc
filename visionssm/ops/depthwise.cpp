// Depthwise convolutions of maps (B, H, W, C) and the activation behind them, at inference; compiled after `neighborhood.cpp`.
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

enum { NO_ACTIVATION = 0, WITH_GELU = 1, WITH_SILU = 2 };

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

struct DepthwiseJob {
  const Depthwise *depthwise;
  std::atomic<int64_t> next{0};
  std::atomic<bool> failed{false};
};

enum { AT_ONCE = 4 };  // neighbouring columns that share a tap

// n channels of one image, with a kernel of ROWS by COLUMNS; 0: as `d` says. `taps`: memory for (rows, columns, W).
template <int ROWS, int COLUMNS>
static void convolve(const Depthwise &d, const float *x, const float *weight, const float *bias, float *out, int64_t n,
                     float *taps) {
  const int64_t rows = ROWS ? ROWS : d.rows, columns = COLUMNS ? COLUMNS : d.columns, count = rows * columns;
  const vf offset = bias ? load_part(bias, n) : vf{};
  for (int64_t t = 0; t < count; t++) {
    float lanes[W] = {};
    for (int64_t c = 0; c < n; c++) lanes[c] = weight[c * count + (d.mirrored ? count - 1 - t : t)];
    store(taps + t * W, load(lanes));
  }
  auto activated = [&](vf y) {
    if (d.activation == WITH_GELU) return gelu(y);
    if (d.activation == WITH_SILU) return y * sigmoid(y);
    return y;
  };
  // columns from which all taps of a row lie inside
  const int64_t first = std::min(d.left, d.width);
  const int64_t last = std::max(first, d.width - ((columns - 1) * d.column_step - d.left));
  for (int64_t row = 0; row < d.height; row++) {
    float *line = out + row * d.width * d.channels;
    auto start = [&](int64_t column, int64_t lanes) {
      return d.shortcut ? offset + load_part(x + row * d.x_y + column * d.x_x, lanes) : offset;
    };
    auto each_row = [&](auto f) {  // f(row of the map, taps)
#pragma GCC unroll 3
      for (int64_t i = 0; i < rows; i++) {
        const int64_t y = row + i * d.row_step - d.top;
        if (y >= 0 && y < d.height) f(x + y * d.x_y, taps + i * columns * W);
      }
    };
    auto border = [&](int64_t from, int64_t end) {
      for (int64_t column = from; column < end; column++) {
        const int64_t outside = std::max<int64_t>(d.left - column, 0);
        const int64_t j0 = (outside + d.column_step - 1) / d.column_step;
        const int64_t j1 = std::min(columns, (d.width - 1 - column + d.left) / d.column_step + 1);
        vf sum = start(column, n), other{};  // in turn, so that a row does not wait for the one before
        each_row([&](const float *tokens, const float *tap) {
          for (int64_t j = j0; j < j1; j++)
            sum += load_part(tokens + (column + j * d.column_step - d.left) * d.x_x, n) * load(tap + j * W);
          std::swap(sum, other);
        });
        store_part(line + column * d.channels, activated(sum + other), n);
      }
    };
    border(0, first);
    int64_t column = first;
    if (n == W)
      for (; column + AT_ONCE <= last; column += AT_ONCE) {
        vf sums[AT_ONCE];
        for (int c = 0; c < AT_ONCE; c++) sums[c] = start(column + c, W);
        each_row([&](const float *tokens, const float *tap) {
          const float *at = tokens + (column - d.left) * d.x_x;
#pragma GCC unroll 4
          for (int64_t j = 0; j < columns; j++, at += d.column_step * d.x_x)
            for (int c = 0; c < AT_ONCE; c++) sums[c] += load(at + c * d.x_x) * load(tap + j * W);
        });
        for (int c = 0; c < AT_ONCE; c++) store(line + (column + c) * d.channels, activated(sums[c]));
      }
    border(column, d.width);
  }
}

static void depthwise_thread(void *data) {
  DepthwiseJob &job = *(DepthwiseJob *)data;
  const Depthwise &d = *job.depthwise;
  const int64_t blocks = (d.channels + W - 1) / W;
  Scratch scratch;
  if (!scratch.reserve(d.rows * d.columns * W)) {
    job.failed = true;
    return;
  }
  auto *serve = d.rows == 3 && d.columns == 3 ? convolve<3, 3> : d.rows == 1 && d.columns == 4 ? convolve<1, 4> : convolve<0, 0>;
  for (int64_t item; (item = job.next++) < d.batch * blocks;) {
    const int64_t b = item / blocks, c = item % blocks * W, n = std::min<int64_t>(W, d.channels - c);
    serve(d, d.x + b * d.x_b + c, d.weight + c * d.rows * d.columns, d.bias ? d.bias + c : nullptr,
          d.out + b * d.height * d.width * d.channels + c, n, scratch.base);
  }
}

EXPORT int64_t visionssm_depthwise_size() { return sizeof(Depthwise); }
EXPORT int visionssm_depthwise(const Depthwise *depthwise) {
  const Depthwise &d = *depthwise;
  DepthwiseJob job;
  job.depthwise = depthwise;
  hint_large_pages(d.out, d.batch * d.height * d.width * d.channels * sizeof(float));
  on_threads(depthwise_thread, &job, std::min(d.threads, d.batch * ((d.channels + W - 1) / W)), d.gomp_parallel);
  return job.failed ? 1 : 0;
}
