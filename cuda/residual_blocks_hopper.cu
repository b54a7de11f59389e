// Residual blocks of 16-bit numbers on Hopper's tensor cores, one after the other in one launch.
//
//   residual_blocks_hopper      out = v + norm2(conv2(relu(norm1(conv1(v))))), as often as `blocks` says; 128 channels
//
// A launch of its own for each convolution lays every activation down in global memory, and begins with cold pipelines.
// Here each block of threads makes the same tiles of both convolutions, and the grid waits, all blocks of it, where a
// plane's statistics must be complete or neighbours' pixels be written:
//   1. conv1: v -> inner, and its sums; wait
//   2. scale and shift of norm1 from the sums; conv2: inner -> y, and its sums; wait
//   3. scale and shift of norm2; out = v + y * scale + shift; wait, where another residual block follows
//
// on chip    y of the last tile of each block of threads stays in shared memory, in the halo's place, which on an H200 is
//            half of 256x256 pixels; other tiles lie in `out` meanwhile, where the same threads take them up. The weights'
//            ring runs on from tile to tile and from conv1 to conv2. v of the last tiles is called into the L2 cache
//            while the grid waits.
// x, out     [images][height][width][128]; other memory. affine: null, where v is x; else [images][128][2], and v is
//            relu(x * scale + shift): x is a convolution's raw output
// inner, spare    like x: conv1's output; the output of a residual block that is not the last (null if there is only one)
// weights    [blocks][2], each as common/hopper_tile.cuh says        norms  [blocks][2][128][2]: weight and bias
// sums       [2][images][PLANE_WORDS], the first half zero, and left so; what the second holds does not matter
// numbers    The same, bit by bit, as conv2d_hopper, close_planes and apply_affine make of it, for any grid.
// launch     cooperative; grid: at most what fits on the card and a tile for each; block 256, SHARED_BYTES of dynamic
//            shared memory
#define CHANNELS_IN 128
#define CHANNELS_OUT 128
#define STRIDE 1
#define UPSAMPLE 0
#include <cooperative_groups.h>

#include "common/hopper_tile.cuh"

constexpr int CHANNELS = 128;
static_assert(STAGED_BYTES + CHANNELS * (int)sizeof(float4) <= TILE_BYTES, "a tile and its sums take the halo's place");

constexpr int ROUNDS = TILE_H * TILE_W * GROUPS / THREADS;  // 16-byte groups of a tile that a thread has
constexpr int TOGETHER = 4;                                 // of these under way

// What is read was written in this launch, by other blocks or by this one.
struct Plain {
    static constexpr bool norm = false, relu = false, residual = false, keeps = false, fresh = true;
    static constexpr int flight = 4;
};
struct Normed {
    static constexpr bool norm = true, relu = true, residual = false, keeps = false, fresh = true;
    static constexpr int flight = 4;
};
struct Added {
    static constexpr bool norm = true, relu = false, residual = true, keeps = false, fresh = true;
    static constexpr int flight = 4;
};

// The same number, but nothing that follows from it is computed before it is asked for: no register holds it meanwhile.
__device__ int opaque(int v) {
    asm volatile("" : "+r"(v));
    return v;
}

__device__ void prefetch(const void* line) { asm volatile("prefetch.global.L2 [%0];" ::"l"(line)); }

// Scale and shift of the planes of an image, to shared memory; all threads.
__device__ void close_planes(const long long* sums, const float2* norm, double n, float eps, float2* affine) {
    constexpr int SLOTS = PLANE_ENTRIES / CHANNELS;
    const int channel = threadIdx.x;
    __syncthreads();  // nobody reads affine any more
    if (channel < CHANNELS) {
        long long words[3] = {};
        bool marked = false;
#pragma unroll
        for (int slot = 0; slot < SLOTS; slot++)
            for (int k = 0; k < 3; k++) {
                const long long word = __ldcg(sums + (slot * 3 + k) * CHANNELS + channel);
                words[k] += word;
                if (k == 2) marked |= word >= PLANE_POISON;
            }
        affine[channel] = closed_plane(words, marked, n, norm[channel].x, norm[channel].y, eps);
    }
    __syncthreads();
}

__device__ void read_affine(const float2* affine, float4 (&mine)[4]) {  // of this thread's eight channels
    for (int k = 0; k < 4; k++) mine[k] = reinterpret_cast<const float4*>(affine)[threadIdx.x % GROUPS * 4 + k];
}

extern "C" __global__ void __launch_bounds__(THREADS, RESIDENT)
    residual_blocks_hopper(const TYPE* x, const float2* affine_in, const unsigned char* weights, const float2* norms,
        TYPE* inner, TYPE* spare, TYPE* out, long long* sums, int blocks, int images, int height, int width, float eps) {
    extern __shared__ unsigned char raw[];
    __shared__ alignas(8) unsigned long long full[STAGES];
    __shared__ alignas(16) float2 affine[CHANNELS];
    const unsigned halo = (shared_address(raw) + 1023) & ~1023u;
    const Ring ring = {halo + TILE_BYTES, shared_address(full)};
    const int across = (width + TILE_W - 1) / TILE_W, tiles = (height + TILE_H - 1) / TILE_H * across;  // of an image
    const int first = (long long)images * tiles * blockIdx.x / gridDim.x;
    const int last = (long long)images * tiles * (blockIdx.x + 1) / gridDim.x;
    const auto tile_of = [&](int t) {
        t = opaque(t);
        return Tile{t / tiles, t % tiles / across * TILE_H, t % tiles % across * TILE_W, opaque(threadIdx.x)};
    };
    const auto group_at = [&](int image, int row, int column) {  // the first group of a pixel
        return ((static_cast<long long>(image) * height + row) * width + column) * GROUPS;
    };
    const auto made_by = [&](int layer) {  // conv1's output, or a residual block's
        return layer % 2 == 0 ? inner : layer / 2 % 2 == (blocks - 1) % 2 ? out : spare;
    };
    const auto sums_of = [&](int layer, int image) {
        return sums + (static_cast<long long>(layer % 2) * images + image) * PLANE_WORDS;
    };
    const auto zero = [&](int layer) {
        long long* half = sums_of(layer, 0);
        for (int i = blockIdx.x * THREADS + threadIdx.x; i < images * PLANE_WORDS; i += gridDim.x * THREADS) half[i] = 0;
    };
    const auto close = [&](int layer, int image) {
        close_planes(sums_of(layer, image), norms + layer * CHANNELS, static_cast<double>(height) * width, eps, affine);
    };

    int begin = 0, layer = 0, next = 0;  // of a tile: its first step, its layer, and that of the tile after it, or -1
    const auto fetch = [&](int step) {
        int ahead = step - begin, of = layer;
        if (ahead >= STEPS) ahead -= STEPS, of = next;
        if (of >= 0) ring.fetch(step, weights + (static_cast<long long>(of) * STEPS + ahead) * STEP);
    };
    if (threadIdx.x == 0) ring.init();

    for (; layer < 2 * blocks; layer++) {
        const bool second = layer % 2;
        if (!second) {
            if (threadIdx.x == 0)
                for (int step = begin; step < begin + STAGES - 1; step++) fetch(step);
            zero(1);
        }
        for (int t = first; t < last; t++) {
            next = t + 1 < last ? layer : second ? -1 : layer + 1;
            const Tile tile = tile_of(t);
            {
                const TYPE* from = layer == 0 ? x : made_by(layer - 1);
                const Input in = {reinterpret_cast<const uint4*>(from), nullptr, nullptr, height, width};
                if (second && (t == first || tile_of(t - 1).image != tile.image)) close(layer - 1, tile.image);
                float4 mine[4] = {};
                if (second || (layer == 0 && affine_in)) {
                    read_affine(second ? affine : affine_in + tile.image * CHANNELS, mine);
                    load_halo<Normed>(in, mine, halo, tile);
                } else {
                    load_halo<Plain>(in, mine, halo, tile);
                }
            }
            __syncthreads();
            float d[64] = {};
            multiply(d, ring, begin, halo, 0, fetch);
            begin += STEPS;
            float4* const rows_done = reinterpret_cast<float4*>(raw + (halo - shared_address(raw)) + STAGED_BYTES);
            const Words words = rounded(d);
            stage(words, halo);
            tile_statistics(words, rows_done, tile, height, width);
            __syncthreads();
            add_statistics(rows_done, sums_of(opaque(layer), tile.image), t);
            if (!second || t + 1 < last) write_staged(halo, made_by(opaque(layer)), tile, height, width);
            __syncthreads();
        }
        if (second)  // what is added is called into the L2 cache while the grid waits
            for (int t = max(first, last - 2); t < last; t++) {
                const Tile tile = tile_of(t);
                const int pixel = tile.thread / 2, row = tile.y0 + pixel / TILE_W, column = tile.x0 + pixel % TILE_W;
                const uint4* from = reinterpret_cast<const uint4*>(layer == 1 ? x : made_by(layer - 2));
                if (row < height && column < width)
                    prefetch(from + group_at(tile.image, row, column) + tile.thread % 2 * 8);
            }
        cooperative_groups::this_grid().sync();
        if (!second) continue;

        // The last tile lies staged, others are where this thread put them.
        zero(0);
        const uint4* from = reinterpret_cast<const uint4*>(layer == 1 ? x : made_by(layer - 2));
        uint4* to = reinterpret_cast<uint4*>(made_by(layer));
        for (int t = last - 1; t >= first; t--) {
            const Tile tile = tile_of(t);
            const int group = tile.thread % GROUPS;
            if (t + 1 == last || tile_of(t + 1).image != tile.image) close(layer, tile.image);
            float4 mine[4], input[4] = {};
            read_affine(affine, mine);
            if (layer == 1 && affine_in) read_affine(affine_in + tile.image * CHANNELS, input);
            for (int round = 0; round < ROUNDS; round += TOGETHER) {
                uint4 v[TOGETHER], y[TOGETHER];
                long long at[TOGETHER];  // negative: not in the picture
#pragma unroll
                for (int j = 0; j < TOGETHER; j++) {
                    const int pixel = (tile.thread + (round + j) * THREADS) / GROUPS;
                    const int row = tile.y0 + pixel / TILE_W, column = tile.x0 + pixel % TILE_W;
                    at[j] = row < height && column < width ? group_at(tile.image, row, column) + group : -1;
                    if (at[j] >= 0) v[j] = __ldcg(from + at[j]);
                    if (t + 1 == last)
                        y[j] = staged_group(halo, group / 8, pixel, group % 8);
                    else if (at[j] >= 0)
                        y[j] = __ldcg(to + at[j]);
                }
#pragma unroll
                for (int j = 0; j < TOGETHER; j++) {
                    if (layer == 1 && affine_in) v[j] = loaded<Normed>(v[j], input, {});
                    if (at[j] >= 0) to[at[j]] = loaded<Added>(y[j], mine, v[j]);
                }
            }
        }
        if (layer + 1 < 2 * blocks) cooperative_groups::this_grid().sync();
    }
}
