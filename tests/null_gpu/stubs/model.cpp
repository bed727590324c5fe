// See model.h.
#include "model.h"

#include <cxxabi.h>
#include <sys/mman.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace null_gpu {

static const size_t SMALL = 64 << 10;  // bytes of a copy that is carried out for real
static const long LATEST = 500;        // launches and questions after which a copy is carried out at the latest

long setting(const char* name, long fallback) {
  const char* text = getenv(name);
  return text ? atol(text) : fallback;
}

unsigned long checksum(const void* from, size_t bytes) {
  const unsigned char* source = static_cast<const unsigned char*>(from);
  unsigned long sum = bytes, word = 0;
  for (; bytes >= sizeof word; source += sizeof word, bytes -= sizeof word) {
    memcpy(&word, source, sizeof word);
    sum = (sum ^ word) * 0x9E3779B97F4A7C15UL;
    sum ^= sum >> 29;
  }
  for (; bytes; source++, bytes--) sum = (sum ^ *source) * 0x100000001B3UL;
  return sum;
}

// ---- streams

unsigned long Stream::put(std::function<void()> carry_out) {
  waiting.push_back({++last, State::get().time, std::move(carry_out)});
  advance();
  return last;
}

void Stream::carry_out(unsigned long number) {
  while (!waiting.empty() && waiting.front().number <= number) {
    Operation operation = std::move(waiting.front());
    waiting.pop_front();
    done = operation.number;
    operation.carry_out();
  }
}

void Stream::advance() {
  while (!waiting.empty() && waiting.front().put + LATEST < State::get().time) carry_out(waiting.front().number);
}

// ---- memory

bool Memory::holds(const std::map<const char*, size_t>& blocks, const void* address) {
  auto next = blocks.upper_bound(static_cast<const char*>(address));
  if (next == blocks.begin()) return false;
  --next;
  return static_cast<const char*>(address) < next->first + next->second;
}

void Memory::write(void* to, const void* from, size_t bytes) {
  if (bytes > SMALL) return;
  memmove(to, from, bytes);
  size_t& known = written[static_cast<char*>(to)];
  if (known < bytes) known = bytes;
}

void Memory::forget() {
  for (auto& [start, bytes] : written) memset(start, 0, bytes);
  written.clear();
}

// ---- state

State& State::get() {
  static State* state = new State;  // never destroyed: libraries use it while the process ends
  return *state;
}

bool State::capturing() const {
  for (Stream* stream : streams)
    if (stream->capturing) return true;
  return default_stream.capturing;
}

void State::launch(Stream* stream) {
  time++;
  counters.launches++;
  if (!capturing()) return;
  if (stream && !stream->capturing) {
    counters.outside_capture++;
  } else {
    captured++;
  }
}

void State::finish_all() {
  default_stream.finish();
  for (Stream* stream : streams) stream->finish();
}

}  // namespace null_gpu

using null_gpu::Lock;
using null_gpu::State;

EXPORT void null_gpu_launch(const char* kernel, bool writes) {
  State& state = State::get();
  Lock lock(state.mutex);
  state.launch(nullptr);
  state.by_name[kernel]++;
  if (writes) state.memory.forget();
}

EXPORT int null_gpu_refuse(const char* function, int status) {
  State& state = State::get();
  Lock lock(state.mutex);
  state.refused.insert(function);
  return status;
}

EXPORT void null_gpu_copy_within(void* to, const void* from, size_t bytes) {
  State& state = State::get();
  Lock lock(state.mutex);
  if (!state.memory.written.empty()) state.memory.write(to, from, bytes);
}

// ---- for the tests, which call these by ctypes: child.py

static std::string quoted(const std::string& text) {
  std::string result = "\"";
  for (char character : text) {
    if (character == '"' || character == '\\') result += '\\';
    result += character;
  }
  return result + '"';
}

static std::string readable(const std::string& symbol) {
  int status = 0;
  char* name = abi::__cxa_demangle(symbol.c_str(), nullptr, nullptr, &status);
  std::string result = status == 0 ? name : symbol;
  free(name);
  return result;
}

template <class Names>
static std::string listed(const Names& names) {
  std::string result;
  for (const std::string& name : names) result += (result.empty() ? "" : ", ") + quoted(name);
  return "[" + result + "]";
}

// Counters, kernels by name, races and refused functions as JSON. The text is valid until the next call.
EXPORT const char* null_gpu_report() {
  State& state = State::get();
  Lock lock(state.mutex);
  static std::string text;
  const null_gpu::Counters& c = state.counters;
  text = "{";
  auto add = [](const char* name, long value) { text += quoted(name) + ": " + std::to_string(value) + ", "; };
#define ADD(name) add(#name, c.name)
  ADD(launches), ADD(fills), ADD(copies_in), ADD(copies_in_pageable), ADD(copies_out), ADD(copies_within);
  ADD(bytes_in), ADD(bytes_out), ADD(stream_waits), ADD(event_waits), ADD(device_waits), ADD(copy_waits);
  ADD(closest_event_wait), ADD(allocations), ADD(host_allocations), ADD(captures), ADD(graph_launches);
  ADD(graph_kernels), ADD(outside_capture);
#undef ADD
  std::map<std::string, long> kernels = state.by_name;
  for (auto& [function, launches] : state.by_function) {
    auto known = state.functions.find(function);
    kernels[known == state.functions.end() ? "unknown" : readable(known->second)] += launches;
  }
  std::string counts;
  for (auto& [name, launches] : kernels)
    counts += (counts.empty() ? "" : ", ") + quoted(name) + ": " + std::to_string(launches);
  text += "\"kernels\": {" + counts + "}, \"races\": " + listed(state.races);
  text += ", \"refused\": " + listed(state.refused) + "}";
  return text.c_str();
}

// What was known of device memory at the launch of the last graph: a line each of address and bytes, in hex.
EXPORT const char* null_gpu_at_launch() {
  State& state = State::get();
  Lock lock(state.mutex);
  static std::string text;
  text.clear();
  char digits[32];
  for (auto& [start, bytes] : state.at_launch) {
    snprintf(digits, sizeof digits, "%zx ", reinterpret_cast<size_t>(start));
    text += digits;
    for (unsigned char byte : bytes) {
      snprintf(digits, sizeof digits, "%02x", byte);
      text += digits;
    }
    text += '\n';
  }
  return text.c_str();
}

EXPORT void null_gpu_reset() {
  State& state = State::get();
  Lock lock(state.mutex);
  state.counters = {};
  state.counters.closest_event_wait = -1;
  state.by_function.clear();
  state.by_name.clear();
  state.races.clear();
}

// Let this many allocations succeed and refuse all later ones, as a full memory does; below 0: refuse none.
EXPORT void null_gpu_refuse_allocations_after(long allocations) {
  State& state = State::get();
  Lock lock(state.mutex);
  state.memory.refuse_after = allocations;
}
