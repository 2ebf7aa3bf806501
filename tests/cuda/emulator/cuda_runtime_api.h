// The host side of CUDA: here the same as the device side.
#pragma once
#include "cuda_runtime.h"
