// cuDNN without a GPU: convolutions through its graph interface, batch norm and pooling. There is no attention.
#include <cudnn_graph.h>

#include <cstring>

#include "model.h"

static char handles[1];
static cudnnStatus_t launch(const char* kernel) { return null_gpu_launch(kernel, true), CUDNN_STATUS_SUCCESS; }

EXPORT size_t cudnnGetVersion() { return CUDNN_VERSION; }
EXPORT size_t cudnnGetCudartVersion() { return CUDART_VERSION; }
EXPORT cudnnStatus_t cudnnGetProperty(libraryPropertyType part, int* value) {
  *value = part == MAJOR_VERSION ? CUDNN_MAJOR : part == MINOR_VERSION ? CUDNN_MINOR : CUDNN_PATCHLEVEL;
  return CUDNN_STATUS_SUCCESS;
}
EXPORT const char* cudnnGetErrorString(cudnnStatus_t) { return "not implemented by the null GPU"; }
EXPORT void cudnnGetLastErrorString(char* text, size_t length) {
  if (length) *text = 0;
}
EXPORT cudnnStatus_t cudnnCreate(cudnnHandle_t* handle) {
  return *handle = reinterpret_cast<cudnnHandle_t>(handles), CUDNN_STATUS_SUCCESS;
}
EXPORT cudnnStatus_t cudnnSetStream(cudnnHandle_t, cudaStream_t) { return CUDNN_STATUS_SUCCESS; }
EXPORT cudnnStatus_t cudnnGetStream(cudnnHandle_t, cudaStream_t* stream) {
  return *stream = nullptr, CUDNN_STATUS_SUCCESS;
}

// ---- convolutions: each graph has one engine, whose plan takes some memory

EXPORT cudnnStatus_t cudnnBackendCreateDescriptor(cudnnBackendDescriptorType_t, cudnnBackendDescriptor_t* created) {
  return *created = handles, CUDNN_STATUS_SUCCESS;
}
EXPORT cudnnStatus_t cudnnBackendDestroyDescriptor(cudnnBackendDescriptor_t) { return CUDNN_STATUS_SUCCESS; }
EXPORT cudnnStatus_t cudnnBackendFinalize(cudnnBackendDescriptor_t) { return CUDNN_STATUS_SUCCESS; }
EXPORT cudnnStatus_t cudnnBackendSetAttribute(
    cudnnBackendDescriptor_t, cudnnBackendAttributeName_t, cudnnBackendAttributeType_t, int64_t, const void*) {
  return CUDNN_STATUS_SUCCESS;
}
EXPORT cudnnStatus_t cudnnBackendGetAttribute(
    const cudnnBackendDescriptor_t, cudnnBackendAttributeName_t name, cudnnBackendAttributeType_t type,
    int64_t requested, int64_t* count, void* values) {
  const bool notes = name == CUDNN_ATTR_ENGINE_NUMERICAL_NOTE || name == CUDNN_ATTR_ENGINE_BEHAVIOR_NOTE ||
                     name == CUDNN_ATTR_ENGINE_KNOB_INFO || name == CUDNN_ATTR_ENGINECFG_KNOB_CHOICES ||
                     name == CUDNN_ATTR_ENGINECFG_INTERMEDIATE_INFO;
  if (count) *count = notes ? 0 : 1;
  if (notes || !values || requested < 1 || type != CUDNN_TYPE_INT64) return CUDNN_STATUS_SUCCESS;
  memset(values, 0, sizeof(int64_t) * static_cast<size_t>(requested));
  if (name == CUDNN_ATTR_EXECUTION_PLAN_WORKSPACE_SIZE || name == CUDNN_ATTR_ENGINECFG_WORKSPACE_SIZE)
    *static_cast<int64_t*>(values) = 16 << 20;
  return CUDNN_STATUS_SUCCESS;
}
EXPORT cudnnStatus_t cudnnBackendExecute(cudnnHandle_t, cudnnBackendDescriptor_t, cudnnBackendDescriptor_t) {
  return launch("cudnnBackendExecute");
}

// ---- other layers; functions without their many arguments where none is used

#define CREATE(name) \
  EXPORT cudnnStatus_t name(void** created) { return *created = handles, CUDNN_STATUS_SUCCESS; }
CREATE(cudnnCreateActivationDescriptor)
CREATE(cudnnCreateConvolutionDescriptor)
CREATE(cudnnCreateDropoutDescriptor)
CREATE(cudnnCreateFilterDescriptor)
CREATE(cudnnCreatePoolingDescriptor)
CREATE(cudnnCreateSpatialTransformerDescriptor)
CREATE(cudnnCreateTensorDescriptor)

EXPORT cudnnStatus_t cudnnGetBatchNormalizationForwardTrainingExWorkspaceSize(
    void*, int, int, void*, void*, void*, void*, void*, size_t* bytes) {
  return *bytes = 1024, CUDNN_STATUS_SUCCESS;
}
EXPORT cudnnStatus_t cudnnGetBatchNormalizationBackwardExWorkspaceSize(
    void*, int, int, void*, void*, void*, void*, void*, void*, void*, size_t* bytes) {
  return *bytes = 1024, CUDNN_STATUS_SUCCESS;
}
EXPORT cudnnStatus_t cudnnGetBatchNormalizationTrainingExReserveSpaceSize(
    void*, int, int, void*, void*, size_t* bytes) {
  return *bytes = 1024, CUDNN_STATUS_SUCCESS;
}
#define LAUNCH(name) \
  EXPORT cudnnStatus_t name() { return launch(#name); }
LAUNCH(cudnnBatchNormalizationForwardTrainingEx)
LAUNCH(cudnnBatchNormalizationBackwardEx)
LAUNCH(cudnnBatchNormalizationForwardInference)
LAUNCH(cudnnSpatialTfSamplerForward)
LAUNCH(cudnnPoolingForward)
