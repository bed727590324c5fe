// Model of a GPU that computes nothing: memory, streams whose copies are as late as CUDA allows, and counters.
// runtime.cpp gives it the interface of the CUDA runtime; the other stub libraries report their kernels to it.
#pragma once
#include <cstddef>
#include <deque>
#include <functional>
#include <map>
#include <mutex>
#include <set>
#include <string>

#define EXPORT extern "C" __attribute__((visibility("default")))

// Of the other libraries. `writes`: the kernel may overwrite any memory, as all do but those of NCCL.
extern "C" void null_gpu_launch(const char* kernel, bool writes);
// A function that torch links to and no stub implements: note its name, return `status`.
extern "C" int null_gpu_refuse(const char* function, int status);
// The address of a function of the CUDA driver.
extern "C" void* null_gpu_driver_function(const char* symbol);
// Copy between buffers of the GPU, if it is small: see Memory::written.
extern "C" void null_gpu_copy_within(void* to, const void* from, size_t bytes);

namespace null_gpu {

// One name each in the report; child.py describes them.
struct Counters {
  long launches, fills, copies_in, copies_in_pageable, copies_out, copies_within, bytes_in, bytes_out;
  long stream_waits, event_waits, device_waits, copy_waits, closest_event_wait;
  long allocations, host_allocations, captures, graph_launches, graph_kernels, outside_capture;
};

// What was put on a stream and is not carried out yet.
struct Operation {
  unsigned long number;  // on its stream
  long put;              // the time: see State::time
  std::function<void()> carry_out;
};

struct Stream {
  std::deque<Operation> waiting;
  unsigned long last = 0, done = 0;
  bool capturing = false, unjoined = false;  // unjoined: joined a capture, which does not wait for it yet

  unsigned long put(std::function<void()> carry_out);
  void carry_out(unsigned long number);  // all operations up to this one
  void advance();                        // carry out those that even the slowest GPU has finished by now
  void finish() { carry_out(last); }
};

struct Memory {
  std::map<const char*, size_t> device, pinned;
  size_t used = 0;
  long refuse_after = -1;  // allocations until memory is full; below 0: by its size only
  // Small copies are real, so that ranks can exchange shapes and numbers, until a kernel runs, which may overwrite
  // any of them: from then on device memory reads as zeros again.
  std::map<char*, size_t> written;

  static bool holds(const std::map<const char*, size_t>& blocks, const void* address);
  bool on_device(const void* address) const { return holds(device, address); }
  bool is_pinned(const void* address) const { return holds(pinned, address); }
  void write(void* to, const void* from, size_t bytes);
  void forget();
};

struct State {
  std::recursive_mutex mutex;
  Counters counters{};
  Memory memory;
  Stream default_stream;
  std::set<Stream*> streams;
  std::map<const void*, long> by_function;  // launches of kernels that torch registered,
  std::map<std::string, long> by_name;      // and of the other libraries
  std::map<const void*, std::string> functions;
  std::set<std::string> refused, races;
  long time = 0;  // counts launches, copies and questions
  // Of the capture under way, or the last one: its number, its kernels, and whether it did what no graph can hold.
  long capture = 0, captured = 0;
  bool invalid = false;
  std::map<char*, std::string> at_launch;  // what was known of device memory when the last graph was launched

  static State& get();
  bool capturing() const;
  void launch(Stream* stream);  // null: of a library, on the current stream
  void finish_all();
};

using Lock = std::lock_guard<std::recursive_mutex>;
long setting(const char* name, long fallback);
unsigned long checksum(const void* from, size_t bytes);
}  // namespace null_gpu
