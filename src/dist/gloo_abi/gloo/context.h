// SPDX-License-Identifier: Apache-2.0
// The names of gloo in LibTorch's ProcessGroupGloo.hpp. The wheels hold gloo itself, exported by
// libtorch_cpu, but none of its headers. Objects of these classes are made and used inside LibTorch
// alone, behind shared pointers, so no size is taken from here.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#define GLOO_STORE_HAS_STORE_V2 1

namespace gloo {
namespace transport {
class Device;
class UnboundBuffer;
}  // namespace transport

class Context {
 public:
  void setTimeout(std::chrono::milliseconds timeout);
};

// c10d::GlooStore, declared over there, overrides these; no object of it is made here.
class IStore {
 public:
  virtual ~IStore() = default;
  virtual void set(const std::string& key, const std::vector<char>& data) = 0;
  virtual std::vector<char> get(const std::string& key) = 0;
  virtual std::vector<char> wait_get(const std::string& key,
                                     const std::chrono::milliseconds& timeout) = 0;
  virtual void wait(const std::vector<std::string>& keys,
                    const std::chrono::milliseconds& timeout) = 0;
  virtual bool has_v2_support() = 0;
  virtual std::vector<std::vector<char>> multi_get(const std::vector<std::string>& keys) = 0;
  virtual void multi_set(const std::vector<std::string>& keys,
                         const std::vector<std::vector<char>>& values) = 0;
  virtual void append(const std::string& key, const std::vector<char>& value) = 0;
  virtual std::int64_t add(const std::string& key, std::int64_t value) = 0;
};

namespace rendezvous {
class Store : public IStore {
 public:
  using IStore::wait;
  virtual void wait(const std::vector<std::string>& keys) = 0;
};
}  // namespace rendezvous
}  // namespace gloo
