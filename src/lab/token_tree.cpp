// SPDX-License-Identifier: Apache-2.0
#include "lab/token_tree.h"

#include <cmath>

#include "prefopt/exact/measures.h"

namespace prefopt::lab {
namespace {

double log_sum_exp(const ArrayXd& x) {
  const double most = x.maxCoeff();
  return most + std::log((x - most).exp().sum());
}

}  // namespace

Index TokenTree::width(Index level) const {
  Index width = 1;
  for (Index i = 0; i < level; ++i) width *= letters;
  return width;
}

Index TokenTree::node_of(Index leaf, Index level) const {
  return first(level) + leaf / width(depth - level);
}

Index TokenTree::letter_of(Index leaf, Index level) const {
  return leaf / width(depth - level - 1) % letters;
}

Table random_policy(const TokenTree& tree, double scale, exact::Random& random) {
  return exact::log_softmax(scale * random.normals(tree.letters, tree.nodes()));
}

ArrayXd token_logps(const TokenTree& tree, const Table& policy, Index leaf) {
  return ArrayXd::NullaryExpr(
      tree.depth, [&](Index t) { return policy(tree.letter_of(leaf, t), tree.node_of(leaf, t)); });
}

ArrayXd leaf_logps(const TokenTree& tree, const Table& policy) {
  return ArrayXd::NullaryExpr(tree.leaves(),
                              [&](Index leaf) { return token_logps(tree, policy, leaf).sum(); });
}

Table policy_of_leaves(const TokenTree& tree, const ArrayXd& leaf_logps) {
  Table policy(tree.letters, tree.nodes());
  ArrayXd below = leaf_logps;
  for (Index level = tree.depth - 1; level >= 0; --level) {
    ArrayXd here(tree.width(level));
    for (Index i = 0; i < here.size(); ++i) {
      const ArrayXd children = below.segment(i * tree.letters, tree.letters);
      here[i] = log_sum_exp(children);
      policy.col(tree.first(level) + i) = children - here[i];
    }
    below = here;
  }
  return policy;
}

ArrayXd soft_values(const TokenTree& tree, const Table& ref, const ArrayXd& rewards, double beta) {
  ArrayXd values(tree.nodes() + tree.leaves());
  values.tail(tree.leaves()) = rewards;
  for (Index node = tree.nodes() - 1; node >= 0; --node) {
    // In the order of levels the children of a node are side by side.
    const ArrayXd below = values.segment(node * tree.letters + 1, tree.letters);
    const ArrayXd logps = ref.col(node);
    values[node] =
        std::isinf(beta) ? (logps.exp() * below).sum() : beta * log_sum_exp(logps + below / beta);
  }
  return values;
}

Table tilted_tree(const TokenTree& tree, const Table& ref, const ArrayXd& rewards, double beta) {
  return policy_of_leaves(tree, leaf_logps(tree, ref) + rewards / beta);
}

Table logit_gradient(const Table& policy, const Table& by_logps) {
  return by_logps - policy.exp().rowwise() * by_logps.colwise().sum();
}

double regularized_reward(const TokenTree& tree, const Table& policy, const Table& ref,
                          const ArrayXd& rewards, double beta) {
  return exact::regularized_reward(leaf_logps(tree, policy), leaf_logps(tree, ref), rewards, beta);
}

}  // namespace prefopt::lab
