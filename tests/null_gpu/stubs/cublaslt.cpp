// cuBLASLt without a GPU: descriptors are empty, and one algorithm fits every product.
struct __half;  // cublasLt.h names types whose own headers come with no wheel of torch
struct __nv_bfloat16;
#define __CUDA_FP16_H__
#define __CUDA_BF16_H__
#define __CUDA_FP8_H__
#include <cublasLt.h>

#include "model.h"

static char descriptor[1];

EXPORT size_t cublasLtGetVersion() { return CUBLAS_VERSION; }
EXPORT cublasStatus_t cublasLtMatmulDescCreate(cublasLtMatmulDesc_t* created, cublasComputeType_t, cudaDataType_t) {
  return *created = reinterpret_cast<cublasLtMatmulDesc_t>(descriptor), CUBLAS_STATUS_SUCCESS;
}
EXPORT cublasStatus_t cublasLtMatrixLayoutCreate(
    cublasLtMatrixLayout_t* created, cudaDataType, uint64_t, uint64_t, int64_t) {
  return *created = reinterpret_cast<cublasLtMatrixLayout_t>(descriptor), CUBLAS_STATUS_SUCCESS;
}
EXPORT cublasStatus_t cublasLtMatmulPreferenceCreate(cublasLtMatmulPreference_t* created) {
  return *created = reinterpret_cast<cublasLtMatmulPreference_t>(descriptor), CUBLAS_STATUS_SUCCESS;
}
EXPORT cublasStatus_t cublasLtMatmulAlgoGetHeuristic(
    cublasLtHandle_t, cublasLtMatmulDesc_t, cublasLtMatrixLayout_t, cublasLtMatrixLayout_t, cublasLtMatrixLayout_t,
    cublasLtMatrixLayout_t, cublasLtMatmulPreference_t, int, cublasLtMatmulHeuristicResult_t results[], int* count) {
  results[0] = {};
  results[0].state = CUBLAS_STATUS_SUCCESS;
  return *count = 1, CUBLAS_STATUS_SUCCESS;
}
EXPORT cublasStatus_t cublasLtMatmul(
    cublasLtHandle_t, cublasLtMatmulDesc_t, const void*, const void*, cublasLtMatrixLayout_t, const void*,
    cublasLtMatrixLayout_t, const void*, const void*, cublasLtMatrixLayout_t, void*, cublasLtMatrixLayout_t,
    const cublasLtMatmulAlgo_t*, void*, size_t, cudaStream_t) {
  return null_gpu_launch("cublasLtMatmul", true), CUBLAS_STATUS_SUCCESS;
}
