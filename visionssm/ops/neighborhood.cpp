// Neighbourhood attention on 2-D maps; compiled after `selective_scan.cpp`, whose vectors and threads it uses.
//
// One work item is one head of one image, or a part of its rows or channels if there are fewer heads than threads.
// Positions are reordered by residue class modulo the dilation, so that the keys of a query are runs of neighbours in
// memory, whatever the dilation and the distance to a border. Arithmetic is fp32.

extern "C" struct Attention {  // every field is 8 bytes wide; `attention_cpu.py` holds the same list
  int64_t batch, heads, height, width, channels, window, dilation_y, dilation_x, dtype, threads;
  // (B, heads, H, W, C) or, weights, (B, heads, H, W, K * K); strides in elements, the last one is 1
  const void *first, *second;
  int64_t first_b, first_h, first_y, first_x, second_b, second_h, second_y, second_x;
  void *out;          // contiguous
  const float *bias;  // of na_qk: by key position minus query position, (heads, 2 K - 1, 2 K - 1), and logits become weights
  void *gomp_parallel;
};

// Along an axis: where the keys of every position begin, and where each position lies in the order by classes.
struct Axis {
  std::vector<int64_t> place, start;  // of a position; of its first key, in that order
  std::vector<int64_t> start_at;      // the latter by place, which only rises
  std::vector<int64_t> shift;         // of a position: of the bias of its first key

  Axis(int64_t length, int64_t window, int64_t dilation) : place(length), start(length), start_at(length), shift(length) {
    int64_t offset = 0;
    for (int64_t residue = 0; residue < dilation; residue++) {
      const int64_t members = (length - residue + dilation - 1) / dilation;
      for (int64_t p = 0; p < members; p++) {
        const int64_t first = std::min(std::max<int64_t>(p - window / 2, 0), members - window);
        place[residue + p * dilation] = offset + p;
        shift[residue + p * dilation] = first - p + window - 1;
        start[residue + p * dilation] = start_at[offset + p] = offset + first;
      }
      offset += members;
    }
  }
};

struct AttentionJob {
  const Attention *attention;
  const Axis *rows, *columns;
  void (*run)(const AttentionJob &, int64_t b, int64_t h, int64_t part, float *scratch);
  size_t scratch;  // floats
  int64_t parts;   // of a head
  std::atomic<int64_t> next{0};
  std::atomic<bool> failed{false};
};

// A row of n values in fp32; zeros up to `padded`.
INLINE void copy_row(float *to, const void *base, int64_t at, int64_t dtype, int64_t n, int64_t padded) {
  for (int64_t c = 0; c < n; c += W) {
    const int64_t lanes = std::min<int64_t>(W, n - c);
    store_part(to + c, load_any(base, at + c, dtype, lanes), lanes);
  }
  for (int64_t c = n; c < padded; c++) to[c] = 0.0f;
}

// The queries of a row of the map, in the order by classes: as many as fit `most` whose keys begin within `reach` places.
template <class F>
static void query_groups(const std::vector<int64_t> &start, int64_t most, int64_t reach, F f) {
  const int64_t width = start.size();
  for (int64_t x = 0; x < width;) {
    int64_t end = x + 1;
    while (end < width && end - x < most && start[end] - start[x] <= reach) end++;
    f(x, end - x);
    x = end;
  }
}

// Lanes n .. of x; what is in the others does not matter.
INLINE vf from_lane(vf x, int n) {
#if W == 16
  const __m512i lanes = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
  return _mm512_permutexvar_ps(_mm512_add_epi32(lanes, _mm512_set1_epi32(n)), x);
#elif defined(__AVX2__)
  const __m256i lanes = _mm256_set_epi32(7, 6, 5, 4, 3, 2, 1, 0);
  return _mm256_permutevar8x32_ps(x, _mm256_add_epi32(lanes, _mm256_set1_epi32(n)));
#else
  float wide[2 * W] = {};
  store(wide, x);
  return load(wide + n);
#endif
}

// Left alone, gcc reads a vector anew for every product that it is in.
INLINE void in_register(vf &x) {
#if W == 16
  asm("" : "+v"(x));
#elif W == 8
  asm("" : "+x"(x));
#else
  (void)x;
#endif
}

// Products of Q queries with runs of keys in R rows: lanes are keys, channels lie a stride apart.
template <int Q, int R>
INLINE void query_products(const float *queries, int64_t query_stride, const float *keys, int64_t row_stride, int64_t stride,
                           int64_t channels, vf *sums) {
  for (int i = 0; i < Q * R; i++) sums[i] = vf{};
  for (int64_t c = 0; c < channels; c++) {
#pragma GCC unroll 4
    for (int r = 0; r < R; r++) {
      vf key = load(keys + r * row_stride + c * stride);
      in_register(key);
#pragma GCC unroll 4
      for (int q = 0; q < Q; q++) sums[r * Q + q] += key * queries[c * query_stride + q];
    }
  }
}

// Logits (K, K) and their biases, rows of which are 2 K - 1 apart, to the softmax of their sum, in place.
INLINE void to_weights(float *logits, const float *bias, int64_t K) {
  for (int64_t row = 0; row < K; row++)
    for (int64_t i = 0; i < K; i += W) {
      const int64_t n = std::min<int64_t>(W, K - i);
      float *at = logits + row * K + i;
      store_part(at, load_part(at, n) + load_part(bias + row * (2 * K - 1) + i, n), n);
    }
  const int64_t count = K * K, whole = count / W * W;
  float most = -INFINITY, sum = 0.0f;
  vf mosts = splat(most), sums{};
  for (int64_t i = 0; i < whole; i += W) {
    const vf x = load(logits + i);
    mosts = x > mosts ? x : mosts;
  }
  for (int64_t i = whole; i < count; i++) most = std::max(most, logits[i]);
  for (int i = 0; i < W; i++) most = std::max(most, mosts[i]);
  for (int64_t i = 0; i < count; i += W) {
    const int64_t n = std::min<int64_t>(W, count - i);
    const vf e = exp2v((load_part(logits + i, n) - most) * LOG2E);
    store_part(logits + i, e, n);
    if (n == W)
      sums += e;
    else
      for (int64_t j = 0; j < n; j++) sum += e[j];
  }
  for (int i = 0; i < W; i++) sum += sums[i];
  for (int64_t i = 0; i < count; i += W) {
    const int64_t n = std::min<int64_t>(W, count - i);
    store_part(logits + i, load_part(logits + i, n) * (1.0f / sum), n);
  }
}

static size_t scratch_qk(const Attention &a) {
  return a.height * a.channels * (a.width + 2 * W) + a.width * (a.channels + a.window * a.window) + 64;
}

// first: queries, second: keys
static void attention_qk(const AttentionJob &job, int64_t b, int64_t h, int64_t part, float *scratch) {
  const Attention &a = *job.attention;
  const int64_t K = a.window, C = a.channels, stride = a.width + 2 * W;
  const Axis &rows = *job.rows, &columns = *job.columns;
  const std::vector<int64_t> &start = columns.start_at;
  float *keys = scratch, *queries = keys + a.height * C * stride, *logits = queries + a.width * C;
  // channels first, then positions by class
  auto transpose = [&](const void *base, int64_t at, float *to, int64_t step) {
    for (int64_t c = 0; c < C; c += W) {
      const int64_t n = std::min<int64_t>(W, C - c);
      const vf row = load_any(base, at + c, a.dtype, n);
      for (int64_t i = 0; i < n; i++) to[(c + i) * step] = row[i];
    }
  };
  for (int64_t y = 0; y < a.height; y++)
    for (int64_t x = 0; x < a.width; x++)
      transpose(a.second, b * a.second_b + h * a.second_h + y * a.second_y + x * a.second_x,
                keys + rows.place[y] * C * stride + columns.place[x], stride);
  for (int64_t i = 0; i < a.height * C; i++) memset(keys + i * stride + a.width, 0, sizeof(float) * 2 * W);
  for (int64_t y = a.height * part / job.parts; y < a.height * (part + 1) / job.parts; y++) {
    for (int64_t x = 0; x < a.width; x++)
      transpose(a.first, b * a.first_b + h * a.first_h + y * a.first_y + x * a.first_x, queries + columns.place[x], a.width);
    const float *top = keys + rows.start[y] * C * stride;
    auto products = [&](auto queries_at_once, auto rows_at_once, int64_t x, int64_t row, int64_t from) {
      constexpr int Q = queries_at_once.value, R = rows_at_once.value;
      vf sums[Q * R];
      query_products<Q, R>(queries + x, a.width, top + row * C * stride + start[x] + from, C * stride, stride, C, sums);
      for (int r = 0; r < R; r++)
        for (int q = 0; q < Q; q++)
          store_part(logits + ((x + q) * K + row + r) * K + from, from_lane(sums[r * Q + q], start[x + q] - start[x]),
                     std::min<int64_t>(W, K - from));
    };
    const std::integral_constant<int, 1> one;
    const std::integral_constant<int, 2> two;
    const std::integral_constant<int, 4> four;
    query_groups(start, K <= W ? 4 : 1, W - K, [&](int64_t x, int64_t count) {
      int64_t row = 0;
      if (count == 4) {
        for (; row + 2 <= K; row += 2) products(four, two, x, row, 0);
        for (; row < K; row++) products(four, one, x, row, 0);
        return;
      }
      for (int64_t q = x; q < x + count; q++)
        for (int64_t from = 0; from < K; from += W) {
          for (row = 0; row + 4 <= K; row += 4) products(one, four, q, row, from);
          for (; row < K; row++) products(one, one, q, row, from);
        }
    });
    for (int64_t x = 0; x < a.width; x++) {
      const int64_t at = (((b * a.heads + h) * a.height + y) * a.width + x) * K * K;
      float *from = logits + columns.place[x] * K * K;
      if (a.bias) to_weights(from, a.bias + (h * (2 * K - 1) + rows.shift[y]) * (2 * K - 1) + columns.shift[x], K);
      for (int64_t i = 0; i < K * K; i += W) {
        const int64_t n = std::min<int64_t>(W, K * K - i);
        store_any(a.out, at + i, load_part(from + i, n), a.dtype, n);
      }
    }
  }
}

static int64_t padded_channels(const Attention &a) { return (a.channels + W - 1) / W * W; }

static size_t scratch_av(const Attention &a) {
  return (a.height + 1) * a.width * padded_channels(a) + a.width * a.window * a.window + 64;
}

// The weights of a row of queries, in the order by classes.
INLINE void copy_weights(const AttentionJob &job, int64_t b, int64_t h, int64_t y, float *to) {
  const Attention &a = *job.attention;
  const int64_t K = a.window;
  for (int64_t x = 0; x < a.width; x++)
    copy_row(to + job.columns->place[x] * K * K, a.first, b * a.first_b + h * a.first_h + y * a.first_y + x * a.first_x,
             a.dtype, K * K, K * K);
}

// Rows of tokens by class, channels padded to whole vectors.
INLINE void put_token(const AttentionJob &job, int64_t b, int64_t h, int64_t y, int64_t x, const float *from, int64_t first,
                      int64_t end) {
  const Attention &a = *job.attention;
  const int64_t at = (((b * a.heads + h) * a.height + y) * a.width + x) * a.channels;
  for (int64_t c = first; c < std::min(end, a.channels); c += W) {
    const int64_t n = std::min<int64_t>(W, a.channels - c);
    store_any(a.out, at + c, load(from + c), a.dtype, n);
  }
}

// Q queries' sums over their windows of NV vectors of channels.
template <int Q, int NV>
INLINE void window_sums(const float *values, const float *weights, const int64_t *start, int64_t K, int64_t row_stride,
                        int64_t C, float *out) {
  vf sums[Q * NV];
  for (int i = 0; i < Q * NV; i++) sums[i] = vf{};
  for (int64_t row = 0; row < K; row++)
    for (int64_t i = 0; i < K; i++) {
#pragma GCC unroll 4
      for (int q = 0; q < Q; q++) {
        const float weight = weights[(q * K + row) * K + i], *value = values + row * row_stride + (start[q] + i) * C;
#pragma GCC unroll 4
        for (int v = 0; v < NV; v++) sums[q * NV + v] += load(value + v * W) * weight;
      }
    }
  for (int q = 0; q < Q; q++)
    for (int v = 0; v < NV; v++) store(out + q * C + v * W, sums[q * NV + v]);
}

// first: weights, second: values
static void attention_av(const AttentionJob &job, int64_t b, int64_t h, int64_t part, float *scratch) {
  const Attention &a = *job.attention;
  const int64_t K = a.window, C = padded_channels(a), row_stride = a.width * C;
  const Axis &rows = *job.rows, &columns = *job.columns;
  const std::vector<int64_t> &start = columns.start_at;
  float *values = scratch, *sums = values + a.height * row_stride, *weights = sums + row_stride;
  for (int64_t y = 0; y < a.height; y++)
    for (int64_t x = 0; x < a.width; x++)
      copy_row(values + rows.place[y] * row_stride + columns.place[x] * C, a.second,
               b * a.second_b + h * a.second_h + y * a.second_y + x * a.second_x, a.dtype, a.channels, C);
  for (int64_t y = a.height * part / job.parts; y < a.height * (part + 1) / job.parts; y++) {
    copy_weights(job, b, h, y, weights);
    const float *top = values + rows.start[y] * row_stride;
    auto queries = [&](auto count, int64_t x) {
      constexpr int Q = count.value;
      int64_t c = 0;
      for (; c + 2 * W <= C; c += 2 * W)
        window_sums<Q, 2>(top + c, weights + x * K * K, &start[x], K, row_stride, C, sums + x * C + c);
      if (c < C) window_sums<Q, 1>(top + c, weights + x * K * K, &start[x], K, row_stride, C, sums + x * C + c);
    };
    int64_t x = 0;
    for (; x + 4 <= a.width; x += 4) queries(std::integral_constant<int, 4>(), x);
    for (; x < a.width; x++) queries(std::integral_constant<int, 1>(), x);
    for (int64_t x = 0; x < a.width; x++) put_token(job, b, h, y, x, sums + columns.place[x] * C, 0, C);
  }
}

// first: weights, second: what every query adds to its window
static void attention_transposed(const AttentionJob &job, int64_t b, int64_t h, int64_t part, float *scratch) {
  const Attention &a = *job.attention;
  const int64_t K = a.window, C = padded_channels(a), row_stride = a.width * C;
  const Axis &rows = *job.rows, &columns = *job.columns;
  const std::vector<int64_t> &start = columns.start_at;
  float *sums = scratch, *tokens = sums + a.height * row_stride, *weights = tokens + row_stride;
  const int64_t vectors = C / W, first = vectors * part / job.parts * W, end = vectors * (part + 1) / job.parts * W;
  if (first == end) return;
  memset(sums, 0, sizeof(float) * a.height * row_stride);
  for (int64_t y = 0; y < a.height; y++) {
    copy_weights(job, b, h, y, weights);
    for (int64_t x = 0; x < a.width; x++)
      copy_row(tokens + columns.place[x] * C, a.second, b * a.second_b + h * a.second_h + y * a.second_y + x * a.second_x,
               a.dtype, a.channels, C);
    for (int64_t x = 0; x < a.width; x++)
      for (int64_t row = 0; row < K; row++) {
        float *run = sums + (rows.start[y] + row) * row_stride + start[x] * C;
        const float *weight = weights + (x * K + row) * K;
        for (int64_t i = 0; i < K; i++)
          for (int64_t c = first; c < end; c += W)
            store(run + i * C + c, load(run + i * C + c) + load(tokens + x * C + c) * weight[i]);
      }
  }
  for (int64_t y = 0; y < a.height; y++)
    for (int64_t x = 0; x < a.width; x++)
      put_token(job, b, h, y, x, sums + rows.place[y] * row_stride + columns.place[x] * C, first, end);
}

static void attention_thread(void *data) {
  AttentionJob &job = *(AttentionJob *)data;
  const Attention &a = *job.attention;
  Scratch scratch;
  if (!scratch.reserve(job.scratch)) {
    job.failed = true;
    return;
  }
  for (int64_t item; (item = job.next++) < a.batch * a.heads * job.parts;) {
    const int64_t head = item / job.parts;
    job.run(job, head / a.heads, head % a.heads, item % job.parts, scratch.base);
  }
}

static int run_attention(const Attention *attention, size_t scratch, int64_t last,
                         void (*run)(const AttentionJob &, int64_t, int64_t, int64_t, float *)) {
  const Attention &a = *attention;
  hint_large_pages(a.out, a.batch * a.heads * a.height * a.width * last * (a.dtype == FP32 ? 4 : 2));
  const Axis rows(a.height, a.window, a.dilation_y), columns(a.width, a.window, a.dilation_x);
  AttentionJob job;
  job.attention = attention, job.rows = &rows, job.columns = &columns, job.run = run, job.scratch = scratch;
  const int64_t heads = a.batch * a.heads;
  job.parts = heads && heads < a.threads ? (a.threads + heads - 1) / heads : 1;
  on_threads(attention_thread, &job, std::min(a.threads, heads * job.parts), a.gomp_parallel);
  return job.failed ? 1 : 0;
}

EXPORT int64_t visionssm_attention_size() { return sizeof(Attention); }
EXPORT int visionssm_na_qk(const Attention *a) {
  return run_attention(a, scratch_qk(*a), a->window * a->window, attention_qk);
}
EXPORT int visionssm_na_av(const Attention *a) { return run_attention(a, scratch_av(*a), a->channels, attention_av); }
EXPORT int visionssm_na_av_transposed(const Attention *a) {
  return run_attention(a, scratch_av(*a), a->channels, attention_transposed);
}
