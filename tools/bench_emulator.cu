// What tools/bench_emulator.py measures: kernels such as the lessons have, one instruction mix each, and each text whole.
#include <cuda_fp16.h>

// One block a plane, three passes over it, float4.
extern "C" __global__ void instance_norm(const float* __restrict__ x, float* __restrict__ y, int n, float eps) {
  const float4* source = (const float4*)(x + (size_t)blockIdx.x * n);
  float4* target = (float4*)(y + (size_t)blockIdx.x * n);
  __shared__ float part[32];
  __shared__ float mean_, scale_;
  int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, warps = blockDim.x >> 5;
  float s = 0;
  for (int i = threadIdx.x; i < n / 4; i += blockDim.x) { float4 v = source[i]; s += v.x + v.y + v.z + v.w; }
  for (int o = 16; o; o >>= 1) s += __shfl_down_sync(~0u, s, o);
  if (lane == 0) part[warp] = s;
  __syncthreads();
  if (warp == 0) {
    s = lane < warps ? part[lane] : 0;
    for (int o = 16; o; o >>= 1) s += __shfl_down_sync(~0u, s, o);
    if (lane == 0) mean_ = s / n;
  }
  __syncthreads();
  float mean = mean_; s = 0;
  for (int i = threadIdx.x; i < n / 4; i += blockDim.x) {
    float4 v = source[i]; float a = v.x - mean, b = v.y - mean, c = v.z - mean, d = v.w - mean;
    s += a * a + b * b + c * c + d * d;
  }
  for (int o = 16; o; o >>= 1) s += __shfl_down_sync(~0u, s, o);
  if (lane == 0) part[warp] = s;
  __syncthreads();
  if (warp == 0) {
    s = lane < warps ? part[lane] : 0;
    for (int o = 16; o; o >>= 1) s += __shfl_down_sync(~0u, s, o);
    if (lane == 0) scale_ = rsqrtf(s / n + eps);
  }
  __syncthreads();
  float scale = scale_;
  for (int i = threadIdx.x; i < n / 4; i += blockDim.x) {
    float4 v = source[i];
    target[i] = make_float4((v.x - mean) * scale, (v.y - mean) * scale, (v.z - mean) * scale, (v.w - mean) * scale);
  }
}

// 3x3 with a reflected border; a block makes 16 x 16 pixels of 8 outputs, one pixel a thread.
constexpr int TILE = 16, OUT = 8;
extern "C" __global__ void conv3x3(const float* __restrict__ x, const float* __restrict__ w, float* __restrict__ y,
                                   int channels, int height, int width) {
  __shared__ float tile[TILE + 2][TILE + 2];
  __shared__ float weight[OUT][9];
  int tx = threadIdx.x, ty = threadIdx.y, id = ty * TILE + tx, first = blockIdx.z * OUT;
  float sum[OUT] = {};
  for (int c = 0; c < channels; c++) {
    for (int i = id; i < (TILE + 2) * (TILE + 2); i += TILE * TILE) {
      int r = i / (TILE + 2), q = i % (TILE + 2), v = blockIdx.y * TILE + r - 1, u = blockIdx.x * TILE + q - 1;
      v = v < 0 ? -v : v >= height ? 2 * height - 2 - v : v;
      u = u < 0 ? -u : u >= width ? 2 * width - 2 - u : u;
      tile[r][q] = x[(c * height + v) * width + u];
    }
    if (id < OUT * 9) weight[id / 9][id % 9] = w[((first + id / 9) * channels + c) * 9 + id % 9];
    __syncthreads();
    #pragma unroll
    for (int k = 0; k < 9; k++) {
      float v = tile[ty + k / 3][tx + k % 3];
      #pragma unroll
      for (int o = 0; o < OUT; o++) sum[o] += v * weight[o][k];
    }
    __syncthreads();
  }
  for (int o = 0; o < OUT; o++)
    y[((first + o) * height + blockIdx.y * TILE + ty) * width + blockIdx.x * TILE + tx] = sum[o];
}

// 3x3, 64 -> 64 channels, reflected border, float16 channels last: an implicit matrix product on the tensor cores.
// A block makes 16 x 8 pixels of all outputs, a warp 32 pixels of 32. w: [tap][output][input].
__device__ __forceinline__ unsigned in_shared(const void* p) { return (unsigned)__cvta_generic_to_shared(p); }

__device__ __forceinline__ void load_matrices(unsigned (&r)[4], unsigned address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(address) : "memory");
}

__device__ __forceinline__ void multiply(float (&d)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%0,%1,%2,%3};"
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

extern "C" __global__ void __launch_bounds__(256)
conv3x3_mma(const uint4* __restrict__ x, const uint4* __restrict__ w, __half2* __restrict__ y, int height, int width) {
  __shared__ __align__(128) uint4 halo[180][8];       // 18 x 10 pixels of 8 chunks, chunk c of pixel p at c ^ (p % 8)
  __shared__ __align__(128) uint4 weight[2][64][8];   // one tap, and the next on its way
  int id = threadIdx.x, warp = id / 32, lane = id % 32, part = lane / 8, i = lane % 8, wm = warp / 2, wn = warp % 2;
  int top = blockIdx.y * 16, left = blockIdx.x * 8;
  auto fetch = [&](int tap) {
    if (tap < 9)
      for (int j = 0; j < 2; j++) {
        int c = id + j * 256, o = c / 8;
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16;"
                     :: "r"(in_shared(&weight[tap % 2][o][(c ^ o) % 8])), "l"(w + tap * 512 + c) : "memory");
      }
    asm volatile("cp.async.commit_group;" ::: "memory");
  };
  fetch(0);
  for (int c = id; c < 180 * 8; c += 256) {
    int p = c / 8, v = top + p / 10 - 1, u = left + p % 10 - 1;
    v = v < 0 ? -v : v >= height ? 2 * height - 2 - v : v;
    u = u < 0 ? -u : u >= width ? 2 * width - 2 - u : u;
    halo[p][(c ^ p) % 8] = x[(v * width + u) * 8 + c % 8];
  }
  float d[2][4][4] = {};
  #pragma unroll 1
  for (int tap = 0; tap < 9; tap++) {
    fetch(tap + 1);
    asm volatile("cp.async.wait_group 1;" ::: "memory");
    __syncthreads();
    #pragma unroll
    for (int k = 0; k < 4; k++) {
      unsigned a[2][4], b[2][4];
      for (int m = 0; m < 2; m++) {
        int p = (wm * 4 + m * 2 + part % 2 + tap / 3) * 10 + i + tap % 3;
        load_matrices(a[m], in_shared(&halo[p][(k * 2 + part / 2) ^ (p % 8)]));
      }
      for (int n = 0; n < 2; n++)
        load_matrices(b[n], in_shared(&weight[tap % 2][wn * 32 + n * 16 + part / 2 * 8 + i][(k * 2 + part % 2) ^ i]));
      for (int m = 0; m < 2; m++)
        for (int n = 0; n < 4; n++) multiply(d[m][n], a[m], b[n / 2][n % 2 * 2], b[n / 2][n % 2 * 2 + 1]);
    }
    __syncthreads();
  }
  for (int m = 0; m < 2; m++)
    for (int n = 0; n < 4; n++)
      for (int half = 0; half < 2; half++) {
        int row = top + wm * 4 + m * 2 + half, column = left + lane / 4;
        y[(row * width + column) * 32 + wn * 16 + n * 4 + lane % 4] =
            __floats2half2_rn(d[m][n][half * 2], d[m][n][half * 2 + 1]);
      }
}

// softmax(q k^T / sqrt(32)) v with 32 channels a head: one query a thread, the softmax in one pass.
extern "C" __global__ void attention(const float* __restrict__ q, const float* __restrict__ k,
                                     const float* __restrict__ v, float* __restrict__ y, int length) {
  __shared__ float keys[32][32], values[32][32];
  int row = blockIdx.x * blockDim.x + threadIdx.x;
  size_t head = (size_t)blockIdx.y * length * 32;
  float mine[32], sum[32] = {}, top = -1e30f, total = 0;
  for (int c = 0; c < 32; c++) mine[c] = row < length ? q[head + row * 32 + c] * 0.17677669f : 0;
  for (int first = 0; first < length; first += 32) {
    int count = min(32, length - first);
    __syncthreads();
    for (int j = threadIdx.x; j < count * 32; j += blockDim.x) {
      keys[j / 32][j % 32] = k[head + first * 32 + j];
      values[j / 32][j % 32] = v[head + first * 32 + j];
    }
    __syncthreads();
    for (int j = 0; j < count; j++) {
      float score = 0;
      #pragma unroll
      for (int c = 0; c < 32; c++) score += mine[c] * keys[j][c];
      float higher = fmaxf(top, score), keep = __expf(top - higher), weight = __expf(score - higher);
      total = total * keep + weight;
      top = higher;
      #pragma unroll
      for (int c = 0; c < 32; c++) sum[c] = sum[c] * keep + weight * values[j][c];
    }
  }
  if (row < length)
    for (int c = 0; c < 32; c++) y[head + row * 32 + c] = sum[c] / total;
}

// The same, but 32 keys at a time: one new maximum for all of them, and the sums are scaled once.
extern "C" __global__ void attention_by_tiles(const float* __restrict__ q, const float* __restrict__ k,
                                              const float* __restrict__ v, float* __restrict__ y, int length) {
  __shared__ float keys[32][32], values[32][32];
  int row = blockIdx.x * blockDim.x + threadIdx.x;
  size_t head = (size_t)blockIdx.y * length * 32;
  float mine[32], sum[32] = {}, top = -1e30f, total = 0;
  for (int c = 0; c < 32; c++) mine[c] = row < length ? q[head + row * 32 + c] * 0.17677669f : 0;
  for (int first = 0; first < length; first += 32) {
    int count = min(32, length - first);
    __syncthreads();
    for (int j = threadIdx.x; j < 32 * 32; j += blockDim.x) {
      keys[j / 32][j % 32] = j < count * 32 ? k[head + first * 32 + j] : 0;
      values[j / 32][j % 32] = j < count * 32 ? v[head + first * 32 + j] : 0;
    }
    __syncthreads();
    float score[32], higher = top;
    #pragma unroll
    for (int j = 0; j < 32; j++) {
      score[j] = 0;
      #pragma unroll
      for (int c = 0; c < 32; c++) score[j] += mine[c] * keys[j][c];
    }
    #pragma unroll
    for (int j = 0; j < 32; j++) {
      if (j >= count) score[j] = -1e30f;
      higher = fmaxf(higher, score[j]);
    }
    float keep = __expf(top - higher);
    total *= keep, top = higher;
    #pragma unroll
    for (int j = 0; j < 32; j++) total += score[j] = __expf(score[j] - higher);
    #pragma unroll
    for (int c = 0; c < 32; c++) {
      sum[c] *= keep;
      #pragma unroll
      for (int j = 0; j < 32; j++) sum[c] += score[j] * values[j][c];
    }
  }
  if (row < length)
    for (int c = 0; c < 32; c++) y[head + row * 32 + c] = sum[c] / total;
}

// gelu(x w), two columns a thread, in float16 pairs.
extern "C" __global__ void ffn(const __half* __restrict__ x, const __half2* __restrict__ w, __half2* __restrict__ y,
                               int depth, int pairs) {
  int column = blockIdx.x * blockDim.x + threadIdx.x, row = blockIdx.y;
  __half2 sum = __float2half2_rn(0);
  for (int k = 0; k < depth; k++) sum = __hfma2(__half2half2(x[row * depth + k]), w[k * pairs + column], sum);
  __half2 inner = __hmul2(__hfma2(__hmul2(sum, sum), __hmul2(sum, __float2half2_rn(0.035677f)),
                                  __hmul2(sum, __float2half2_rn(0.797885f))), __float2half2_rn(-2));
  y[row * pairs + column] = __h2div(sum, __hadd2(h2exp(inner), __float2half2_rn(1)));
}

// C = A B in tiles of 16 x 16.
extern "C" __global__ void matmul(const float* a, const float* b, float* c, int n) {
  __shared__ float s[16][16], t[16][17];
  int x = threadIdx.x, y = threadIdx.y; float sum = 0;
  for (int k = 0; k < n; k += 16) {
    s[y][x] = a[(blockIdx.y * 16 + y) * n + k + x]; t[y][x] = b[(k + y) * n + blockIdx.x * 16 + x];
    __syncthreads();
    for (int j = 0; j < 16; j++) sum += s[y][j] * t[j][x];
    __syncthreads();
  }
  c[(blockIdx.y * 16 + y) * n + blockIdx.x * 16 + x] = sum;
}

extern "C" __global__ void saxpy(const float* x, float* y, float a, int n) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) y[i] = a * x[i] + y[i];
}
