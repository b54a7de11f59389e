// The network's 9x9 convolutions from and to pictures of three channels, on Hopper's tensor cores.
//
//   conv2d_hopper_from_picture     picture -> raw sums of 32 channels and the sums of their planes
//   conv2d_hopper_to_picture       norm and ReLU of 32 channels -> picture
//
// pictures   [images][3][height][width] of PICTURE: float, __half, __nv_bfloat16, or unsigned char (0..255; what is written
//            is clamped and rounded to the nearest, NaN becomes 0). Both sides at least 5: reflection padding 4.
// x, out     NHWC, TYPE. affine [images][32][2]: scale and shift of x; not read where NORM is 0 (no norm, no ReLU). sums: as
//            common/plane_sums.cuh says, or null
// weights    [tile 17][column of D 32][group 4][8 numbers], group g of a column at g ^ (column >> 1 & 3); tile m is the
//            kernel's row -m modulo 9
// launch     grid (blocks, images), block 256, SHARED_BYTES_FROM or SHARED_BYTES_TO of dynamic shared memory
//
// product    Three channels fill nothing that a tensor core has, but 9 columns of the kernel times 3 channels are 27 of
//            32. From a picture they are k: a pixel's 32 numbers are the window that begins at it. To a picture they are
//            columns of D: P[pixel][dx, channel], and out[x] is the sum of P[x + dx][dx], in the epilogue.
// rolling    A warpgroup walks down a strip of 64 columns. Each input row is loaded once, comes by way of shared memory to
//            the registers of which wgmma takes A, and is multiplied with all nine rows of the kernel: D[64 pixels][9 x
//            32], nine output rows under way at a time, 144 registers. One of them is complete after each step, and its
//            registers, a slot, begin the next. So slot s meets the kernel's row (step - s) modulo 9, another one each
//            time: the weights lie in a circle, and a step is another start in it. The loop is unrolled nine times,
//            because registers have no index.
// overlap    While the tensor cores work on a row, the threads bring the next ones and finish the one before. Two
//            warpgroups, which share nothing but the weights, fill each other's gaps.
// brought    Rows that wait in registers, three of them, were not early enough: the compiler's wait for one load is a wait
//            for all that are under way. Rows of a picture now come in batches of three, those of 32 channels eight
//            steps ahead by cp.async, which needs no registers.
// The idea of 27 stands in the design of many first-layer kernels; cuDNN's is not known to us.
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
#ifndef NORM
#define NORM 1  // whether affine is given
#endif
constexpr int THREADS = 256, GROUPS = THREADS / 128, KERNEL = 9, PAD = 4, CHANNELS = 32;
constexpr int COLUMNS = 64, TILE_W = COLUMNS - KERNEL + 1;  // of a strip; TILE_W: of the picture that is written
constexpr int ROW = 64, TILE = 32 * ROW, WEIGHT_BYTES = (2 * KERNEL - 1) * TILE;  // bytes of a column of weights, of 32
constexpr int SLOTS = 3;   // of 32 columns, in one wgmma

__device__ int reflected(int i, int size) {  // twice: far outside only for what nobody keeps
    i = i < 0 ? -i : i;
    i = i >= size ? 2 * size - 2 - i : i;
    return max(i, 0);
}

// A warpgroup of the grid, and its share of the rows of all strips.
struct Worker {
    int group, warp, pixel, quad, from, to;  // pixel: of the strip, and 8 more; quad: the lane's number among four

    __device__ explicit Worker(int rows)
        : group(__shfl_sync(~0u, threadIdx.x / 128, 0)), warp(threadIdx.x / 32 % 4), pixel(warp * 16 + threadIdx.x % 32 / 4), quad(threadIdx.x % 4) {
        const long long mine = blockIdx.x * GROUPS + group, workers = gridDim.x * GROUPS;
        from = static_cast<int>(rows * mine / workers), to = static_cast<int>(rows * (mine + 1) / workers);
    }
    __device__ void wait() const { warpgroup_barrier(1 + group); }
};

__device__ unsigned fetch_weights(unsigned char* raw, unsigned long long* barrier, const unsigned char* from) {
    const unsigned weights = (shared_address(raw) + 1023) & ~1023u, full = shared_address(barrier);
    if (threadIdx.x == 0) {
        barrier_init(full, 1);
        barrier_init_done();
        barrier_expect(full, WEIGHT_BYTES);
        bulk_copy(weights, from, WEIGHT_BYTES, full);
    }
    __syncthreads();
    return weights;
}

// The nine output rows that are under way.
struct Rows {
    float d[KERNEL / SLOTS][SLOTS * 16];
    unsigned long long weights;

    __device__ explicit Rows(unsigned address) : weights(tile_address<ROW>(address, 8 * ROW)) {
#pragma unroll
        for (int slot = 0; slot < KERNEL; slot++) clear(slot);
    }

    // a: words of a pixel, and of the eighth after it.
    __device__ void multiply(const unsigned (&a)[8], int phase) {
        const unsigned long long start = weights + (KERNEL - phase) % KERNEL * (TILE >> 4);
        wgmma_fence();
#pragma unroll
        for (int k = 0; k < 2; k++)
#pragma unroll
            for (int i = 0; i < KERNEL / SLOTS; i++)
                Wgmma<TYPE>::m64n96k16(d[i], a[2 * k], a[4 + 2 * k], a[2 * k + 1], a[5 + 2 * k],
                                       start + i * SLOTS * (TILE >> 4) + 2 * k);
        wgmma_commit();
    }

    __device__ float& at(int slot, int i) { return d[slot / SLOTS][slot % SLOTS * 16 + i]; }
    __device__ void clear(int slot) {  // here, and not where the compiler would have it: behind the fence
#pragma unroll
        for (int i = 0; i < 16; i++) asm volatile("mov.f32 %0, 0f00000000;" : "=f"(at(slot, i)));
    }
};

// ---------------------------------------------------------------------------------------------------------------------
// From a picture

// k = 8 * quad + i: quad 0 to 2 is the channel and i the kernel's column; of quad 3, i = 0, 2, 4 are the ninth column of
// the channels. So a thread reads words of two neighbouring pixels, which begin at even pixels in one copy of a row, at
// odd ones in the other.
constexpr int SPAN = COLUMNS + KERNEL - 1, PAIRS = SPAN / 2;  // pixels, and words, that a row of windows needs
constexpr int PLANE = 40, COPY = 4 * PLANE + 3;  // words: a quad's 4 pixels of each parity fall into 8 banks of their own
constexpr int SHARED_BYTES_FROM = WEIGHT_BYTES + 1024;
constexpr int BATCH = 3;  // rows that are brought together, while those of the batch before are multiplied; divides KERNEL
using Copies = unsigned[2][COPY];  // of a row: planes of three channels, and one of zeros

// What a thread brings of each row: two neighbouring pixels of one channel.
struct Brought {
    const PICTURE* left;
    int apart;  // from the left pixel to the right one
    PICTURE held[BATCH][2];
    int channel, pair, y0, height, width;

    __device__ Brought(const PICTURE* picture, int y0, int x0, int height, int width)
        : channel(threadIdx.x % 128 / PAIRS), pair(threadIdx.x % 128 % PAIRS), y0(y0 - PAD), height(height), width(width) {
        const int column = reflected(x0 - PAD + 2 * pair, width);
        left = picture + static_cast<long long>(channel) * height * width + column;
        apart = reflected(x0 - PAD + 2 * pair + 1, width) - column;
    }
    __device__ void load(int row) {
        if (channel >= 3) return;
#pragma unroll
        for (int i = 0; i < BATCH; i++) {
            const PICTURE* const at = left + static_cast<long long>(reflected(y0 + row + i, height)) * width;
            held[i][0] = *at, held[i][1] = at[apart];
        }
    }
    __device__ void store(Copies (&to)[BATCH]) const {
        if (channel >= 3) return;
#pragma unroll
        for (int i = 0; i < BATCH; i++) {
            const unsigned word = Packed<TYPE>::word(number_of(held[i][0]), number_of(held[i][1]));
            unsigned short* const odd = reinterpret_cast<unsigned short*>(to[i][1] + channel * PLANE + pair);
            to[i][0][channel * PLANE + pair] = word;
            odd[1] = static_cast<unsigned short>(word);
            odd[2] = static_cast<unsigned short>(word >> 16);
        }
    }
};

__device__ void read_windows(unsigned (&a)[8], const Copies& from, int pixel, int quad) {
    const unsigned* first = from[pixel % 2] + (pixel + 1) / 2 + (quad < 3 ? quad * PLANE : KERNEL / 2);
    const int step = quad < 3 ? 1 : PLANE;
#pragma unroll
    for (int i = 0; i < 4; i++) a[i] = first[i * step], a[4 + i] = first[i * step + 4];
}

// a = b & kept. An instruction that the compiler leaves in its place, behind the wait: while wgmma reads a, nothing that
// comes to be in its registers may be computed, or products wait for each other.
__device__ void keep(unsigned (&a)[8], const unsigned (&b)[8], unsigned kept) {
#pragma unroll
    for (int i = 0; i < 8; i++) asm volatile("and.b32 %0, %1, %2;" : "=r"(a[i]) : "r"(b[i]), "r"(kept));
}

// The sums of a thread's eight channels over the rows of its two columns, around their first number.
struct Moments {
    static constexpr int ENOUGH = 64;  // rows whose float32 sums are closed
    float pivot[8], rest[8], m2[8];
    int rows;

    __device__ void begin(const unsigned (&words)[8]) {
        rows = 0;
        for (int i = 0; i < 8; i++) {
            const float2 pair = Packed<TYPE>::floats(words[i / 2]);
            pivot[i] = i % 2 ? pair.y : pair.x, rest[i] = m2[i] = 0.0f;
        }
    }
    __device__ void add(const unsigned* words) {
#pragma unroll
        for (int i = 0; i < 8; i++) {
            const float2 pair = Packed<TYPE>::floats(words[i / 2]);
            const float distance = (i % 2 ? pair.y : pair.x) - pivot[i];
            rest[i] += distance;
            m2[i] = fmaf(distance, distance, m2[i]);
        }
    }
    // Adds the warp's sums to its totals, of channels 8 * quad to 8 * quad + 7.
    __device__ void close(double2* totals, int columns) {
#pragma unroll
        for (int i = 0; i < 8; i++) {
            double2 sum = columns ? tile_sums(rows * columns, pivot[i], rest[i], m2[i]) : double2{};
            for (int lanes = 4; lanes < 32; lanes *= 2) {
                sum.x += __shfl_xor_sync(~0u, sum.x, lanes);
                sum.y += __shfl_xor_sync(~0u, sum.y, lanes);
            }
            if (threadIdx.x % 32 < 4) totals[i] = {totals[i].x + sum.x, totals[i].y + sum.y};
        }
        rows = 0;
    }
};

extern "C" __global__ void __launch_bounds__(THREADS, 1)
    conv2d_hopper_from_picture(const PICTURE* __restrict__ x, const unsigned char* __restrict__ weights,
        TYPE* __restrict__ out, long long* sums, int height, int width) {
    extern __shared__ unsigned char raw[];
    __shared__ alignas(8) unsigned long long full;
    __shared__ Copies copies[GROUPS][2][BATCH];
    __shared__ double2 totals[THREADS / 32][CHANNELS];
    const Worker at((width + COLUMNS - 1) / COLUMNS * height);
    for (int i = threadIdx.x; i < sizeof(copies) / 4; i += THREADS) (&copies[0][0][0][0][0])[i] = 0;
    totals[threadIdx.x / 32][threadIdx.x % 32] = {};
    Rows rows(fetch_weights(raw, &full, weights));
    double2* const total = &totals[threadIdx.x / 32][8 * at.quad];
    Moments moments;
    const unsigned kept = at.quad < 3 ? ~0u : 0xffffu;  // a NaN beyond the window, times zero, would be one
    for (int unit = at.from, count; unit < at.to; unit += count) {
        const int x0 = unit / height * COLUMNS, y0 = unit % height, column = x0 + at.pixel;
        count = min(height - y0, at.to - unit);
        const int steps = count + KERNEL - 1, columns = (column < width) + (column + 8 < width);
        uint4* target = reinterpret_cast<uint4*>(out) + ((static_cast<long long>(blockIdx.y) * height + y0) * width + column) * 4 + at.quad;
        unsigned a[8], done[8];
        moments.rows = 0;
        // Writes the row that is complete and counts it.
        const auto emit = [&]() {
            if (columns > 0) target[0] = {done[0], done[1], done[2], done[3]};
            if (columns > 1) target[32] = {done[4], done[5], done[6], done[7]};
            if (sums && columns > 0) moments.add(done);
            if (sums && columns > 1) moments.add(done + 4);
            target += static_cast<long long>(width) * 4, moments.rows++;
        };
        const auto prepare = [&]() {
            if (moments.rows >= Moments::ENOUGH) moments.close(total, columns);
            if (moments.rows == 0) moments.begin(done);
        };

        Brought brought(x + static_cast<long long>(blockIdx.y) * 3 * height * width, y0, x0, height, width);
        brought.load(0);
        at.wait();  // the strip before has been read
        brought.store(copies[at.group][0]);
        brought.load(BATCH);
        at.wait();
        unsigned first[8];
        read_windows(first, copies[at.group][0][0], at.pixel, at.quad);
        keep(a, first, kept);
        rows.clear(0);
        barrier_wait(shared_address(&full), 0);
        for (int round = 0; round < steps; round += KERNEL) {
            if (sums && round) prepare();
#pragma unroll
            for (int phase = 0; phase < KERNEL; phase++) {
                const int step = round + phase, complete = (phase + 1) % KERNEL;
                if (step >= steps) break;
                rows.multiply(a, phase);
                if (phase % BATCH == 0) {  // all have read the batch that lies there
                    brought.store(copies[at.group][step / BATCH + 1 & 1]);
                    brought.load(step + 2 * BATCH);
                }
                if (round) emit();  // of the step before
                if ((phase + 1) % BATCH == 0) at.wait();
                unsigned b[8];
                read_windows(b, copies[at.group][(step + 1) / BATCH & 1][(phase + 1) % BATCH], at.pixel, at.quad);
                wgmma_wait<0>();
#pragma unroll
                for (int i = 0; i < 8; i++) {
                    const int from = i % 4 * 4 + i / 4 * 2;
                    done[i] = Packed<TYPE>::word(rows.at(complete, from), rows.at(complete, from + 1));
                }
                keep(a, b, kept);
                rows.clear(complete);
            }
        }
        if (sums) prepare();
        emit();
        if (sums) moments.close(total, columns);
    }
    __syncthreads();
    if (sums && threadIdx.x < CHANNELS) {
        double2 all = {};
        for (int warp = 0; warp < THREADS / 32; warp++)
            all = {all.x + totals[warp][threadIdx.x].x, all.y + totals[warp][threadIdx.x].y};
        add_to_plane(sums + static_cast<long long>(blockIdx.y) * PLANE_WORDS, CHANNELS, threadIdx.x, blockIdx.x, all);
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// To a picture

// Column 8 * i + 2 * quad + e of D: quad 0 to 2 is the channel and j = 2 * i + e the kernel's column; of quad 3, j = 0, 1, 2
// are the channels of the ninth. P lies as [channel][dx][x + MARGIN], x = pixel - dx: what is added stands in one column.
constexpr int MARGIN = 8, PITCH = COLUMNS + MARGIN, SUMS = 3 * KERNEL * PITCH;  // numbers; x is at least -8
constexpr int QUADS = TILE_W / 4;  // of a row's outputs, in one channel
constexpr int RING = KERNEL, ROW_BYTES = COLUMNS * ROW;  // rows of x that are under way, a thread's share by itself
constexpr int SHARED_BYTES_TO = WEIGHT_BYTES + GROUPS * (RING * ROW_BYTES + 2 * SUMS * 4) + 1024;

struct alignas(4 * sizeof(PICTURE)) Four {
    PICTURE v[4];
};

struct Affine {  // scale and shift of a thread's eight channels
    float4 pair[4];

    __device__ unsigned word(unsigned v, int k) const {
        const float2 f = Packed<TYPE>::floats(v);
        return Packed<TYPE>::word(fmaf(f.x, pair[k].x, pair[k].y), fmaf(f.y, pair[k].z, pair[k].w));
    }
    __device__ uint4 operator()(uint4 v) const { return {word(v.x, 0), word(v.y, 1), word(v.z, 2), word(v.w, 3)}; }
};

// a = ReLU of b, behind the wait for wgmma: see `keep`.
__device__ void finish(unsigned (&a)[8], const unsigned (&b)[8]) {
#pragma unroll
    for (int i = 0; i < 8; i++) a[i] = NORM ? Packed<TYPE>::relu(b[i]) : b[i];
}

extern "C" __global__ void __launch_bounds__(THREADS, 1)
    conv2d_hopper_to_picture(const TYPE* __restrict__ x, const float* __restrict__ affine,
        const unsigned char* __restrict__ weights, const float* __restrict__ bias, PICTURE* __restrict__ out, int height,
        int width) {
    extern __shared__ unsigned char raw[];
    __shared__ alignas(8) unsigned long long full;
    const Worker at((width + TILE_W - 1) / TILE_W * height);
    const unsigned address = fetch_weights(raw, &full, weights);
    Rows rows(address);
    const unsigned ring = address + WEIGHT_BYTES + at.group * RING * ROW_BYTES + at.pixel * ROW + at.quad * 16;
    float* const sums = reinterpret_cast<float*>(raw + (address - shared_address(raw)) + WEIGHT_BYTES + GROUPS * RING * ROW_BYTES) + at.group * 2 * SUMS;
    Affine norm;
    if (NORM)
        for (int k = 0; k < 4; k++)
            norm.pair[k] = __ldg(reinterpret_cast<const float4*>(affine) + (blockIdx.y * 4 + at.quad) * 4 + k);
    // Where P goes, and which four outputs of a row are this thread's: two warps have the even rows, two the odd.
    const int spread = at.pixel + (at.quad < 3 ? at.quad * KERNEL * PITCH + MARGIN : (KERNEL - 1) * PITCH);
    const int step_j = at.quad < 3 ? PITCH - 1 : KERNEL * PITCH;
    const int lane = threadIdx.x % 32, mine = at.warp % 2 * (3 * QUADS / 2) + lane, channel = mine / QUADS;
    const int quarter = mine % QUADS * 4;
    const bool writes = lane < 3 * QUADS / 2;
    const float start = bias && writes ? bias[channel] : 0.0f;
    const bool vectors = width % 4 == 0 && reinterpret_cast<unsigned long long>(out) % sizeof(Four) == 0;
    const long long plane = static_cast<long long>(height) * width;

    for (int unit = at.from, count; unit < at.to; unit += count) {
        const int x0 = unit / height * TILE_W, y0 = unit % height;
        count = min(height - y0, at.to - unit);
        const int steps = count + KERNEL - 1;
        const uint4* left = reinterpret_cast<const uint4*>(x) + blockIdx.y * plane * 4 + at.quad;
        const uint4* const right = left + reflected(x0 - PAD + at.pixel + 8, width) * 4;
        left += reflected(x0 - PAD + at.pixel, width) * 4;
        const auto load = [&](int slot, int row) {
            const long long from = static_cast<long long>(reflected(y0 - PAD + row, height)) * width * 4;
            if (row < steps) {
                copy_async(ring + slot * ROW_BYTES, left + from);
                copy_async(ring + slot * ROW_BYTES + 8 * ROW, right + from);
            }
            copies_commit();
        };
        const auto normalised = [&](unsigned(&a)[8], int slot) {
            copies_wait<RING - 1>();
            uint4 one = load_shared(ring + slot * ROW_BYTES), other = load_shared(ring + slot * ROW_BYTES + 8 * ROW);
            if (NORM) one = norm(one), other = norm(other);
            a[0] = one.x, a[1] = one.y, a[2] = one.z, a[3] = one.w;
            a[4] = other.x, a[5] = other.y, a[6] = other.z, a[7] = other.w;
        };
        PICTURE* const target = out + (blockIdx.y * 3 + channel) * plane + static_cast<long long>(y0) * width + x0 + quarter;
        const auto write = [&](int row) {
            if (!writes || at.warp / 2 != (row & 1) || x0 + quarter >= width) return;
            const float4* from = reinterpret_cast<const float4*>(sums + (row & 1) * SUMS + channel * KERNEL * PITCH + MARGIN + quarter);
            float4 sum = {start, start, start, start};
#pragma unroll
            for (int dx = 0; dx < KERNEL; dx++) {
                const float4 v = from[dx * PITCH / 4];
                sum = {sum.x + v.x, sum.y + v.y, sum.z + v.z, sum.w + v.w};
            }
            PICTURE* const to = target + static_cast<long long>(row) * width;
            const Four four = {picture_of<PICTURE>(sum.x), picture_of<PICTURE>(sum.y), picture_of<PICTURE>(sum.z),
                               picture_of<PICTURE>(sum.w)};
            if (vectors) *reinterpret_cast<Four*>(to) = four;
            else
#pragma unroll
                for (int i = 0; i < 4; i++)
                    if (x0 + quarter + i < width) to[i] = four.v[i];
        };

        unsigned a[8];
        for (int i = 0; i < RING; i++) load(i, i);
        unsigned b[8];
        normalised(b, 0);
        finish(a, b);
        load(0, RING);
        rows.clear(0);
        barrier_wait(shared_address(&full), 0);
        for (int round = 0; round < steps; round += KERNEL)
#pragma unroll
            for (int phase = 0; phase < KERNEL; phase++) {
                const int step = round + phase, complete = (phase + 1) % KERNEL;
                if (step >= steps) break;
                rows.multiply(a, phase);
                normalised(b, complete);
                at.wait();
                if (round) write(step - KERNEL);  // of the step before
                wgmma_wait<0>();
                finish(a, b);
                load(complete, step + 1 + RING);
                float* const to = sums + (step & 1) * SUMS + spread;  // of row step - 8
#pragma unroll
                for (int j = 0; j < KERNEL - 1; j++)
                    if (j < 3 || at.quad < 3)
                        for (int half = 0; half < 2; half++)
                            to[j * step_j + half * 8] = rows.at(complete, j / 2 * 4 + half * 2 + j % 2);
                rows.clear(complete);
            }
        at.wait();
        write(count - 1);
    }
}
