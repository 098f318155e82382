// SPDX-License-Identifier: Apache-2.0
#pragma once

// Environments that a policy acts in, by texts: games, tools, simulated people.

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "prefopt/export.h"
#include "prefopt/options.h"

namespace prefopt {

/// The facts that an episode is made from. Episodes of one prompt have one seed, so that they are
/// the same task; `index` tells them apart.
struct Episode {
  std::string prompt;
  std::int64_t seed = 0;   ///< in [0, 2^53)
  std::int64_t index = 0;  ///< of the episode among those of its prompt
};

/// The answer of an environment to an action.
struct EnvironmentStep {
  std::string observation;
  double reward = 0;
  bool done = false;  ///< whether the episode is over; the observation then has no reader
};

/// One episode. All that it does follows from its Episode and the actions.
class PREFOPT_API Environment {
 public:
  virtual ~Environment() = default;
  /// Returns the first observation, which becomes the end of the prompt; empty: the prompt alone.
  /// It may not depend on the episode's index.
  virtual std::string start() = 0;
  /// Returns what follows an action: the text that the policy wrote, without its end token, with a
  /// stop string that ended it.
  virtual EnvironmentStep step(const std::string& action) = 0;
};

using EnvironmentFactory = std::function<std::unique_ptr<Environment>(const Episode& episode)>;

/// An action of one of the episodes that Environments began.
struct EpisodeAction {
  std::int64_t episode = 0;  ///< place in the call of `start`
  std::string text;
};

/// Many episodes side by side, in this process or in others.
class PREFOPT_API Environments {
 public:
  virtual ~Environments() = default;
  /// Begins episodes, which are then at places 0, 1, …; those of the call before are forgotten.
  /// Returns their first observations.
  virtual std::vector<std::string> start(const std::vector<Episode>& episodes) = 0;
  /// Takes an action in some episodes, each at most once, and returns what follows, in the order of
  /// the actions. Throws DataError for a reward that is not finite.
  virtual std::vector<EnvironmentStep> step(const std::vector<EpisodeAction>& actions) = 0;
  /// Ends episodes that are not done.
  virtual void end(const std::vector<std::int64_t>& episodes) = 0;
};

/// Returns the environments of a factory, which act one after the other. `start` throws ConfigError
/// for a factory that makes none.
PREFOPT_API std::unique_ptr<Environments> make_environments(EnvironmentFactory factory);

struct EnvironmentProgram {
  std::vector<std::string> command;  ///< program and arguments
  std::int64_t workers = 1;          ///< processes that share the episodes
  double timeout = 60;               ///< seconds to the next answer
  std::int64_t retries = 0;  ///< new starts after an end or a late answer, for each question
};

/// Starts a program that reads a line of JSON a question and answers each with one line, in their
/// order. It has to flush after each line, and ends at the end of its input. A process has many
/// episodes at a time, told apart by a number that is used once.
///
/// | question | answer |
/// | --- | --- |
/// | {"episode": 7, "prompt": …, "seed": …, "index": …} | {"observation": text} |
/// | {"episode": 7, "action": text} | {"observation": text, "reward": number, "done": flag} |
/// | {"episode": 7, "end": true}, of an episode that is not done | {}, any object |
///
/// Where an answer has a key `episode`, it has to be the one of the question; further keys are left
/// alone. A process that ends or is late is started again, `retries` times, and gets all questions
/// of its open episodes once more; DataError where it then answers differently.
///
/// Throws ConfigError for a program that cannot be started or an option out of its range. Calls
/// throw DataError, with the line that came, for an answer of another form or none.
PREFOPT_API std::unique_ptr<Environments> make_program_environments(
    const EnvironmentProgram& program);

/// An environment that a config can name.
struct EnvironmentEntry {
  std::string name = {};
  std::string description = {};  ///< a line, for tables
  std::vector<FieldDoc> options = {};
  std::function<EnvironmentFactory(std::string_view options_json)> make = {};
};

/// Returns the factory of the environment that a JSON text names, or a JSON object by `type`, with
/// its options: "guess", {"type": "guess", "high": 100}. Throws ConfigError, led by `where`, for an
/// unknown name, naming the nearest known one, and for options as options_from_json does.
PREFOPT_API EnvironmentFactory make_environment_factory(std::string_view json,
                                                        std::string_view where = "environment");

/// Returns the environments in the order of registration.
PREFOPT_API std::vector<EnvironmentEntry> registered_environments();
/// Registers an environment. Throws ConfigError if the name is taken.
PREFOPT_API void register_environment(EnvironmentEntry entry);

}  // namespace prefopt
