// The attention gate's middle on the GPU: total = A + B + C, product = A * B * C, A = relu(a) and
// so on. Maps of one dense layout, read as flat memory: one launch each way, 3R 2W and 5R 3W, the
// floor.
#include "common.cuh"

namespace medseg::cuda {
namespace {

constexpr int kThreads = 256;

// A thread owns as many elements as 16 bytes hold, 8 threads a row of them.
template <class T>
struct Share {
  static constexpr int kRow = kLanes * kVector<T>;
  int64_t start;  // of the row
  int lane, limit;
  __device__ __forceinline__ explicit Share(int64_t count) {
    const int64_t thread = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
    start = thread / kLanes * kRow;
    lane = static_cast<int>(thread % kLanes);
    const int64_t left = count - start;
    limit = left < 0 ? 0 : left < kRow ? static_cast<int>(left) : kRow;
  }
  template <bool ALIGNED>
  __device__ __forceinline__ Pack load(const void* map) const {
    return load_columns<T, ALIGNED>(static_cast<const T*>(map) + start, lane, limit);
  }
  template <bool ALIGNED>
  __device__ __forceinline__ void store(void* map, const float (&f)[kVector<T>]) const {
    store_columns<T, ALIGNED>(static_cast<T*>(map) + start, lane, limit, f);
  }
};

__device__ __forceinline__ float relu(float x) { return x <= 0.0f ? 0.0f : x; }  // NaN stays

template <class T, bool ALIGNED>
__global__ void __launch_bounds__(kThreads) join(const GateForward g) {
  constexpr int V = kVector<T>;
  const Share<T> own(g.count);
  const Pack pa = own.template load<ALIGNED>(g.a), pb = own.template load<ALIGNED>(g.b),
             pc = own.template load<ALIGNED>(g.c);
  float a[V], b[V], c[V], total[V], product[V];
  unpack<T>(pa, a), unpack<T>(pb, b), unpack<T>(pc, c);
#pragma unroll
  for (int v = 0; v < V; ++v) {
    total[v] = relu(a[v]) + relu(b[v]) + relu(c[v]);
    product[v] = relu(a[v]) * relu(b[v]) * relu(c[v]);
  }
  own.template store<ALIGNED>(g.total, total);
  own.template store<ALIGNED>(g.product, product);
}

// grad_a = grad_total + grad_product * B * C where a > 0, and so on in turn. An absent product is
// left out, not multiplied by 0: that would be NaN beside infinity.
template <class T, bool ALIGNED>
__global__ void __launch_bounds__(kThreads) spread(const GateBackward g) {
  constexpr int V = kVector<T>;
  const Share<T> own(g.count);
  Pack sum{}, grad{};
  if (g.grad_total) sum = own.template load<ALIGNED>(g.grad_total);
  if (g.grad_product) grad = own.template load<ALIGNED>(g.grad_product);
  const Pack pa = own.template load<ALIGNED>(g.a), pb = own.template load<ALIGNED>(g.b),
             pc = own.template load<ALIGNED>(g.c);
  float a[V], b[V], c[V], total[V], product[V];
  unpack<T>(pa, a), unpack<T>(pb, b), unpack<T>(pc, c);
  unpack<T>(sum, total), unpack<T>(grad, product);
#pragma unroll
  for (int v = 0; v < V; ++v) {
    float da = total[v], db = total[v], dc = total[v];
    if (g.grad_product) {
      const float x = relu(a[v]), y = relu(b[v]), by_c = product[v] * relu(c[v]);
      da += by_c * y, db += by_c * x, dc += product[v] * (x * y);
    }
    a[v] = a[v] <= 0.0f ? 0.0f : da;
    b[v] = b[v] <= 0.0f ? 0.0f : db;
    c[v] = c[v] <= 0.0f ? 0.0f : dc;
  }
  own.template store<ALIGNED>(g.grad_a, a);
  own.template store<ALIGNED>(g.grad_b, b);
  own.template store<ALIGNED>(g.grad_c, c);
}

template <class... P>
bool all_aligned(const P*... maps) {
  return (aligned16(maps) && ...);
}

template <class T, class Args>
cudaError_t launch_flat(void (*kernel)(Args), const Args& g, cudaStream_t stream) {
  const int64_t blocks = ceil_div(ceil_div(g.count, kVector<T>), kThreads);
  return launch(kernel, dim3(static_cast<unsigned>(blocks)), kThreads, 0, stream, g);
}

}  // namespace

cudaError_t gate_forward(int dtype, const GateForward& g, cudaStream_t stream) {
  if (g.count == 0) return cudaSuccess;
  return with_dtype(dtype, [&](auto element) {
    using T = decltype(element);
    const bool packs = g.count % kVector<T> == 0 && all_aligned(g.a, g.b, g.c, g.total, g.product);
    return launch_flat<T>(packs ? join<T, true> : join<T, false>, g, stream);
  });
}

cudaError_t gate_backward(int dtype, const GateBackward& g, cudaStream_t stream) {
  if (g.count == 0) return cudaSuccess;
  return with_dtype(dtype, [&](auto element) {
    using T = decltype(element);
    const bool packs =
        g.count % kVector<T> == 0 &&
        all_aligned(g.grad_total, g.grad_product, g.a, g.b, g.c, g.grad_a, g.grad_b, g.grad_c);
    return launch_flat<T>(packs ? spread<T, true> : spread<T, false>, g, stream);
  });
}

}  // namespace medseg::cuda
