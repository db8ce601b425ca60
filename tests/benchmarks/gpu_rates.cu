// How fast the device computes and reads what is near, in the patterns of our kernels: what their ceilings are made of.

#include "../../reconstruction/kernels/stored.cuh"

#define CHAINS 8

// Each thread does n_steps * CHAINS multiply-adds that do not wait for each other.
extern "C" __global__ void __launch_bounds__(256) multiply_adds(float *there, int n_steps, float factor)
{
    float values[CHAINS];
    for (int k = 0; k < CHAINS; ++k)
        values[k] = threadIdx.x + k;
    for (int step = 0; step < n_steps; ++step)
#pragma unroll
        for (int k = 0; k < CHAINS; ++k)
            values[k] = fmaf(values[k], factor, 0.5f);
    float sum = 0.0f;
    for (int k = 0; k < CHAINS; ++k)
        sum += values[k];
    there[blockIdx.x * blockDim.x + threadIdx.x] = sum;
}

// Each thread loads n_steps * CHAINS pixels out of a few that stay in the nearest cache; threads side by side, neighbours.
// last_pixel is a power of two less one.
extern "C" __global__ void __launch_bounds__(256) near_loads(float *there, const Pixel *pixels, int n_steps, int last_pixel)
{
    float sums[CHANNELS] = {};
    for (int step = 0; step < n_steps; ++step)
#pragma unroll
        for (int k = 0; k < CHAINS; ++k) {
            const Pixel pixel = pixels[(threadIdx.x + 37 * step + 32 * k) & last_pixel];
#pragma unroll
            for (int channel = 0; channel < CHANNELS; ++channel)
                sums[channel] += widened(pixel.of[channel]);
        }
    float sum = 0.0f;
    for (int channel = 0; channel < CHANNELS; ++channel)
        sum += sums[channel];
    there[blockIdx.x * blockDim.x + threadIdx.x] = sum;
}
