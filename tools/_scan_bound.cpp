// What the arithmetic of a scan takes at least: the same exponentials and multiply-adds on values in registers and the
// nearest cache, in as many independent chains as the registers allow, so that no latency is waited for. It reads no
// tensor and writes none; the scan kernel's source comes before it in the same file.

struct Bound {
  int64_t tokens, channels, states, backward;  // tokens: images x directions x steps
  std::atomic<int64_t> next;
  std::atomic<int64_t> sink;
};

template <int NS>
INLINE vf bound_forward(vf dt, vf u, const float *rates, const float *B, const float *C, vf *h) {
  const vf du = dt * u;
  vf y = u;
#pragma GCC unroll 16
  for (int j = 0; j < NS; j++) {
    h[j] = exp2v(dt * load(rates + j * W)) * h[j] + du * B[j];
    y += h[j] * C[j];
  }
  return y;
}

// recomputed exponentials, then per state: adjoint, dB, dC, the sums for u, delta and A
template <int NS>
INLINE vf bound_backward(vf dt, vf slope, vf u, const float *rates, const float *B, const float *C, vf *h, vf *dA) {
  const vf du = dt * u;
  vf weighted = u, ddt = u;
#pragma GCC unroll 16
  for (int j = 0; j < NS; j++) {
    const vf decay = exp2v(dt * load(rates + j * W)), state = decay * du + du * B[j];
    const vf adj = u * C[j] + h[j], da = adj * state * decay;
    const vf dC = u * state + adj, dB = adj * du + dC;
    weighted += adj * B[j];
    ddt += da * load(rates + j * W) + dB;
    dA[j] += da * dt;
    h[j] = decay * adj;
  }
  return weighted * dt + (ddt + weighted * u) * slope;
}

template <int NS, int NV>
static void bound_work(Bound &bound) {
  float rates[NS * W], B[NS], C[NS], x[8 * W];
  for (int i = 0; i < NS * W; i++) rates[i] = -0.5f - 0.01f * i;
  for (int i = 0; i < 8 * W; i++) x[i] = -3.0f + 0.01f * i;
  for (int i = 0; i < NS; i++) B[i] = 0.5f + 0.01f * i, C[i] = 0.7f - 0.01f * i;
  const int64_t block = 256, vectors = bound.channels / W;
  vf total = {};
  for (int64_t start; (start = bound.next.fetch_add(block)) < bound.tokens;) {
    const int64_t end = start + block < bound.tokens ? start + block : bound.tokens;
    for (int64_t v = 0; v < vectors; v += NV) {
      vf h[NV * NS] = {}, dA[NV * NS] = {}, sums[NV] = {};
      for (int64_t t = start; t < end; t += TILE) {
        float dts[TILE * NV * W], slopes[TILE * NV * W];
#pragma GCC unroll 4
        for (int i = 0; i < TILE * NV; i++) {  // long chains, side by side
          vf slope = {};
          store(dts + i * W, softplus(load(x + (t + i) % 8 * W), bound.backward ? &slope : nullptr));
          store(slopes + i * W, slope);
        }
        for (int i = 0; i < TILE; i++)
#pragma GCC unroll 8
          for (int j = 0; j < NV; j++) {
            const vf dt = load(dts + (i * NV + j) * W), u = load(x + i * W);
            sums[j] += bound.backward ? bound_backward<NS>(dt, load(slopes + (i * NV + j) * W), u, rates, B, C, h + j * NS, dA + j * NS)
                                      : bound_forward<NS>(dt, u, rates, B, C, h + j * NS);
          }
      }
      for (int j = 0; j < NV; j++) total += sums[j];
      for (int j = 0; j < NV * NS; j++) total += h[j] + dA[j];
    }
  }
  float lanes[W];
  store(lanes, total);
  bound.sink += lanes[0] > 0;  // the result is used, so nothing is optimised away
}

static void bound_thread(void *data) {
  Bound &bound = *(Bound *)data;
  if (bound.states == 1)
    bound_work<1, SOME>(bound);
  else
    bound_work<16, 1>(bound);
}

extern "C" int64_t visionssm_scan_bound(int64_t tokens, int64_t channels, int64_t states, int64_t backward, int64_t threads,
                                        void *gomp_parallel) {
  Bound bound{tokens, channels, states, backward, {0}, {0}};
  on_threads(bound_thread, &bound, threads, gomp_parallel);
  return bound.sink;
}
