// SPDX-License-Identifier: Apache-2.0
#include <cmath>
#include <filesystem>
#include <limits>
#include <regex>
#include <string>
#include <tuple>
#include <vector>

#include "core/file.h"
#include "core/json.h"
#include "prefopt/error.h"
#include "prefopt/evaluation/statistics.h"
#include "prefopt/report/report.h"
#include "report/report_charts.h"
#include "report/run_record.h"
#include "report/verdict.h"
#include "support/catch.h"
#include "support/errors.h"
#include "support/run_scene.h"
#include "support/temp_dir.h"

namespace prefopt {
namespace {

namespace fs = std::filesystem;
using detail::RunRecord;
using detail::Verdict;
using testing_support::Json;
using testing_support::TempDir;

/// A run folder made by hand, of a DPO run of four steps.
class Folder {
 public:
  Folder() {
    write("config.json", config_);
    write("env.json", {{"prefopt", "9.8.7"},
                       {"threads", 2},
                       {"cpu", "Quick CPU"},
                       {"processors", 4},
                       {"folder", "/home/me/my runs"},
                       {"command", {"/opt/bin/prefopt", "train", "--set", "a=it's"}},
                       {"started", "2026-01-02T03:04:05Z"}});
    write("run.json", {{"train_rows", 800},
                       {"eval_rows", 200},
                       {"total_steps", 4},
                       {"parameters", 1000},
                       {"trained_parameters", 10}});
    append("metrics.jsonl", evaluation(0, std::log(2.0), 0, 0, -20));
    for (int step = 1; step <= 4; ++step) {
      append("metrics.jsonl",
             {{"step", step}, {"loss", 0.7 - 0.05 * step}, {"grad_norm", 1.5}, {"seconds", step}});
    }
    append("metrics.jsonl", evaluation(4, 0.5, 0.75, 0.6, -19));
    append("samples.jsonl", sample(0, "before"));
    append("samples.jsonl", sample(4, "after"));
    append("notes.jsonl", {{"step", 0}, {"note", "data.train: dropped 3 rows"}});
    append("notes.jsonl", {{"step", 3}, {"note", "a warning"}});
    append("notes.jsonl", {{"step", 2}, {"note", "data.train: dropped 3 rows"}});
  }

  static Json evaluation(int step, double loss, double accuracy, double margin, double chosen) {
    return {{"step", step},
            {"eval_loss", loss},
            {"eval_rewards/accuracies", accuracy},
            {"eval_rewards/margins", margin},
            {"eval_logps/chosen", chosen},
            {"eval_logps/ref_chosen", -20},
            {"eval_kl", 0.5 * step},
            {"seconds", step}};
  }

  static Json sample(int step, const std::string& policy) {
    Json line = {{"step", step},     {"index", 0},         {"prompt", "Say something."},
                 {"policy", policy}, {"policy_tokens", 6}, {"policy_ended", true}};
    if (step == 0) line.update({{"reference", "as ever"}, {"reference_tokens", 7}});
    return line;
  }

  const std::string& path() const { return folder_.path(); }
  std::string file(const std::string& name) const { return folder_.file(name); }
  Json& config() { return config_; }

  void write(const std::string& name, const Json& value) const {
    write_text(name, detail::dump_json(value));
  }
  void write_text(const std::string& name, const std::string& text) const {
    testing_support::write_text(file(name), text);
  }
  void append(const std::string& name, const Json& line) const {
    write_text(name, (fs::exists(file(name)) ? text(name) : "") + detail::dump_json(line) + "\n");
  }
  std::string text(const std::string& name) const {
    return detail::read_file<DataError>(file(name));
  }
  Verdict verdict() const { return detail::judge(detail::read_run(path())); }

 private:
  TempDir folder_;
  Json config_ = {
      {"output_dir", "runs/a b"},
      {"loss", {{"type", "dpo"}, {"beta", 0.2}, {"label_smoothing", 0}, {"use_weights", true}}},
      {"model", {{"path", "models/start"}, {"dtype", "float32"}}},
      {"reference", {{"kind", "frozen"}, {"path", ""}}},
      {"data", {{"train", "pairs.jsonl"}, {"eval", ""}}},
      {"optimizer", {{"learning_rate", 0.001}, {"schedule", "linear"}, {"warmup_steps", 5}}},
      {"batch", {{"rows", 16}}},
      {"sampling", {{"temperature", 1}}}};
};

bool contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

std::size_t count(const std::string& text, const std::string& part) {
  std::size_t found = 0;
  for (auto at = text.find(part); at != std::string::npos; at = text.find(part, at + 1)) ++found;
  return found;
}

/// Whether every tag that is opened is closed, in order; nothing else is asked of the page.
bool is_balanced(const std::string& html) {
  static const std::regex tag("<(/?)([a-zA-Z][a-zA-Z0-9]*)([^<>]*)>");
  static const std::vector<std::string> kVoid = {"meta", "br"};
  std::vector<std::string> open;
  for (std::sregex_iterator it(html.begin(), html.end(), tag), end; it != end; ++it) {
    const std::string name = (*it)[2];
    const std::string rest = (*it)[3];
    if (std::find(kVoid.begin(), kVoid.end(), name) != kVoid.end() || rest.ends_with('/')) continue;
    if ((*it)[1] == "") {
      open.push_back(name);
    } else if (open.empty() || open.back() != name) {
      return false;
    } else {
      open.pop_back();
    }
  }
  return open.empty();
}

TEST_CASE("a report says what was trained on what and how it went", "[report]") {
  const Folder folder;
  const std::string html = report_html(folder.path());
  CHECK(html.starts_with("<!DOCTYPE html>\n<html lang=\"en\">"));
  CHECK(is_balanced(html));
  for (const std::string part : {
           "It worked. Of 200 held-out pairs the trained policy prefers the chosen completion in "
           "75.0 % (95 % interval 68.6 to 80.5 %), where a policy equal to its reference would be "
           "at 50 %.",
           "<b>75.0 %</b>",
           "95 %: 68.6 to 80.5",
           "<code>models/start</code>, 1000 parameters, 10 of them trained in float32",
           "the policy as it was before training",
           "<code>pairs.jsonl</code>: 800 rows train, the last 200 are held out",
           "<code>dpo</code>: <code>-(1-eps) logsigmoid(beta*delta) - eps "
           "logsigmoid(-beta*delta)</code>",
           "<a href=\"https://arxiv.org/abs/2305.18290\">arXiv:2305.18290</a> eq. 7",
           "<code>beta</code> = <code>0.2</code> – strength of the KL penalty",
           "<code>use_weights</code> = <code>true</code>",
           "AdamW, learning rate 0.001 (linear, 5 warm-up steps)",
           "4 steps of 16 rows, 0.08 times through the data, in 4 s",
           "step 0</th>",
           "step 4</th>",
           "<td class=\"number\">0.6931</td><td class=\"number\">0.5</td>",
           "<th scope=\"row\">Accuracy</th><td class=\"number\">all tie</td>",
           "<p class=\"text prompt\">Say something.</p>",
           "Reference, 7 tokens",
           "as ever",
           "Policy at step 4, 6 tokens</p><p class=\"text\">after</p>",
           "<li>data.train: dropped 3 rows</li>\n<li>Step 3: a warning</li>\n</ul>",
           "<code>/home/me/my runs</code>",
           "prefopt train --config &#39;runs/a b/config.json&#39; --set &#39;output_dir=runs/a "
           "b-again&#39; --set machine.threads=2",
           "/opt/bin/prefopt train --set &#39;a=it&#39;\\&#39;&#39;s&#39;",
           "Quick CPU × 4",
           "started 2026-01-02T03:04:05Z",
           "&quot;output_dir&quot;: &quot;runs/a b&quot;",
       }) {
    INFO(part);
    CHECK(contains(html, part));
  }
  // A default that the formula does not name is not worth a line.
  CHECK_FALSE(contains(html, "<code>label_smoothing</code> ="));
  // Loss, margin, accuracy, likelihood, KL, gradient norm.
  CHECK(count(html, "<figure>") == 6);
  CHECK(count(html, "<svg ") == 6);
}

TEST_CASE("a report is one file that loads nothing and runs nothing", "[report]") {
  const Folder folder;
  const std::string path = write_report(folder.path());
  CHECK(path == folder.file("report.html"));
  const std::string html = folder.text("report.html");
  CHECK(html == report_html(folder.path()));  // and the report is no part of what it reports
  for (const std::string part : {"<script", "<link", "<img", "url(", "@import", " src=", " on"}) {
    INFO(part);
    const bool in_text = part == " on";
    CHECK((in_text ? !std::regex_search(html, std::regex("<[^>]* on[a-z]+="))
                   : !contains(html, part)));
  }
  CHECK(contains(html, "default-src 'none'"));
}

TEST_CASE("nothing in a run folder can write the page", "[report]") {
  const std::string hostile = "</p></pre><script>alert(1)</script><img src=x onerror=\"a\">'&\x01";
  Folder folder;
  for (auto& item : folder.config().items()) {
    if (item.value().is_string()) {
      item.value() = hostile;
    } else {
      for (auto& inner : item.value().items()) inner.value() = hostile;
      item.value()[hostile] = hostile;
    }
  }
  folder.write("config.json", folder.config());
  folder.write("env.json", {{"prefopt", hostile},
                            {"cpu", hostile},
                            {"folder", hostile},
                            {"threads", 1},
                            {"command", {hostile, 7, nullptr}},
                            {"system", hostile}});
  folder.append("metrics.jsonl", {{"step", 5}, {"loss/" + hostile, 1}, {hostile, 2}});
  folder.append("notes.jsonl", {{"step", 1}, {"note", hostile}});
  Json sample = Folder::sample(0, hostile);
  sample["index"] = 1;
  sample["prompt"] = hostile;
  sample["reference"] = {hostile};
  folder.append("samples.jsonl", sample);
  const std::string html = report_html(folder.path());
  CHECK(is_balanced(html));
  CHECK_FALSE(contains(html, "<script"));
  CHECK_FALSE(contains(html, "<img"));
  CHECK_FALSE(contains(html, "\x01"));
  CHECK(count(html, "&lt;script&gt;") > 20);
}

TEST_CASE("what is missing or damaged in a run folder is said in its report", "[report]") {
  const Folder folder;
  const auto gaps = [&] { return detail::read_run(folder.path()).gaps; };
  CHECK(gaps().empty());

  folder.write_text("metrics.jsonl",
                    folder.text("metrics.jsonl") + "[1]\n{\"step\": 6, \"loss\": 0.1");
  CHECK(gaps() ==
        std::vector<std::string>{"metrics.jsonl: 2 of 8 lines cannot be read (line 7, 8)"});
  CHECK(detail::read_run(folder.path()).last_step() == 4);
  folder.write_text("env.json", "{\"threads\": ");
  CHECK(gaps().at(0).starts_with("env.json: expected JSON, got something else: "));
  folder.write_text("env.json", "3");
  CHECK(gaps().at(0) == "env.json: expected an object, got number");
  fs::remove(folder.file("env.json"));
  fs::remove(folder.file("run.json"));
  CHECK(gaps().at(0) == "env.json: No such file or directory");
  CHECK(gaps().at(1) == "run.json: No such file or directory");
  CHECK(contains(report_html(folder.path()),
                 "<li>This folder is not whole: run.json: No such file or directory</li>"));

  // Metrics alone make a report, and so does a config alone.
  for (const auto* name : {"config.json", "samples.jsonl", "notes.jsonl"}) {
    fs::remove(folder.file(name));
  }
  CHECK(is_balanced(report_html(folder.path())));
  const Folder other;
  for (const auto* name : {"metrics.jsonl", "samples.jsonl", "notes.jsonl", "run.json"}) {
    fs::remove(other.file(name));
  }
  const std::string html = report_html(other.path());
  CHECK(is_balanced(html));
  CHECK(contains(html, "The run has not logged a step yet."));
  fs::remove(other.file("config.json"));
  CHECK_THROWS_TEXT(
      report_html(other.path()), CheckpointError,
      other.path() + ": expected a run folder, got one without config.json and metrics.jsonl");
}

TEST_CASE("a run folder with the wrong kinds of values makes a report", "[report]") {
  const Folder folder;
  for (const std::string odd : {"null", "[]", "{}", "1e999", "\"x\"", "{\"a\": {\"b\": [1]}}"}) {
    INFO(odd);
    for (const auto* name :
         {"config.json", "env.json", "run.json", "metrics.jsonl", "samples.jsonl", "notes.jsonl"}) {
      const std::string before = folder.text(name);
      folder.write_text(name, odd + "\n");
      CHECK(is_balanced(report_html(folder.path())));
      folder.write_text(name, before);
    }
  }
  for (const auto* key : {"loss", "model", "reference", "data", "optimizer", "train", "sampling"}) {
    Folder changed;
    for (const Json& odd : {Json(nullptr), Json(3), Json("x"), Json::array({1, "a"})}) {
      changed.config()[key] = odd;
      changed.write("config.json", changed.config());
      CHECK(is_balanced(report_html(changed.path())));
    }
  }
}

TEST_CASE("the verdict follows the interval, not the point", "[report]") {
  using Outcome = Verdict::Outcome;
  const auto outcome = [](int rows, double before, double margin_before, double after) {
    Folder folder;
    folder.write("run.json", {{"eval_rows", rows}, {"total_steps", 4}});
    folder.write_text("metrics.jsonl", "");
    folder.append("metrics.jsonl", Folder::evaluation(0, 0.7, before, margin_before, -20));
    folder.append("metrics.jsonl", Folder::evaluation(4, 0.5, after, 0.5, -20));
    return folder.verdict().outcome;
  };
  // A policy that begins as its reference wins no pair, which is no accuracy of 0.
  CHECK(outcome(200, 0, 0, 0.6) == Outcome::kBetter);
  CHECK(outcome(20, 0, 0, 0.6) == Outcome::kUnclear);
  CHECK(outcome(200, 0, 0, 0.5) == Outcome::kUnclear);
  CHECK(outcome(200, 0, 0, 0.4) == Outcome::kWorse);
  // Another one is compared with itself.
  CHECK(outcome(200, 0.6, 0.1, 0.6) == Outcome::kUnclear);
  CHECK(outcome(200, 0.6, 0.1, 0.65) == Outcome::kUnclear);
  CHECK(outcome(200, 0.6, 0.1, 0.8) == Outcome::kBetter);
  CHECK(outcome(200, 0.6, 0.1, 0.4) == Outcome::kWorse);
}

TEST_CASE("preferences learned at the price of the language are no success", "[report]") {
  const auto sentence = [](double before, double after) {
    const Folder folder;
    folder.write_text("metrics.jsonl", "");
    Json first = Folder::evaluation(0, 0.7, 0, 0, -20);
    Json last = Folder::evaluation(4, 0.1, 0.9, 5, -20);
    first["eval_mean_token_accuracy"] = before;
    last["eval_mean_token_accuracy"] = after;
    folder.append("metrics.jsonl", first);
    folder.append("metrics.jsonl", last);
    return folder.verdict().sentence;
  };
  CHECK(sentence(0.9, 0.82).starts_with("It worked. Of 200 held-out pairs "));
  CHECK(sentence(0.9, 0.5).starts_with("It learned the preferences, at a price. Of 200 "));
  CHECK(sentence(0.9, 0.5).find("fell from 90.0 % to 50.0 %.") != std::string::npos);
}

TEST_CASE("without rewards the loss decides, and without held-out rows nothing does", "[report]") {
  const auto verdict = [](double before, double after) {
    const Folder folder;
    folder.write_text("metrics.jsonl", "");
    folder.append("metrics.jsonl", {{"step", 0}, {"eval_loss", before}});
    folder.append("metrics.jsonl", {{"step", 4}, {"eval_loss", after}});
    return folder.verdict().sentence;
  };
  CHECK(verdict(5.5, 2) == "It learned: the loss on held-out rows fell from 5.5 to 2.");
  CHECK(verdict(2, 2.1) == "It got worse: the loss on held-out rows rose from 2 to 2.1.");
  CHECK(verdict(2, 2.001) == "No clear effect: the loss on held-out rows went from 2 to 2.001.");
  CHECK(verdict(2, std::numeric_limits<double>::quiet_NaN()) ==
        "It broke: the loss of the last evaluation is not a finite number.");

  const Folder folder;
  folder.write_text("metrics.jsonl", "{\"step\": 0, \"eval_loss\": 2}\n");
  CHECK(folder.verdict().sentence ==
        "There is only one evaluation so far, with which nothing can be compared.");
  folder.write_text("metrics.jsonl", "{\"step\": 1, \"loss\": 2}\n{\"step\": 2, \"loss\": 1}\n");
  CHECK(folder.verdict().sentence ==
        "No rows were held out, so nothing here says what the policy does on other rows. The loss "
        "on the training rows went from 2 to 1.");
}

TEST_CASE("the report warns of what goes wrong in silence", "[report]") {
  Folder folder;
  CHECK(folder.verdict().warnings.empty());

  folder.write("run.json", {{"eval_rows", 50}, {"total_steps", 9}});
  folder.append("metrics.jsonl", Folder::evaluation(6, 0.4, 0.8, 0.9, -25.5));
  folder.append("metrics.jsonl", {{"step", 7}, {"loss", nullptr}, {"skipped", 1}});
  folder.append("metrics.jsonl", Folder::evaluation(8, 0.6, 0.8, 0.9, -25.5));
  CHECK(folder.verdict().warnings ==
        std::vector<std::string>{
            "The run is not complete: step 8 of 9 is the last one in this folder.",
            "Likelihood displacement: the chosen completions have become less likely than under "
            "the reference, -25.50 against -20.00 nats. A margin that grows all the same comes "
            "from rejected ones that fall further. A loss with an SFT term (rpo) holds the chosen "
            "ones up.",
            "The held-out loss was lowest at step 6 (0.4) and is 0.6 at the end: an earlier "
            "checkpoint may be the better one.",
            "1 steps changed nothing, because loss or gradient was not finite.",
            "Only 50 rows were held out: small effects cannot be seen."});
  std::string html = report_html(folder.path());
  CHECK(count(html, "<li>The run is not complete") == 1);
  CHECK(contains(html, "8 of 9 steps of 16 rows"));
  folder.write("run.json", {{"eval_rows", 50}, {"total_steps", 9}, {"complete", true}});
  html = report_html(folder.path());
  CHECK_FALSE(contains(html, "not complete"));
  CHECK(contains(html, "it ended early, as no evaluation was a new best"));
}

TEST_CASE("steps that come again replace what was there", "[report]") {
  const Folder folder;
  folder.append("metrics.jsonl", {{"step", 3}, {"loss", 7}});
  const RunRecord record = detail::read_run(folder.path());
  const auto& loss = record.train.at("loss");
  CHECK(loss.steps == std::vector<double>{1, 2, 3});
  CHECK(loss.values.back() == 7);
}

// Reference values: statsmodels 0.15.0, proportion_confint(…, method="wilson").
TEST_CASE("Wilson's interval is that of statsmodels", "[report]") {
  const auto check = [](double wins, double rows, double low, double high) {
    const auto interval = wilson_rate(wins / rows, rows);
    CHECK(interval.low == Approx(low).epsilon(1e-12).margin(1e-15));
    CHECK(interval.high == Approx(high).epsilon(1e-12));
  };
  check(150, 200, 0.6856590168795417, 0.8049183199318249);
  check(0, 10, 0.0, 0.27753279986288926);
  check(10, 10, 0.7224672001371106, 1.0);
  check(1, 3, 0.06149194472039626, 0.7923403991979523);
}

TEST_CASE("the page of rounds shows evaluations by round", "[report]") {
  const Folder folder;
  for (const auto& [round, step, rows] : {std::tuple{1, 1, 4}, {2, 2, 0}, {3, 3, 4}}) {
    folder.append("rounds.jsonl", {{"round", round},
                                   {"step", step},
                                   {"pairs/kept", rows},
                                   {"questions", 8},
                                   {"samples/reward", 0.25 * round}});
  }
  for (const auto& [step, first, last] : {std::tuple{0, 0.5, 0.5}, {2, 0.6, 0.7}, {4, 0.8, 0.9}}) {
    Json line = {{"step", step}, {"eval_reward", first}, {"eval_win_rate", first}};
    if (step > 0) line["eval_win_rate_last"] = last;
    folder.append("metrics.jsonl", line);
  }
  const std::string html = report_html(folder.path());
  CHECK(is_balanced(html));
  // By round, and not by step as well.
  CHECK(count(html, "over those of held-out prompts, after penalties") == 1);
  CHECK(count(html, "Mean over completions of held-out prompts") == 0);
  for (const std::string part : {"against the first policy", "against the last policy",
                                 "held-out prompts", ">Questions asked<", "KL to the reference"}) {
    CAPTURE(part);
    CHECK(contains(html, part));
  }
}

TEST_CASE("a long curve is drawn by means over neighbours", "[report]") {
  detail::Curve curve;
  for (int step = 1; step <= 10; ++step) {
    curve.steps.push_back(step);
    curve.values.push_back(step == 4 ? std::numeric_limits<double>::quiet_NaN() : step);
  }
  CHECK(detail::thinned(curve, 10).steps == curve.steps);
  const auto few = detail::thinned(curve, 3);
  CHECK(few.steps == std::vector<double>{3, 6, 10});
  CHECK(few.values == std::vector<double>{2, 5.5, 8.5});
}

}  // namespace
}  // namespace prefopt
