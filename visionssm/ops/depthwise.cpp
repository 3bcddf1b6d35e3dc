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
  int64_t count, activation, threads;
  float *x;  // contiguous, read and written
  void *gomp_parallel;
};

enum { NO_ACTIVATION = 0, WITH_GELU = 1, WITH_SILU = 2 };

enum { AT_ONCE = 4 };  // vectors side by side: chains of dependent operations are long

// GELU in place. erf(z) is right to 3e-7, and 1 from where it rounds to that: minimax fit of erf(z) / z by z^2, taken to
// [-1, 1]. Not a fraction: a division takes as long as ten products.
template <int COUNT> INLINE void gelu(vf (&x)[COUNT]) {
  static const float fit[] = {3.607368469e-01f,  -1.801090837e-01f, 1.340821981e-01f,  -1.091603711e-01f, 9.063982219e-02f,
                              -7.424104959e-02f, 5.810827389e-02f,  -4.229876027e-02f, 3.060757183e-02f,  -2.298588865e-02f,
                              1.274567377e-02f,  -3.469681367e-03f, 3.079528455e-03f,  -4.373339470e-03f, 1.740332227e-03f};
  vf z[COUNT], t[COUNT], sum[COUNT];
  for (int i = 0; i < COUNT; i++) {
    z[i] = at_least(-3.92f, at_most(3.92f, x[i] * 0.70710678118654752f));
    t[i] = z[i] * z[i] * 1.301541025e-01f - 1.0f;
    sum[i] = splat(fit[14]);
  }
#pragma GCC unroll 14
  for (int n = 13; n >= 0; n--)
    for (int i = 0; i < COUNT; i++) sum[i] = sum[i] * t[i] + fit[n];
  for (int i = 0; i < COUNT; i++) x[i] *= 0.5f + 0.5f * at_least(-1.0f, at_most(1.0f, z[i] * sum[i]));
}

template <int COUNT> INLINE void activate(vf (&x)[COUNT], int64_t activation) {
  if (activation == WITH_GELU) gelu(x);
  if (activation == WITH_SILU)
    for (int i = 0; i < COUNT; i++) x[i] *= sigmoid(x[i]);
}

struct DepthwiseJob {
  const Depthwise *depthwise;
  std::atomic<int64_t> next{0};
  std::atomic<bool> failed{false};
};

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
        vf sums[] = {sum + other};
        activate(sums, d.activation);
        store_part(line + column * d.channels, sums[0], n);
      }
    };
    border(0, first);
    int64_t column = first;
    if (n == W)
      for (; column + AT_ONCE <= last; column += AT_ONCE) {
        vf sums[AT_ONCE];  // neighbouring columns share a tap
        for (int c = 0; c < AT_ONCE; c++) sums[c] = start(column + c, W);
        each_row([&](const float *tokens, const float *tap) {
          const float *at = tokens + (column - d.left) * d.x_x;
#pragma GCC unroll 4
          for (int64_t j = 0; j < columns; j++, at += d.column_step * d.x_x)
            for (int c = 0; c < AT_ONCE; c++) sums[c] += load(at + c * d.x_x) * load(tap + j * W);
        });
        activate(sums, d.activation);
        for (int c = 0; c < AT_ONCE; c++) store(line + (column + c) * d.channels, sums[c]);
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

struct ActivationJob {
  const Activation *activation;
  std::atomic<int64_t> next{0};
};

static void activation_thread(void *data) {
  ActivationJob &job = *(ActivationJob *)data;
  const Activation &a = *job.activation;
  const int64_t part = 1024 * W;
  for (int64_t i; (i = job.next++ * part) < a.count;) {
    float *x = a.x + i, *end = a.x + std::min(a.count, i + part);
    for (; x + AT_ONCE * W <= end; x += AT_ONCE * W) {
      vf some[AT_ONCE];
      for (int j = 0; j < AT_ONCE; j++) some[j] = load(x + j * W);
      activate(some, a.activation);
      for (int j = 0; j < AT_ONCE; j++) store(x + j * W, some[j]);
    }
    for (; x < end; x += W) {
      const int64_t n = std::min<int64_t>(W, end - x);
      vf last[] = {load_part(x, n)};
      activate(last, a.activation);
      store_part(x, last[0], n);
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
