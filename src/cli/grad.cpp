// SPDX-License-Identifier: Apache-2.0
#include <fmt/format.h>

#include <cmath>
#include <ostream>
#include <utility>

#include "cli/commands.h"
#include "cli/inputs.h"
#include "core/json.h"
#include "policy/token_range.h"
#include "prefopt/decoder/decoder.h"
#include "prefopt/error.h"
#include "prefopt/policy/reference.h"
#include "prefopt/train/trainer.h"

namespace prefopt::cli {

using detail::Json;

void run_grad(const GradArguments& arguments, std::ostream& out, std::ostream& err) {
  const Loss loss = read_loss(arguments.loss);
  const LossRequirements needs = loss.requirements();
  if (needs.reference() && arguments.reference.empty()) {
    throw ConfigError(
        fmt::format("--ref: expected a model folder, got none; {} compares the "
                    "policy with a reference",
                    loss.info().name));
  }
  const auto tokenizer = load_tokenizer(arguments);
  std::shared_ptr<Policy> policy;
  std::shared_ptr<Decoder> layers;  // the policy, or those of a reward model
  if (needs.of_rewards) {
    const auto model = load_reward_model(arguments, *tokenizer, err);
    layers = std::shared_ptr<Decoder>(model, &model->body());
    policy = model;
  } else {
    policy = layers = load_model(arguments, err);
  }
  std::shared_ptr<Reference> reference;
  if (!arguments.reference.empty()) {
    const bool named = !arguments.tokenizer.empty();
    // Ids without a tokenizer are compared with nothing.
    if (named || !find_tokenizer(arguments.model, arguments.adapter).empty()) {
      check_same_tokens(*tokenizer, arguments.reference, named, err);
    }
    auto frozen =
        Decoder::load(arguments.reference, dtype_for(arguments.reference, arguments.dtype));
    if (frozen->vocab_size() != policy->vocab_size()) {
      throw ConfigError(fmt::format(
          "--ref: expected a model with the policy's vocabulary of {} tokens, got {} with {}",
          policy->vocab_size(), arguments.reference, frozen->vocab_size()));
    }
    frozen->to(policy->device());
    reference = make_frozen_reference(std::move(frozen));
  }
  RowNeeds of_rows = row_needs(needs);
  of_rows.context_length = layers->options().max_position_embeddings;
  const RowMemory memory = row_memory(arguments);
  const auto pairs = read_pairs(arguments.data, *tokenizer,
                                noted_row_options(arguments.rows, arguments.chat_format, memory,
                                                  RowPart::kAll, err),
                                of_rows, memory, err)
                         .pairs;
  detail::check_token_range(pairs, policy->vocab_size(), arguments.data);
  detail::check_row_lengths(pairs, *policy, arguments.data);

  TrainerOptions options;
  options.total_steps = 1;
  options.micro_batch_size = arguments.micro;
  options.sampling =
      with_end_tokens(options.sampling, {}, *layers, *tokenizer, arguments.chat_format);
  options.sampling.seed = arguments.seed;
  Trainer trainer(policy, reference, loss, options);
  const Metrics metrics = trainer.accumulate_gradients(pairs);
  if (const double value = metric(metrics, "loss"); !std::isfinite(value)) {
    throw NonFiniteError(fmt::format("{}: expected a finite loss, got {}", arguments.data, value));
  }

  Json norms = Json::object();
  double sum_of_squares = 0;
  for (const NamedParameter& parameter : policy->named_parameters()) {
    const at::Tensor& grad = parameter.value.grad();
    const double norm = grad.defined() ? grad.to(at::kDouble).norm().item<double>() : 0.0;
    if (!std::isfinite(norm)) {
      throw NonFiniteError(
          fmt::format("{}: expected a finite gradient, got a norm of {}", parameter.name, norm));
    }
    norms[parameter.name] = norm;
    sum_of_squares += norm * norm;
  }
  Json others = Json::object();
  for (const auto& [name, value] : metrics) {
    if (name != "loss" && name != "grad_norm") others[name] = value;
  }
  const Json result{{"loss", metric(metrics, "loss")},
                    {"grad_norm", std::sqrt(sum_of_squares)},
                    {"grad_norms", std::move(norms)},
                    {"metrics", std::move(others)}};
  out << result.dump() << '\n';
}

}  // namespace prefopt::cli
