// Instance norm on Hopper, of NCHW and of NHWC tensors: cuda/instance_norm.cu says what is computed.
//
// Contents (every statistic is float32)
//   Chunks                      a block's part of x, on its way through shared memory, there and back
//   add_up                      the sums of a thread
//   measure_piece               the moments of a part that is a piece of a plane (NCHW)
//   Columns, measure_pixels     which channels' sums a thread has, and the moments of all of them (NHWC)
//   cluster_moments, plane_moments   what all blocks of a plane found, merged
//   close_planes                these made into scale and shift
//   meet                        the blocks of a plane or an image wait for each other
//   write                       the end of each number
//   instance_norm_hopper        the kernel: moments, meeting, merging, and the end
//
// A part is a stretch of memory: a piece of a plane (NCHW), or of the pixels of an image with their channels (NHWC), and
// that makes no difference to its way. The copy engine brings it in chunks of CHUNK bytes, as many at once as shared
// memory holds, so that no thread waits for one load before it asks for the next. What fits is read once, 256 KB of a
// block: it stays in registers and slots while the blocks agree. A longer part goes through the same slots, and back
// from its last chunk to its first, of which the L2 cache holds those that were read last. Each multiprocessor has one
// block, and less than 32 GB to do.
//
// x, out, residual, weight, bias, saved, relu      as in cuda/instance_norm.cu, the first three at multiples of 16 bytes
// together   how many channels lie side by side: 1 for NCHW; for NHWC all, LANES<T> times 1, 2, 4 ... or 64.
// size, length, pieces     NCHW: numbers of a plane, of a piece, and how many pieces it has; a plane is a multiple of
//            16 bytes. NHWC: the same of an image; a piece is whole pixels.
// room       4 floats for each plane, and 4 for each of its pieces; clusters do without.
// words      2 for each block, in which the blocks of several pieces tell that they have come, this launch's number and
//            patience: common/exchange.cuh. Clusters do without.
// compiled   for TYPE (float, __half or __nv_bfloat16), and for THREADS, CHUNK, SLOTS, KEPT, CLUSTER: styleforge_lib/ops/instance_norm_hopper.py has them.
// launch     planes (NHWC: images) * pieces blocks of THREADS, SHARED_BYTES. NCHW of several pieces may come in
//            clusters of as many, which tell each other their moments through shared memory.
// moves      2s where a part fits, else up to 3s. s: see cuda/instance_norm.cu.
// numbers    as there. Each part's distances are measured from a number near its first ones or, where that was far
//            off, again from its mean. No atomics: same launch, same bits.
#include <cooperative_groups.h>

#include "common/exchange.cuh"
#include "common/hopper.cuh"
#include "common/normalize.cuh"

#ifndef TYPE
#define TYPE float
#endif

#ifndef THREADS
#define THREADS 512
#define CHUNK 16384
#define SLOTS 12  // with the sums, all the shared memory of a multiprocessor
#define KEPT 4    // and 64 KB of its registers
#define CLUSTER 1
#endif
#if CLUSTER > 1  // the pieces of a plane are a cluster, which runs at once, and whose barrier is the card's own
#define BLOCKS __cluster_dims__(CLUSTER, 1, 1) __launch_bounds__(THREADS, 1)
#else
#define BLOCKS __launch_bounds__(THREADS, 1)
#endif
constexpr int WARPS = THREADS / 32;
constexpr int VECTORS = CHUNK / 16, TURNS = VECTORS / THREADS;
constexpr int MOST_UNITS = 64;               // vectors side by side, of the channels of a pixel
constexpr int SUM_VECTORS = 2 * THREADS + MOST_UNITS > 4 * MOST_UNITS ? 2 * THREADS + MOST_UNITS : 4 * MOST_UNITS;
constexpr int SUM_BYTES = SUM_VECTORS * 8 * sizeof(float);  // and room for the scale and shift of each channel
constexpr int SHARED_BYTES = SLOTS * CHUNK + SUM_BYTES + SLOTS * 8;
static_assert(SHARED_BYTES <= 227 << 10 && VECTORS % THREADS == 0 && THREADS % MOST_UNITS == 0 && KEPT <= SLOTS);

// The way of a part to the threads. Chunk c comes into slot c % SLOTS. The first KEPT chunks stay in registers; the
// others are visited anew on each pass: first from the first to the last, then the other way, which begins with those
// that are still in their slots, and so on.
struct Chunks {
    const uint4* x;
    int vectors, chunks, pass;
    unsigned memory, full;  // addresses of SLOTS * CHUNK bytes, and of SLOTS barriers: a chunk has arrived
    unsigned parity;        // bit s: of the phase that the chunk in slot s completes
    uint4 kept[KEPT][TURNS];

    __device__ Chunks(unsigned slots, unsigned barriers) : memory(slots), full(barriers), parity(~0u) {
        if (threadIdx.x > 0) return;
#pragma unroll 1
        for (int slot = 0; slot < SLOTS; slot++) barrier_init(full + 8 * slot, 1);
        barrier_init_done();
    }

    // All threads: a part of `bytes`, once all chunks of the one before have arrived.
    __device__ void begin(const void* part, long long bytes) {
        x = static_cast<const uint4*>(part), vectors = bytes / 16, pass = 0;
        chunks = (vectors + VECTORS - 1) / VECTORS;
        const int first = min(SLOTS, chunks);
        __syncthreads();
        if (threadIdx.x == 0) {
#pragma unroll 1
            for (int chunk = 0; chunk < first; chunk++) fetch(chunk);
        }
        parity ^= (1u << first) - 1;
    }

    __device__ unsigned slot(int chunk) const { return memory + chunk % SLOTS * CHUNK; }

    __device__ uint4 arrived(int chunk, int turn) const {
        return load_shared(slot(chunk) + (threadIdx.x + turn * THREADS) * 16);
    }

    __device__ void fetch(int chunk) const {  // one thread
        const int begin = chunk * VECTORS;
        const unsigned barrier = full + 8 * (chunk % SLOTS), bytes = 16 * min(VECTORS, vectors - begin);
        barrier_expect(barrier, bytes);
        // What is read once leaves the cache's room to the result, whose lines would else be evicted for it.
        bulk_copy(slot(chunk), x + begin, bytes, barrier, chunks <= SLOTS + KEPT ? READ_ONCE : READ_AGAIN);
    }

    __device__ void wait(int chunk) const {
        barrier_wait(full + 8 * (chunk % SLOTS), parity >> chunk % SLOTS & 1);
    }

    __device__ void refill(int chunk) {  // once all have read what lies in its slot
        __syncthreads();
        if (threadIdx.x == 0) fetch(chunk);
        parity ^= 1u << chunk % SLOTS;
    }

    // The chunk to which a pass comes as its p-th.
    __device__ int at(int p) const { return p < KEPT || pass % 2 == 0 ? p : chunks - 1 - (p - KEPT); }

    // use(vector, turn, v) for each vector of the part that is this thread's, x[v]. begin(p): before those of a chunk.
    template <class Begin, class Use>
    __device__ void visit(const Begin& begin, const Use& use) {
#pragma unroll
        for (int chunk = 0; chunk < KEPT; chunk++) {
            if (chunk >= chunks) break;
            if (pass == 0) {
                wait(chunk);
                each([&](int turn, int v) { kept[chunk][turn] = arrived(chunk, turn); }, chunk);
                if (chunk + SLOTS < chunks) refill(chunk + SLOTS);
            }
            begin(chunk);
            each([&](int turn, int v) { use(kept[chunk][turn], turn, v); }, chunk);
        }
        for (int p = KEPT; p < chunks; p++) {
            const int chunk = at(p);
            begin(p);
            wait(chunk);
            each([&](int turn, int v) { use(arrived(chunk, turn), turn, v); }, chunk);
            if (p + SLOTS < chunks) refill(chunk + (pass % 2 ? -SLOTS : SLOTS));
        }
        pass++;
    }

    template <class Do>
    __device__ void each(const Do& act, int chunk) const {
        const int begin = chunk * VECTORS + threadIdx.x;
#pragma unroll
        for (int turn = 0; turn < TURNS; turn++)
            if (begin + turn * THREADS < vectors) act(turn, begin + turn * THREADS);
    }
};

// The sums of (x - center) and of their squares over this thread's numbers: in COUNT columns, one (NCHW) or LANES<T>.
template <typename T, int COUNT>
__device__ void add_up(Chunks& chunks, const float (&center)[COUNT], float (&sums)[2][COUNT]) {
    float value[LANES<T>];
    for (int k = 0; k < COUNT; k++) sums[0][k] = sums[1][k] = 0.0f;
    chunks.visit([](int) {}, [&](const uint4& vector, int, int) {
        unpack<T>(vector, value);
        for (int k = 0; k < LANES<T>; k++) {
            const float distance = value[k] - center[k % COUNT];
            sums[0][k % COUNT] += distance;
            sums[1][k % COUNT] = fmaf(distance, distance, sums[1][k % COUNT]);
        }
    });
}

// Of n numbers whose sums of distances from `center` are these.
__device__ Moments moments_of(int n, float center, float sum, float m2) {
    Moments m = {(float)n, {center, 0.0f}, m2};
    m.mean.move(sum / n);
    return m;
}

// Where the part begins, once its first chunk has arrived: in shared memory.
template <typename T>
__device__ const T* beginning(const Chunks& chunks) {
    chunks.wait(0);
    return static_cast<const T*>(__cvta_shared_to_generic(chunks.slot(0)));
}

// The moments of a part of n numbers that is a piece of a plane, for all threads: each adds up the sums of the warps, as
// the numbers that it needs next are then its own. shared: of sum_block.
template <typename T>
__device__ Moments measure_piece(Chunks& chunks, float* shared, int n) {
    float center[1];
    near_first(beginning<T>(chunks), min(n, VECTORS * LANES<T>), 1, center);
#pragma unroll 1
    for (bool again = false;; again = true) {
        float sums[2][1];
        add_up<T>(chunks, center, sums);
        float both[2] = {sums[0][0], sums[1][0]};
        sum_block(both, shared);
        const float m2 = fmaf(-both[0], both[0] / n, both[1]);
        const Moments m = moments_of(n, center[0], both[0], m2);
        if (again || !cancelled(both[1], m2)) return m;
        center[0] = m.mean.value;
    }
}

// A thread meets the same `unit` of a pixel's channels in every chunk: its sums are COUNT = LANES<T> channels' of it.
template <int COUNT>
struct Columns {
    int units, unit, width;  // width: columns of the block; column k * units + unit is channel unit * COUNT + k
    float* rows;             // 2 * width floats of shared memory for each row of threads
    float* center;           // what distances are measured from

    __device__ Columns(int units, float* sums)
        : units(units), unit(threadIdx.x % units), width(units * COUNT), rows(sums), center(sums + 16 * THREADS) {}

    __device__ int channel(int column) const { return column % units * COUNT + column / units; }

    __device__ void set(const float (&value)[COUNT]) {
        if (threadIdx.x < units)
            for (int k = 0; k < COUNT; k++) center[k * units + unit] = value[k];
    }

    __device__ void get(float (&value)[COUNT]) const {
        for (int k = 0; k < COUNT; k++) value[k] = center[k * units + unit];
    }

    // Put the sums of each row of threads, a warp or more, beside each other.
    __device__ void put(float (&sums)[2][COUNT]) const {
        for (int offset = 16; offset >= units; offset /= 2)
            for (int i = 0; i < 2 * COUNT; i++)
                sums[i / COUNT][i % COUNT] += __shfl_xor_sync(0xffffffffu, sums[i / COUNT][i % COUNT], offset);
        const int row = threadIdx.x / max(units, 32);
        if (threadIdx.x % max(units, 32) < units)
            for (int i = 0; i < 2 * COUNT; i++)
                rows[(2 * row + i / COUNT) * width + i % COUNT * units + unit] = sums[i / COUNT][i % COUNT];
    }

    __device__ float2 total(int column) const {
        float2 sum = {};
        for (int row = 0; row < THREADS / max(units, 32); row++) {
            sum.x += rows[2 * row * width + column];
            sum.y += rows[(2 * row + 1) * width + column];
        }
        return sum;
    }
};

// The moments of the part's columns, to partial[channel * pieces]. n: numbers of a column.
template <typename T, int COUNT>
__device__ void measure_pixels(Chunks& chunks, Columns<COUNT> columns, Moments* partial, int pieces, int n) {
    float center[COUNT];
    const T* first = beginning<T>(chunks) + columns.unit * COUNT;
    near_first(first, min(n, VECTORS * LANES<T> / columns.width), columns.width, center);
    columns.set(center);
#pragma unroll 1
    for (bool again = false;; again = true) {
        float sums[2][COUNT];
        add_up<T>(chunks, center, sums);
        columns.put(sums);
        __syncthreads();
        bool off = false;
        for (int column = threadIdx.x; column < columns.width; column += THREADS) {
            const float2 sum = columns.total(column);
            const float m2 = fmaf(-sum.x, sum.x / n, sum.y);
            const Moments m = moments_of(n, columns.center[column], sum.x, m2);
            partial[(long long)columns.channel(column) * pieces] = m;
            columns.center[column] = m.mean.value;
            off |= cancelled(sum.y, m2);
        }
        off = __syncthreads_or(off);
        if (!off || again) break;
        columns.get(center);
    }
}

// The moments of a plane whose pieces are the blocks of a cluster, told through their shared memory.
__device__ Moments cluster_moments(Moments* told) {
    cooperative_groups::this_cluster().sync();
    const int lane = threadIdx.x % 32;
    return merge_warp(lane < CLUSTER ? *cooperative_groups::this_cluster().map_shared_rank(told, lane) : Moments{});
}

// The moments of a plane, for all lanes of a warp.
__device__ Moments plane_moments(const Moments* partial, long long plane, int pieces) {
    Moments m = {};
    for (int i = threadIdx.x % 32; i < pieces; i += 32) {
        const float4 read = __ldcg(reinterpret_cast<const float4*>(partial + plane * pieces + i));
        m = merge(m, {read.x, {read.y, read.z}, read.w});
    }
    return merge_warp(m);
}

// Scale and shift of the planes first, first + step, ... of an image, a warp each.
template <typename T>
__device__ void close_planes(const Moments* partial, float4* affine, const T* weight, const T* bias, int channels,
                             int pieces, float eps, int first, int step) {
    for (int plane = first + step * (threadIdx.x / 32); plane < channels; plane += step * WARPS) {
        const Moments m = plane_moments(partial, plane, pieces);
        if (threadIdx.x % 32 > 0) continue;
        const Affine made(m, weight, bias, plane, eps);
        affine[plane] = {made.mean, made.scale, made.shift, 0.0f};
    }
}

// Write the part. ADD: there is a residual, a chunk of which is under way while the one before is used. cut: ReLU; at run
// time, as the code is read once and its length is felt.
template <bool ADD, typename T, int COUNT>
__device__ void write(Chunks& chunks, const T* residual, T* out, const Affine (&affine)[COUNT], bool cut) {
    const uint4* source = reinterpret_cast<const uint4*>(residual);
    uint4* target = reinterpret_cast<uint4*>(out);
    uint4 added[TURNS], next[TURNS];
    const auto ask = [&](int p) {
        if (ADD && p < chunks.chunks)
            chunks.each([&](int turn, int v) { next[turn] = __ldcg(source + v); }, chunks.at(p));
    };
    const auto begin = [&](int p) {
        if constexpr (ADD) {
            for (int turn = 0; turn < TURNS; turn++) added[turn] = next[turn];
            ask(p + 1);
            __syncwarp();  // which ptxas moves no load across: to where it is used, and would be waited for
        }
    };
    ask(0);
    chunks.visit(begin, [&](const uint4& vector, int turn, int v) {
        float value[LANES<T>], other[LANES<T>];
        unpack<T>(vector, value);
        if (ADD) unpack<T>(added[turn], other);
        for (int k = 0; k < LANES<T>; k++)
            value[k] = finish(value[k], ADD ? other[k] : 0.0f, ADD, affine[k % COUNT], cut);
        __stwb(target + v, pack<T>(value));
    });
}

// The blocks of a plane (NHWC: of an image) meet: true once all have come, with all that they wrote before; false where
// `patience` looks were in vain, since nothing promises that they run at the same time. words: one of each block. Each
// is looked at by a thread of its own: who looked at five in turn would wait five times.
__device__ bool meet(long long* words, int own, int blocks, int launch, int patience) {
    __syncthreads();
    if (threadIdx.x == 0) __threadfence(), keep_number(words + own, launch);
    bool heard = true;
    for (int i = threadIdx.x; heard && i < blocks; i += THREADS) heard = hear_number(words + i, launch, patience);
    if (threadIdx.x < blocks) __threadfence();
    return __syncthreads_and(heard);
}

// A block that meets the others in vain works out all of their numbers itself: the same order, so the same bits.
template <int COUNT, typename T>
__device__ void norm_part(const T* x, const T* weight, const T* bias, const T* residual, T* out, float* saved,
                          float* room, long long* words, int channels, int together, long long size, long long length,
                          int pieces, float eps, bool cut, int launch, int patience, unsigned char* memory) {
    __shared__ Moments told;
    const int group = blockIdx.x / pieces, piece = blockIdx.x % pieces;
    const auto count = [&](int i) { return min(length, size - i * length); };
    float4* affine = reinterpret_cast<float4*>(room) + group * together;
    Moments* partial = reinterpret_cast<Moments*>(room + 4LL * gridDim.x / pieces * together) +
                       (long long)group * together * pieces;
    float* sums = reinterpret_cast<float*>(memory + SLOTS * CHUNK);
    x += group * size;
    if (words) words += 2LL * group * pieces;
    if (words && launch == 0) launch = number_after(words + piece);
    const auto close = [&](int first, int step) {
        close_planes(partial, affine, weight, bias, together, pieces, eps, first, step);
    };
    Chunks chunks(shared_address(memory), shared_address(sums) + SUM_BYTES);
    const Columns<COUNT> columns(together / COUNT, sums);
    Moments m;  // NCHW: of the piece, then of the plane
    bool deserted = false;
#pragma unroll 1
    while (true) {
#pragma unroll 1
        for (int i = deserted ? 0 : piece;; i++) {  // who is deserted returns to its own piece, to write it
            const int part = i < pieces ? i : piece;
            chunks.begin(x + part * length, count(part) * sizeof(T));
            if (i == pieces) break;
            if constexpr (COUNT == 1) {
                m = measure_piece<T>(chunks, sums, count(i));
                if (pieces > 1 && threadIdx.x == 0) *(CLUSTER > 1 ? &told : partial + i) = m;
            } else {
                measure_pixels<T>(chunks, columns, partial + i, pieces, count(i) / together);
            }
            if (!deserted) break;
        }
        if (CLUSTER > 1 || pieces == 1 || deserted) break;
        deserted = !meet(words, piece, pieces, launch, patience);
        if (COUNT > 1 && !deserted) {  // each block closes its share of the planes
            close(piece, pieces);
            deserted = !meet(words + pieces, piece, pieces, launch, patience);
        }
        if (!deserted) break;
    }
    Affine mine[COUNT];
    if (COUNT == 1) {
        if (deserted) __syncthreads();
        if (pieces > 1) m = CLUSTER > 1 ? cluster_moments(&told) : plane_moments(partial, 0, pieces);
        if (saved && threadIdx.x == 0 && piece == 0) save(saved, m, eps, group);
        mine[0] = Affine(m, weight, bias, group % channels, eps);
    } else {
        __syncthreads();
        if (deserted || pieces == 1) close(0, 1);
        __syncthreads();
        if (deserted && threadIdx.x == 0) __threadfence(), keep_number(words + pieces + piece, launch);
        // All blocks ask for the same few lines, so each asks once, and its threads find the numbers side by side.
        float4* shared = reinterpret_cast<float4*>(sums);
        for (int column = threadIdx.x; column < columns.width; column += THREADS)
            shared[column] = __ldcg(affine + columns.channel(column));
        __syncthreads();
        for (int k = 0; k < COUNT; k++) {
            const float4 read = shared[k * columns.units + columns.unit];
            mine[k].mean = read.x, mine[k].scale = read.y, mine[k].shift = read.z;
        }
    }
    const long long start = group * size + piece * length;
    out += start;
    if (residual)
        write<true>(chunks, residual + start, out, mine, cut);
    else
        write<false>(chunks, residual, out, mine, cut);
    if (CLUSTER > 1) cooperative_groups::this_cluster().sync();  // the others have read what this block told
}

template <typename T>
__device__ void norm_part(const T* x, const T* weight, const T* bias, const T* residual, T* out, float* saved,
                          float* room, long long* words, int channels, int together, long long size, long long length,
                          int pieces, float eps, int relu, int launch, int patience) {
    extern __shared__ __align__(128) unsigned char memory[];
    if (together == 1)
        norm_part<1>(x, weight, bias, residual, out, saved, room, words, channels, together, size, length, pieces, eps, relu,
                     launch, patience, memory);
    else
        norm_part<LANES<T>>(x, weight, bias, residual, out, saved, room, words, channels, together, size, length, pieces, eps,
                            relu, launch, patience, memory);
}

// ---------------------------------------------------------------------------------------------------------------------
// The kernels

extern "C" __global__ void BLOCKS
    instance_norm_hopper(const TYPE* __restrict__ x, const TYPE* weight, const TYPE* bias,
        const TYPE* __restrict__ residual, TYPE* __restrict__ out, float* saved, float* room, long long* words,
        int channels, int together, long long size, long long length, int pieces, float eps, int relu, int launch,
        int patience) {
    norm_part(x, weight, bias, residual, out, saved, room, words, channels, together, size, length, pieces, eps, relu, launch,
        patience);
}
