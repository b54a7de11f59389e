// Instance norm of many NCHW planes on Hopper, one after the other: cuda/instance_norm.cu says what is computed.
//
// Contents (T is float32, float16 or bfloat16; every statistic is float32)
//   Stream                      the block's pieces of all its planes, on their way through shared memory
//   measure                     the moments of a piece
//   plane_moments               what the blocks of the cluster found, merged
//   write                       the end of each number
//   instance_norm_stream_hopper_T      the kernel: plane by plane
//
// A kernel that holds all of x on chip reads first and writes then: half of the time one of the two directions of the
// memory is idle. Here a cluster of CLUSTER blocks has several planes, a piece of each in every block. The copy engine
// brings the pieces in the order of the planes, as many chunks ahead as shared memory holds, so that while one plane is
// measured, agreed upon and written, the next ones are on their way. Each number is read once.
//
// x, out, residual, weight, bias, saved, relu      as in cuda/instance_norm.cu, the first three at multiples of 16 bytes
// size, length   numbers of a plane, and of a piece, of which a plane has CLUSTER: both are multiples of 16 bytes. A
//            piece has at most SLOTS chunks, and none is empty.
// compiled   for THREADS, CHUNK, SLOTS, CLUSTER: styleforge_lib/ops/instance_norm_stream_hopper.py has them.
// launch     any multiple of CLUSTER blocks of THREADS, SHARED_BYTES: cluster c has the planes c, c + clusters, ...
// moves      2s. s: see cuda/instance_norm.cu.
// numbers    as there. Each piece's distances are measured from a number near its first ones or, where that was far off,
//            again from its mean. No atomics: same launch, same bits, and the same for any number of blocks.
#include <cooperative_groups.h>

#include "common/hopper.cuh"
#include "common/normalize.cuh"

#ifndef THREADS
#define THREADS 512
#define CHUNK 16384
#define SLOTS 13  // all the shared memory of a multiprocessor
#define CLUSTER 4
#endif
constexpr int WARPS = THREADS / 32;
constexpr int VECTORS = CHUNK / 16, TURNS = VECTORS / THREADS;
constexpr int SHARED_BYTES = SLOTS * CHUNK + SLOTS * 8;
static_assert(SHARED_BYTES <= 226 << 10 && VECTORS % THREADS == 0 && WARPS <= 32 && CLUSTER <= 8);

// Chunk c of the block, counted through all its pieces, comes into slot c % SLOTS, once its slot has been read last.
struct Stream {
    const uint4* x;       // the block's piece of its first plane
    long long stride;     // vectors from there to that of the next plane
    int vectors, chunks;  // of a piece
    int all;              // chunks of all pieces
    unsigned memory, full;  // addresses of SLOTS * CHUNK bytes, and of SLOTS barriers: a chunk has arrived

    __device__ void begin() const {
        if (threadIdx.x == 0) {
            for (int slot = 0; slot < SLOTS; slot++) barrier_init(full + 8 * slot, 1);
            barrier_init_done();
            for (int chunk = 0; chunk < min(SLOTS, all); chunk++) fetch(chunk);
        }
        __syncthreads();
    }

    __device__ void fetch(int chunk) const {  // one thread
        const int begin = chunk % chunks * VECTORS;
        const unsigned barrier = full + 8 * (chunk % SLOTS), bytes = 16 * min(VECTORS, vectors - begin);
        barrier_expect(barrier, bytes);
        bulk_copy(memory + chunk % SLOTS * CHUNK, x + chunk / chunks * stride + begin, bytes, barrier);
    }

    __device__ void wait(int chunk) const { barrier_wait(full + 8 * (chunk % SLOTS), chunk / SLOTS % 2); }

    // use(vector, v) for each vector of chunk `chunk` that is this thread's, v of its piece.
    template <class Use>
    __device__ void visit(int chunk, const Use& use) const {
        const unsigned slot = memory + chunk % SLOTS * CHUNK;
        const int begin = chunk % chunks * VECTORS + threadIdx.x;
#pragma unroll
        for (int turn = 0; turn < TURNS; turn++)
            if (begin + turn * THREADS < vectors)
                use(load_shared(slot + (threadIdx.x + turn * THREADS) * 16), begin + turn * THREADS);
    }

    __device__ void refill(int chunk) const {  // once all have read what lies in its slot
        __syncthreads();
        if (threadIdx.x == 0) fetch(chunk);
    }
};

// The moments of the piece that begins with chunk `first`, for all threads. shared: two floats for each warp.
template <typename T>
__device__ Moments measure(const Stream& stream, int first, float2* shared) {
    const int lane = threadIdx.x % 32, n = stream.vectors * LANES<T>;
    float center[1];
    stream.wait(first);
    near_first(static_cast<const T*>(__cvta_shared_to_generic(stream.memory + first % SLOTS * CHUNK)),
               min(n, VECTORS * LANES<T>), 1, center);
#pragma unroll 1
    for (bool again = false;; again = true) {
        float2 sum = {};
#pragma unroll 1
        for (int chunk = first; chunk < first + stream.chunks; chunk++) {
            stream.wait(chunk);
            stream.visit(chunk, [&](const uint4& vector, int) {
                float value[LANES<T>];
                unpack<T>(vector, value);
                for (int k = 0; k < LANES<T>; k++) {
                    const float distance = value[k] - center[0];
                    sum.x += distance;
                    sum.y = fmaf(distance, distance, sum.y);
                }
            });
        }
        const auto total = [&](float2 part) {
            for (int offset = 16; offset > 0; offset /= 2) {
                part.x += __shfl_xor_sync(0xffffffffu, part.x, offset);
                part.y += __shfl_xor_sync(0xffffffffu, part.y, offset);
            }
            return part;
        };
        sum = total(sum);
        if (lane == 0) shared[threadIdx.x / 32] = sum;
        __syncthreads();
        sum = total(lane < WARPS ? shared[lane] : float2{});
        __syncthreads();  // for the next use of `shared`
        const float m2 = fmaf(-sum.x, sum.x / n, sum.y);
        Moments m = {(float)n, {center[0], 0.0f}, m2};
        m.mean.move(sum.x / n);
        if (again || !cancelled(sum.y, m2)) return m;  // the same for all threads
        center[0] = m.mean.value;
    }
}

// The moments of a plane from those of its pieces, told through the shared memory of the cluster's blocks.
__device__ Moments plane_moments(Moments* told, Moments own) {
    if (CLUSTER == 1) return own;
    if (threadIdx.x == 0) *told = own;
    cooperative_groups::this_cluster().sync();
    const int lane = threadIdx.x % 32;
    return merge_warp(lane < CLUSTER ? *cooperative_groups::this_cluster().map_shared_rank(told, lane) : Moments{});
}

// Write the piece that begins with chunk `first`, and let the copies of later planes follow into its slots. ADD: there is
// a residual. cut: ReLU; at run time, as the code is read once and its length is felt.
template <bool ADD, typename T>
__device__ void write(const Stream& stream, int first, const T* residual, T* out, const Affine& affine, bool cut) {
    const uint4* source = reinterpret_cast<const uint4*>(residual);
    uint4* target = reinterpret_cast<uint4*>(out);
#pragma unroll 1
    for (int chunk = first; chunk < first + stream.chunks; chunk++) {
        stream.visit(chunk, [&](const uint4& vector, int v) {
            float value[LANES<T>], added[LANES<T>];
            unpack<T>(vector, value);
            if (ADD) unpack<T>(__ldg(source + v), added);
            for (int k = 0; k < LANES<T>; k++) value[k] = finish(value[k], ADD ? added[k] : 0.0f, ADD, affine, cut);
            __stwb(target + v, pack<T>(value));
        });
        if (chunk + SLOTS < stream.all) stream.refill(chunk + SLOTS);
    }
}

template <typename T>
__device__ void norm_planes(const T* x, const T* weight, const T* bias, const T* residual, T* out, float* saved,
                            int channels, int planes, long long size, long long length, float eps, bool cut) {
    extern __shared__ __align__(128) unsigned char memory[];
    __shared__ float2 sums[WARPS];
    __shared__ Moments told[2];  // of this plane, and of the one before, which others may still read
    const int piece = blockIdx.x % CLUSTER, first = blockIdx.x / CLUSTER, step = gridDim.x / CLUSTER;
    const long long begin = piece * length;
    const int vectors = min(length, size - begin) / LANES<T>, chunks = (vectors + VECTORS - 1) / VECTORS;
    const int rounds = (planes - first + step - 1) / step;
    const Stream stream = {reinterpret_cast<const uint4*>(x + first * size + begin), step * size / LANES<T>, vectors,
                           chunks, rounds * chunks, shared_address(memory), shared_address(memory) + SLOTS * CHUNK};
    stream.begin();
#pragma unroll 1
    for (int round = 0; round < rounds; round++) {
        const int plane = first + round * step;
        const Moments m = plane_moments(told + round % 2, measure<T>(stream, round * chunks, sums));
        if (saved && threadIdx.x == 0 && piece == 0) save(saved, m, eps, plane);
        const Affine affine(m, weight, bias, plane % channels, eps);
        const long long start = plane * size + begin;
        if (residual)
            write<true>(stream, round * chunks, residual + start, out + start, affine, cut);
        else
            write<false>(stream, round * chunks, residual, out + start, affine, cut);
    }
    if (CLUSTER > 1) cooperative_groups::this_cluster().sync();  // the others have read what this block told
}

// ---------------------------------------------------------------------------------------------------------------------
// The kernels

#define BLOCKS __cluster_dims__(CLUSTER, 1, 1) __launch_bounds__(THREADS, 1)

extern "C" __global__ void BLOCKS
    instance_norm_stream_hopper_float32(const float* __restrict__ x, const float* weight, const float* bias,
        const float* __restrict__ residual, float* __restrict__ out, float* saved, int channels, int planes, long long size,
        long long length, float eps, int relu) {
    norm_planes(x, weight, bias, residual, out, saved, channels, planes, size, length, eps, relu);
}

extern "C" __global__ void BLOCKS
    instance_norm_stream_hopper_float16(const __half* __restrict__ x, const __half* weight, const __half* bias,
        const __half* __restrict__ residual, __half* __restrict__ out, float* saved, int channels, int planes, long long size,
        long long length, float eps, int relu) {
    norm_planes(x, weight, bias, residual, out, saved, channels, planes, size, length, eps, relu);
}

extern "C" __global__ void BLOCKS
    instance_norm_stream_hopper_bfloat16(const __nv_bfloat16* __restrict__ x, const __nv_bfloat16* weight, const __nv_bfloat16* bias,
        const __nv_bfloat16* __restrict__ residual, __nv_bfloat16* __restrict__ out, float* saved, int channels, int planes,
        long long size, long long length, float eps, int relu) {
    norm_planes(x, weight, bias, residual, out, saved, channels, planes, size, length, eps, relu);
}
