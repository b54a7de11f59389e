// The network's 9x9 convolutions from and to pictures of three channels, on Hopper's tensor cores.
//
//   conv2d_hopper_from_picture     picture -> raw sums of 32 channels and the sums of their planes
//   conv2d_hopper_to_picture       norm and ReLU of 32 channels -> picture
//
// pictures   [images][3][height][width] of PICTURE: float, __half, __nv_bfloat16, or unsigned char (0..255; what is written
//            is clamped and rounded to the nearest, NaN becomes 0). Both sides at least 5: reflection padding 4.
// x, out     NHWC, TYPE. affine [images][32][2]: scale and shift of x, or null (no norm, no ReLU). sums: as
//            common/plane_sums.cuh says, or null
// weights    [input row 10][row of D 64][group 4][8 numbers], group g of a row at g ^ (row >> 1 & 3)
// launch     grid (blocks, images): each block takes tiles blockIdx.x, blockIdx.x + gridDim.x, ...; block 256,
//            SHARED_BYTES of dynamic shared memory
//
// product    Three channels fill nothing that a tensor core has. Two things do: (1) 9 columns of the kernel times 3
//            channels are 27 of 32. From a picture they are k: each pixel's row in shared memory holds the 27 numbers of
//            its window's row. To a picture they are rows of D: P[dx, channel][pixel] for all columns of the halo, and
//            out[x] is the sum of P[dx][x + dx], in the epilogue. (2) Two rows of the picture are made at once: they
//            share nine of ten input rows, and fill the 64 rows of D. So D[2 x 32][64 pixels] takes 10 input rows x 32.
// The idea of (1) stands in the design of many first-layer kernels; cuDNN's is not known to us.
#include "common/hopper.cuh"
#include "common/packed.cuh"
#include "common/pictures.cuh"
#include "common/plane_sums.cuh"

#ifndef TYPE
#define TYPE __half
#endif
#ifndef PICTURE
#define PICTURE float
#endif
constexpr int THREADS = 256, KERNEL = 9, PAD = 4, CHANNELS = 32, INPUT_ROWS = KERNEL + 1, USED = 3 * KERNEL;
constexpr int TILE_H = 8, COLUMNS = 64, TILE_W = COLUMNS - KERNEL + 1;  // TILE_W: of the picture that is written
constexpr int HALO_H = TILE_H + KERNEL - 1, ROW = 64, LINE = COLUMNS * ROW;  // bytes of a pixel, of a row of pixels
constexpr int HALO_BYTES = HALO_H * LINE, WEIGHT_BYTES = INPUT_ROWS * 64 * ROW;
constexpr int SHARED_BYTES = HALO_BYTES + WEIGHT_BYTES + 1024;
constexpr int FLIGHT = 4;  // 16-byte loads that a thread has under way

__device__ int reflected(int i, int size) {  // twice: far outside only for tiles that hang over the edge
    i = i < 0 ? -i : i;
    i = i >= size ? 2 * size - 2 - i : i;
    return max(i, 0);
}

// The 16-byte group of a pixel in a row of pixels, all of shared memory that wgmma reads.
__device__ unsigned place(int pixel, int group) { return pixel * ROW + ((group ^ (pixel >> 1 & 3)) << 4); }

__device__ void store_group(unsigned to, uint4 v) {
    asm volatile("st.shared.v4.u32 [%0], {%1, %2, %3, %4};" ::"r"(to), "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w) : "memory");
}

// What both kernels do: weights once, and the products of four pairs of rows, two for each warpgroup.
struct Block {
    unsigned halo, weights, full;
    int group, warp, lane;

    __device__ Block(unsigned char* raw, unsigned long long* barrier, const unsigned char* from)
        : halo((shared_address(raw) + 1023) & ~1023u),
          weights(halo + HALO_BYTES),
          full(shared_address(barrier)),
          group(threadIdx.x / 128),
          warp(threadIdx.x / 32 % 4),
          lane(threadIdx.x % 32) {
        if (threadIdx.x == 0) {
            barrier_init(full, 1);
            barrier_init_done();
            barrier_expect(full, WEIGHT_BYTES);
            bulk_copy(weights, from, WEIGHT_BYTES, full);
        }
        __syncthreads();
    }

    // d[p]: rows 2 * (2 * group + p) and the next of the tile. The halo is there, and free again when all have returned.
    __device__ void multiply(float (&d)[2][32]) const {
        barrier_wait(full, 0);
        for (int p = 0; p < 2; p++)
            for (int i = 0; i < 32; i++) d[p][i] = 0.0f;
        wgmma_fence();
#pragma unroll
        for (int j = 0; j < INPUT_ROWS; j++)
#pragma unroll
            for (int p = 0; p < 2; p++)
#pragma unroll
                for (int k = 0; k < 2; k++)
                    Wgmma<TYPE>::m64n64k16(d[p], tile_address<ROW>(weights + j * 64 * ROW, 8 * ROW) + 2 * k,
                                           tile_address<ROW>(halo + (4 * group + 2 * p + j) * LINE, 8 * ROW) + 2 * k);
        wgmma_commit();
        wgmma_wait<0>();
        __syncthreads();
    }
};

// ---------------------------------------------------------------------------------------------------------------------
// From a picture

constexpr int SPAN = COLUMNS + KERNEL - 1;         // pixels that a row of the tile's windows needs
constexpr int WORDS = (3 * (COLUMNS - 1) + 32) / 2 + 1;  // 16-bit numbers of such a row, in words, and up to 32 of the last

struct Windows {
    unsigned numbers[HALO_H][WORDS];  // colour by colour of pixel after pixel

    __device__ void load(const PICTURE* picture, int y0, int x0, int height, int width) {
        const long long plane = static_cast<long long>(height) * width;
        TYPE* const first = reinterpret_cast<TYPE*>(numbers);
        for (int i = threadIdx.x; i < HALO_H * SPAN; i += THREADS) {
            const int y = i / SPAN, x = i % SPAN;
            const PICTURE* from = picture + static_cast<long long>(reflected(y0 - PAD + y, height)) * width +
                                  reflected(x0 - PAD + x, width);
            for (int c = 0; c < 3; c++) first[y * 2 * WORDS + 3 * x + c] = to<TYPE>(number_of(from[c * plane]));
        }
        for (int i = threadIdx.x; i < HALO_H * 2 * WORDS; i += THREADS)  // multiplied by zero, and so numbers
            if (i % (2 * WORDS) >= 3 * SPAN) first[i] = to<TYPE>(0.0f);
    }

    // Pixel x's row: numbers 3x to 3x + 31, which begin in the middle of a word where x is odd.
    __device__ void spread(unsigned halo) const {
        const int group = threadIdx.x % 4, x = threadIdx.x / 4, start = (3 * x + 8 * group) / 2;
        for (int y = 0; y < HALO_H; y++) {
            const unsigned* from = numbers[y] + start;
            uint4 v = {from[0], from[1], from[2], from[3]};
            if (x % 2)
                v = {__funnelshift_r(v.x, v.y, 16), __funnelshift_r(v.y, v.z, 16), __funnelshift_r(v.z, v.w, 16),
                     __funnelshift_r(v.w, from[4], 16)};
            store_group(halo + y * LINE + place(x, group), v);
        }
        fence_async();
    }
};

// The sums of a row of D over the tile's columns: four lanes have 16 pixels each, and all get the result.
__device__ double2 row_sums(const float (&d)[32], int first, int width) {
    const int x = threadIdx.x % 4 * 2;
    const float pivot = __shfl_sync(~0u, d[first], threadIdx.x & 28);  // of the first pixel, which is inside
    float rest = 0.0f, m2 = 0.0f;
#pragma unroll
    for (int i = 0; i < 8; i++)
        for (int e = 0; e < 2; e++) {
            const float distance = 8 * i + x + e < width ? d[4 * i + first + e] - pivot : 0.0f;
            rest += distance;
            m2 = fmaf(distance, distance, m2);
        }
    for (int lanes = 1; lanes < 4; lanes *= 2) {
        rest += __shfl_xor_sync(~0u, rest, lanes);
        m2 += __shfl_xor_sync(~0u, m2, lanes);
    }
    return tile_sums(min(width, COLUMNS), pivot, rest, m2);
}

extern "C" __global__ void __launch_bounds__(THREADS, 2)
    conv2d_hopper_from_picture(const PICTURE* __restrict__ x, const unsigned char* __restrict__ weights,
        TYPE* __restrict__ out, long long* sums, int height, int width) {
    extern __shared__ unsigned char raw[];
    __shared__ alignas(8) unsigned long long full;
    __shared__ Windows windows;
    const Block at(raw, &full, weights);
    const int across = (width + COLUMNS - 1) / COLUMNS, tiles = (height + TILE_H - 1) / TILE_H * across;
    const long long plane = static_cast<long long>(height) * width;
    uint4* const target = reinterpret_cast<uint4*>(out) + blockIdx.y * plane * 4;
    // In the halo's place: the tile's pixels, and beside them the sums of the rows of D.
    double2* const rows_done = reinterpret_cast<double2*>(raw + (at.halo - shared_address(raw)) + TILE_H * LINE);
    double2 total = {};  // of channel threadIdx.x, over this block's tiles in their order
    for (int tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
        const int y0 = tile / across * TILE_H, x0 = tile % across * COLUMNS;
        windows.load(x + blockIdx.y * 3 * plane, y0, x0, height, width);
        __syncthreads();
        windows.spread(at.halo);
        __syncthreads();
        float d[2][32];
        at.multiply(d);
        const int matrix = at.lane / 8, line = at.lane % 8;
#pragma unroll
        for (int p = 0; p < 2; p++) {
            const int y = 4 * at.group + 2 * p + at.warp / 2, row = at.warp * 16 + at.lane / 4;  // row of D
            if (sums) {
                round_to<TYPE>(d[p]);  // the statistics are those of what is written
                double2 one = {}, other = {};
                if (y0 + y < height) one = row_sums(d[p], 0, width - x0), other = row_sums(d[p], 2, width - x0);
                double2* const done = rows_done + (2 * at.group + p) * 64 + row;
                if (at.lane % 4 == 0) done[0] = one, done[8] = other;
            }
#pragma unroll
            for (int i = 0; i < 8; i += 2) {
                const int pixel = (i + matrix / 2) * 8 + line, g = at.warp % 2 * 2 + matrix % 2;
                asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(
                                 at.halo + y * LINE + place(pixel, g)),
                             "r"(Packed<TYPE>::word(d[p][4 * i], d[p][4 * i + 1])),
                             "r"(Packed<TYPE>::word(d[p][4 * i + 2], d[p][4 * i + 3])),
                             "r"(Packed<TYPE>::word(d[p][4 * i + 4], d[p][4 * i + 5])),
                             "r"(Packed<TYPE>::word(d[p][4 * i + 6], d[p][4 * i + 7]))
                             : "memory");
            }
        }
        __syncthreads();
        if (sums && threadIdx.x < CHANNELS)
            for (int r = threadIdx.x; r < 4 * 64; r += CHANNELS) total = {total.x + rows_done[r].x, total.y + rows_done[r].y};
        const int g = threadIdx.x % 4, pixel = threadIdx.x / 4;
#pragma unroll
        for (int y = 0; y < TILE_H; y++) {
            uint4 v;
            asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
                         : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                         : "r"(at.halo + y * LINE + place(pixel, g))
                         : "memory");
            if (y0 + y < height && x0 + pixel < width) target[(static_cast<long long>(y0 + y) * width + x0 + pixel) * 4 + g] = v;
        }
        __syncthreads();
    }
    if (sums && threadIdx.x < CHANNELS && blockIdx.x < tiles)
        add_to_plane(sums + static_cast<long long>(blockIdx.y) * PLANE_WORDS, CHANNELS, threadIdx.x, blockIdx.x, total);
}

// ---------------------------------------------------------------------------------------------------------------------
// To a picture

constexpr int PITCH = 72;  // floats of a row of P: 8 rows of 4 pairs fall into different banks
static_assert(4 * 2 * USED * PITCH * 4 <= HALO_BYTES, "P takes the halo's place");

__device__ void load_halo(const uint4* x, const float4* affine, unsigned halo, int y0, int x0, int height, int width) {
    const int group = threadIdx.x % 4, column = threadIdx.x / 4;
    x += (static_cast<long long>(blockIdx.y) * height * width + reflected(x0 - PAD + column, width)) * 4 + group;
    float4 mine[4];  // scale and shift of this thread's eight channels
    if (affine)
        for (int k = 0; k < 4; k++) mine[k] = __ldg(affine + (blockIdx.y * 4 + group) * 4 + k);
    const auto normalised = [&](unsigned word, int k) {
        const float2 v = Packed<TYPE>::floats(word);
        return Packed<TYPE>::relu_word(fmaf(v.x, mine[k].x, mine[k].y), fmaf(v.y, mine[k].z, mine[k].w));
    };
    for (int first = 0; first < HALO_H; first += FLIGHT) {
        uint4 value[FLIGHT];
#pragma unroll
        for (int j = 0; j < FLIGHT; j++)
            value[j] = __ldg(x + static_cast<long long>(reflected(y0 - PAD + first + j, height)) * width * 4);
#pragma unroll
        for (int j = 0; j < FLIGHT; j++) {
            uint4 v = value[j];
            if (affine) v = {normalised(v.x, 0), normalised(v.y, 1), normalised(v.z, 2), normalised(v.w, 3)};
            store_group(halo + (first + j) * LINE + place(column, group), v);
        }
    }
    fence_async();
}

extern "C" __global__ void __launch_bounds__(THREADS, 2)
    conv2d_hopper_to_picture(const TYPE* __restrict__ x, const float* __restrict__ affine,
        const unsigned char* __restrict__ weights, const float* __restrict__ bias, PICTURE* __restrict__ out, int height,
        int width) {
    extern __shared__ unsigned char raw[];
    __shared__ alignas(8) unsigned long long full;
    const Block at(raw, &full, weights);
    const int across = (width + TILE_W - 1) / TILE_W, tiles = (height + TILE_H - 1) / TILE_H * across;
    const long long plane = static_cast<long long>(height) * width;
    out += blockIdx.y * 3 * plane;
    float* const sums = reinterpret_cast<float*>(raw + (at.halo - shared_address(raw)));  // P
    for (int tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
        const int y0 = tile / across * TILE_H, x0 = tile % across * TILE_W;
        load_halo(reinterpret_cast<const uint4*>(x), reinterpret_cast<const float4*>(affine), at.halo, y0, x0, height, width);
        __syncthreads();
        float d[2][32];
        at.multiply(d);
#pragma unroll
        for (int p = 0; p < 2; p++)
#pragma unroll
            for (int half = 0; half < 2; half++) {
                const int row = at.warp % 2 * 16 + half * 8 + at.lane / 4, y = 4 * at.group + 2 * p + at.warp / 2;
                float2* const to = reinterpret_cast<float2*>(sums + (y * USED + row) * PITCH + at.lane % 4 * 2);
                if (row < USED)
#pragma unroll
                    for (int i = 0; i < 8; i++) to[4 * i] = {d[p][4 * i + 2 * half], d[p][4 * i + 2 * half + 1]};
            }
        __syncthreads();
        for (int i = threadIdx.x; i < 3 * TILE_H * TILE_W; i += THREADS) {
            const int column = i % TILE_W, y = i / TILE_W % TILE_H, c = i / (TILE_W * TILE_H);
            float sum = bias ? bias[c] : 0.0f;
#pragma unroll
            for (int dx = 0; dx < KERNEL; dx++) sum += sums[(y * USED + 3 * dx + c) * PITCH + column + dx];
            if (y0 + y < height && x0 + column < width)
                out[c * plane + static_cast<long long>(y0 + y) * width + x0 + column] = picture_of<PICTURE>(sum);
        }
        __syncthreads();
    }
}
