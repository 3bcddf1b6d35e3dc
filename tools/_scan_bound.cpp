// The floor of the scan: a bare loop that does the same exponentials and multiply-adds on values that stay in registers
// and the nearest cache. It reads no tensor and writes none; the scan kernel's source comes before it in the same file.

struct Floor {
  int64_t tokens, channels, states, backward;  // tokens: images x directions x steps
  std::atomic<int64_t> next;
  std::atomic<int64_t> sink;
};

template <int NS>
static vf floor_forward(vf x, vf u, const float *rates, const float *B, const float *C, vf *h) {
  vf dt = softplus(x, nullptr), du = dt * u, y = u;
#pragma GCC unroll 16
  for (int j = 0; j < NS; j++) {
    h[j] = exp2v(dt * load(rates + j * W)) * h[j] + du * B[j];
    y += h[j] * C[j];
  }
  return y;
}

// recomputed exponentials, then per state: adjoint, dB, dC, the sums for u, delta and A
template <int NS>
static vf floor_backward(vf x, vf u, const float *rates, const float *B, const float *C, vf *h, vf *dA) {
  vf slope, dt = softplus(x, &slope), du = dt * u, weighted = u, ddt = u;
#pragma GCC unroll 16
  for (int j = 0; j < NS; j++) {
    vf decay = exp2v(dt * load(rates + j * W)), state = decay * du + du * B[j];
    vf adj = u * C[j] + h[j], da = adj * state * decay;
    vf dC = u * state + adj, dB = adj * du + dC;
    weighted += adj * B[j];
    ddt += da * load(rates + j * W) + dB;
    dA[j] += da * dt;
    h[j] = decay * adj;
  }
  return weighted * dt + (ddt + weighted * u) * slope;
}

template <int NS>
static void floor_work(Floor &floor) {
  float rates[NS * W], B[NS], C[NS], x[8 * W];
  for (int i = 0; i < NS * W; i++) rates[i] = -0.5f - 0.01f * i;
  for (int i = 0; i < 8 * W; i++) x[i] = -3.0f + 0.01f * i;
  for (int i = 0; i < NS; i++) B[i] = 0.5f + 0.01f * i, C[i] = 0.7f - 0.01f * i;
  const int64_t vectors = floor.channels / W, block = 256;
  vf total = {};
  for (int64_t start; (start = floor.next.fetch_add(block)) < floor.tokens;) {
    const int64_t end = start + block < floor.tokens ? start + block : floor.tokens;
    for (int64_t v = 0; v < vectors; v++) {
      vf h[NS] = {}, dA[NS] = {};
      for (int64_t t = start; t < end; t++) {
        vf in = load(x + t % 8 * W);
        total += floor.backward ? floor_backward<NS>(in, in, rates, B, C, h, dA) : floor_forward<NS>(in, in, rates, B, C, h);
      }
      for (int j = 0; j < NS; j++) total += h[j] + dA[j];
    }
  }
  float lanes[W];
  store(lanes, total);
  floor.sink += lanes[0] > 0;  // the result is used, so nothing is optimised away
}

static void floor_thread(void *data) {
  Floor &floor = *(Floor *)data;
  if (floor.states == 1)
    floor_work<1>(floor);
  else
    floor_work<16>(floor);
}

extern "C" int64_t visionssm_scan_floor(int64_t tokens, int64_t channels, int64_t states, int64_t backward, int64_t threads,
                                        void *gomp_parallel) {
  Floor floor{tokens, channels, states, backward, {0}, {0}};
  on_threads(floor_thread, &floor, threads, gomp_parallel);
  return floor.sink;
}
