// Convolutions with few steps on Hopper's tensor cores: the weights stay in shared memory, and the tiles stream by.
//
//   conv2d_hopper_persistent    3x3 with reflection padding 1: stride 2, or after doubling the picture (UPSAMPLE)
//
// x, out     NHWC. out is the raw sum, without a bias: an instance norm follows, which would take it away
// on load    v = x * scale + shift, by image and channel (affine, NORM), and ReLU (LOAD_RELU)
// sums       of the planes of out, for close_planes.cu, as common/plane_sums.cuh says; null where no norm follows
// rows, columns    of out, and with UPSAMPLE half of them
// weights    [step][row][group 8][8 numbers], group g of a row at g ^ (row & 7): see common/hopper_tile.cuh
// compiled   for one layer: CHANNELS_IN, CHANNELS_OUT, STRIDE, UPSAMPLE, TYPE. See LAYERS below
// launch     at most one block of THREADS a multiprocessor; SHARED_BYTES of dynamic shared memory. Block b makes tiles b,
//            b + gridDim.x, ... of all images
// OVERLAP    waits for the kernels before as common/programmatic_launch.cuh says
//
// why        In conv2d_hopper.cu a block loads, multiplies, and writes. With 18 steps of products between, two blocks a
//            multiprocessor hide each other's loading; with six they do not. Here the weights stay, eight warps load the
//            tiles to come, and two warpgroups multiply and write, each its own tiles: while the tensor cores work on a
//            pass, the threads finish the one before. For that they take registers which the loading warps give back.
// product    D[row][pixel] = W[row][k] X[pixel][k], as there: a tap of the convolution is a start address in the halo
// LAYERS     a pass makes 64 rows of D, 128 bytes of each pixel of out
//            64 -> 32, doubled    pass: phase in y; rows: phase in x, channel. 6 taps, a third of them zero
//            32 -> 64, stride 2   one pass; rows: channel. Two columns make one row of 128 bytes: 3 x 2 taps
// tried      That the two multiply in turns, a third such warpgroup, and a fourth tile under way: neither was faster on an
//            H200.
#include "common/hopper.cuh"
#include "common/packed.cuh"
#include "common/plane_sums.cuh"
#include "common/programmatic_launch.cuh"

#ifndef TYPE
#define TYPE __half
#endif
constexpr bool PAIRS = CHANNELS_IN == 32;  // two columns in a row of 128 bytes
constexpr int PASSES = UPSAMPLE ? 2 : 1;
constexpr int TILE_H = 16, TILE_W = 8, PIXELS = TILE_H * TILE_W, ROW = 128;  // ROW: bytes
constexpr int TAPS_Y = UPSAMPLE ? 2 : 3, TAPS_X = UPSAMPLE ? 3 : 2, STEPS = TAPS_Y * TAPS_X;
constexpr int STEP = PASSES * 64 * ROW;  // bytes of a step's weights
constexpr int HALO_H = (TILE_H - 1) * STRIDE + 3, HALO_W = (TILE_W - 1) * STRIDE + 3, PITCH = PAIRS ? 9 : 10;
constexpr int HALO = (HALO_H * PITCH * ROW + 1023) / 1024 * 1024, HALOS = 3, AHEAD = HALOS - 1;  // tiles under way
constexpr int STAGING = PIXELS * ROW;
constexpr int GROUPS = CHANNELS_IN / 8;  // 16-byte groups of a pixel
constexpr int CONSUMERS = 2;  // warpgroups that multiply
// A thread that loads keeps to one group of one column of the halo, and takes every AT_ONCE-th row.
constexpr int AT_ONCE = 3;
constexpr int FLIGHT = 4;  // 16-byte groups that a thread normalises at once
constexpr int UNITS = HALO_W * GROUPS, LOADERS = 256;  // whole warpgroups, which alone can give back registers
constexpr int LOADS = (HALO_H + AT_ONCE - 1) / AT_ONCE;
constexpr int THREADS = CONSUMERS * 128 + LOADERS;
static_assert(UNITS * AT_ONCE <= LOADERS);
constexpr int LOADER_REGISTERS = 88, CONSUMER_REGISTERS = 168;  // of a thread; together what a multiprocessor has
static_assert(LOADERS * LOADER_REGISTERS + CONSUMERS * 128 * CONSUMER_REGISTERS <= 65536);
constexpr int SHARED_BYTES = STEPS * STEP + HALOS * HALO + CONSUMERS * STAGING + 1024;
static_assert(SHARED_BYTES <= 224 * 1024, "what a block may have");

__device__ int inside(int i, int size) {  // reflected, or repeated; beyond a reflection only pixels that nobody keeps
    if (!UPSAMPLE) i = i < 0 ? -i : i >= size ? 2 * size - 2 - i : i;
    return min(max(i, 0), size - 1);
}

__device__ unsigned normalised(unsigned word, float4 affine) {  // affine: scale, shift, scale, shift
    float2 v = Packed<TYPE>::floats(word);
    if (NORM) v = {fmaf(v.x, affine.x, affine.y), fmaf(v.y, affine.z, affine.w)};
    return LOAD_RELU ? Packed<TYPE>::relu_word(v.x, v.y) : Packed<TYPE>::word(v.x, v.y);
}

// The tiles of a block, one after the other.
struct Tile {
    int number, image, y0, x0;

    __device__ Tile(int i, int rows, int columns) : number(blockIdx.x + i * gridDim.x) {
        const int across = (columns + TILE_W - 1) / TILE_W, each = across * ((rows + TILE_H - 1) / TILE_H);
        image = number / each;
        const int rest = number - image * each;
        y0 = rest / across * TILE_H;
        x0 = rest % across * TILE_W;
    }
};

// ---------------------------------------------------------------------------------------------------------------------
// The warpgroups that load

// What is loaded is normalised where it lies, by the thread that asked for it: nobody waits for another.
struct Loader {
    const uint4* x;
    const float4* affine;
    int height, width, rows, columns, tiles;
    int first, group, column;

    __device__ unsigned place(int j) const {  // in the halo
        const int row = (first + j * AT_ONCE) * PITCH + (PAIRS ? column / 2 : column), g = PAIRS ? column % 2 * 4 + group : group;
        return row * ROW + ((g ^ (row & 7)) << 4);
    }

    __device__ bool works(int j) const { return first < AT_ONCE && (j < LOADS - 1 || first + j * AT_ONCE < HALO_H); }

    __device__ void ask(const Tile& tile, unsigned halo) const {
        const int at = inside(tile.x0 * STRIDE - 1 + column, width), top = tile.y0 * STRIDE - 1 + first;
        const uint4* const from = x + (static_cast<long long>(tile.image) * height * width + at) * GROUPS + group;
#pragma unroll
        for (int j = 0; j < LOADS; j++)
            if (works(j))
                copy_async(halo + place(j), from + static_cast<long long>(inside(top + j * AT_ONCE, height)) * (width * GROUPS));
    }

    __device__ void normalise(unsigned halo, const float4 (&mine)[4]) const {
        if (NORM || LOAD_RELU)
#pragma unroll
            for (int begin = 0; begin < LOADS; begin += FLIGHT) {  // one by one, each would wait for its own read
                uint4 v[FLIGHT];
#pragma unroll
                for (int j = begin; j < min(begin + FLIGHT, LOADS); j++)
                    if (works(j)) v[j - begin] = load_shared(halo + place(j));
#pragma unroll
                for (int j = begin; j < min(begin + FLIGHT, LOADS); j++) {
                    const uint4 w = v[j - begin];
                    if (works(j))
                        store_shared(halo + place(j), {normalised(w.x, mine[0]), normalised(w.y, mine[1]),
                                                       normalised(w.z, mine[2]), normalised(w.w, mine[3])});
                }
            }
        fence_async();  // the tensor cores read by another way than the stores went
    }

    __device__ void run(unsigned halos, unsigned full, unsigned empty) const {
        float4 mine[4] = {};  // scale and shift of this thread's eight channels
        int image = -1, asked = 0;
        for (int i = 0;; i++) {
            for (; asked < i + AHEAD; asked++) {
                const Tile next(asked, rows, columns);
                if (next.number < tiles) {
                    barrier_wait(empty + 8 * (asked % HALOS), (asked / HALOS + 1) % 2);
                    ask(next, halos + asked % HALOS * HALO);
                }
                copies_commit();
            }
            const Tile tile(i, rows, columns);
            if (tile.number >= tiles) break;
            if (NORM && image != tile.image)
                for (int k = 0; k < 4; k++) mine[k] = load_earlier(affine + (tile.image * GROUPS + group) * 4 + k);
            image = tile.image;
            copies_wait<AHEAD - 1>();
            normalise(halos + i % HALOS * HALO, mine);
            __syncwarp();
            if (threadIdx.x % 32 == 0) barrier_arrive(full + 8 * (i % HALOS));
        }
    }
};

// ---------------------------------------------------------------------------------------------------------------------
// The warpgroups that multiply and write

// The sums of two rows of D (planes of out), `row()` and row() + 8, over the pixels of several passes, of which four lanes
// have a quarter each: around one number of each row, of what is written: a constant plane has no variance.
struct Moments {
    static constexpr int ENOUGH = 8;  // passes whose float32 sums are closed
    float pivot[2], rest[2], m2[2];
    int image = -1, passes = 0, count;

    template <bool WHOLE>  // whether the tile is within the picture
    __device__ void add(const unsigned (&words)[PIXELS / 4], int tall, int wide) {
        const int x = threadIdx.x % 4 * 2;
        asm volatile("" : "+r"(tall), "+r"(wide));  // else sixty-four comparisons are made ahead, also where all is whole
#pragma unroll
        for (int y = 0; y < TILE_H; y++)
#pragma unroll
            for (int r = 0; r < 2; r++) {
                const float2 pair = Packed<TYPE>::floats(words[2 * y + r]);
#pragma unroll
                for (int e = 0; e < 2; e++) {
                    const float v = e ? pair.y : pair.x, distance = WHOLE || (y < tall && x + e < wide) ? v - pivot[r] : 0.0f;
                    rest[r] += distance;
                    m2[r] = fmaf(distance, distance, m2[r]);
                }
            }
        count += WHOLE ? PIXELS : min(tall, TILE_H) * min(wide, TILE_W);
        passes++;
    }

    __device__ void add(const unsigned (&words)[PIXELS / 4], int of_image, int tall, int wide, long long* sums) {
        if (passes && (passes == ENOUGH || image != of_image)) close(sums);
        if (passes == 0) {
            image = of_image, count = 0;
#pragma unroll
            for (int r = 0; r < 2; r++) {  // the first pixel is always inside
                pivot[r] = __shfl_sync(~0u, Packed<TYPE>::floats(words[r]).x, threadIdx.x & 28);
                rest[r] = m2[r] = 0.0f;
            }
        }
        if (tall >= TILE_H && wide >= TILE_W) add<true>(words, tall, wide);
        else add<false>(words, tall, wide);
    }

    __device__ void close(long long* sums) {
#pragma unroll
        for (int r = 0; r < 2; r++) {
            for (int lanes = 1; lanes < 4; lanes *= 2) {
                rest[r] += __shfl_xor_sync(~0u, rest[r], lanes);
                m2[r] += __shfl_xor_sync(~0u, m2[r], lanes);
            }
            if (threadIdx.x % 4 == 0)
                add_to_plane(sums + static_cast<long long>(image) * PLANE_WORDS, CHANNELS_OUT, (row() + 8 * r) % CHANNELS_OUT,
                             blockIdx.x * CONSUMERS + threadIdx.x / 128, tile_sums(count, pivot[r], rest[r], m2[r]));
        }
        passes = 0;
    }
    __device__ static int row() { return threadIdx.x % 128 / 32 * 16 + threadIdx.x % 32 / 4; }
};

// Starts the products of a pass: d is theirs until they are waited for.
__device__ void multiply(float (&d)[PIXELS / 2], unsigned weights, unsigned halo) {
    // Addresses are counted in 16 bytes: what follows the first of each is a constant further on. From lane 0, so that
    // the compiler knows them to be the same in all, and adds once a warp.
    const unsigned long long a = tile_address<ROW>(__shfl_sync(~0u, weights, 0), 8 * ROW);
    const unsigned long long b = tile_address<ROW>(__shfl_sync(~0u, halo, 0), STRIDE * PITCH * ROW);
    for (float& v : d) v = 0.0f;
    wgmma_fence();
#pragma unroll
    for (int step = 0; step < STEPS; step++) {
        const int pixel = step / TAPS_X * PITCH + step % TAPS_X;
#pragma unroll
        for (int k = 0; k < (PAIRS && step % TAPS_X == 1 ? 2 : 4); k++)  // 16 numbers, 32 bytes
            Wgmma<TYPE>::m64n128k16(d, a + (step * STEP / 16 + 2 * k), b + (pixel * ROW / 16 + 2 * k));
    }
    wgmma_commit();
}

// What a pass has made, rounded, two numbers in a word: word[2 * y + r] is pixel (y, lane % 4 * 2 and the next) of the tile
// in row Moments::row() + 8 * r.
struct Pass {
    unsigned words[PIXELS / 4];
    uint4* out = nullptr;   // where the tile's first 128 bytes go
    int image, tall, wide;  // tall, wide: how much of the tile is within the picture

    // pitch: from one row of the tile to the next, in 16 bytes.
    __device__ void write(long long pitch, unsigned staging) const {
        const int thread = threadIdx.x % 128, warp = thread / 32, lane = thread % 32, matrix = lane / 8;
        warpgroup_barrier(1 + threadIdx.x / 128);  // all have read what the staging held
#pragma unroll
        for (int y = 0; y < TILE_H; y += 2) {  // [pixel][64 numbers]
            const int pixel = (y + matrix / 2) * TILE_W + lane % 8, g = warp * 2 + matrix % 2;
            asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(
                             staging + pixel * ROW + ((g ^ (pixel & 7)) << 4)),
                         "r"(words[2 * y]), "r"(words[2 * y + 1]), "r"(words[2 * y + 2]), "r"(words[2 * y + 3])
                         : "memory");
        }
        warpgroup_barrier(1 + threadIdx.x / 128);
        // 16 bytes a thread, always of the same column: two rows of the tile at once
        const int g = thread % 8, column = thread / 8 % TILE_W, y = thread / 64;
        const unsigned from = staging + (thread / 8) * ROW + ((g ^ column) << 4);
        uint4* const to = out + y * pitch + column * 8 + g;
        uint4 v[TILE_H / 2];
#pragma unroll
        for (int j = 0; j < TILE_H / 2; j++) v[j] = load_shared(from + 2 * j * TILE_W * ROW);
#pragma unroll
        for (int j = 0; j < TILE_H / 2; j++)
            if (y + 2 * j < tall && column < wide) to[2 * j * pitch] = v[j];
    }
};

__device__ void make_tiles(uint4* out, long long* sums, int tiles, int rows, int columns, unsigned weights, unsigned halos,
                           unsigned staging, unsigned full, unsigned empty) {
    const int self = threadIdx.x / 128;
    const long long line = columns * 8ll;  // of out, in 16 bytes
    Pass made;
    Moments moments;
    const auto finish = [&] {
        if (sums) moments.add(made.words, made.image, made.tall, made.wide, sums);
        made.write(UPSAMPLE ? 2 * line : line, staging);
    };
    for (int i = self;; i += CONSUMERS) {
        const Tile tile(i, rows, columns);
        if (tile.number >= tiles) break;
        const int buffer = i % HALOS;
        const long long top = static_cast<long long>(tile.image) * rows + tile.y0;
        barrier_wait(full + 8 * buffer, i / HALOS % 2);
#pragma unroll 1
        for (int pass = 0; pass < PASSES; pass++) {
            float d[PIXELS / 2];
            multiply(d, weights + pass * 64 * ROW, halos + buffer * HALO + pass * PITCH * ROW);
            if (made.out) finish();  // the pass before, while the tensor cores work on this one
            wgmma_wait<0>();
            if (pass == PASSES - 1 && threadIdx.x % 32 == 0) barrier_arrive(empty + 8 * buffer);
#pragma unroll
            for (int k = 0; k < PIXELS / 4; k++) made.words[k] = Packed<TYPE>::word(d[2 * k], d[2 * k + 1]);
            made.out = out + (UPSAMPLE ? 2 * top + pass : top) * line + tile.x0 * 8;
            made.image = tile.image, made.tall = rows - tile.y0, made.wide = columns - tile.x0;
        }
    }
    if (!made.out) return;
    finish();
    if (sums) moments.close(sums);
}

extern "C" __global__ void __launch_bounds__(THREADS, 1)
    conv2d_hopper_persistent(const TYPE* x, const float* affine, const unsigned char* weights, TYPE* out, long long* sums, int images, int height,
        int width, int rows, int columns) {
    extern __shared__ unsigned char raw[];
    __shared__ alignas(8) unsigned long long barriers[2 * HALOS + 1];  // full, empty, and the weights'
    const unsigned resident = (shared_address(raw) + 1023) & ~1023u, halos = resident + STEPS * STEP;
    const unsigned full = shared_address(barriers), empty = full + 8 * HALOS, loaded = empty + 8 * HALOS;
    launch_dependents();
    const int tiles = images * ((columns + TILE_W - 1) / TILE_W) * ((rows + TILE_H - 1) / TILE_H);
    if (threadIdx.x == 0) {
        for (int i = 0; i < HALOS; i++) {
            barrier_init(full + 8 * i, LOADERS / 32);  // a warp arrives as one
            barrier_init(empty + 8 * i, 4);
        }
        barrier_init(loaded, 1);
        barrier_init_done();
        barrier_expect(loaded, STEPS * STEP);
        bulk_copy(resident, weights, STEPS * STEP, loaded);
    }
    wait_for_earlier_kernels();  // all but the weights is theirs
    __syncthreads();
    if (threadIdx.x >= CONSUMERS * 128) {
        const int thread = threadIdx.x - CONSUMERS * 128, unit = thread % UNITS;
        const Loader loader = {reinterpret_cast<const uint4*>(x), reinterpret_cast<const float4*>(affine), height, width,
                               rows, columns, tiles, thread / UNITS, unit % GROUPS, unit / GROUPS};
        registers_to<LOADER_REGISTERS, false>();
        loader.run(halos, full, empty);
    } else {
        registers_to<CONSUMER_REGISTERS, true>();
        barrier_wait(loaded, 0);
        make_tiles(reinterpret_cast<uint4*>(out), sums, tiles, rows, columns, resident, halos,
                   halos + HALOS * HALO + threadIdx.x / 128 * STAGING, full, empty);
    }
}
