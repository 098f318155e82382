// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <ATen/core/Tensor.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "prefopt/policy/policy.h"
#include "prefopt/train/trainer.h"
#include "train/state.h"

namespace prefopt::detail {

/// Bytes that training keeps next to the weights, once it has taken a step.
struct OptimizerBytes {
  std::int64_t gradients = 0;
  std::int64_t masters = 0;
  std::int64_t state = 0;  ///< moments, and counts of steps
};

/// A tensor that an optimizer trains: a parameter, or a slice of one.
struct TrainedTensor {
  std::string name;
  at::Tensor value;
  bool is_matrix;          ///< whether weights decay; a slice is flat
  std::int64_t first = 0;  ///< place of its first number in the parameter
};

/// AdamW (1711.05101), Adafactor (train/adafactor.h) or RMSprop over the parameters that require a
/// gradient; AdamW in one pass over memory. Weight decay acts on matrices and not on vectors: norm
/// weights and biases have no scale to shrink. RMSprop is that of torch::optim, not centered:
///   g ← g + weight_decay θ, v ← alpha v + (1 − alpha) g², u = g / (sqrt(v) + epsilon)
///   θ ← θ − learning_rate u, or with momentum m ← momentum m + u, θ ← θ − learning_rate m
///
/// Gradients of bfloat16 and float16 parameters are added up in float32 (math/wide_gradient.h), in
/// one buffer for all. Steps change a float32 master of each, in another buffer for all, and the
/// parameter is its rounded value; or, by `Masters::kStochastic`, the parameter itself.
class Optimizer {
 public:
  Optimizer(const std::vector<NamedParameter>& parameters, const OptimizerOptions& options);
  Optimizer(const OptimizerOptions& options, const std::vector<TrainedTensor>& tensors);

  /// A tensor of numbers that the steps of a parameter leave: AdamW's mean and square, RMSprop's
  /// square and momentum, Adafactor's rows and columns, or square of a vector.
  struct Moment {
    std::string name;
    std::vector<std::int64_t> sizes;
    at::Tensor value = {};
  };

  /// A tensor that the optimizer trains, with its state.
  struct Parameter {
    std::string name;
    at::Tensor value;
    std::int64_t first;          ///< place of its first number among those that are drawn for
    std::size_t place;           ///< among all parameters, in the order in which they were given
    at::ScalarType state_dtype;  ///< of the moments
    bool has_master;
    std::int64_t offset = 0;            ///< of a narrow one in the two buffers
    at::Tensor gradient = {};           ///< of a narrow one, in the buffer or in own memory
    bool gives_gradient_back = false;   ///< own memory, while it is not dropped
    std::int64_t version_of_zero = 0;   ///< of the gradient, before anything was added
    at::Tensor master = {};             ///< in the buffer
    std::int64_t rounded_version = -1;  ///< of the value, where it is the master rounded
    std::vector<Moment> moments = {};
    at::Tensor steps = {};
    bool has_state = false;  ///< whether moments and master hold numbers yet

    /// Returns whether anything was added to the gradient since it was dropped.
    bool has_gradient() const;
    /// Leaves zeros where it is narrow, in memory or without, else nothing.
    void drop_gradient();
    /// Adds numbers of the value's shape, or puts them where there are none.
    void add_gradient(const at::Tensor& numbers);
    bool is_narrow_between_steps() const;
    /// Returns the tensor that a step changes.
    const at::Tensor& trained() const { return has_master ? master : value; }
  };

  /// Returns all of them, matrices first.
  std::vector<Parameter*> parameters();

  bool empty() const;
  bool has_masters() const;
  OptimizerBytes bytes() const;
  /// Takes memory for the gradients of narrow parameters. Throws std::bad_alloc, and
  /// c10::OutOfMemoryError of a GPU.
  void reserve_gradients();
  /// Leaves narrow parameters with zeros in float32 and the others without a gradient.
  void zero_grad();
  /// The same, for gradients that are dropped as soon as they are complete: those of narrow
  /// parameters have memory from the first addition until then.
  void drop_gradients_and_memory();
  /// 2-norm over all gradients, in float64: of rows of 1024 in at least float32.
  double grad_norm() const;
  /// Takes memory for the state of the parameters that have a gradient, so that `step` needs no
  /// more than a few MiB for what it computes with. Throws as `reserve_gradients`, with nothing
  /// changed.
  void reserve_state();
  /// Returns whether `reserve_state` takes memory.
  bool lacks_state() const;
  /// Takes the gradients times `factor`. A parameter that got no gradient since `zero_grad` stays
  /// as it is.
  void step(double learning_rate, double factor = 1);
  /// Sets moments and counts of steps to zero, as before the first step; weights stay.
  void restart();
  /// Visits all that steps change but the parameters; the draws of narrow state follow from it.
  void visit_state(StateVisitor& visitor);

  /// A narrow tensor and what it is the rounded value of, in float32.
  struct Master {
    at::Tensor value, wide;
  };
  /// Returns those of all parameters that have one.
  std::vector<Master> masters();

 private:
  struct Group {
    double weight_decay = 0;
    std::vector<Parameter> parameters;
  };

  /// Tensors of one step, a list each over parameters.
  struct Batch {
    std::vector<at::Tensor> trained, gradients, steps;
    std::vector<std::vector<at::Tensor>> moments;  ///< by moment first
    void add(const Parameter& parameter);
    /// Returns the parts that threads share: tensors or, of large ones, chunks. On a device that is
    /// the whole, since one call takes all tensors.
    std::vector<Batch> parts() const;
  };

  static std::vector<Moment> moments_of(const at::Tensor& value, const OptimizerOptions& options);

  bool has(const at::Tensor& value) const;
  /// Returns a narrow parameter's part of a buffer.
  static at::Tensor part_of(const at::Tensor& buffer, const Parameter& parameter);
  /// Takes memory for a parameter's state, if it has none yet.
  void reserve_state(Parameter& parameter);
  /// Makes a parameter's state, if it has none yet: zeros, and the master. Returns whether it had
  /// none. Called when the state is first needed, so that a run starts sooner.
  bool make_state(Parameter& parameter);
  /// Takes what others have written into a parameter into its master.
  static void refresh_master(Parameter& parameter);
  static void round_master(Parameter& parameter);

  /// The divisor of a fused step is float32, too coarse for float64 gradients.
  static void scale_gradients(Group& group, double factor);
  void step_group(Group& group, double learning_rate, const at::Tensor& divisor);
  /// Returns the seed of a parameter's draws in this step. They follow from step, parameter and
  /// place in it alone, so that a resumed run draws the same, and a slice what the whole draws.
  std::uint64_t seed_of(const Group& group, std::size_t index) const;
  /// Widens what is narrow between steps, a chunk at a time, and rounds it at random.
  void step_in_chunks(const Group& group, std::size_t index, double learning_rate,
                      const at::Tensor& divisor);
  void step_adafactor(const Group& group, std::size_t index, double learning_rate,
                      const at::Tensor& divisor);
  void update_by_rmsprop(const Group& group, const Batch& batch, double learning_rate,
                         const at::Tensor& divisor) const;
  void update(const Group& group, const Batch& batch, double learning_rate,
              const at::Tensor& divisor) const;

  OptimizerOptions options_;
  std::array<Group, 2> groups_;      // decayed, plain
  std::int64_t narrow_numbers_ = 0;  // in each buffer
  at::Tensor gradients_, masters_;   // float32
  std::int64_t steps_done_ = 0;
};

/// While it lives, the parameters of a policy are their masters, in float32, and other narrow ones
/// their own value in float32; without masters nothing changes.
class WideWeights {
 public:
  WideWeights(Optimizer& optimizer, const std::vector<NamedParameter>& parameters)
      : WideWeights(optimizer.masters(), parameters) {}
  WideWeights(const std::vector<Optimizer::Master>& masters,
              const std::vector<NamedParameter>& parameters);
  ~WideWeights();
  WideWeights(const WideWeights&) = delete;
  WideWeights& operator=(const WideWeights&) = delete;

 private:
  std::vector<std::pair<at::Tensor, at::Tensor>> narrow_;  // parameter, its own data
};

}  // namespace prefopt::detail
