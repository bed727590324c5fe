// The CUDA driver (libcuda) without a GPU: what Triton's launcher and torch ask it for, in terms of the runtime.
#include <cuda.h>
#include <cuda_runtime_api.h>

#include <dlfcn.h>

#include <array>
#include <cstdlib>
#include <cstring>
#include <utility>

#include "model.h"

using null_gpu::Lock;
using null_gpu::State;

static char context[1], module_of_kernels[1];

// ---- look-up by name: of a function that is not here, a stand-in that notes the name when it is called

static const size_t MOST = 64;
static std::string absent[MOST];
static std::array<void*, MOST> stand_ins;

template <size_t N>
static CUresult refuse() {
  return static_cast<CUresult>(null_gpu_refuse(absent[N].c_str(), CUDA_ERROR_NOT_SUPPORTED));
}
template <size_t... N>
static std::array<void*, MOST> all_stand_ins(std::index_sequence<N...>) {
  return {reinterpret_cast<void*>(refuse<N>)...};
}

EXPORT void* null_gpu_driver_function(const char* symbol) {
  static size_t count = 0;
  const std::string name = symbol;
  for (const std::string& tried : {name, name + "_v2"})
    if (void* found = dlsym(RTLD_DEFAULT, tried.c_str())) return found;
  Lock lock(State::get().mutex);
  if (count == 0) stand_ins = all_stand_ins(std::make_index_sequence<MOST>());
  for (size_t i = 0; i < count; i++)
    if (absent[i] == name) return stand_ins[i];
  if (count == MOST) return nullptr;
  absent[count] = name;
  return stand_ins[count++];
}
EXPORT CUresult cuGetProcAddress_v2(
    const char* symbol, void** address, int, cuuint64_t, CUdriverProcAddressQueryResult* result) {
  *address = null_gpu_driver_function(symbol);
  if (result) *result = *address ? CU_GET_PROC_ADDRESS_SUCCESS : CU_GET_PROC_ADDRESS_SYMBOL_NOT_FOUND;
  return CUDA_SUCCESS;
}

EXPORT CUresult cuGetErrorString(CUresult, const char** text) { return *text = "error of the null GPU", CUDA_SUCCESS; }
EXPORT CUresult cuGetErrorName(CUresult, const char** text) { return *text = "CUDA_ERROR", CUDA_SUCCESS; }
// ---- devices and contexts

EXPORT CUresult cuInit(unsigned) { return CUDA_SUCCESS; }
EXPORT CUresult cuLogsRegisterCallback(CUlogsCallback, void*, CUlogsCallbackHandle* handle) {
  return *handle = nullptr, CUDA_SUCCESS;
}
EXPORT CUresult cuDriverGetVersion(int* version) { return *version = CUDA_VERSION, CUDA_SUCCESS; }
EXPORT CUresult cuDeviceGet(CUdevice* device, int ordinal) { return *device = ordinal, CUDA_SUCCESS; }
EXPORT CUresult cuDeviceGetCount(int* count) { return static_cast<CUresult>(cudaGetDeviceCount(count)); }
EXPORT CUresult cuDeviceGetAttribute(int* value, CUdevice_attribute attribute, CUdevice device) {
  return static_cast<CUresult>(cudaDeviceGetAttribute(value, static_cast<cudaDeviceAttr>(attribute), device));
}
EXPORT CUresult cuDevicePrimaryCtxGetState(CUdevice, unsigned* flags, int* active) {
  return *flags = 0, *active = 1, CUDA_SUCCESS;
}
EXPORT CUresult cuDevicePrimaryCtxRetain(CUcontext* c, CUdevice) {
  return *c = reinterpret_cast<CUcontext>(context), CUDA_SUCCESS;
}
EXPORT CUresult cuCtxGetCurrent(CUcontext* c) { return cuDevicePrimaryCtxRetain(c, 0); }
EXPORT CUresult cuCtxPopCurrent_v2(CUcontext* c) { return cuDevicePrimaryCtxRetain(c, 0); }
EXPORT CUresult cuCtxSetCurrent(CUcontext) { return CUDA_SUCCESS; }
EXPORT CUresult cuCtxPushCurrent_v2(CUcontext) { return CUDA_SUCCESS; }
EXPORT CUresult cuCtxGetDevice(CUdevice* device) { return static_cast<CUresult>(cudaGetDevice(device)); }
EXPORT CUresult cuCtxSetLimit(CUlimit, size_t) { return CUDA_SUCCESS; }
EXPORT CUresult cuCtxGetLimit(size_t* value, CUlimit) { return *value = 0, CUDA_SUCCESS; }
EXPORT CUresult cuPointerGetAttribute(void* data, CUpointer_attribute attribute, CUdeviceptr address) {
  if (attribute == CU_POINTER_ATTRIBUTE_MEMORY_TYPE) {
    *static_cast<unsigned*>(data) = CU_MEMORYTYPE_DEVICE;
  } else if (attribute == CU_POINTER_ATTRIBUTE_DEVICE_POINTER) {
    *static_cast<CUdeviceptr*>(data) = address;
  } else {
    *static_cast<CUdeviceptr*>(data) = 0;
  }
  return CUDA_SUCCESS;
}
EXPORT CUresult cuMemGetAddressRange_v2(CUdeviceptr* start, size_t* bytes, CUdeviceptr address) {
  if (start) *start = address;
  if (bytes) *bytes = 0;
  return CUDA_SUCCESS;
}

// ---- kernels that Triton has compiled; the handle of a function is its name

EXPORT CUresult cuModuleLoadData(CUmodule* module, const void*) {
  return *module = reinterpret_cast<CUmodule>(module_of_kernels), CUDA_SUCCESS;
}
EXPORT CUresult cuModuleLoad(CUmodule* module, const char*) { return cuModuleLoadData(module, nullptr); }
EXPORT CUresult cuModuleLoadDataEx(CUmodule* module, const void*, unsigned, CUjit_option*, void**) {
  return cuModuleLoadData(module, nullptr);
}
EXPORT CUresult cuModuleUnload(CUmodule) { return CUDA_SUCCESS; }
EXPORT CUresult cuModuleGetFunction(CUfunction* function, CUmodule, const char* name) {
  return *function = reinterpret_cast<CUfunction>(strdup(name)), CUDA_SUCCESS;
}
EXPORT CUresult cuModuleGetGlobal_v2(CUdeviceptr* address, size_t* bytes, CUmodule, const char*) {
  void* symbol = nullptr;
  cudaGetSymbolAddress(&symbol, nullptr);
  *address = reinterpret_cast<CUdeviceptr>(symbol);
  if (bytes) *bytes = 64;
  return CUDA_SUCCESS;
}
EXPORT CUresult cuFuncGetAttribute(int* value, CUfunction_attribute attribute, CUfunction) {
  *value = attribute == CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK ? 1024 : 0;
  if (attribute == CU_FUNC_ATTRIBUTE_NUM_REGS) *value = 32;
  return CUDA_SUCCESS;
}
EXPORT CUresult cuFuncSetAttribute(CUfunction, CUfunction_attribute, int) { return CUDA_SUCCESS; }
EXPORT CUresult cuFuncSetCacheConfig(CUfunction, CUfunc_cache) { return CUDA_SUCCESS; }
EXPORT CUresult cuOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, CUfunction, int, size_t) {
  return *blocks = 2, CUDA_SUCCESS;
}
EXPORT CUresult cuOccupancyMaxActiveClusters(int* clusters, CUfunction, const CUlaunchConfig*) {
  return *clusters = 1, CUDA_SUCCESS;
}
static CUresult launch(CUfunction function) {
  return null_gpu_launch(reinterpret_cast<const char*>(function), true), CUDA_SUCCESS;
}
EXPORT CUresult cuLaunchKernel(
    CUfunction function, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, CUstream, void**,
    void**) {
  return launch(function);
}
EXPORT CUresult cuLaunchKernelEx(const CUlaunchConfig*, CUfunction function, void**, void**) {
  return launch(function);
}
EXPORT CUresult cuLaunchCooperativeKernel(
    CUfunction function, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, CUstream, void**) {
  return launch(function);
}
