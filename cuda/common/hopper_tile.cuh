// A tile of a 3x3 convolution of 16-bit numbers on Hopper's tensor cores, step by step: what the kernels are made of.
//
//   Tile                     which tile of which image: its first pixel
//   load_halo<Load>()        its pixels and their neighbours to shared memory: reflected, normalised, once for all taps
//   Ring                     the weights' way to shared memory: a ring of STAGES steps
//   multiply()               the products of all taps
//   tile_statistics()        the sums of its planes, for common/plane_sums.cuh
//   stage(), write_staged()  its numbers to shared memory as whole pixels, and from there to global memory
//
// compiled   for one layer: CHANNELS_IN, CHANNELS_OUT, STRIDE, UPSAMPLE, TYPE. See LAYERS below
// launch     blocks of THREADS: two warpgroups, each with 64 rows of the product
//
// product    D[row][pixel] = W[row][k] X[pixel][k]: pixels are the columns, because 16 rows x 8 columns of them can be
//            addressed as they lie in shared memory. A pixel is a row of 128 bytes (64 numbers). The halo is loaded and
//            normalised once, and every tap of the convolution is only another start address in it.
// weights    [phase][step][row][group 8][8 numbers], the order in which they are used; group g of a row at g ^ (row & 7)
// LAYERS     what the 2 x 64 rows of D are, and which k they share
//            128 -> 128           rows: output channels. 2 chunks of 64 input channels x 9 taps
//            128 -> 64, doubled   rows: phase in x (0, 1), channel; a product for each phase in y. 2 chunks x 4 taps
//            64 -> 128, stride 2  rows: output channels. Even and odd columns of the halo lie apart, so that a tap's
//                                 pixels lie together. 9 taps
// doubling   Nearest neighbour, reflection and 3x3 are 2x2 on the small picture with edges repeated; the four phases
//            differ in their weights, which are folded on the host.
#pragma once
#include "hopper.cuh"
#include "packed.cuh"
#include "plane_sums.cuh"
#include "programmatic_launch.cuh"

#ifndef TYPE
#define TYPE __half
#endif
constexpr int THREADS = 256, TILE_H = 16, TILE_W = 8, ROW = 128;  // ROW: bytes of a pixel, or of half of one
constexpr bool APART = STRIDE == 2;                               // even and odd columns apart
constexpr int PHASES = UPSAMPLE ? 2 : 1;                          // phases in y, one after the other or in other blocks
constexpr int CHUNKS = CHANNELS_IN == 128 ? 2 : 1;
constexpr int TAPS_Y = UPSAMPLE ? 2 : 3, TAPS_X = TAPS_Y, STEPS = CHUNKS * TAPS_Y * TAPS_X;
constexpr int HALO_H = (TILE_H - 1) * STRIDE + 3, HALO_W = (TILE_W - 1) * STRIDE + 3;
constexpr int PITCH = APART ? 18 : 10;  // rows of 128 bytes in a row of the halo
constexpr int CHUNK = (HALO_H * PITCH * ROW + 1023) / 1024 * 1024, STEP = 128 * ROW;
#ifndef STAGES
#define STAGES (APART ? 2 : 4)  // two blocks on a multiprocessor leave room for so many
#endif
#ifndef RESIDENT
#define RESIDENT 2
#endif
constexpr int TILE_BYTES = CHUNKS * CHUNK, SHARED_BYTES = TILE_BYTES + STAGES * STEP + 1024;
constexpr int GROUPS = CHANNELS_IN / 8, LINES = THREADS / GROUPS;  // 16-byte groups of a pixel; pixels loaded at once
constexpr int LOADS = (HALO_H * HALO_W + LINES - 1) / LINES;
static_assert(SHARED_BYTES <= 113 * 1024, "two blocks are to fit on a multiprocessor");

// Where a pixel of the halo lies, in rows of 128 bytes.
__device__ int place(int y, int x) {
    return y * PITCH + (APART ? x % 2 * 9 + x / 2 : x);
}

// Where the pixels of a tap begin.
__device__ int tap_place(int dy, int dx) { return dy * PITCH + (APART ? dx % 2 * 9 + dx / 2 : dx); }

__device__ int inside(int i, int size) {  // reflected, or repeated; beyond a reflection only pixels that nobody keeps
    if (!UPSAMPLE) i = i < 0 ? -i : i >= size ? 2 * size - 2 - i : i;
    return min(max(i, 0), size - 1);
}
struct Tile {
    int image, y0, x0;  // rows and columns of the output, before doubling
    int thread;         // threadIdx.x
};

// What happens to a number on its way in; `affine` are scale, shift, scale, shift of two channels.
//   norm, relu, residual    v = x * scale + shift, + residual, ReLU
//   fresh                   x was written by other blocks of this launch: past the caches of this multiprocessor
//   keeps                   v is also written to memory
//   flight                  so many of a thread's LOADS are under way at once: fewer wait more often, more cost registers
template <class Load>
__device__ unsigned loaded(unsigned word, float4 affine, unsigned residual) {
    float2 v = Packed<TYPE>::floats(word);
    if (Load::norm) v = {fmaf(v.x, affine.x, affine.y), fmaf(v.y, affine.z, affine.w)};
    if (Load::residual) {
        const float2 r = Packed<TYPE>::floats(residual);
        v = {v.x + r.x, v.y + r.y};
    }
    return Load::relu ? Packed<TYPE>::relu_word(v.x, v.y) : Packed<TYPE>::word(v.x, v.y);
}

template <class Load>
__device__ uint4 loaded(uint4 v, const float4 (&affine)[4], uint4 r) {
    if (!(Load::norm || Load::residual || Load::relu)) return v;
    return {loaded<Load>(v.x, affine[0], r.x), loaded<Load>(v.y, affine[1], r.y), loaded<Load>(v.z, affine[2], r.z),
            loaded<Load>(v.w, affine[3], r.w)};
}

struct Input {
    const uint4 *x, *residual;
    uint4* kept;  // where v is written as well, if Load keeps it
    int height, width;
};

// Load the halo of a tile into `halo`. affine: of the eight channels of group threadIdx.x % GROUPS.
template <class Load>
__device__ void load_halo(const Input& in, const float4 (&affine)[4], unsigned halo, const Tile& tile) {
    const int group = tile.thread % GROUPS, line = tile.thread / GROUPS;
    const long long image = static_cast<long long>(tile.image) * in.height * in.width * GROUPS + group;
    // Where all pixels lie in their order, those of a thread are a multiple of eight apart, and swizzled alike.
    static_assert(APART || (PITCH == HALO_W && LINES % 8 == 0));
    const unsigned chunk = halo + group / 8 * CHUNK, own = chunk + line * ROW + ((group % 8 ^ (line & 7)) << 4);
    const auto to = [&](int j) {  // where the thread's pixel j lies
        const int p = line + j * LINES, row = place(p / HALO_W, p % HALO_W);
        return APART ? chunk + row * ROW + ((group % 8 ^ (row & 7)) << 4) : own + j * (LINES * ROW);
    };
    for (int first = 0; first < LOADS; first += Load::flight) {
        uint4 value[Load::flight], other[Load::flight];
        unsigned from[Load::flight];  // within the image: 2^32 groups are 64 GiB
#pragma unroll
        for (int j = 0; j < Load::flight; j++) {
            const int p = line + (first + j) * LINES, y = p / HALO_W, x = p % HALO_W;
            from[j] = (inside(tile.y0 * STRIDE - 1 + y, in.height) * static_cast<unsigned>(in.width) +
                       inside(tile.x0 * STRIDE - 1 + x, in.width)) * GROUPS;
            const uint4* const pixel = in.x + image + from[j];
            if (p >= HALO_H * HALO_W) continue;
            if (Load::residual) {  // x goes straight to where it is to lie: the registers are for what is added
                copy_async(to(first + j), pixel);
                other[j] = load_earlier(in.residual + image + from[j]);
            } else
                value[j] = Load::fresh ? __ldcg(pixel) : load_earlier(pixel);
        }
        if (Load::residual) copies_commit(), copies_wait<0>();
#pragma unroll
        for (int j = 0; j < Load::flight; j++) {
            const int p = line + (first + j) * LINES, y = p / HALO_W, x = p % HALO_W;
            if (p >= HALO_H * HALO_W) continue;
            const uint4 was = Load::residual ? load_shared(to(first + j)) : value[j];
            const uint4 v = loaded<Load>(was, affine, Load::residual ? other[j] : uint4{});
            store_shared(to(first + j), v);
            if (Load::keeps && y >= 1 && y <= TILE_H && x >= 1 && x <= TILE_W && tile.y0 + y <= in.height &&
                tile.x0 + x <= in.width)
                in.kept[image + from[j]] = v;
        }
    }
    fence_async();  // the tensor cores read by another way than the stores went
}

// The weights' way to shared memory. Steps are numbered through a block's life: step s lies in stage s % STAGES.
struct Ring {
    unsigned memory, full;  // addresses of STAGES * STEP bytes, and of STAGES barriers

    __device__ void init() const {
        for (int i = 0; i < STAGES; i++) barrier_init(full + i * 8, 1);
        barrier_init_done();
    }
    __device__ void fetch(unsigned step, const unsigned char* weights) const {  // one thread
        const unsigned stage = step % STAGES;
        barrier_expect(full + stage * 8, STEP);
        bulk_copy(memory + stage * STEP, weights, STEP, full + stage * 8);
    }
    __device__ unsigned wait(unsigned step) const {  // -> the step's stage
        const unsigned stage = step % STAGES;
        barrier_wait(full + stage * 8, step / STAGES % 2);
        return stage;
    }
};

// d += the products of a tile, whose first step is `begin`. fetch(step) starts the copy of a step, if there is such.
template <class Fetch>
__device__ void multiply(float (&d)[64], const Ring& ring, int begin, unsigned halo, int phase, const Fetch& fetch) {
    // Descriptors count addresses in 16 bytes: what follows the first of each is so much further on. From lane 0, so that
    // the compiler knows them to be the same in all, and adds once a warp.
    const unsigned group = __shfl_sync(~0u, threadIdx.x / 128, 0);
    const unsigned pixels = halo + (UPSAMPLE ? tap_place(phase, group) : 0) * ROW;  // a warpgroup has one phase in x
    const unsigned long long a = tile_address<ROW>(__shfl_sync(~0u, ring.memory + group * 64 * ROW, 0), 8 * ROW);
    const unsigned long long b = tile_address<ROW>(__shfl_sync(~0u, pixels, 0), STRIDE * PITCH * ROW);
    for (int chunk = 0; chunk < CHUNKS; chunk++) {
        const unsigned long long from = b + chunk * (CHUNK / 16);
#pragma unroll
        for (int tap = 0; tap < TAPS_Y * TAPS_X; tap++) {
            const int step = begin + chunk * TAPS_Y * TAPS_X + tap;
            const unsigned stage = ring.wait(step);
            const unsigned long long at = a + stage * (STEP / 16);
            wgmma_fence();
            const int pixel = tap_place(tap / TAPS_X, tap % TAPS_X);
#pragma unroll
            for (int k = 0; k < 4; k++)  // 16 numbers, 32 bytes further on
                Wgmma<TYPE>::m64n128k16(d, at + 2 * k, from + (pixel * ROW / 16 + 2 * k));
            wgmma_commit();
            wgmma_wait<1>();  // the step before is done with its weights
            __syncthreads();
            if (threadIdx.x == 0) fetch(step + STAGES - 1);
        }
    }
    wgmma_wait<0>();
    __syncthreads();
}

// ---------------------------------------------------------------------------------------------------------------------
// What becomes of the products: d[4 * y + e], e = 0, 1, is row `first_row()`, pixel (y, lane % 4 * 2 + e) of the tile (or
// of the warpgroup's half of it); e = 2, 3: row first_row() + 8.

__device__ int first_row() { return threadIdx.x / 128 * 64 + threadIdx.x / 32 % 4 * 16 + threadIdx.x % 32 / 4; }

// The numbers as they are written, two in a word: word[2 * y + half] are the two of row first_row() + 8 * half.
struct Words {
    unsigned word[32];
};

__device__ Words rounded(const float (&d)[64]) {
    Words words;
#pragma unroll
    for (int i = 0; i < 32; i++) words.word[i] = Packed<TYPE>::word(d[2 * i], d[2 * i + 1]);
    return words;
}

// The sums of a row of D (a plane of out) over the tile's pixels, of which four lanes have 32 each: what tile_sums takes,
// for all four. They are those of what is written: a constant plane has no variance. WHOLE: the tile is within the picture.
template <bool WHOLE>
__device__ float4 row_sums(const Words& words, int half, int height, int width) {
    const int x = threadIdx.x % 4 * 2;
    const float first = Packed<TYPE>::floats(words.word[half]).x;
    const float pivot = __shfl_sync(~0u, first, threadIdx.x & 28);  // of the first pixel, which is always inside
    float rest = 0.0f, m2 = 0.0f;
#pragma unroll
    for (int y = 0; y < TILE_H; y++) {
        const float2 pair = Packed<TYPE>::floats(words.word[2 * y + half]);
        for (int e = 0; e < 2; e++)
            if (WHOLE || (y < height && x + e < width)) {
                const float distance = (e ? pair.y : pair.x) - pivot;
                rest += distance;
                m2 = fmaf(distance, distance, m2);
            }
    }
    for (int lanes = 1; lanes < 4; lanes *= 2) {
        rest += __shfl_xor_sync(~0u, rest, lanes);
        m2 += __shfl_xor_sync(~0u, m2, lanes);
    }
    return {static_cast<float>(WHOLE ? TILE_H * TILE_W : min(height, TILE_H) * min(width, TILE_W)), pivot, rest, m2};
}

// Put the sums of the rows of D into rows_done[128]. rows, columns: of the output.
__device__ void tile_statistics(const Words& words, float4* rows_done, const Tile& tile, int rows, int columns) {
    const int tall = rows - tile.y0, wide = columns - tile.x0, row = first_row();
    float4 one, other;
    if (tall >= TILE_H && wide >= TILE_W)
        one = row_sums<true>(words, 0, tall, wide), other = row_sums<true>(words, 1, tall, wide);
    else
        one = row_sums<false>(words, 0, tall, wide), other = row_sums<false>(words, 1, tall, wide);
    if (threadIdx.x % 4 == 0) rows_done[row] = one, rows_done[row + 8] = other;
}

// After a barrier: the rows of D that are one channel, in a fixed order, to the planes of an image. Only here are they
// doubles: a thread has one row or two, not two of them four times over.
__device__ void add_statistics(const float4* rows_done, long long* sums, int slot) {
    if (threadIdx.x >= CHANNELS_OUT) return;
    double2 all = {};
#pragma unroll
    for (int i = 0; i < 128 / CHANNELS_OUT; i++) {
        const float4 row = rows_done[i * CHANNELS_OUT + threadIdx.x];
        const double2 one = tile_sums(row.x, row.y, row.z, row.w);
        all = i == 0 ? one : double2{all.x + one.x, all.y + one.y};
    }
    add_to_plane(sums, CHANNELS_OUT, threadIdx.x, slot, all);
}

constexpr int STAGED_BYTES = 2 * 128 * ROW;  // of a tile as whole pixels: [half][pixel 128][64 numbers], swizzled as ever

__device__ void stage(const Words& words, unsigned staged) {
    const unsigned half = staged + threadIdx.x / 128 * 128 * ROW;
    const int warp = threadIdx.x / 32 % 4, matrix = threadIdx.x % 32 / 8, line = threadIdx.x % 8;
#pragma unroll
    for (int y = 0; y < TILE_H; y += 2) {
        const int pixel = (y + matrix / 2) * TILE_W + line, g = warp * 2 + matrix % 2;
        asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(
                         half + pixel * ROW + ((g ^ (pixel & 7)) << 4)),
                     "r"(words.word[2 * y]), "r"(words.word[2 * y + 1]), "r"(words.word[2 * y + 2]),
                     "r"(words.word[2 * y + 3])
                     : "memory");
    }
}

__device__ uint4 staged_group(unsigned staged, int half, int pixel, int g) {
    uint4 v;
    asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "r"(staged + half * 128 * ROW + pixel * ROW + ((g ^ (pixel & 7)) << 4))
                 : "memory");
    return v;
}

// The staged tile to out, 16 bytes a thread.
__device__ void write_staged(unsigned staged, TYPE* out, const Tile& tile, int rows, int columns, int phase = 0) {
    constexpr int OUT_GROUPS = 16;  // of a pixel, or doubled of two neighbouring ones: both halves
    uint4* target = reinterpret_cast<uint4*>(out) +
                    static_cast<long long>(tile.image) * rows * columns * OUT_GROUPS * (UPSAMPLE ? 2 : 1);
#pragma unroll
    for (int j = 0; j < 8; j++) {
        const int id = tile.thread + j * THREADS, g = id % 8, part = id / 8 % 2;
        const int pixel = id / 16;
        const int y = tile.y0 + pixel / TILE_W, at = tile.x0 + pixel % TILE_W;
        const uint4 v = staged_group(staged, part, pixel, g);
        const int line_out = UPSAMPLE ? 2 * y + phase : y;
        if (y < rows && at < columns)
            target[(static_cast<long long>(line_out) * columns + at) * OUT_GROUPS + part * 8 + g] = v;
    }
}
