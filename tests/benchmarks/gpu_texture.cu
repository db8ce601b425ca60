// How many values the texture units interpolate between four pixels.

#define CHAINS 8

// Each thread asks n_steps * CHAINS times; threads side by side ask for neighbours.
extern "C" __global__ void __launch_bounds__(256) interpolations(float *there, cudaTextureObject_t image, int n_steps)
{
    float sum = 0.0f;
    for (int step = 0; step < n_steps; ++step)
#pragma unroll
        for (int k = 0; k < CHAINS; ++k)
            sum += tex2D<float>(image, (threadIdx.x % 32) + 0.3f * k + 0.9f, ((threadIdx.x / 32) + step) % 32 + 0.7f);
    there[blockIdx.x * blockDim.x + threadIdx.x] = sum;
}
