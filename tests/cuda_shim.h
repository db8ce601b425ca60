// The built-ins of CUDA C++ that our kernels use, for a C++ compiler: one thread after the other, on the CPU.

#pragma once
#include <cmath>
#include <cstring>
#include <tuple>
#include <type_traits>
#include <utility>

#define __global__
#define __device__
#define __constant__
#define __forceinline__ inline
#define __launch_bounds__(...)

struct Index {
    unsigned int x, y, z;
};
static Index blockIdx, threadIdx, blockDim, gridDim;

typedef unsigned short half_bits;

static inline float widened(half_bits bits)
{
    _Float16 half;
    std::memcpy(&half, &bits, 2);
    return half;
}

static inline half_bits narrowed(float value)
{
    const _Float16 half = value;
    half_bits bits;
    std::memcpy(&bits, &half, 2);
    return bits;
}

static inline int min(int a, int b) { return a < b ? a : b; }
static inline int max(int a, int b) { return a > b ? a : b; }

static inline float reciprocal(float value) { return 1.0f / value; }

// What a kernel takes, one letter an argument: p for pointers, i and f for int and float, ? for what no launch here knows.
template <typename Argument>
constexpr char letter()
{
    return std::is_pointer<Argument>::value            ? 'p'
           : std::is_same<Argument, int>::value        ? 'i'
           : std::is_same<Argument, float>::value      ? 'f'
                                                       : '?';
}

template <typename... Arguments>
static const char *signature_of(void (*)(Arguments...))
{
    static const char letters[] = {letter<Arguments>()..., 0};
    return letters;
}

template <typename... Arguments, std::size_t... Place>
static void call(void (*kernel)(Arguments...), void **arguments, std::index_sequence<Place...>)
{
    kernel(*static_cast<std::remove_reference_t<Arguments> *>(arguments[Place])...);
}

template <typename... Arguments>
static void run(void (*kernel)(Arguments...), const unsigned int *blocks, const unsigned int *threads, void **arguments)
{
    gridDim = {blocks[0], blocks[1], blocks[2]};
    blockDim = {threads[0], threads[1], threads[2]};
    for (blockIdx.z = 0; blockIdx.z < gridDim.z; ++blockIdx.z)
        for (blockIdx.y = 0; blockIdx.y < gridDim.y; ++blockIdx.y)
            for (blockIdx.x = 0; blockIdx.x < gridDim.x; ++blockIdx.x)
                for (threadIdx.z = 0; threadIdx.z < blockDim.z; ++threadIdx.z)
                    for (threadIdx.y = 0; threadIdx.y < blockDim.y; ++threadIdx.y)
                        for (threadIdx.x = 0; threadIdx.x < blockDim.x; ++threadIdx.x)
                            call(kernel, arguments, std::index_sequence_for<Arguments...>());
}
