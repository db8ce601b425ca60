// Pixels and voxels as the device's memory holds them: all channels of one side by side, in single or half precision.
//
// Whoever includes this says how many CHANNELS there are, and as what they are STORED: float or half_bits.
//
// Half precision is held as its bits and widened by one instruction, so that no header of the CUDA toolkit is needed.

typedef unsigned short half_bits;

#ifdef __CUDACC__
static __device__ __forceinline__ float widened(half_bits bits)
{
    float value;
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
    return value;
}

static __device__ __forceinline__ half_bits narrowed(float value)
{
    half_bits bits;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(value));
    return bits;
}

// The same instruction wherever it is called, so that kernels agree to the last bit.
static __device__ __forceinline__ float reciprocal(float value)
{
    float result;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(value));
    return result;
}
#endif

static __device__ __forceinline__ float widened(float value) { return value; }

static __device__ __forceinline__ void store(float &there, float value) { there = value; }
static __device__ __forceinline__ void store(half_bits &there, float value) { there = narrowed(value); }

// Aligned as a whole, so that one instruction loads all channels.
struct alignas(sizeof(STORED) * CHANNELS) Pixel {
    STORED of[CHANNELS];
};
