// How the blocks that share a plane tell each other a few numbers within one launch, without atomics or fences.
//
//   tell(slot, launch, value)               one thread: put COUNT floats into a slot
//   hear(slot, launch, patience, value)     wait for them; false where `patience` further looks were in vain
//   number_after(word), keep_number(word, launch)      of a launch that a CUDA graph repeats
//   hear_number(word, launch, patience)     wait for the number alone; false as above
//   sum_block(value, shared)                the sums of COUNT floats over all threads of a block
//
// slot       COUNT words of 8 bytes in global memory. A word is a float and the number of the launch that it belongs
//            to, stored at once: who finds the launch's number has its float. No two launches on one memory may have
//            one number, and 0 is none: the memory starts as zeros.
// patience   nothing promises that the blocks of a plane run at the same time. Who waits in vain works out the others'
//            numbers and tells them in their place, with the same bits; so no answer depends on which blocks run when.
#pragma once

// The number of a launch that a CUDA graph repeats with the same arguments: each block keeps its last one in a word of
// its own. All threads ask before one of them writes, and a barrier lies in between.
__device__ inline int number_after(const long long* word) {
    return (int)*reinterpret_cast<const volatile long long*>(word) + 1;
}

__device__ inline void keep_number(long long* word, int launch) { *reinterpret_cast<volatile long long*>(word) = launch; }

__device__ inline bool hear_number(const long long* word, int launch, int patience) {
#pragma unroll 1
    for (int look = 0; look <= patience; look++)
        if (*reinterpret_cast<const volatile long long*>(word) == launch) return true;
    return false;
}

template <int COUNT>
__device__ void tell(long long* slot, int launch, const float (&value)[COUNT]) {
    for (int i = 0; i < COUNT; i++)
        reinterpret_cast<volatile long long*>(slot)[i] = (long long)launch << 32 | __float_as_uint(value[i]);
}

template <int COUNT>
__device__ bool hear(const long long* slot, int launch, int patience, float (&value)[COUNT]) {
#pragma unroll 1
    for (int look = 0; look <= patience; look++) {
        bool whole = true;
        for (int i = 0; i < COUNT; i++) {
            const long long word = reinterpret_cast<const volatile long long*>(slot)[i];
            whole &= word >> 32 == launch;
            value[i] = __uint_as_float((unsigned)word);
        }
        if (whole) return true;
    }
    return false;
}

// One-dimensional blocks of whole warps. shared: COUNT floats for each of at most 32 warps. Every thread gets the sums.
template <int COUNT>
__device__ void sum_block(float (&value)[COUNT], float* shared) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const auto sum_warp = [&] {
        for (int offset = 16; offset > 0; offset /= 2)
            for (int i = 0; i < COUNT; i++) value[i] += __shfl_xor_sync(0xffffffffu, value[i], offset);
    };
    sum_warp();
    __syncthreads();  // who called before has read its sums
    if (lane == 0)
        for (int i = 0; i < COUNT; i++) shared[warp * COUNT + i] = value[i];
    __syncthreads();
    for (int i = 0; i < COUNT; i++) value[i] = lane < blockDim.x / 32 ? shared[lane * COUNT + i] : 0.0f;
    sum_warp();  // every warp does the same, so that nobody waits for a third barrier
}
