// The CUDA runtime (libcudart) without a GPU. Kernels do nothing, and device memory reads as zeros (see Memory::written).
// Copies between pinned memory and the GPU are as late as CUDA allows: when the stream is waited for, or some hundred
// launches later. A source that changes before is a race; the destination of a copy to the host holds a pattern until then.
#include <cuda_runtime_api.h>
#include <sys/mman.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <vector>

#include "model.h"

using namespace null_gpu;

static thread_local int device_of_thread = 0;
static thread_local cudaError_t last_error = cudaSuccess;

static cudaError_t fail(cudaError_t error) { return last_error = error; }
static cudaError_t spoil_capture(cudaError_t error) {
  State::get().invalid = true;
  return fail(error);
}
static int device_count() { return static_cast<int>(setting("NULL_GPU_DEVICES", 1)); }
static int capability() { return static_cast<int>(setting("NULL_GPU_CAPABILITY", 90)); }  // 90 is 9.0
static size_t memory_size() { return static_cast<size_t>(setting("NULL_GPU_MEMORY_MB", 80 << 10)) << 20; }
static const char* device_name() {
  const char* name = getenv("NULL_GPU_NAME");
  return name ? name : "Null GPU";
}
static Stream& stream_of(cudaStream_t handle) {
  if (handle == nullptr || handle == cudaStreamLegacy || handle == cudaStreamPerThread)
    return State::get().default_stream;
  return *reinterpret_cast<Stream*>(handle);
}

// ---- errors

EXPORT cudaError_t cudaGetLastError() {
  cudaError_t error = last_error;
  last_error = cudaSuccess;
  return error;
}
EXPORT cudaError_t cudaPeekAtLastError() { return last_error; }
EXPORT const char* cudaGetErrorName(cudaError_t) { return "cudaError"; }
EXPORT const char* cudaGetErrorString(cudaError_t error) {
  switch (error) {
    case cudaErrorMemoryAllocation: return "out of memory";
    case cudaErrorNotReady: return "device not ready";
    case cudaErrorInvalidDevice: return "invalid device ordinal";
    case cudaErrorInvalidConfiguration: return "invalid configuration argument";
    case cudaErrorStreamCaptureUnsupported: return "operation not permitted when stream is capturing";
    case cudaErrorStreamCaptureInvalidated: return "operation failed due to a previous error during capture";
    case cudaErrorStreamCaptureIsolation: return "dependency created on uncaptured work in another stream";
    case cudaErrorStreamCaptureUnjoined: return "capturing stream has unjoined work";
    case cudaErrorCapturedEvent: return "operation not permitted on an event last recorded in a capturing stream";
    case cudaErrorNotSupported: return "not implemented by the null GPU";
    default: return "error of the null GPU";
  }
}

// ---- devices

EXPORT cudaError_t cudaGetDeviceCount(int* count) { return *count = device_count(), cudaSuccess; }
EXPORT cudaError_t cudaGetDevice(int* device) { return *device = device_of_thread, cudaSuccess; }
EXPORT cudaError_t cudaSetDevice(int device) {
  if (device < 0 || device >= device_count()) return fail(cudaErrorInvalidDevice);
  device_of_thread = device;
  return cudaSuccess;
}
EXPORT cudaError_t cudaGetDeviceProperties(cudaDeviceProp* p, int device) {
  *p = {};
  snprintf(p->name, sizeof p->name, "%s", device_name());
  for (int i = 0; i < 16; i++) p->uuid.bytes[i] = static_cast<char>(16 * device + i);
  p->totalGlobalMem = memory_size(), p->totalConstMem = 64 << 10, p->l2CacheSize = 50 << 20;
  p->major = capability() / 10, p->minor = capability() % 10, p->multiProcessorCount = 132, p->warpSize = 32;
  p->sharedMemPerBlock = 48 << 10, p->sharedMemPerMultiprocessor = 228 << 10, p->sharedMemPerBlockOptin = 227 << 10;
  p->reservedSharedMemPerBlock = 1 << 10, p->regsPerBlock = p->regsPerMultiprocessor = 64 << 10;
  p->maxThreadsPerBlock = 1024, p->maxThreadsPerMultiProcessor = 2048, p->maxBlocksPerMultiProcessor = 32;
  p->maxThreadsDim[0] = p->maxThreadsDim[1] = 1024, p->maxThreadsDim[2] = 64;
  p->maxGridSize[0] = 2147483647, p->maxGridSize[1] = p->maxGridSize[2] = 65535;
  p->memPitch = 2147483647, p->memoryBusWidth = 5120, p->textureAlignment = 512, p->pciBusID = device + 1;
  p->unifiedAddressing = p->canMapHostMemory = p->concurrentKernels = p->cooperativeLaunch = p->managedMemory = 1;
  p->hostRegisterSupported = p->memoryPoolsSupported = p->streamPrioritiesSupported = 1, p->asyncEngineCount = 3;
  return cudaSuccess;
}
EXPORT cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device) {
  cudaDeviceProp p;
  cudaGetDeviceProperties(&p, device);
  switch (attribute) {
    case cudaDevAttrMaxThreadsPerBlock: *value = p.maxThreadsPerBlock; break;
    case cudaDevAttrMaxBlockDimX: case cudaDevAttrMaxBlockDimY: *value = p.maxThreadsDim[0]; break;
    case cudaDevAttrMaxBlockDimZ: *value = p.maxThreadsDim[2]; break;
    case cudaDevAttrMaxGridDimX: *value = p.maxGridSize[0]; break;
    case cudaDevAttrMaxGridDimY: case cudaDevAttrMaxGridDimZ: *value = p.maxGridSize[1]; break;
    case cudaDevAttrMaxSharedMemoryPerBlock: *value = static_cast<int>(p.sharedMemPerBlock); break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin: *value = static_cast<int>(p.sharedMemPerBlockOptin); break;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor: *value = static_cast<int>(p.sharedMemPerMultiprocessor); break;
    case cudaDevAttrTotalConstantMemory: *value = static_cast<int>(p.totalConstMem); break;
    case cudaDevAttrWarpSize: *value = p.warpSize; break;
    case cudaDevAttrMaxRegistersPerBlock: *value = p.regsPerBlock; break;
    case cudaDevAttrMaxRegistersPerMultiprocessor: *value = p.regsPerMultiprocessor; break;
    case cudaDevAttrClockRate: *value = 1980000; break;
    case cudaDevAttrMemoryClockRate: *value = 2619000; break;
    case cudaDevAttrMultiProcessorCount: *value = p.multiProcessorCount; break;
    case cudaDevAttrGlobalMemoryBusWidth: *value = p.memoryBusWidth; break;
    case cudaDevAttrL2CacheSize: *value = p.l2CacheSize; break;
    case cudaDevAttrMaxThreadsPerMultiProcessor: *value = p.maxThreadsPerMultiProcessor; break;
    case cudaDevAttrMaxBlocksPerMultiprocessor: *value = p.maxBlocksPerMultiProcessor; break;
    case cudaDevAttrComputeCapabilityMajor: *value = p.major; break;
    case cudaDevAttrComputeCapabilityMinor: *value = p.minor; break;
    case cudaDevAttrStreamPrioritiesSupported: case cudaDevAttrCooperativeLaunch: case cudaDevAttrMemoryPoolsSupported:
      *value = 1;
      break;
    default: *value = 0;
  }
  return cudaSuccess;
}
EXPORT cudaError_t cudaDeviceGetPCIBusId(char* text, int length, int device) {
  snprintf(text, static_cast<size_t>(length), "0000:%02x:00.0", device + 1);
  return cudaSuccess;
}
EXPORT cudaError_t cudaDeviceGetStreamPriorityRange(int* least, int* greatest) {
  return *least = 0, *greatest = -5, cudaSuccess;
}
EXPORT cudaError_t cudaDeviceCanAccessPeer(int* can, int, int) { return *can = 1, cudaSuccess; }
EXPORT cudaError_t cudaDriverGetVersion(int* version) { return *version = CUDART_VERSION, cudaSuccess; }
EXPORT cudaError_t cudaRuntimeGetVersion(int* version) { return *version = CUDART_VERSION, cudaSuccess; }

// ---- memory

static size_t whole_pages(size_t bytes) { return bytes ? (bytes + 4095) & ~size_t{4095} : 4096; }
static void* map_pages(size_t bytes) {
  void* start = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  return start == MAP_FAILED ? nullptr : start;
}

EXPORT cudaError_t cudaMemGetInfo(size_t* free, size_t* total) {
  State& state = State::get();
  Lock lock(state.mutex);
  *total = memory_size(), *free = *total - state.memory.used;
  return cudaSuccess;
}
EXPORT cudaError_t cudaMalloc(void** address, size_t bytes) {
  State& state = State::get();
  Lock lock(state.mutex);
  Memory& memory = state.memory;
  state.counters.allocations++;
  *address = nullptr;
  bytes = whole_pages(bytes);
  if (memory.refuse_after == 0 || memory.used + bytes > memory_size()) return fail(cudaErrorMemoryAllocation);
  if (memory.refuse_after > 0) memory.refuse_after--;
  if (!(*address = map_pages(bytes))) return fail(cudaErrorMemoryAllocation);
  memory.device[static_cast<char*>(*address)] = bytes;
  memory.used += bytes;
  return cudaSuccess;
}
EXPORT cudaError_t cudaFree(void* address) {
  State& state = State::get();
  Lock lock(state.mutex);
  if (!address) return cudaSuccess;
  state.counters.device_waits++;  // as on a GPU, whose work may still use it
  state.finish_all();
  state.memory.forget();
  auto block = state.memory.device.find(static_cast<char*>(address));
  if (block == state.memory.device.end()) return fail(cudaErrorInvalidValue);
  munmap(address, block->second);
  state.memory.used -= block->second;
  state.memory.device.erase(block);
  return cudaSuccess;
}
EXPORT cudaError_t cudaHostAlloc(void** address, size_t bytes, unsigned) {
  State& state = State::get();
  Lock lock(state.mutex);
  state.counters.host_allocations++;
  bytes = whole_pages(bytes);
  if (!(*address = map_pages(bytes))) return fail(cudaErrorMemoryAllocation);
  state.memory.pinned[static_cast<char*>(*address)] = bytes;
  return cudaSuccess;
}
EXPORT cudaError_t cudaFreeHost(void* address) {
  State& state = State::get();
  Lock lock(state.mutex);
  auto block = state.memory.pinned.find(static_cast<char*>(address));
  if (block == state.memory.pinned.end()) return fail(cudaErrorInvalidValue);
  state.finish_all();
  munmap(address, block->second);
  state.memory.pinned.erase(block);
  return cudaSuccess;
}
EXPORT cudaError_t cudaHostRegister(void* address, size_t bytes, unsigned) {
  State& state = State::get();
  Lock lock(state.mutex);
  state.memory.pinned[static_cast<char*>(address)] = bytes;
  return cudaSuccess;
}
EXPORT cudaError_t cudaHostUnregister(void* address) {
  State& state = State::get();
  Lock lock(state.mutex);
  state.finish_all();
  state.memory.pinned.erase(static_cast<char*>(address));
  return cudaSuccess;
}
EXPORT cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* a, const void* address) {
  State& state = State::get();
  Lock lock(state.mutex);
  *a = {};
  a->device = device_of_thread;
  const bool device = state.memory.on_device(address), pinned = state.memory.is_pinned(address);
  a->type = device ? cudaMemoryTypeDevice : pinned ? cudaMemoryTypeHost : cudaMemoryTypeUnregistered;
  if (device || pinned) a->devicePointer = const_cast<void*>(address);
  if (!device) a->hostPointer = const_cast<void*>(address);
  return cudaSuccess;
}
EXPORT cudaError_t cudaGetSymbolAddress(void** address, const void*) {
  static void* symbols = nullptr;
  if (!symbols) cudaMalloc(&symbols, 1 << 20);
  return *address = symbols, cudaSuccess;
}
EXPORT cudaError_t cudaMemcpyToSymbol(const void*, const void*, size_t, size_t, cudaMemcpyKind) { return cudaSuccess; }
EXPORT cudaError_t cudaDeviceGetDefaultMemPool(cudaMemPool_t* pool, int) {
  static char pools[1];
  return *pool = reinterpret_cast<cudaMemPool_t>(pools), cudaSuccess;
}
EXPORT cudaError_t cudaMemPoolGetAttribute(cudaMemPool_t, cudaMemPoolAttr, void* value) {
  return memset(value, 0, 8), cudaSuccess;
}
EXPORT cudaError_t cudaDeviceGetGraphMemAttribute(int, cudaGraphMemAttributeType, void* value) {
  return memset(value, 0, 8), cudaSuccess;
}

// ---- copies

static cudaError_t copy_in(State& state, Stream& stream, void* to, const void* from, size_t bytes, bool async) {
  const bool pinned = state.memory.is_pinned(from);
  if (stream.capturing && !(pinned && async)) return spoil_capture(cudaErrorStreamCaptureUnsupported);
  state.counters.copies_in++;
  state.counters.bytes_in += static_cast<long>(bytes);
  state.memory.write(to, from, bytes);
  if (!pinned) state.counters.copies_in_pageable++;
  if (!async) {
    state.counters.copy_waits++;
    stream.finish();
  } else if (pinned && !stream.capturing) {
    const unsigned long sum = checksum(from, bytes);
    stream.put([&state, from, bytes, sum] {
      if (checksum(from, bytes) != sum)
        state.races.insert("pinned memory of " + std::to_string(bytes) + " bytes changed before it was copied to the GPU");
    });
  }
  return cudaSuccess;
}

static cudaError_t copy_out(State& state, Stream& stream, void* to, const void* from, size_t bytes, bool async) {
  const bool pinned = state.memory.is_pinned(to);
  if (stream.capturing && !(pinned && async)) return spoil_capture(cudaErrorStreamCaptureUnsupported);
  state.counters.copies_out++;
  state.counters.bytes_out += static_cast<long>(bytes);
  if (async && pinned) {
    auto contents = std::make_shared<std::vector<char>>(bytes);
    memcpy(contents->data(), from, bytes);
    memset(to, 0x7F, bytes);  // what reads it too early finds 3.4e38, or true
    stream.put([to, contents] { memcpy(to, contents->data(), contents->size()); });
    return cudaSuccess;
  }
  state.counters.copy_waits++;
  stream.finish();
  memcpy(to, from, bytes);
  return cudaSuccess;
}

static cudaError_t copy(void* to, const void* from, size_t bytes, cudaStream_t handle, bool async) {
  State& state = State::get();
  Lock lock(state.mutex);
  Stream& stream = stream_of(handle);
  const bool from_device = state.memory.on_device(from), to_device = state.memory.on_device(to);
  state.time++;
  if (from_device && to_device) {
    state.counters.copies_within++;
    if (stream.capturing) {
      state.captured++;
    } else {
      null_gpu_copy_within(to, from, bytes);
    }
    return cudaSuccess;
  }
  if (to_device) return copy_in(state, stream, to, from, bytes, async);
  if (from_device) return copy_out(state, stream, to, from, bytes, async);
  return memcpy(to, from, bytes), cudaSuccess;
}

EXPORT cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind, cudaStream_t stream) {
  return copy(to, from, bytes, stream, true);
}
EXPORT cudaError_t cudaMemcpy(void* to, const void* from, size_t bytes, cudaMemcpyKind) {
  return copy(to, from, bytes, nullptr, false);
}
EXPORT cudaError_t cudaMemcpyPeerAsync(void* to, int, const void* from, int, size_t bytes, cudaStream_t stream) {
  return copy(to, from, bytes, stream, true);
}
static cudaError_t fill(void* to, int value, size_t bytes, cudaStream_t handle) {
  State& state = State::get();
  Lock lock(state.mutex);
  Stream& stream = stream_of(handle);
  state.time++;
  state.counters.fills++;
  if (stream.capturing) {
    state.captured++;
  } else if (!state.memory.written.empty()) {
    const std::vector<char> values(bytes, static_cast<char>(value));
    state.memory.write(to, values.data(), bytes);
  }
  return cudaSuccess;
}
EXPORT cudaError_t cudaMemsetAsync(void* to, int value, size_t bytes, cudaStream_t stream) {
  return fill(to, value, bytes, stream);
}
EXPORT cudaError_t cudaMemset(void* to, int value, size_t bytes) { return fill(to, value, bytes, nullptr); }

// ---- streams and events

struct Event {
  Stream* stream = nullptr;  // null: never recorded
  unsigned long number = 0;
  long time = 0;
  long capture = 0;  // in which it was recorded; 0: in none
  // In the capture under way: only a stream can wait for it, which joins the capture.
  bool captured() const { return capture && capture == State::get().capture && State::get().capturing(); }
};
static Event& event_of(cudaEvent_t handle) { return *reinterpret_cast<Event*>(handle); }

EXPORT cudaError_t cudaStreamCreateWithPriority(cudaStream_t* handle, unsigned, int) {
  State& state = State::get();
  Lock lock(state.mutex);
  Stream* stream = new Stream;
  state.streams.insert(stream);
  *handle = reinterpret_cast<cudaStream_t>(stream);
  return cudaSuccess;
}
EXPORT cudaError_t cudaStreamCreateWithFlags(cudaStream_t* handle, unsigned flags) {
  return cudaStreamCreateWithPriority(handle, flags, 0);
}
EXPORT cudaError_t cudaStreamCreate(cudaStream_t* handle) { return cudaStreamCreateWithPriority(handle, 0, 0); }
EXPORT cudaError_t cudaStreamDestroy(cudaStream_t handle) {  // events still name the stream: its memory stays
  State& state = State::get();
  Lock lock(state.mutex);
  stream_of(handle).finish();
  return cudaSuccess;
}
EXPORT cudaError_t cudaStreamGetPriority(cudaStream_t, int* priority) { return *priority = 0, cudaSuccess; }
EXPORT cudaError_t cudaStreamQuery(cudaStream_t handle) {
  State& state = State::get();
  Lock lock(state.mutex);
  state.time++;
  stream_of(handle).advance();
  return stream_of(handle).waiting.empty() ? cudaSuccess : cudaErrorNotReady;
}
EXPORT cudaError_t cudaStreamSynchronize(cudaStream_t handle) {
  State& state = State::get();
  Lock lock(state.mutex);
  if (stream_of(handle).capturing) return spoil_capture(cudaErrorStreamCaptureUnsupported);
  state.counters.stream_waits++;
  stream_of(handle).finish();
  return cudaSuccess;
}
EXPORT cudaError_t cudaDeviceSynchronize() {
  State& state = State::get();
  Lock lock(state.mutex);
  if (state.capturing()) return spoil_capture(cudaErrorStreamCaptureUnsupported);
  state.counters.device_waits++;
  state.finish_all();
  return cudaSuccess;
}
EXPORT cudaError_t cudaStreamWaitEvent(cudaStream_t handle, cudaEvent_t waited, unsigned) {
  State& state = State::get();
  Lock lock(state.mutex);
  const Event event = event_of(waited);
  Stream& stream = stream_of(handle);
  if (!event.stream || event.stream == &stream) return cudaSuccess;
  if (event.captured()) {
    stream.unjoined = !stream.capturing || stream.unjoined;
    stream.capturing = true;
    event.stream->unjoined = false;
  } else if (stream.capturing) {
    return spoil_capture(cudaErrorStreamCaptureIsolation);
  } else {
    stream.put([event] { event.stream->carry_out(event.number); });
  }
  return cudaSuccess;
}
EXPORT cudaError_t cudaEventCreateWithFlags(cudaEvent_t* handle, unsigned) {
  *handle = reinterpret_cast<cudaEvent_t>(new Event);
  return cudaSuccess;
}
EXPORT cudaError_t cudaEventCreate(cudaEvent_t* handle) { return cudaEventCreateWithFlags(handle, 0); }
EXPORT cudaError_t cudaEventDestroy(cudaEvent_t handle) { return delete &event_of(handle), cudaSuccess; }
EXPORT cudaError_t cudaEventRecordWithFlags(cudaEvent_t handle, cudaStream_t stream, unsigned) {
  State& state = State::get();
  Lock lock(state.mutex);
  Event& event = event_of(handle);
  event.stream = &stream_of(stream);
  event.time = state.time;
  event.capture = event.stream->capturing ? state.capture : 0;
  event.number = event.capture ? event.stream->last : event.stream->put([] {});
  return cudaSuccess;
}
EXPORT cudaError_t cudaEventRecord(cudaEvent_t handle, cudaStream_t stream) {
  return cudaEventRecordWithFlags(handle, stream, 0);
}
EXPORT cudaError_t cudaEventQuery(cudaEvent_t handle) {
  State& state = State::get();
  Lock lock(state.mutex);
  Event& event = event_of(handle);
  if (!event.stream) return cudaSuccess;
  if (event.captured()) return spoil_capture(cudaErrorCapturedEvent);
  state.time++;
  event.stream->advance();
  return event.stream->done >= event.number ? cudaSuccess : cudaErrorNotReady;
}
EXPORT cudaError_t cudaEventSynchronize(cudaEvent_t handle) {
  State& state = State::get();
  Lock lock(state.mutex);
  Event& event = event_of(handle);
  if (!event.stream) return cudaSuccess;
  if (event.captured()) return spoil_capture(cudaErrorCapturedEvent);
  const long distance = state.time - event.time;
  state.counters.event_waits++;
  if (state.counters.closest_event_wait < 0 || distance < state.counters.closest_event_wait)
    state.counters.closest_event_wait = distance;
  event.stream->carry_out(event.number);
  return cudaSuccess;
}
EXPORT cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t start, cudaEvent_t end) {
  const long launches = event_of(end).time - event_of(start).time;
  return *milliseconds = 1e-3F * static_cast<float>(launches > 0 ? launches : 1), cudaSuccess;
}
EXPORT cudaError_t cudaLaunchHostFunc(cudaStream_t handle, cudaHostFn_t function, void* argument) {
  State& state = State::get();
  Lock lock(state.mutex);
  stream_of(handle).put([function, argument] { function(argument); });
  return cudaSuccess;
}

// ---- kernels: torch's libraries register theirs when they are loaded

EXPORT void** __cudaRegisterFatBinary(void*) {
  static void* handles[1];
  return handles;
}
EXPORT void __cudaRegisterFatBinaryEnd(void**) {}
EXPORT void __cudaUnregisterFatBinary(void**) {}
EXPORT char __cudaInitModule(void**) { return 0; }
EXPORT void __cudaRegisterVar(void**, char*, char*, const char*, int, size_t, int, int) {}
EXPORT void __cudaRegisterFunction(
    void**, const char* function, char*, const char* name, int, void*, void*, void*, void*, int*) {
  State& state = State::get();
  Lock lock(state.mutex);
  state.functions[function] = name;
}
static thread_local struct {
  dim3 grid, block;
  size_t shared;
  void* stream;
} configuration;
EXPORT unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared, void* stream) {
  configuration = {grid, block, shared, stream};
  return 0;
}
EXPORT cudaError_t __cudaPopCallConfiguration(dim3* grid, dim3* block, size_t* shared, void* stream) {
  *grid = configuration.grid, *block = configuration.block, *shared = configuration.shared;
  *static_cast<void**>(stream) = configuration.stream;
  return cudaSuccess;
}
// torch's kernels that fill a few numbers are carried out. Return false for all others.
static bool fills(State& state, const void* function, void** arguments, const Stream& stream) {
  static const std::string mark = "FillFunctorI";
  const std::string& name = state.functions[function];
  const size_t found = name.find(mark);
  if (found == std::string::npos) return false;
  const char type = name[found + mark.size()];
  const size_t bytes = type == 'l' || type == 'd' ? 8 : type == 'i' || type == 'f' ? 4 : 0;
  const int count = *static_cast<int*>(arguments[0]);
  if (!bytes || count > 64) return false;
  char* to = *static_cast<char**>(arguments[2]);
  for (int i = 0; i < count && !stream.capturing; i++)
    state.memory.write(to + static_cast<size_t>(i) * bytes, arguments[1], bytes);
  return true;
}
EXPORT cudaError_t cudaLaunchKernel(
    const void* function, dim3 grid, dim3 block, void** arguments, size_t, cudaStream_t handle) {
  State& state = State::get();
  Lock lock(state.mutex);
  if (!grid.x || !grid.y || !grid.z || !block.x || block.x * block.y * block.z > 1024)
    return fail(cudaErrorInvalidConfiguration);
  Stream& stream = stream_of(handle);
  state.launch(&stream);
  state.by_function[function]++;
  if (!fills(state, function, arguments, stream)) state.memory.forget();
  return cudaSuccess;
}
EXPORT cudaError_t __cudaLaunchKernel(
    cudaKernel_t kernel, dim3 grid, dim3 block, void** arguments, size_t shared, cudaStream_t stream) {
  return cudaLaunchKernel(kernel, grid, block, arguments, shared, stream);
}
EXPORT cudaError_t __cudaGetKernel(cudaKernel_t* kernel, const void* function) {
  *kernel = reinterpret_cast<cudaKernel_t>(const_cast<void*>(function));
  return cudaSuccess;
}
EXPORT cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t* c, const void* function, void** arguments) {
  return cudaLaunchKernel(function, c->gridDim, c->blockDim, arguments, 0, c->stream);
}
EXPORT cudaError_t cudaLaunchCooperativeKernel(
    const void* function, dim3 grid, dim3 block, void** arguments, size_t shared, cudaStream_t stream) {
  return cudaLaunchKernel(function, grid, block, arguments, shared, stream);
}
EXPORT cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* a, const void*) {
  *a = {};
  a->maxThreadsPerBlock = 1024, a->numRegs = 32, a->maxDynamicSharedSizeBytes = 48 << 10;
  a->ptxVersion = a->binaryVersion = capability();
  return cudaSuccess;
}
EXPORT cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int* n, const void*, int, size_t, unsigned) {
  return *n = 2, cudaSuccess;
}
EXPORT cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* n, const void*, int, size_t) {
  return *n = 2, cudaSuccess;
}
EXPORT cudaError_t cudaGetDriverEntryPointByVersion(
    const char* symbol, void** address, unsigned, unsigned long long, cudaDriverEntryPointQueryResult* result) {
  *address = null_gpu_driver_function(symbol);
  if (result) *result = *address ? cudaDriverEntryPointSuccess : cudaDriverEntryPointSymbolNotFound;
  return cudaSuccess;
}

// ---- graphs: only the number of their kernels is kept. One capture at a time: streams join it by waiting for its events

static cudaStreamCaptureStatus capture_status(cudaStream_t handle) {
  return stream_of(handle).capturing ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone;
}
EXPORT cudaError_t cudaStreamIsCapturing(cudaStream_t handle, cudaStreamCaptureStatus* status) {
  return *status = capture_status(handle), cudaSuccess;
}
EXPORT cudaError_t cudaStreamGetCaptureInfo(
    cudaStream_t handle, cudaStreamCaptureStatus* status, unsigned long long* id, cudaGraph_t* graph,
    const cudaGraphNode_t** nodes, const cudaGraphEdgeData** edges, size_t* count) {
  *status = capture_status(handle);
  if (id) *id = reinterpret_cast<unsigned long long>(&stream_of(handle));
  if (graph) *graph = nullptr;
  if (nodes) *nodes = nullptr;
  if (edges) *edges = nullptr;
  if (count) *count = 0;
  return cudaSuccess;
}
EXPORT cudaError_t cudaStreamBeginCapture(cudaStream_t handle, cudaStreamCaptureMode) {
  State& state = State::get();
  Lock lock(state.mutex);
  Stream& stream = stream_of(handle);
  if (&stream == &state.default_stream || state.capturing()) return fail(cudaErrorStreamCaptureUnsupported);
  state.counters.captures++;
  state.capture++;
  state.captured = 0;
  state.invalid = false;
  stream.capturing = true;
  return cudaSuccess;
}
EXPORT cudaError_t cudaStreamEndCapture(cudaStream_t handle, cudaGraph_t* graph) {
  State& state = State::get();
  Lock lock(state.mutex);
  if (!stream_of(handle).capturing) return fail(cudaErrorIllegalState);
  bool unjoined = false;
  for (Stream* stream : state.streams) {
    unjoined |= stream->capturing && stream->unjoined;
    stream->capturing = stream->unjoined = false;
  }
  *graph = nullptr;
  if (state.invalid) return fail(cudaErrorStreamCaptureInvalidated);
  if (unjoined) return fail(cudaErrorStreamCaptureUnjoined);
  *graph = reinterpret_cast<cudaGraph_t>(new long(state.captured));
  return cudaSuccess;
}
EXPORT cudaError_t cudaGraphInstantiateWithFlags(cudaGraphExec_t* executable, cudaGraph_t graph, unsigned long long) {
  *executable = reinterpret_cast<cudaGraphExec_t>(new long(*reinterpret_cast<long*>(graph)));
  return cudaSuccess;
}
EXPORT cudaError_t cudaGraphLaunch(cudaGraphExec_t executable, cudaStream_t) {
  State& state = State::get();
  Lock lock(state.mutex);
  state.time++;
  state.counters.graph_launches++;
  state.counters.graph_kernels += *reinterpret_cast<long*>(executable);
  state.at_launch.clear();
  for (auto& [start, bytes] : state.memory.written) state.at_launch[start] = std::string(start, bytes);
  state.memory.forget();
  return cudaSuccess;
}
EXPORT cudaError_t cudaGraphGetNodes(cudaGraph_t, cudaGraphNode_t*, size_t* count) { return *count = 1, cudaSuccess; }
EXPORT cudaError_t cudaThreadExchangeStreamCaptureMode(cudaStreamCaptureMode*) { return cudaSuccess; }
