// The first layer: reflection padding and a KERNEL x KERNEL convolution of a picture, NCHW with 3 channels, to NHWC; on
// tensor cores, with the statistics of its output.
//
//   out[n][y][x][k] = bias[k] + sum over dy, dx, c of picture[n][c][reflect(y + dy - PAD)][reflect(x + dx - PAD)] * W[k][c][dy][dx]
//
// x          [images][3][height][width] of PICTURE: unsigned char, float, __half or __nv_bfloat16, in 0..255. Rounded
//            to NUMBER once, which is exact for whole numbers up to 256. No separate conversion, no padded copy.
// weight     packed: [chunk][column C_OUT][16 bytes], see ops/conv2d_ends.py.
// out, bias, norm, switches, launch       as in conv2d.cu; STRIDE 1.
// products   three channels fill no fragment, so a row of the product is a stretch of the kernel's row: a pixel is four
//            numbers, the fourth 0, and 16 bytes (a chunk) are two pixels of 16 bits or one of TF32. A kernel row of 9
//            is 5 chunks, its tenth pixel multiplied by 0: 243 of 368 products of a 16-bit number count, 243 of 328 in TF32.
//            (What is not finite in the tenth pixel spoils its neighbour too.)
// banks      ldmatrix wants rows at multiples of 16 bytes, and pixels of 8 lie there only if even. So the halo of 16-bit
//            numbers is stored twice, the second time one pixel earlier and half the banks further.
#include "common/layer.cuh"
#include "common/pictures.cuh"

#ifndef PICTURE
#define PICTURE unsigned char
#endif

struct Shape : Launch {
    static constexpr int phases = 1, kernel = KERNEL, pad = KERNEL / 2;
};
#include "common/epilogue.cuh"

using S = Shape;
using Number = Shape::type;

constexpr int COPIES = LANES<Number> / 4;  // pixels in a chunk, and so copies of the halo
constexpr int ROW_CHUNKS = (S::kernel + COPIES - 1) / COPIES;
constexpr int CHUNKS = (S::kernel * ROW_CHUNKS + 1) / 2 * 2;  // of a product's row; two make one mma
constexpr int HALO_H = S::tile_h + S::kernel - 1;
constexpr int PITCH = (S::tile_w + COPIES * ROW_CHUNKS - 1 + 1) / 2 * 2;                    // pixels
constexpr int COPY_BYTES = (HALO_H * PITCH * 16 / COPIES + 127) / 128 * 128 + 64 * (COPIES - 1);  // see banks
constexpr int HALO_BYTES = (COPIES * COPY_BYTES + 127) / 128 * 128;
constexpr int WEIGHT_BYTES = CHUNKS * S::columns * 16;
constexpr int USED = HALO_BYTES + WEIGHT_BYTES;
constexpr int STAGING = USED > Sums::STAGING_BYTES ? USED : Sums::STAGING_BYTES;  // in the place of halo and weights
static_assert(S::columns == S::c_out && S::warps_n == 1, "one pass");

// The chunk's first pixel, beyond a pixel's first.
__device__ inline int chunk_pixel(int chunk) {
    return chunk < S::kernel * ROW_CHUNKS ? chunk / ROW_CHUNKS * PITCH + chunk % ROW_CHUNKS * COPIES : 0;
}

__device__ void load_picture(const Place& at, const PICTURE* picture, unsigned halo) {
    const long long plane = (long long)at.layer.height * at.layer.width;
    picture += at.image * 3 * plane;
    constexpr int COUNT = HALO_H * PITCH, TURNS = (COUNT + S::threads - 1) / S::threads;
    PICTURE value[TURNS][3];
#pragma unroll
    for (int i = 0; i < TURNS; i++) {  // all loads are on their way before the first is waited for
        const int p = at.thread + i * S::threads;
        const int y = reflected(at.y0 + p / PITCH - S::pad, at.layer.height);
        const int x = reflected(at.x0 + p % PITCH - S::pad, at.layer.width);
#pragma unroll
        for (int c = 0; c < 3; c++)
            if (p < COUNT) value[i][c] = picture[c * plane + (long long)y * at.layer.width + x];
    }
#pragma unroll
    for (int i = 0; i < TURNS; i++) {
        const int p = at.thread + i * S::threads;
        if (p >= COUNT) break;
        Group<Number> pixel;
#pragma unroll
        for (int c = 0; c < 3; c++) pixel.number[c] = rounded<Number>(number_of(value[i][c]));
        pixel.number[3] = to<Number>(0.0f);
        if constexpr (COPIES == 1) {
            store_shared(halo + p * 16, pixel.whole);
        } else {
            const auto put = [&](int to) {
                asm volatile("st.shared.v2.u32 [%0], {%1, %2};" ::"r"(halo + to), "r"(pixel.whole.x), "r"(pixel.whole.y)
                             : "memory");
            };
            put(p * 8);
            if (p > 0) put(COPY_BYTES + (p - 1) * 8);
        }
    }
    // The last pixel of the second copy is read, and multiplied by 0: it must be a number.
    if (COPIES == 2 && at.thread == 0)
        asm volatile("st.shared.v2.u32 [%0], {%1, %1};" ::"r"(halo + COPY_BYTES + (HALO_H * PITCH - 1) * 8), "r"(0)
                     : "memory");
}

__device__ void multiply(Sums& sums, unsigned halo, unsigned weights) {
    const int lane = sums.at.lane, matrix = lane / 8, row = lane % 8;  // as in implicit_gemm.cuh
    unsigned pixel[Sums::MT];
#pragma unroll
    for (int mt = 0; mt < Sums::MT; mt++) {
        const int m = sums.warp_m * Sums::WARP_M + mt * 16 + matrix % 2 * 8 + row;
        const int p = m / S::tile_w * PITCH + m % S::tile_w;
        pixel[mt] = halo + (COPIES == 1 ? p * 16 : p % 2 * COPY_BYTES + p / 2 * 16);
    }
    sums.clear();
#pragma unroll
    for (int chunk = 0; chunk < CHUNKS; chunk += 2) {
        unsigned b[Sums::NT / 2][4], a[Sums::MT][4];
#pragma unroll
        for (int nt = 0; nt < Sums::NT / 2; nt++)
            load_matrices(b[nt], weights + ((chunk + matrix % 2) * S::columns + nt * 16 + matrix / 2 * 8 + row) * 16);
        const int beyond = (matrix / 2 ? chunk_pixel(chunk + 1) : chunk_pixel(chunk)) * 16 / COPIES;
#pragma unroll
        for (int mt = 0; mt < Sums::MT; mt++) load_matrices(a[mt], pixel[mt] + beyond);
#pragma unroll
        for (int mt = 0; mt < Sums::MT; mt++)
#pragma unroll
            for (int n = 0; n < Sums::NT; n++)
                product<Number>(sums.sums[mt][n], a[mt], b[n / 2][n % 2 * 2], b[n / 2][n % 2 * 2 + 1]);
    }
}

extern "C" __global__ void __launch_bounds__(Shape::threads, BLOCKS)
    conv2d_from_picture(const PICTURE* __restrict__ x, const Number* __restrict__ weight,
        const float* __restrict__ bias, Number* __restrict__ out, long long* sums, int height, int width) {
    extern __shared__ __align__(128) char dynamic[];
    const unsigned halo = shared_address(dynamic), weights = halo + HALO_BYTES;
    const Layer layer = {x, nullptr, nullptr, nullptr, weight, bias, out, sums, height, width, height, width};
    const Place at(layer, S::tile_h, S::tile_w);
    Sums tile(at, halo, reinterpret_cast<double2*>(dynamic + STAGING));
    for (int byte = at.thread * 16; byte < WEIGHT_BYTES; byte += S::threads * 16)
        copy_16(weights + byte, reinterpret_cast<const char*>(weight) + byte);
    commit_copies();
    load_picture(at, x, halo);
    await_copies<0>();
    __syncthreads();
    multiply(tile, halo, weights);
    tile.finish(0);
}
