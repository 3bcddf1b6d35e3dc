// Depthwise 3x3 convolutions of maps (B, H, W, C) and the activation behind them, at inference; compiled after `neighborhood.cpp`.
//
// Channels lie across the lanes. The map keeps its size: stride 1, zeros around it. Arithmetic is fp32.

extern "C" struct Depthwise {  // every field is 8 bytes wide; `convolution_cpu.py` holds the same list
  int64_t batch, height, width, channels, activation, threads;
  int64_t x_b, x_y, x_x;  // strides of x in elements; the last one is 1
  const float *x, *weight, *bias;  // weight: (channels, 3, 3), contiguous; bias may be null
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
};

// n channels of one image.
static void convolve(const Depthwise &d, const float *x, const float *weight, const float *bias, float *out, int64_t n) {
  vf taps[9];
  const vf start = bias ? load_part(bias, n) : vf{};
  for (int t = 0; t < 9; t++) {
    float lanes[W] = {};
    for (int64_t c = 0; c < n; c++) lanes[c] = weight[c * 9 + t];
    taps[t] = load(lanes);
  }
  for (int64_t row = 0; row < d.height; row++) {
    auto tokens = [&](int64_t from, int64_t end, auto inside) {
      for (int64_t column = from; column < end; column++) {
        vf sum = start;
#pragma GCC unroll 3
        for (int i = 0; i < 3; i++) {
          const int64_t y = row + i - 1;
          if (!inside.value && (y < 0 || y >= d.height)) continue;
#pragma GCC unroll 3
          for (int j = 0; j < 3; j++) {
            const int64_t at = column + j - 1;
            if (!inside.value && (at < 0 || at >= d.width)) continue;
            sum += load_part(x + y * d.x_y + at * d.x_x, inside.value ? W : n) * taps[i * 3 + j];
          }
        }
        if (d.activation == WITH_GELU) sum = gelu(sum);
        if (d.activation == WITH_SILU) sum *= sigmoid(sum);
        store_part(out + (row * d.width + column) * d.channels, sum, n);
      }
    };
    if (n == W && row > 0 && row + 1 < d.height && d.width > 2) {
      tokens(0, 1, std::false_type());
      tokens(1, d.width - 1, std::true_type());
      tokens(d.width - 1, d.width, std::false_type());
    } else {
      tokens(0, d.width, std::false_type());
    }
  }
}

static void depthwise_thread(void *data) {
  DepthwiseJob &job = *(DepthwiseJob *)data;
  const Depthwise &d = *job.depthwise;
  const int64_t blocks = (d.channels + W - 1) / W;
  for (int64_t item; (item = job.next++) < d.batch * blocks;) {
    const int64_t b = item / blocks, c = item % blocks * W, n = std::min<int64_t>(W, d.channels - c);
    convolve(d, d.x + b * d.x_b + c, d.weight + c * 9, d.bias ? d.bias + c : nullptr,
             d.out + b * d.height * d.width * d.channels + c, n);
  }
}

EXPORT int64_t visionssm_depthwise_size() { return sizeof(Depthwise); }
EXPORT int visionssm_depthwise(const Depthwise *depthwise) {
  const Depthwise &d = *depthwise;
  DepthwiseJob job;
  job.depthwise = depthwise;
  hint_large_pages(d.out, d.batch * d.height * d.width * d.channels * sizeof(float));
  on_threads(depthwise_thread, &job, std::min(d.threads, d.batch * ((d.channels + W - 1) / W)), d.gomp_parallel);
  return 0;
}
