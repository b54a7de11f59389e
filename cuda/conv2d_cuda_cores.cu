// Convolution in exact float32, on the CUDA cores of any card: each layer of the network, its neighbours fused in.
//
//   out[n][y][x][k] = bias[k] + sum over c, dy, dx of v[n][border(y * STRIDE + dy - PAD)][...][c] * W[k][c][dy][dx]
//   v = relu(x * scale + shift) + residual,  scale and shift of the image and channel    each step if it is switched on
//
// x          [images][height][width][C_IN], or with -D PICTURE_IN=type a picture, [images][3][height][width] of
//            unsigned char, float, __half or __nv_bfloat16. residual, materialised: like x. affine [images][C_IN][2].
// out        [images][out_height][out_width][C_OUT], or with -D PICTURE_OUT=type a picture, [images][3][height][width];
//            unsigned char is clamped to 0..255 and rounded to the nearest, ties to even (NaN becomes 0).
// border     reflection, PAD = KERNEL / 2. With -D UPSAMPLE=1 the four 2x2 convolutions of upsample_conv2d.cu, which
//            are an upsampling and a 3x3 convolution: column = phase * C_OUT + k, and the border is clamped.
// weight     packed: [pass][chunk][c][dy][dx][COLUMNS, up to a multiple of 4], see ops/conv2d_cuda_cores.py.
// sums, switches       as in conv2d.cu.
// sizes      KERNEL is odd and PAD < height, width. DEPTH divides C_IN: a multiple of 4, or 3 of a picture. COLUMNS
//            divides C_OUT: a multiple of 8, or 3 of a picture. All but pictures start at multiples of 16 bytes.
// launch     grid (tiles * passes, images), 32 * WARPS_M * WARPS_N threads, SHARED_BYTES of dynamic shared memory. The
//            sizes of tiles are chosen by styleforge_lib/ops/conv2d_cuda_cores.py.
// numbers    each product is added with one rounding, in the order of c, dy and dx (by its remainder mod STRIDE). The
//            same launch gives the same bits.
// moves      x once for each pass and half again for the halos, mostly from the L2 cache; out once.
// computes   2 * KERNEL^2 * C_IN * C_OUT operations a pixel; upsampling 4/9 of those.
//
// A convolution is a matrix product: pixels x (c, dy, dx) times (c, dy, dx) x columns. Every number that is read can be
// used more than once, at three levels, and each level is there because the one below it is too slow:
//
//   block     TILE_H x TILE_W pixels by COLUMNS, in shared memory: DEPTH channels at a time of halo and weights. Two
//             blocks share a multiprocessor, so that one multiplies while the other loads.
//   warp      32 runs of THREAD_PIXELS pixels by THREAD_COLUMNS columns. All lanes want the same weights: a broadcast.
//   thread    THREAD_PIXELS x THREAD_COLUMNS sums in registers. A run is a stretch of one row, so neighbouring taps
//             want the same numbers: for a run of 8 and 8 columns, the 3 taps of a row need 10 numbers and 24 weights,
//             which 9 instructions load, for 192 multiply-adds.
//
// banks      The halo lies as planes, [c][y][x]: a run is contiguous, and one instruction loads four of its numbers.
//            Lanes are neighbours in y. Eight of them load at a time, and must find 8 different sixteens of the 128
//            bytes that the banks span: so a row is an odd number of 16-byte groups. With a stride, the rows of one
//            remainder mod STRIDE lie side by side, and the columns, too.
//
// The design is implicit GEMM (Chetlur et al., cuDNN, 2014) with register tiles (Volkov and Demmel, 2008).
#ifndef C_IN  // the file alone, as a learner or a test compiles it: something small
#define C_IN 16
#define C_OUT 16
#define STRIDE 1
#define KERNEL 3
#define TILE_H 8
#define TILE_W 16
#define WARPS_M 1
#define WARPS_N 2
#define COLUMNS 16
#define RING 1
#define BLOCKS 1
#define THREAD_PIXELS 4
#define THREAD_COLUMNS 8
#define DEPTH 8
#endif
#define NUMBER float
#include "common/layer.cuh"
#include "common/pictures.cuh"

#ifndef UPSAMPLE
#define UPSAMPLE 0
#endif
#ifdef PICTURE_IN
using Input = PICTURE_IN;
constexpr bool FROM_PICTURE = true;
#else
using Input = float;
constexpr bool FROM_PICTURE = false;
#endif
#ifdef PICTURE_OUT
using Output = PICTURE_OUT;
constexpr bool TO_PICTURE = true;
#else
using Output = float;
constexpr bool TO_PICTURE = false;
#endif

using S = Launch;

__device__ constexpr int up(int n, int step) { return (n + step - 1) / step * step; }
__device__ constexpr int odd_groups(int floats) { return (up(floats, 4) / 4 | 1) * 4; }  // of 16 bytes

constexpr int TAPS = UPSAMPLE ? 2 : KERNEL;  // of a row, and of a column
constexpr int PHASES = UPSAMPLE ? 4 : 1, SIDE_PHASES = UPSAMPLE ? 2 : 1;
constexpr int PAD = UPSAMPLE ? 1 : KERNEL / 2;
constexpr int PASSES = PHASES * S::c_out / S::columns, CHUNKS = S::c_in / DEPTH;

constexpr int HALO_H = (S::tile_h - 1) * STRIDE + TAPS, HALO_W = (S::tile_w - 1) * STRIDE + TAPS;
// Rows, and columns, of one remainder mod STRIDE.
constexpr int SIDE_H = (HALO_H + STRIDE - 1) / STRIDE, SIDE_W = up((HALO_W + STRIDE - 1) / STRIDE, 4);
constexpr int PITCH = odd_groups(STRIDE * SIDE_W), PLANE = odd_groups(STRIDE * SIDE_H * PITCH);
constexpr int HALO = DEPTH * PLANE;

constexpr int WEIGHT_PITCH = up(S::columns, 4), WEIGHTS = DEPTH * TAPS * TAPS * WEIGHT_PITCH;
constexpr int STAGING_PITCH = S::tile_w + 1;  // so that neighbours in y fall in different banks
constexpr int STAGING = TO_PICTURE ? S::columns * S::tile_h * STAGING_PITCH : 0;  // in the place of halo and weights
constexpr int SHARED_BYTES = (HALO + WEIGHTS > STAGING ? HALO + WEIGHTS : STAGING) * 4;

static_assert(S::tile_w % THREAD_PIXELS == 0, "whole runs");
static_assert(S::tile_h * S::tile_w == 32 * S::warps_m * THREAD_PIXELS, "a lane for each run");
static_assert(THREAD_PIXELS % 4 == 0, "runs start at multiples of 16 bytes");
static_assert(S::columns == S::warps_n * THREAD_COLUMNS && S::c_out % S::columns == 0, "a pass lies in one phase");
static_assert(S::c_in % DEPTH == 0 && (DEPTH % 4 == 0 || FROM_PICTURE), "channels are loaded by fours");

struct Convolution {
    const Place at;
    const int pass, phase;
    const int row, column;  // of the tile: where the thread's run starts
    const int first;        // the thread's first column of the pass
    float sums[THREAD_PIXELS][THREAD_COLUMNS];

    __device__ Convolution(const Layer& layer)
        : at(layer, S::tile_h, S::tile_w, blockIdx.x / PASSES),
          pass(blockIdx.x % PASSES),
          phase(pass * S::columns / S::c_out),
          row((at.warp / S::warps_n * 32 + at.lane) % S::tile_h),
          column((at.warp / S::warps_n * 32 + at.lane) / S::tile_h * THREAD_PIXELS),
          first(at.warp % S::warps_n * THREAD_COLUMNS) {
        for (int i = 0; i < THREAD_PIXELS; i++)
            for (int j = 0; j < THREAD_COLUMNS; j++) sums[i][j] = 0.0f;
    }

    // -----------------------------------------------------------------------------------------------------------------
    // Loading: DEPTH channels of the halo, normalised on the way, and the weights that belong to them

    // Where a pixel of the halo comes from, -1 for the row before the picture's first and so on; and where it lies.
    __device__ int source_y(int y) const { return at.y0 * STRIDE + y - PAD + phase / SIDE_PHASES; }
    __device__ int source_x(int x) const { return at.x0 * STRIDE + x - PAD + phase % SIDE_PHASES; }
    static __device__ int border(int i, int n) { return UPSAMPLE ? clamped(i, n) : reflected(i, n); }
    static __device__ int place(int y, int x) {
        return (y % STRIDE * SIDE_H + y / STRIDE) * PITCH + x % STRIDE * SIDE_W + x / STRIDE;
    }

    __device__ void copy_weights(int chunk, float* to) const {
        const float* from = static_cast<const float*>(at.layer.weight) + (pass * CHUNKS + chunk) * WEIGHTS;
        for (int i = at.thread * 4; i < WEIGHTS; i += S::threads * 4) copy_16(shared_address(to + i), from + i);
        commit_copies();
    }

    // A thread has four channels of every so many pixels. FLIGHT loads are on their way before the first is waited for.
    __device__ void load_halo(int chunk, float* halo) const {
        constexpr int GROUPS = up(DEPTH, 4) / 4, AT_ONCE = S::threads / GROUPS, COUNT = HALO_H * HALO_W;
        constexpr int FLIGHT = THREAD_PIXELS * THREAD_COLUMNS < 64 ? 4 : 2;  // beside the sums, registers are few
        const int channel = chunk * DEPTH + at.thread % GROUPS * 4;
        const long long image = (long long)at.image * at.layer.height * at.layer.width * S::c_in + channel;
        const float* x = static_cast<const float*>(at.layer.x) + image;
        const float* residual = static_cast<const float*>(at.layer.residual) + image;
        float* materialised = static_cast<float*>(at.layer.materialised) + image;
        float* planes = halo + at.thread % GROUPS * 4 * PLANE;
        float2 affine[4];
        if constexpr (S::affine)
            for (int i = 0; i < 4; i++) affine[i] = __ldg(at.layer.affine + at.image * S::c_in + channel + i);

#pragma unroll 1
        for (int start = at.thread / GROUPS; start < COUNT; start += AT_ONCE * FLIGHT) {
            float value[FLIGHT][4], old[FLIGHT][4];
#pragma unroll
            for (int i = 0; i < FLIGHT; i++) {
                const int p = start + i * AT_ONCE;
                if (p >= COUNT) continue;
                const int y = border(source_y(p / HALO_W), at.layer.height);
                const int column = border(source_x(p % HALO_W), at.layer.width);
                const long long from = ((long long)y * at.layer.width + column) * S::c_in;
                load(x + from, value[i]);
                if constexpr (S::residual) load(residual + from, old[i]);
            }
#pragma unroll
            for (int i = 0; i < FLIGHT; i++) {
                const int p = start + i * AT_ONCE, y = source_y(p / HALO_W), column = source_x(p % HALO_W);
                if (p >= COUNT) continue;
#pragma unroll
                for (int k = 0; k < 4; k++) {
                    float& v = value[i][k];
                    if constexpr (S::affine) v = fmaf(v, affine[k].x, affine[k].y);
                    if constexpr (S::relu_in) v = relu(v);
                    if constexpr (S::residual) v += old[i][k];
                    planes[k * PLANE + place(p / HALO_W, p % HALO_W)] = v;
                }
                if constexpr (S::materialise)  // the block that owns the pixel writes it
                    if (pass == 0 && y >= at.y0 && y < min(at.y0 + S::tile_h, at.layer.height) && column >= at.x0 &&
                        column < min(at.x0 + S::tile_w, at.layer.width))
                        store(materialised + ((long long)y * at.layer.width + column) * S::c_in, value[i]);
            }
        }
    }

    __device__ void load_picture(float* halo) const {
        const long long plane = (long long)at.layer.height * at.layer.width;
        const Input* picture = static_cast<const Input*>(at.layer.x) + at.image * S::c_in * plane;
        for (int p = at.thread; p < HALO_H * HALO_W; p += S::threads) {
            const int y = border(source_y(p / HALO_W), at.layer.height);
            const int column = border(source_x(p % HALO_W), at.layer.width);
#pragma unroll
            for (int c = 0; c < S::c_in; c++)
                halo[c * PLANE + place(p / HALO_W, p % HALO_W)] =
                    number_of(picture[c * plane + (long long)y * at.layer.width + column]);
        }
    }

    // -----------------------------------------------------------------------------------------------------------------
    // Multiplying: a run and the taps of a row at a time

    // COUNT numbers from shared memory; the first lies at a multiple of 16 bytes.
    template <int COUNT>
    static __device__ void load_run(const float* from, int count, float (&v)[COUNT]) {
#pragma unroll
        for (int i = 0; i < COUNT; i += 4) {
            if (i + 4 <= count) {
                const float4 four = *reinterpret_cast<const float4*>(from + i);
                v[i] = four.x, v[i + 1] = four.y, v[i + 2] = four.z, v[i + 3] = four.w;
            } else {
#pragma unroll
                for (int k = i; k < count; k++) v[k] = from[k];
            }
        }
    }

    __device__ void multiply(const float* halo, const float* weights) {
        const float* run = halo + place(row * STRIDE, column * STRIDE);
        weights += first;
#pragma unroll 1
        for (int c = 0; c < DEPTH; c++)
#pragma unroll(TAPS <= 3 ? TAPS : 1)
            for (int dy = 0; dy < TAPS; dy++)
#pragma unroll
                for (int r = 0; r < STRIDE && r < TAPS; r++) {  // the taps of one remainder
                    constexpr int MOST = (TAPS + STRIDE - 1) / STRIDE;
                    const int taps = (TAPS - r + STRIDE - 1) / STRIDE;
                    float v[up(THREAD_PIXELS + MOST - 1, 4)], w[up(THREAD_COLUMNS, 4)];
                    load_run(run + c * PLANE + place(dy, r), THREAD_PIXELS + taps - 1, v);
#pragma unroll
                    for (int t = 0; t < taps; t++) {
                        const int tap = (c * TAPS + dy) * TAPS + r + t * STRIDE;
                        load_run(weights + tap * WEIGHT_PITCH, up(THREAD_COLUMNS, 4), w);
#pragma unroll
                        for (int i = 0; i < THREAD_PIXELS; i++)
#pragma unroll
                            for (int j = 0; j < THREAD_COLUMNS; j++) sums[i][j] = fmaf(v[i + t], w[j], sums[i][j]);
                    }
                }
    }

    // -----------------------------------------------------------------------------------------------------------------
    // Finishing: bias, ReLU, statistics, memory

    __device__ int channel() const { return (pass * S::columns + first) % S::c_out; }
    __device__ bool inside(int i) const {  // whether pixel i of the run is one of the picture
        return at.y0 + row < at.layer.out_height && at.x0 + column + i < at.layer.out_width;
    }

    __device__ void finish_sums() {
#pragma unroll
        for (int j = 0; j < THREAD_COLUMNS; j++) {
            const float bias = S::bias ? at.layer.bias[channel() + j] : 0.0f;
#pragma unroll
            for (int i = 0; i < THREAD_PIXELS; i++) {
                if constexpr (S::bias) sums[i][j] += bias;
                if constexpr (S::relu_out) sums[i][j] = relu(sums[i][j]);
            }
        }
    }

    static __device__ float across_warp(float v) {
#pragma unroll
        for (int step = 16; step > 0; step /= 2) v += __shfl_xor_sync(0xffffffffu, v, step);
        return v;
    }

    // Of each column over the warp's pixels, to its plane. Distances are taken from a number near the mean, so that
    // their squares lose nothing where the mean is large.
    __device__ void add_sums() const {
        int count = 0;
#pragma unroll
        for (int i = 0; i < THREAD_PIXELS; i++) count += inside(i);
        const float n = across_warp((float)count);
        double2 mine = {};
#pragma unroll
        for (int j = 0; j < THREAD_COLUMNS; j++) {
            float total = 0.0f, rest = 0.0f, squares = 0.0f;
#pragma unroll
            for (int i = 0; i < THREAD_PIXELS; i++) total += inside(i) ? sums[i][j] : 0.0f;
            const float pivot = across_warp(total) / fmaxf(n, 1.0f);
#pragma unroll
            for (int i = 0; i < THREAD_PIXELS; i++) {
                const float distance = inside(i) ? sums[i][j] - pivot : 0.0f;
                rest += distance;
                squares = fmaf(distance, distance, squares);
            }
            const double2 tile = tile_sums(n, pivot, across_warp(rest), across_warp(squares));
            if (at.lane == j) mine = tile;
        }
        long long* planes = at.layer.sums + (long long)at.image * PLANE_WORDS;
        const int slot = at.tile * S::warps_m + at.warp / S::warps_n;
        if (at.lane < THREAD_COLUMNS) add_to_plane(planes, S::c_out, channel() + at.lane, slot, mine);
    }

    __device__ void write_pixels() const {
        const long long width = (long long)at.layer.out_width * SIDE_PHASES;
        const long long rows = (long long)at.layer.out_height * at.image + at.y0 + row;  // and those of images before
        const long long y = rows * SIDE_PHASES + phase / SIDE_PHASES;
        const long long x = (at.x0 + column) * SIDE_PHASES + phase % SIDE_PHASES;
        float* out = static_cast<float*>(at.layer.out) + (y * width + x) * S::c_out + channel();
#pragma unroll
        for (int i = 0; i < THREAD_PIXELS; i++)
            if (inside(i))
#pragma unroll
                for (int j = 0; j < THREAD_COLUMNS; j += 4)
                    *reinterpret_cast<float4*>(out + i * SIDE_PHASES * S::c_out + j) =
                        make_float4(sums[i][j], sums[i][j + 1], sums[i][j + 2], sums[i][j + 3]);
    }

    // A run is short and a row of the picture long: through shared memory, so that a warp writes along the row.
    __device__ void write_picture(float* staging) const {
        const long long plane = (long long)at.layer.height * at.layer.width;
        Output* out = static_cast<Output*>(at.layer.out) + at.image * S::c_out * plane;
        __syncthreads();  // halo and weights have been read
#pragma unroll
        for (int j = 0; j < THREAD_COLUMNS; j++)
#pragma unroll
            for (int i = 0; i < THREAD_PIXELS; i++)
                staging[((first + j) * S::tile_h + row) * STAGING_PITCH + column + i] = sums[i][j];
        __syncthreads();
        for (int p = at.thread; p < S::columns * S::tile_h * S::tile_w; p += S::threads) {
            const int k = p / (S::tile_w * S::tile_h), i = p / S::tile_w % S::tile_h, j = p % S::tile_w;
            const long long y = at.y0 + i, x = at.x0 + j;
            if (y < at.layer.height && x < at.layer.width)
                out[k * plane + y * at.layer.width + x] =
                    picture_of<Output>(staging[(k * S::tile_h + i) * STAGING_PITCH + j]);
        }
    }
};

extern "C" __global__ void __launch_bounds__(S::threads, BLOCKS)
    conv2d_cuda_cores(const Input* __restrict__ x, const float* __restrict__ affine, const float* __restrict__ residual,
        float* __restrict__ materialised, const float* __restrict__ weight, const float* __restrict__ bias,
        Output* __restrict__ out, long long* sums, int height, int width, int out_height, int out_width) {
    extern __shared__ __align__(16) float halo[];
    float* weights = halo + HALO;
    Convolution convolution({x, reinterpret_cast<const float2*>(affine), residual, materialised, weight, bias, out,
                             sums, height, width, out_height, out_width});
#pragma unroll 1
    for (int chunk = 0; chunk < CHUNKS; chunk++) {
        if (chunk > 0) __syncthreads();  // the chunk before has been read
        convolution.copy_weights(chunk, weights);
        if constexpr (FROM_PICTURE)
            convolution.load_picture(halo);
        else
            convolution.load_halo(chunk, halo);
        await_copies<0>();
        __syncthreads();
        convolution.multiply(halo, weights);
    }
    convolution.finish_sums();
    if constexpr (S::statistics) convolution.add_sums();
    if constexpr (TO_PICTURE)
        convolution.write_picture(halo);
    else
        convolution.write_pixels();
}
