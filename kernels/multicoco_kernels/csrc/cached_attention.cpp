// Attention of a short segment over a static key/value cache, forward and backward, on the CPU.
//
//   s = scale * q K^T + bias;  lse = log sum exp s;  out = exp(s - lse) V
//   ds = exp(s - lse) * (dout V^T - sum(dout * out));  dq = scale ds K;  dK += scale ds^T q;  dV += exp(s - lse)^T dout
//
// A latent pass has one column: each key and value is read once for a few multiply-adds, so memory is the bound. The
// work is split over (batch row, key/value head, SPLIT keys), as in flash-decoding; the query heads of a group share
// what is read. Every split owns its rows of dK and dV, and partial results are added in a fixed order: the same
// inputs give the same bits whatever the number of threads.

// torch/extension.h has all of these, and takes most of the time of compiling
#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/csrc/utils/pybind.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

namespace {

constexpr int64_t SPLIT = 128;  // keys per task: 32 KiB of fp32 keys at head size 64, which stay in the L1/L2 cache

template <typename T>
using Accumulate = std::conditional_t<std::is_same_v<T, double>, double, float>;

struct Shape {
  int64_t batch, kv_heads, group, length, end, start, capacity, head_dim, splits;
  Shape(const at::Tensor& q, const at::Tensor& keys, int64_t start)
      : batch(q.size(0)), kv_heads(keys.size(1)), group(q.size(1) / keys.size(1)), length(q.size(2)),
        end(start + q.size(2)), start(start), capacity(keys.size(2)), head_dim(q.size(3)),
        splits((end + SPLIT - 1) / SPLIT) {}
  int64_t rows() const { return group * length; }  // query rows that share a key/value head: [group, length]
  int64_t tasks() const { return batch * kv_heads * splits; }
};

// The row as accumulation type: in place where it is one already, else converted into `buffer`.
template <typename T, typename A>
inline const A* row(const T* source, A* buffer, int64_t n) {
  if constexpr (std::is_same_v<T, A>) {
    return source;
  } else {
    for (int64_t i = 0; i < n; ++i) buffer[i] = static_cast<A>(source[i]);
    return buffer;
  }
}

template <typename A>
inline A dot(const A* __restrict x, const A* __restrict y, int64_t n) {
  A sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < n; ++i) sum += x[i] * y[i];
  return sum;
}

template <typename A>
inline void add_scaled(A* __restrict to, A factor, const A* __restrict x, int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) to[i] += factor * x[i];
}

template <typename A>
std::vector<A> converted(const at::Tensor& x) {  // small: a segment's queries or gradients
  at::Tensor y = x.to(c10::CppTypeToScalarType<A>::value).contiguous();
  return std::vector<A>(y.data_ptr<A>(), y.data_ptr<A>() + y.numel());
}

template <typename T>
std::tuple<at::Tensor, at::Tensor> forward_typed(
    const at::Tensor& q, const at::Tensor& keys, const at::Tensor& values, const at::Tensor& bias, const Shape& n,
    double scale) {
  using A = Accumulate<T>;
  const at::ScalarType dtype = c10::CppTypeToScalarType<A>::value;
  const int64_t rows = n.rows(), d = n.head_dim;
  const auto queries = converted<A>(q);
  at::Tensor partial = at::empty({n.tasks(), rows, d}, q.options().dtype(dtype));
  at::Tensor maxima = at::empty({n.tasks(), rows}, partial.options());
  at::Tensor sums = at::empty({n.tasks(), rows}, partial.options());
  const T *k0 = keys.data_ptr<T>(), *v0 = values.data_ptr<T>();
  const A* bias0 = bias.data_ptr<A>();
  A *partial0 = partial.data_ptr<A>(), *maxima0 = maxima.data_ptr<A>(), *sums0 = sums.data_ptr<A>();
  const A lowest = -std::numeric_limits<A>::infinity();

  at::parallel_for(0, n.tasks(), 1, [&](int64_t from, int64_t to) {
    std::vector<A> scores(rows * SPLIT), buffer(d);
    for (int64_t task = from; task < to; ++task) {
      const int64_t head = task / n.splits, first = task % n.splits * SPLIT;  // head: of batch * kv_heads
      const int64_t last = std::min(first + SPLIT, n.end);
      const A* mask = bias0 + head / n.kv_heads * n.capacity;
      const A* query = queries.data() + head * rows * d;
      A *out = partial0 + task * rows * d, *maximum = maxima0 + task * rows, *sum = sums0 + task * rows;
      std::fill(out, out + rows * d, A(0));
      std::fill(maximum, maximum + rows, lowest);
      std::fill(sum, sum + rows, A(0));
      for (int64_t j = first; j < last; ++j) {
        const A* key = row(k0 + (head * n.capacity + j) * d, buffer.data(), d);
        for (int64_t r = 0; r < rows; ++r) {
          const bool past = j <= n.start + r % n.length;
          const A score = past ? static_cast<A>(scale) * dot(query + r * d, key, d) + mask[j] : lowest;
          scores[r * SPLIT + j - first] = score;
          maximum[r] = std::max(maximum[r], score);
        }
      }
      for (int64_t r = 0; r < rows; ++r) {
        A* score = scores.data() + r * SPLIT;
        for (int64_t j = 0; j < last - first; ++j) {
          score[j] = maximum[r] == lowest ? A(0) : std::exp(score[j] - maximum[r]);
          sum[r] += score[j];
        }
      }
      for (int64_t j = first; j < last; ++j) {
        const A* value = row(v0 + (head * n.capacity + j) * d, buffer.data(), d);
        for (int64_t r = 0; r < rows; ++r) add_scaled(out + r * d, scores[r * SPLIT + j - first], value, d);
      }
    }
  });

  at::Tensor out = at::empty(q.sizes(), q.options());
  at::Tensor lse = at::empty({q.size(0), q.size(1), q.size(2)}, partial.options());
  T* out0 = out.data_ptr<T>();
  A* lse0 = lse.data_ptr<A>();
  std::vector<A> total(d);
  for (int64_t i = 0; i < n.batch * n.kv_heads * rows; ++i) {  // [batch, kv_heads, rows] is [batch, heads, length]
    const int64_t head = i / rows, r = i % rows;
    A maximum = lowest, sum = 0;
    for (int64_t s = 0; s < n.splits; ++s)
      maximum = std::max(maximum, maxima0[(head * n.splits + s) * rows + r]);
    std::fill(total.begin(), total.end(), A(0));
    for (int64_t s = 0; s < n.splits; ++s) {
      const int64_t at = (head * n.splits + s) * rows + r;
      if (maxima0[at] == lowest) continue;
      const A weight = std::exp(maxima0[at] - maximum);
      sum += weight * sums0[at];
      add_scaled(total.data(), weight, partial0 + at * d, d);
    }
    // a query that sees no key: output 0, and a log-sum-exp at which every probability is 0 in backward
    lse0[i] = sum > 0 ? maximum + std::log(sum) : std::numeric_limits<A>::infinity();
    for (int64_t c = 0; c < d; ++c) out0[i * d + c] = static_cast<T>(sum > 0 ? total[c] / sum : A(0));
  }
  return {out, lse};
}

template <typename T>
at::Tensor backward_typed(
    const at::Tensor& grad_out, const at::Tensor& q, const at::Tensor& out, const at::Tensor& lse,
    const at::Tensor& keys, const at::Tensor& values, const at::Tensor& bias, const Shape& n, double scale,
    at::Tensor& grad_keys, at::Tensor& grad_values, bool fresh) {
  using A = Accumulate<T>;
  const int64_t rows = n.rows(), d = n.head_dim;
  const auto queries = converted<A>(q), grads = converted<A>(grad_out), outs = converted<A>(out);
  const auto lses = converted<A>(lse);
  std::vector<A> deltas(lses.size());
  for (size_t i = 0; i < deltas.size(); ++i) deltas[i] = dot(grads.data() + i * d, outs.data() + i * d, d);
  at::Tensor partial = at::empty({n.tasks(), rows, d}, lse.options());
  const T *k0 = keys.data_ptr<T>(), *v0 = values.data_ptr<T>();
  const A* bias0 = bias.data_ptr<A>();
  A *partial0 = partial.data_ptr<A>(), *gk0 = grad_keys.data_ptr<A>(), *gv0 = grad_values.data_ptr<A>();

  at::parallel_for(0, n.tasks(), 1, [&](int64_t from, int64_t to) {
    std::vector<A> key_buffer(d), value_buffer(d);
    for (int64_t task = from; task < to; ++task) {
      const int64_t head = task / n.splits, first = task % n.splits * SPLIT;
      const int64_t last = std::min(first + SPLIT, n.end);
      const A* mask = bias0 + head / n.kv_heads * n.capacity;
      A* grad_query = partial0 + task * rows * d;
      std::fill(grad_query, grad_query + rows * d, A(0));
      for (int64_t j = first; j < last; ++j) {
        const int64_t at = (head * n.capacity + j) * d;
        const A* key = row(k0 + at, key_buffer.data(), d);
        const A* value = row(v0 + at, value_buffer.data(), d);
        A *grad_key = gk0 + at, *grad_value = gv0 + at;
        if (fresh) {
          std::fill(grad_key, grad_key + d, A(0));
          std::fill(grad_value, grad_value + d, A(0));
        }
        if (mask[j] != 0) continue;  // a padded key
        for (int64_t r = 0; r < rows; ++r) {
          if (j > n.start + r % n.length) continue;
          const int64_t i = head * rows + r;
          const A *query = queries.data() + i * d, *grad = grads.data() + i * d;
          const A prob = std::exp(static_cast<A>(scale) * dot(query, key, d) - lses[i]);
          const A grad_score = prob * (dot(grad, value, d) - deltas[i]) * static_cast<A>(scale);
          add_scaled(grad_query + r * d, grad_score, key, d);
          add_scaled(grad_key, grad_score, query, d);
          add_scaled(grad_value, prob, grad, d);
        }
      }
    }
  });
  return partial.view({n.batch * n.kv_heads, n.splits, rows, d}).sum(1).to(q.scalar_type()).view(q.sizes());
}

std::tuple<at::Tensor, at::Tensor> forward(
    const at::Tensor& q, const at::Tensor& keys, const at::Tensor& values, const at::Tensor& bias, int64_t start,
    double scale) {
  const Shape n(q, keys, start);
  std::tuple<at::Tensor, at::Tensor> result;
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, q.scalar_type(), "cached_attention", [&] {
    result = forward_typed<scalar_t>(q, keys, values, bias, n, scale);
  });
  return result;
}

at::Tensor backward(
    const at::Tensor& grad_out, const at::Tensor& q, const at::Tensor& out, const at::Tensor& lse,
    const at::Tensor& keys, const at::Tensor& values, const at::Tensor& bias, int64_t start, double scale,
    at::Tensor grad_keys, at::Tensor grad_values, bool fresh) {
  const Shape n(q, keys, start);
  at::Tensor result;
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, q.scalar_type(), "cached_attention_backward", [&] {
    result = backward_typed<scalar_t>(
        grad_out, q, out, lse, keys, values, bias, n, scale, grad_keys, grad_values, fresh);
  });
  return result;
}

}  // namespace

PYBIND11_MODULE(TORCH_EXTENSION_NAME, module) {
  // the caller checks shapes, dtypes and devices; bias (B, L) and the gradient buffers are of the accumulation type
  module.def("forward", &forward, py::call_guard<py::gil_scoped_release>());
  module.def("backward", &backward, py::call_guard<py::gil_scoped_release>());
}
